"""`Layout`: one of the ways in which a kind of file holds episodes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from rllib_dt.formats.fragments import Fragment

Given = TypeVar("Given")


@dataclass(frozen=True)
class Layout(Generic[Given]):
    """A layout of episodes; `Given` is an open file of its kind.

    Attributes:
        matches: whether an open file has the layout.
        read: yields the file's fragments.
    """

    matches: Callable[[Given], bool]
    read: Callable[[Given], Iterator[Fragment]]
