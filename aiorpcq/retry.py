"""Trying again: what methods and callers say about it. What follows from that is decided in `protocol.retries`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .deadline import check_timeout
from .limits import check_integer

__all__ = ["Busy", "Retry", "RetryBudget", "RetryPolicy"]

MAXIMUM_DELAY = 3600.0
"""Seconds that a request can be held back, the longest of the broker's delay queues."""

_MOST_ATTEMPTS = 1_000


class Retry(Exception):
    """Raised by a method that wants to be run again, after *delay* seconds.

    The broker holds the request meanwhile, not a place of the worker, for the time rounded up to 0.1, 0.5, 1, 2, 5, 10,
    30, 60, 300, 600, 1,800 or 3,600 seconds. A caller that reads states sees RETRY with *reason*. A method that never
    stops to raise it is ended by the caller's deadline, and after *attempts* runs, 100 by default, by a FAILURE.

    Raises:
        ValueError: *delay* is not between 0 and 3,600, or *attempts* not between 1 and 1,000.
    """

    def __init__(self, reason: str = "", *, delay: float = 0.0, attempts: int = 100) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = _check_delay(delay, "delay")
        self.attempts = check_integer(attempts, "attempts", 1, _MOST_ATTEMPTS)


class Busy(Exception):
    """Raised by a method that has done nothing and cannot now: the caller gets `Overloaded`, not executed.

    Raises:
        ValueError: *retry_after*, in seconds, is not a number from 0 on.
    """

    def __init__(self, reason: str = "busy", *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = check_timeout(retry_after, "retry_after")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a worker runs a method again that raised, and after how long.

    The delay before run n + 1 is `backoff * factor ** (n - 1)`, at most *limit*; with *jitter* "full" a random part of
    that (Brooker, "Exponential Backoff And Jitter"), with "none" all of it, then rounded up as `Retry` says.

    Attributes:
        on: the exception classes to try again after. It must be said: most failures are not cured by that.
        attempts: how often the method is run at the most, the first time included; 2 to 1,000. There is no unbounded
            retry.
        backoff: seconds.
        factor: at least 1.
        limit: seconds, at most 3,600.
        jitter: "full" or "none".

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    on: tuple[type[BaseException], ...]
    attempts: int = 3
    backoff: float = 1.0
    factor: float = 2.0
    limit: float = 60.0
    jitter: Literal["full", "none"] = "full"

    def __post_init__(self) -> None:
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        if not classes or not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
            raise ValueError(f"retry.on: {self.on!r:.100} is not a tuple of exception classes")
        object.__setattr__(self, "on", classes)
        check_integer(self.attempts, "retry.attempts", 2, _MOST_ATTEMPTS)
        _check_delay(self.backoff, "retry.backoff")
        _check_delay(self.limit, "retry.limit")
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)) or not 1 <= self.factor <= 100:
            raise ValueError(f"retry.factor: {self.factor!r} is not between 1 and 100")
        if self.jitter not in ("full", "none"):
            raise ValueError(f"retry.jitter: {self.jitter!r} is neither full nor none")


class RetryBudget:
    """How many calls may be made again, so that retries do not multiply an overload: a token bucket.

    A call that is made again takes a token; a call that succeeds puts *ratio* of one back, up to *capacity*, which it
    starts with. So while everything fails at most *capacity* calls are made again, and in the long run *ratio* of all.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    __slots__ = ("capacity", "ratio", "refused", "tokens")

    def __init__(self, *, ratio: float = 0.1, capacity: int = 100) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
            raise ValueError(f"ratio: {ratio!r} is not between 0 and 1")
        self.ratio = float(ratio)
        self.capacity = check_integer(capacity, "capacity", 0, 2**31)
        self.tokens = float(capacity)
        self.refused = 0

    def __repr__(self) -> str:
        return f"<RetryBudget with {self.tokens:g} of {self.capacity}>"

    def put(self) -> None:
        """Count a call that succeeded."""
        self.tokens = min(float(self.capacity), self.tokens + self.ratio)

    def take(self) -> bool:
        """Take a token for a call to be made again; return False where there is none left."""
        if self.tokens < 1:
            self.refused += 1
            return False
        self.tokens -= 1
        return True


def _check_delay(value: float, option: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAXIMUM_DELAY:
        raise ValueError(f"{option}: {value!r} is not between 0 and {MAXIMUM_DELAY:.0f} seconds")
    return float(value)
