"""`TimeLimit`: ends calls that do not return, by an alarm of the operating system."""

import math
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
    Another alarm may be set in this process: it is put back with the time that it has left. A call
    may set alarms of its own, which end with it.

    Args:
        seconds: what each call may take; None for as long as it likes.
    """

    # one alarm for several calls, since setting it takes longer than what is done at each of them

    def __init__(self, seconds: float | None):
        self._seconds = seconds or 0.0
        self._is_needed, self._is_set = seconds is not None, False
        self._ring = self._interrupt  # one object, so that it can be told from another handler
        self._name, self._until = "", math.inf
        self._call = _Call(self)

    def call(self, name: str) -> "_Call":
        """Returns a context manager for a call of `reset`, `step` or `close`."""
        self._name = name
        return self._call

    def begin(self) -> None:
        """Begins the time of a call."""
        if not self._is_set:
            return
        self._until = time.monotonic() + self._seconds
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        # an earlier call has set an alarm of its own, or has been ended by ours
        if not 0 < left <= self._seconds or signal.getsignal(signal.SIGALRM) is not self._ring:
            self._arm(self._seconds)

    def end(self) -> None:
        """Ends the time of a call."""
        self._until = math.inf

    def __enter__(self) -> "TimeLimit":
        self._is_set = self._is_needed and _is_main_thread()
        if self._is_set:
            self._started = time.monotonic()
            self._theirs = signal.getitimer(signal.ITIMER_REAL)
            self._handler = signal.getsignal(signal.SIGALRM)
            self._arm(self._seconds)
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_set:
            return
        self._is_set = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        delay, interval = self._theirs
        if delay:
            left = delay - (time.monotonic() - self._started)
            signal.setitimer(signal.ITIMER_REAL, max(left, _AT_ONCE_SECONDS), interval)

    def _arm(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, _AT_ONCE_SECONDS), _EVERY_SECONDS)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise EnvironmentHangsError(
                f"the environment's {self._name} took more than {self._seconds:g} s"
            )
        if left < math.inf:  # the alarm was set for an earlier call
            self._arm(left)


class _Call:
    """A call within a `TimeLimit`; a class, since a generator takes longer."""

    def __init__(self, limit: TimeLimit):
        self._limit = limit

    def __enter__(self) -> None:
        self._limit.begin()

    def __exit__(self, *error: object) -> None:
        self._limit.end()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
