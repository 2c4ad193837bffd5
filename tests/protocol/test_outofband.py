"""The out-of-band buffer and the tombstone ring: what they keep, and their bounds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.errors import ConnectionLost
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.outofband import OutOfBandBuffer, OutOfBandLimits, TombstoneRing

OVERHEAD = 500
"""Bytes that the documented bound counts for a state besides its body."""


def state(task_id: str = "t", size: int = 0, sequence: int = 1) -> StateMessage:
    return StateMessage(task_id, "PROGRESS", b"x" * size, "application/msgpack", sequence=sequence)


@pytest.mark.parametrize("option", ["tasks", "size", "age"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_bound_that_is_not_above_zero_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^out_of_band\.{option}: "):
        OutOfBandLimits(**{option: value})


def test_states_are_taken_in_the_order_of_arrival() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits())
    states = [state(sequence=sequence) for sequence in (2, 1, 3)]
    for message in states:
        buffer.put(message, 0.0)
    assert buffer.take("t") == states


def test_what_was_taken_is_gone() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits())
    buffer.put(state(size=10), 0.0)
    buffer.take("t")
    assert buffer.take("t") == []
    assert "t" not in buffer
    assert (len(buffer), buffer.size, buffer.evicted, buffer.next_expiry()) == (0, 0, 0, None)


def test_what_was_read_stays() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits())
    buffer.put(state(), 0.0)
    assert buffer.read("t") == buffer.read("t") == [state()]
    assert "t" in buffer


def test_reading_an_unknown_task_gives_nothing() -> None:
    assert OutOfBandBuffer(OutOfBandLimits()).read("t") == []


def test_the_least_recently_touched_task_goes_first() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(tasks=2))
    for task_id in ("a", "b", "a", "c"):
        buffer.put(state(task_id), 0.0)
    assert [task_id in buffer for task_id in "abc"] == [True, False, True]
    assert buffer.evicted == 1


def test_one_task_alone_keeps_to_the_bound_of_bytes() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(size=3 * OVERHEAD))
    for sequence in range(1, 5):
        buffer.put(state(sequence=sequence), 0.0)
    assert buffer.size <= 3 * OVERHEAD
    assert buffer.evicted == 4


def test_a_state_larger_than_the_bound_is_not_kept() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(size=1_000))
    buffer.put(state(size=1_000), 0.0)
    assert (len(buffer), buffer.size, buffer.evicted) == (0, 0, 1)


def test_age_counts_from_the_last_state_of_a_task() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(age=10.0))
    buffer.put(state(sequence=1), 0.0)
    buffer.put(state(sequence=2), 6.0)
    buffer.evict(15.9)
    assert len(buffer.read("t")) == 2
    buffer.evict(16.0)
    assert len(buffer) == 0


def test_the_next_expiry_is_a_second_late_so_that_states_go_in_numbers() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(age=10.0))
    buffer.put(state("a"), 6.0)
    buffer.put(state("b"), 7.0)
    assert buffer.next_expiry() == 17.0
    buffer.evict(17.0)
    assert len(buffer) == 0


def test_an_error_is_parked_with_the_states_of_its_task() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits())
    error = ConnectionLost("gone")
    buffer.put(state(), 0.0)
    buffer.put_error("t", error, 0.0)
    assert buffer.error("t") is error
    assert buffer.read("t") == [state()]
    assert buffer.size == 2 * OVERHEAD


def test_an_error_needs_no_states_and_goes_with_its_task() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(age=10.0))
    for task_id in ("taken", "old"):
        buffer.put_error(task_id, ConnectionLost("gone"), 0.0)
    buffer.take("taken")
    buffer.evict(10.0)
    assert (buffer.error("taken"), buffer.error("old"), buffer.error("unknown")) == (None, None, None)
    assert (len(buffer), buffer.size, buffer.evicted) == (0, 0, 0)


def test_what_nobody_read_is_counted_when_it_goes() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(age=10.0))
    for sequence in range(1, 4):
        buffer.put(state("unread", sequence=sequence), 0.0)
        buffer.put(state("read", sequence=sequence), 0.0)
    buffer.read("read")
    buffer.evict(20.0)
    assert buffer.evicted == 3


def test_a_state_that_came_after_the_reading_is_counted_when_it_goes() -> None:
    buffer = OutOfBandBuffer(OutOfBandLimits(age=10.0))
    buffer.put(state(sequence=1), 0.0)
    buffer.read("t")
    buffer.put(state(sequence=2), 0.0)
    buffer.evict(20.0)
    assert buffer.evicted == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put_error", "take", "read", "evict"]),
            st.sampled_from("abcdef"),
            st.integers(0, 2_000),
            st.floats(0, 8),
        )
    )
)
def test_no_bound_is_ever_passed_and_the_accounts_add_up(steps: list[tuple[str, str, int, float]]) -> None:
    limits = OutOfBandLimits(tasks=3, size=4_000, age=10.0)
    buffer = OutOfBandBuffer(limits)
    now, put, taken, errors = 0.0, 0, 0, 0
    for action, task_id, size, passed in steps:
        now += passed
        if action == "put":
            buffer.put(state(task_id, size), now)
            put += 1
        elif action == "put_error":
            buffer.put_error(task_id, ConnectionLost("gone"), now)
            errors += 1
        elif action == "take":
            taken += len(buffer.take(task_id))
        elif action == "read":
            buffer.read(task_id)
        else:
            buffer.evict(now)
        assert len(buffer) <= limits.tasks
        assert buffer.size <= limits.size
        expiry = buffer.next_expiry()
        assert (expiry is None) == (len(buffer) == 0)
        if action in {"put", "put_error", "evict"}:
            assert expiry is None or expiry > now
    held = [message for task_id in "abcdef" for message in buffer.read(task_id)]
    states_size = sum(len(message.body) + OVERHEAD for message in held)
    assert states_size <= buffer.size <= states_size + errors * OVERHEAD
    assert buffer.evicted <= put - taken - len(held)
    buffer.evict(now + limits.age)
    assert (len(buffer), buffer.size) == (0, 0)


def test_a_tombstone_is_discarded_once_it_is_awaited_again() -> None:
    ring = TombstoneRing(4)
    ring.add("t")
    ring.discard("t")
    ring.discard("t")
    assert "t" not in ring
    assert len(ring) == 0


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefgh")))
def test_the_ring_holds_the_last_ids_and_no_more(limit: int, ids: list[str]) -> None:
    ring = TombstoneRing(limit)
    newest: OrderedDict[str, None] = OrderedDict()
    for task_id in ids:
        ring.add(task_id)
        newest[task_id] = None
        newest.move_to_end(task_id)
    expected = list(newest)[-limit:]
    assert len(ring) == len(expected)
    assert all((task_id in ring) == (task_id in expected) for task_id in "abcdefgh")
