"""State names: Celery's sets of them, and its precedence."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq import states
from aiorpcq.states import is_terminal, precedence

# Celery's table (celery.states.PRECEDENCE), best first; None stands for every custom state.
CELERY_ORDER = ("SUCCESS", "FAILURE", None, "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING")
NAMES = ("PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED")


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_the_string_of_its_name(name: str) -> None:
    assert getattr(states, name) == name


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (states.READY_STATES, {"SUCCESS", "FAILURE", "REVOKED"}),
        (states.UNREADY_STATES, {"PENDING", "RECEIVED", "STARTED", "REJECTED", "RETRY"}),
        (states.EXCEPTION_STATES, {"RETRY", "FAILURE", "REVOKED"}),
        (states.PROPAGATE_STATES, {"FAILURE", "REVOKED"}),
    ],
)
def test_the_sets_are_those_of_celery(members: frozenset[str], expected: set[str]) -> None:
    assert members == expected


def test_ignored_and_progress_are_in_no_set() -> None:
    every = states.READY_STATES | states.UNREADY_STATES | states.EXCEPTION_STATES | states.PROPAGATE_STATES
    assert not every & {"IGNORED", "PROGRESS"}


@pytest.mark.parametrize("name", NAMES)
def test_the_ready_states_alone_are_terminal(name: str) -> None:
    assert is_terminal(name) == (name in {"SUCCESS", "FAILURE", "REVOKED"})


@given(st.text())
def test_a_custom_state_is_not_terminal(name: str) -> None:
    assert is_terminal(name) == (name in states.READY_STATES)


def test_precedence_counts_from_the_best_as_celery_does() -> None:
    assert [precedence(name or "CUSTOM") for name in CELERY_ORDER] == list(range(9))


def test_precedence_orders_the_states_as_celery_does() -> None:
    assert all(precedence(better or "X") < precedence(worse or "X") for better, worse in pairwise(CELERY_ORDER))


@given(st.text().filter(lambda name: name not in CELERY_ORDER))
def test_every_custom_state_ranks_between_failure_and_revoked(name: str) -> None:
    assert precedence(name) == precedence(states.PROGRESS) == precedence(states.IGNORED) == 2
