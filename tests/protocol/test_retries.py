"""When something is tried again: by whom, how often, and how much later."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.errors import ConnectionLost, DeadlineExceeded, Overloaded, RemoteError, RPCError, Unroutable, WorkerLost
from aiorpcq.protocol.retries import DELAY_STEPS, call_delay, delay_step, run_delay
from aiorpcq.retry import MAXIMUM_DELAY, Retry, RetryBudget, RetryPolicy

POLICY = RetryPolicy(on=(ConnectionError,), attempts=4, backoff=1.0, factor=3.0, limit=5.0, jitter="none")
LOST = ConnectionLost("lost", maybe_executed=False)


class Extreme(Random):
    """Chance that always takes the far end."""

    def uniform(self, a: float, b: float) -> float:
        return b


def call_again(error: RPCError = LOST, **options: Any) -> float | None:
    given_options: dict[str, Any] = {
        "retries": 3,
        "made": 0,
        "remaining": None,
        "budget": RetryBudget(),
        "rng": Extreme(),
        "idempotent": False,
    }
    return call_delay(error, **{**given_options, **options})


def run_again(error: BaseException, attempt: int = 1, *, remaining: float | None = None) -> float | None:
    return run_delay(error, POLICY, attempt, remaining, Extreme())


# the steps that the broker can hold a request for


@given(st.floats(0, MAXIMUM_DELAY))
def test_a_request_is_held_at_least_as_long_as_it_should_and_no_longer_than_it_must(delay: float) -> None:
    step = delay_step(delay)
    assert step >= delay
    assert all(other < delay for other in DELAY_STEPS if other < step)


def test_no_step_is_longer_than_the_longest_delay() -> None:
    assert max(DELAY_STEPS) == MAXIMUM_DELAY
    assert delay_step(MAXIMUM_DELAY + 1) == MAXIMUM_DELAY


def test_the_steps_are_in_order_and_of_whole_milliseconds() -> None:
    assert sorted(set(DELAY_STEPS)) == list(DELAY_STEPS)
    assert all((step * 1000).is_integer() for step in DELAY_STEPS)


# the caller


def test_a_call_that_was_not_run_is_made_again() -> None:
    assert call_again() is not None


@pytest.mark.parametrize("error", [Unroutable("x"), DeadlineExceeded("x", maybe_executed=False), RemoteError("x")])
def test_a_call_that_cannot_succeed_is_not_made_again(error: RPCError) -> None:
    assert call_again(error, idempotent=True) is None


@pytest.mark.parametrize("error", [ConnectionLost("x", maybe_executed=True), WorkerLost("x")])
def test_a_call_that_may_have_run_is_made_again_where_that_does_no_harm(error: RPCError) -> None:
    assert call_again(error) is None
    assert call_again(error, idempotent=True) is not None


@pytest.mark.parametrize(("retries", "made"), [(0, 0), (1, 1), (3, 3), (3, 4)])
def test_a_call_is_made_again_as_often_as_was_said(retries: int, made: int) -> None:
    assert call_again(retries=retries, made=made) is None
    assert call_again(retries=made + 1, made=made) is not None


def test_the_pause_before_a_call_doubles_up_to_a_limit() -> None:
    delays = [call_again(retries=100, made=made) for made in range(10)]
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_many_calls_do_not_overflow_the_pause() -> None:
    assert call_again(retries=10**9, made=10**9 - 1) == 5.0


def test_the_pause_before_a_call_is_of_chance() -> None:
    rng = Random(1)
    delays = {call_again(made=2, rng=rng) for _ in range(50)}
    assert len(delays) == 50
    assert all(delay is not None and 0 <= delay <= 0.2 for delay in delays)


def test_a_busy_method_is_called_no_sooner_than_it_said() -> None:
    error = Overloaded("busy", retry_after=2.0)
    assert call_again(error) == 2.05
    assert call_again(Overloaded("full")) == 0.05


def test_no_call_is_made_again_past_its_deadline() -> None:
    assert call_again(remaining=0.05) is None
    assert call_again(remaining=0.0501) == 0.05
    assert call_again(Overloaded("busy", retry_after=2.0), remaining=2.0) is None


def test_a_call_made_again_costs_a_token() -> None:
    budget = RetryBudget(capacity=2)
    assert [call_again(budget=budget) is not None for _ in range(3)] == [True, True, False]
    assert budget.refused == 1


def test_a_call_that_is_not_made_again_costs_nothing() -> None:
    budget = RetryBudget(capacity=1)
    for options in ({"retries": 0}, {"remaining": 0.0}, {"error": Unroutable("x")}):
        assert call_again(budget=budget, **options) is None
    assert (budget.tokens, budget.refused) == (1.0, 0)


# the worker


def test_a_method_that_raised_what_its_policy_names_runs_again() -> None:
    assert run_again(ConnectionResetError("x")) == 1.0
    assert run_again(ValueError("x")) is None
    assert run_delay(ConnectionError("x"), None, 1, None, Random()) is None


def test_the_delay_of_a_run_grows_by_the_factor_up_to_the_limit() -> None:
    assert [run_again(ConnectionError(), attempt) for attempt in range(1, 6)] == [1.0, 3.0, 5.0, None, None]


def test_jitter_takes_a_random_part_of_the_delay() -> None:
    policy = RetryPolicy(on=(ConnectionError,), backoff=8.0, limit=8.0)
    delays = {run_delay(ConnectionError(), policy, 1, None, Random(seed)) for seed in range(50)}
    assert len(delays) == 50
    assert all(delay is not None and 0 <= delay <= 8 for delay in delays)


def test_the_delay_of_a_late_run_does_not_overflow() -> None:
    policy = RetryPolicy(on=(OSError,), attempts=1_000, backoff=1.0, factor=100.0, limit=3600.0, jitter="none")
    assert run_delay(OSError(), policy, 999, None, Random()) == 3600.0


def test_a_method_says_itself_when_it_wants_to_run_again() -> None:
    assert run_delay(Retry(delay=7.0), None, 1, None, Random()) == 7.0
    assert run_delay(Retry(delay=7.0), POLICY, 99, None, Random()) == 7.0
    assert run_delay(Retry(delay=7.0), None, 100, None, Random()) is None
    assert run_delay(Retry(delay=7.0, attempts=3), None, 3, None, Random()) is None


def test_no_run_is_put_off_past_the_deadline() -> None:
    assert run_again(ConnectionError(), remaining=1.0) is None
    assert run_again(ConnectionError(), remaining=1.1) == 1.0
    assert run_delay(Retry(), None, 1, 0.0, Random()) is None


@given(st.integers(1, 1_000), st.none() | st.floats(-10, 10_000), st.randoms(use_true_random=False))
def test_a_delay_is_never_negative_and_never_past_the_deadline(
    attempt: int, remaining: float | None, rng: Random
) -> None:
    for error in (ConnectionError(), Retry(delay=3.0)):
        delay = run_delay(error, POLICY, attempt, remaining, rng)
        assert delay is None or (0 <= delay <= 5.0 and (remaining is None or delay < remaining))
