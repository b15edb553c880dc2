"""`TimeLimit`: ends calls that do not return, by an alarm of the operating system."""

import signal
import threading
import time
from types import FrameType

_AT_ONCE_SECONDS = 1e-3
"""What an alarm is set to that fell due meanwhile; 0 would cancel it."""

_EVERY_SECONDS = 1.0
"""How often an alarm is repeated, for environments that swallow it."""


class EnvironmentHangsError(TimeoutError):
    """An environment did not return from `reset` or `step` in time."""


class TimeLimit:
    """Raises an EnvironmentHangsError in a call that takes too long, and then every second.

    `with limit:` sets an alarm for all calls within, `with limit.call(name):` encloses each one.
    Another alarm may be set in this process: it is put back with the time that it has left.

    Args:
        seconds: what each call may take; None for as long as it likes.
    """

    # one alarm for several calls, since setting it takes longer than what is done at each of them

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self._call = _Call(self)
        self.until: float | None = None

    def call(self, name: str) -> "_Call":
        """Returns a context manager for a call of `reset`, `step` or `close`."""
        self._call.name = name
        return self._call

    def __enter__(self) -> "TimeLimit":
        self._is_set = self.seconds is not None and _is_main_thread()
        if self._is_set:
            self._started = time.monotonic()
            self._theirs = signal.getitimer(signal.ITIMER_REAL)
            self._handler = signal.signal(signal.SIGALRM, self._interrupt)
            signal.setitimer(signal.ITIMER_REAL, self.seconds or 0.0, _EVERY_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_set:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        delay, interval = self._theirs
        if delay:
            left = delay - (time.monotonic() - self._started)
            signal.setitimer(signal.ITIMER_REAL, max(left, _AT_ONCE_SECONDS), interval)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.until is None:
            return
        left = self.until - time.monotonic()
        if left <= 0:
            raise EnvironmentHangsError(
                f"the environment's {self._call.name} took more than {self.seconds:g} s"
            )
        # the alarm was set for an earlier call
        signal.setitimer(signal.ITIMER_REAL, max(left, _AT_ONCE_SECONDS), _EVERY_SECONDS)


class _Call:
    """A call within a `TimeLimit`; a class, since a generator takes longer."""

    def __init__(self, limit: TimeLimit):
        self._limit = limit
        self.name = ""

    def __enter__(self) -> None:
        if self._limit.seconds is not None:
            self._limit.until = time.monotonic() + self._limit.seconds

    def __exit__(self, *error: object) -> None:
        self._limit.until = None


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
