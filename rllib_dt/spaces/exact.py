"""Buffers that keep their precision when a network is converted to a smaller dtype."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose buffers named by `exact` are never less than float32.

    Statistics and bounds lose their meaning in half precision: -0.4 becomes -0.4004, outside of the
    bounds. `network.bfloat16()` leaves them as they are; `network.double()` converts them.
    """

    exact: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "ExactBuffers":
        kept = {name: getattr(self, name) for name in self.exact if hasattr(self, name)}
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype.itemsize < 4 <= before.dtype.itemsize:
                setattr(self, name, before.to(after.device))
        return self


def at_least_float32(values: Tensor) -> Tensor:
    """Returns half-precision values as float32, and others unchanged."""
    return values.float() if values.dtype.itemsize < 4 else values
