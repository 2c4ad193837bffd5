"""Whether a call is made again, and after how long: by the caller, and by the worker.

The arithmetic is the full-jitter backoff of one line each; the libraries made for it carry loops and sleeps with them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, Protocol

from ..errors import Overloaded, RPCError
from ..retry import Retry, RetryBudget, RetryPolicy

__all__ = ["DELAY_STEPS", "Chance", "call_delay", "delay_step", "run_delay"]

DELAY_STEPS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)
"""Seconds that a request can be held back by the broker, one queue for each."""

_CALL_BACKOFF: Final = 0.05
_CALL_BACKOFF_LIMIT: Final = 5.0
_DOUBLINGS: Final = 20  # past every limit; without a bound the power would overflow


class Chance(Protocol):
    """Where chance comes from: `random.Random`, or a test's own."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between *a* and *b*."""


def delay_step(delay: float) -> float:
    """Return the step that holds a request for at least *delay* seconds, the longest where none does."""
    return DELAY_STEPS[min(bisect_left(DELAY_STEPS, delay), len(DELAY_STEPS) - 1)]


def call_delay(
    error: RPCError,
    retries: int,
    made: int,
    remaining: float | None,
    budget: RetryBudget,
    rng: Chance,
    idempotent: bool,
) -> float | None:
    """Return after how many seconds a call that ended in *error* is to be made again; None for not at all.

    Only where trying again can help, and the method is known not to have run, or may run twice (*idempotent*).
    *retries* is how often it may be made again, *made* how often it was; *remaining* are the seconds to the deadline.
    """
    if made >= retries or not error.retryable or (error.maybe_executed and not idempotent):
        return None
    delay = rng.uniform(0, min(_CALL_BACKOFF_LIMIT, _CALL_BACKOFF * 2 ** min(made, _DOUBLINGS)))
    if isinstance(error, Overloaded) and error.retry_after is not None:
        delay += error.retry_after
    if remaining is not None and delay >= remaining:
        return None
    return delay if budget.take() else None


def run_delay(
    error: BaseException, policy: RetryPolicy | None, attempt: int, remaining: float | None, rng: Chance
) -> float | None:
    """Return after how many seconds a request whose run *attempt* raised *error* is to run again; None for not at all.

    *remaining* are the seconds left until the deadline: what would run past it is not held back.
    """
    if isinstance(error, Retry):
        if attempt >= error.attempts:
            return None
        delay = error.delay
    elif policy is None or not isinstance(error, policy.on) or attempt >= policy.attempts:
        return None
    else:
        delay = min(policy.limit, policy.backoff * policy.factor ** min(attempt - 1, _DOUBLINGS))
        if policy.jitter == "full":
            delay = rng.uniform(0, delay)
    if remaining is None:
        return delay
    return delay if (delay_step(delay) if delay > 0 else 0.0) < remaining else None
