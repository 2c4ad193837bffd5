"""Timeouts, and what a worker may believe of a deadline when no two clocks agree."""

from __future__ import annotations

import math
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.deadline import (
    CLOCK_TOLERANCE,
    MAXIMUM_TIMEOUT,
    RETURN_GRACE,
    Lineage,
    check_timeout,
    current_lineage,
    run_deadline,
)

NOON = 1_700_000_000.0
"""The caller's wall clock when it sends."""

RECEIVED_AT = 500.0
"""The worker's monotonic clock when the request comes."""

ROUNDING = 1e-5
"""Wall clock times have about seven digits behind the point."""

timeouts = st.floats(0, MAXIMUM_TIMEOUT)
skews = st.floats(-CLOCK_TOLERANCE, CLOCK_TOLERANCE)
waits = st.floats(0, 1_000_000)


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001, 1, 30.5, MAXIMUM_TIMEOUT])
def test_a_timeout_in_range_is_returned_as_a_float(timeout: float) -> None:
    checked = check_timeout(timeout)
    assert checked == timeout
    assert type(checked) is float


def test_none_is_no_timeout() -> None:
    assert check_timeout(None) is None


@pytest.mark.parametrize(
    "timeout", [-1, -0.001, math.nan, math.inf, -math.inf, MAXIMUM_TIMEOUT + 1, 10**400, True, False, "5", b"5", [], 1j]
)
def test_what_is_no_timeout_is_refused_and_the_option_named(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"^message_ttl: .* is not "):
        check_timeout(timeout, "message_ttl")


def test_the_option_is_called_timeout_by_default() -> None:
    with pytest.raises(ValueError, match=r"^timeout: -1 is not between 0 and 4000000 seconds$"):
        check_timeout(-1)


def test_the_longest_timeout_fits_an_expiration() -> None:
    assert (MAXIMUM_TIMEOUT + RETURN_GRACE) * 1000 < 2**32


def test_without_expiration_and_deadline_a_run_has_none() -> None:
    assert run_deadline(None, None, RECEIVED_AT, NOON) is None


def test_an_expiration_counts_from_receipt() -> None:
    assert run_deadline(3.0, None, RECEIVED_AT, NOON) == RECEIVED_AT + 3.0


def test_a_deadline_has_the_tolerance_added() -> None:
    assert run_deadline(None, NOON + 3.0, RECEIVED_AT, NOON) == RECEIVED_AT + 3.0 + CLOCK_TOLERANCE


def test_an_expiration_of_zero_is_an_expiration() -> None:
    assert run_deadline(0.0, NOON + 3.0, RECEIVED_AT, NOON) == RECEIVED_AT


def test_the_smaller_budget_counts() -> None:
    assert run_deadline(100.0, NOON - CLOCK_TOLERANCE + 5, RECEIVED_AT, NOON) == RECEIVED_AT + 5


@given(st.none() | st.integers(0, 2**64).map(float), st.none() | st.integers(-(2**63), 2**63).map(float))
def test_no_run_has_longer_than_the_longest_timeout(expiration: float | None, deadline: float | None) -> None:
    stop = run_deadline(expiration, deadline, RECEIVED_AT, NOON)
    assert (stop is None) == (expiration is None and deadline is None)
    assert stop is None or stop <= RECEIVED_AT + MAXIMUM_TIMEOUT


@given(timeout=timeouts, skew=skews)
def test_clocks_a_minute_apart_make_no_request_expire_early(timeout: float, skew: float) -> None:
    deadline = run_deadline(timeout, NOON + timeout, RECEIVED_AT, NOON + skew)
    assert deadline is not None
    assert deadline - RECEIVED_AT == pytest.approx(timeout, abs=ROUNDING)


@given(timeout=timeouts, skew=skews, wait=waits)
def test_no_run_goes_on_later_than_skew_and_tolerance_past_the_deadline(
    timeout: float, skew: float, wait: float
) -> None:
    """However long the request waited in its queue: its expiration is blind to that, its deadline is not."""
    deadline = run_deadline(timeout, NOON + timeout, RECEIVED_AT, NOON + wait + skew)
    assert deadline is not None
    stopped = NOON + wait + (deadline - RECEIVED_AT)  # on the caller's clock
    assert stopped <= NOON + timeout + CLOCK_TOLERANCE - skew + ROUNDING


@given(timeout=timeouts, skew=skews, wait=waits)
def test_no_run_that_the_caller_still_waits_for_is_stopped(timeout: float, skew: float, wait: float) -> None:
    deadline = run_deadline(timeout, NOON + timeout, RECEIVED_AT, NOON + wait + skew)
    assert deadline is not None
    stopped = NOON + wait + (deadline - RECEIVED_AT)
    assert stopped >= NOON + timeout - ROUNDING


@given(timeout=timeouts, skew=skews)
def test_a_request_that_is_past_tolerance_and_skew_is_not_begun(timeout: float, skew: float) -> None:
    late = timeout + CLOCK_TOLERANCE - skew + 1
    deadline = run_deadline(timeout, NOON + timeout, RECEIVED_AT, NOON + late + skew)
    assert deadline is not None
    assert deadline < RECEIVED_AT


def test_a_call_outside_of_a_method_has_no_lineage() -> None:
    assert copy_context().run(current_lineage.get) is None


def test_a_lineage_names_deadline_task_and_root() -> None:
    lineage = Lineage(1.5, "child", "root")
    assert (lineage.deadline, lineage.task_id, lineage.root_id) == (1.5, "child", "root")
