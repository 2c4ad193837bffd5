"""What methods and callers say about trying again: wrong options are named, the budget caps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.retry import Busy, Retry, RetryBudget, RetryPolicy

NOT_DELAYS: tuple[Any, ...] = (-0.1, 3600.1, float("nan"), float("inf"), "1", None, True)


def test_a_retry_says_when_and_why() -> None:
    retry = Retry("not yet", delay=5)
    assert (str(retry), retry.reason, retry.delay, retry.attempts) == ("not yet", "not yet", 5.0, 100)
    assert Retry().delay == 0.0


@pytest.mark.parametrize("delay", NOT_DELAYS)
def test_a_delay_that_the_broker_cannot_hold_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match=r"^delay: "):
        Retry(delay=delay)


@pytest.mark.parametrize("attempts", [0, -1, 1_001, 1.5, None, True])
def test_a_retry_without_bound_is_refused(attempts: Any) -> None:
    with pytest.raises(ValueError, match=r"^attempts: "):
        Retry(attempts=attempts)


def test_a_busy_method_says_when_to_come_again() -> None:
    assert Busy().retry_after is None
    assert (str(Busy("full", retry_after=3)), Busy(retry_after=3).retry_after) == ("full", 3.0)


@pytest.mark.parametrize("retry_after", [-1, float("nan"), "1", True])
def test_a_busy_method_that_says_nonsense_is_told(retry_after: Any) -> None:
    with pytest.raises(ValueError, match=r"^retry_after: "):
        Busy(retry_after=retry_after)


def test_one_class_is_a_policy_too() -> None:
    on: Any = OSError
    assert RetryPolicy(on=on).on == (OSError,)


@pytest.mark.parametrize("on", [(), None, "OSError", (OSError, 5), [OSError], OSError("x")])
def test_a_policy_that_says_not_what_to_retry_on_is_refused(on: Any) -> None:
    with pytest.raises(ValueError, match=r"^retry\.on: "):
        RetryPolicy(on=on)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("attempts", value) for value in (0, 1, 1_001, 2.5, None, float("inf"), True)),
        *((option, value) for option in ("backoff", "limit") for value in NOT_DELAYS),
        *(("factor", value) for value in (0.9, -1, 101, float("nan"), "2", None, True)),
        *(("jitter", value) for value in ("some", None, True)),
    ],
)
def test_an_option_of_a_policy_that_is_out_of_range_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^retry\.{option}: "):
        RetryPolicy(on=(OSError,), **{option: value})


def test_a_full_budget_lets_its_capacity_through() -> None:
    budget = RetryBudget(capacity=3)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    assert budget.refused == 2


def test_an_empty_budget_fills_with_successes() -> None:
    budget = RetryBudget(ratio=0.5, capacity=1)
    assert budget.take()
    budget.put()
    assert not budget.take()
    budget.put()
    assert budget.take()


def test_a_budget_of_nothing_lets_nothing_through() -> None:
    budget = RetryBudget(ratio=1.0, capacity=0)
    budget.put()
    assert not budget.take()


@given(st.floats(0, 1), st.integers(0, 10), st.lists(st.booleans(), max_size=200))
def test_no_more_is_retried_than_capacity_and_ratio_allow(ratio: float, capacity: int, succeeded: list[bool]) -> None:
    budget = RetryBudget(ratio=ratio, capacity=capacity)
    taken = 0
    for success in succeeded:
        if success:
            budget.put()
        else:
            taken += budget.take()
        assert 0 <= budget.tokens <= capacity
    assert taken <= capacity + ratio * sum(succeeded) + 1e-9


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("ratio", value) for value in (-0.1, 1.1, float("nan"), "1", None, True)),
        *(("capacity", value) for value in (-1, 1.5, None, 2**31 + 1, True)),
    ],
)
def test_an_option_of_a_budget_that_is_out_of_range_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: "):
        RetryBudget(**{option: value})


def test_the_text_of_a_budget_tells_what_is_left() -> None:
    assert repr(RetryBudget(capacity=7)) == "<RetryBudget with 7 of 7>"
