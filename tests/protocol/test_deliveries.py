"""What a delivery that comes again means, by mode and kind of queue; and which suspects run beside each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.protocol.deliveries import Decision, DeliveryMode, Suspects, decide

DELIVERY_LIMIT = 20
"""What a quorum queue delivers more often than that, RabbitMQ 4 takes out of it."""

MODES: list[DeliveryMode] = ["at_least_once", "no_rerun", "at_most_once"]


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_for_the_first_time_runs(mode: DeliveryMode) -> None:
    assert decide(mode, redelivered=False, counted=0, losses=0, max_attempts=1) == (Decision.RUN, 0)


def test_a_classic_queues_redelivery_is_published_again_with_one_more_loss() -> None:
    decided = decide("at_least_once", redelivered=True, counted=0, losses=1, max_attempts=5)
    assert decided == (Decision.COUNT, 2)


@pytest.mark.parametrize("counted", [2, 9])
def test_a_quorum_queues_redelivery_runs_since_it_is_counted(counted: int) -> None:
    decided = decide("at_least_once", redelivered=True, counted=counted, losses=1, max_attempts=20)
    assert decided == (Decision.RUN, counted + 1)


@pytest.mark.parametrize("counted", [10, 19])
def test_what_a_quorum_queue_has_counted_ten_times_is_published_again_before_its_own_limit(counted: int) -> None:
    decided = decide("at_least_once", redelivered=True, counted=counted, losses=1, max_attempts=30)
    assert decided == (Decision.COUNT, counted + 1)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("mode", ["no_rerun", "at_most_once"])
def test_what_is_not_to_be_run_again_is_lost(mode: DeliveryMode, counted: int) -> None:
    decided = decide(mode, redelivered=True, counted=counted, losses=0, max_attempts=5)
    assert decided == (Decision.LOST, 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_published_again_runs_in_every_mode(mode: DeliveryMode) -> None:
    assert decide(mode, redelivered=False, counted=0, losses=1, max_attempts=5) == (Decision.RUN, 1)


@pytest.mark.parametrize(
    ("redelivered", "counted", "losses"), [(True, 0, 4), (True, 2, 3), (True, 5, 0), (False, 0, 5)]
)
def test_what_was_lost_as_often_as_it_may_be_is_poisoned(redelivered: bool, counted: int, losses: int) -> None:
    decided = decide("at_least_once", redelivered=redelivered, counted=counted, losses=losses, max_attempts=5)
    assert decided == (Decision.POISONED, 5)


@given(most=st.integers(1, 50), quorum=st.booleans())
def test_a_request_that_kills_every_worker_is_run_as_often_as_it_may_be(most: int, quorum: bool) -> None:
    runs = losses = counted = deliveries = 0
    redelivered = False
    while True:
        deliveries += 1
        assert deliveries <= 2 * most + 1
        assert counted < DELIVERY_LIMIT
        decision, lost = decide(
            "at_least_once", redelivered=redelivered, counted=counted, losses=losses, max_attempts=most
        )
        if decision is Decision.POISONED:
            break
        if decision is Decision.COUNT:
            losses, redelivered, counted = lost, False, 0
            continue
        assert decision is Decision.RUN
        runs += 1
        redelivered = True
        counted += quorum
    assert runs == most


def test_requests_that_have_lost_nothing_are_admitted_beside_any() -> None:
    suspects = Suspects()
    suspects.start(4)
    assert suspects.admits(0)


def test_a_second_run_is_admitted_beside_other_second_runs() -> None:
    suspects = Suspects()
    assert not suspects.start(1)
    assert suspects.admits(1)
    assert not suspects.start(1)
    assert suspects.running == 2


def test_a_third_run_has_no_other_suspect_beside_it() -> None:
    suspects = Suspects()
    suspects.start(1)
    assert not suspects.admits(2)
    suspects.end()
    assert suspects.admits(2)
    assert suspects.start(2)
    assert not suspects.admits(1)
    assert not suspects.admits(2)
    suspects.end()
    assert suspects.admits(1)
    assert suspects.running == 0
