"""The deadline wheel against a dictionary that is searched."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from aiorpcq.protocol.timers import GRANULARITY, DeadlineWheel

ROUNDING = 1e-6

deadlines = st.floats(0, 1_000_000) | st.integers(0, 200).map(lambda tick: tick * GRANULARITY)


class WheelMachine(RuleBasedStateMachine):
    """Adds, discards and lets time pass; *waiting* is what the wheel must hold."""

    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.wheel: DeadlineWheel[int] = DeadlineWheel()
        self.waiting: dict[int, float] = {}
        self.now = 0.0
        self.made = 0

    @rule(target=items, ahead=st.floats(0, 3) | st.floats(0, 1_000_000))
    def add(self, ahead: float) -> tuple[int, int]:
        self.made += 1
        slot = self.wheel.add(self.now + ahead, self.made)
        self.waiting[self.made] = self.now + ahead
        return slot, self.made

    @rule(added=consumes(items))
    def discard(self, added: tuple[int, int]) -> None:
        self.wheel.discard(*added)
        self.waiting.pop(added[1], None)

    @rule(added=items)
    def discard_again(self, added: tuple[int, int]) -> None:
        self.wheel.discard(*added)
        self.wheel.discard(*added)
        self.waiting.pop(added[1], None)

    @rule(passed=st.floats(0, 3) | st.floats(0, 1_000_000))
    def expire(self, passed: float) -> None:
        self.now += passed
        expired = self.wheel.expire(self.now)
        assert len(set(expired)) == len(expired)
        for item in expired:
            assert self.waiting.pop(item) <= self.now + ROUNDING
        assert all(deadline > self.now - GRANULARITY - ROUNDING for deadline in self.waiting.values())

    @rule()
    def expire_at_the_next_deadline(self) -> None:
        at = self.wheel.next_deadline()
        if at is not None:
            self.now = max(self.now, at)
            expired = self.wheel.expire(self.now)
            assert expired
            for item in expired:
                del self.waiting[item]

    @invariant()
    def it_holds_what_waits(self) -> None:
        assert len(self.wheel) == len(self.waiting)

    @invariant()
    def the_next_deadline_is_that_of_the_earliest(self) -> None:
        at = self.wheel.next_deadline()
        if not self.waiting:
            assert at is None
        else:
            earliest = min(self.waiting.values())
            assert at is not None
            assert earliest - ROUNDING <= at <= earliest + GRANULARITY + ROUNDING


TestWheel = WheelMachine.TestCase


@given(deadlines)
def test_nothing_expires_early_and_nothing_more_than_the_granularity_late(deadline: float) -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    wheel.add(deadline, "item")
    assert wheel.expire(deadline - ROUNDING) == []
    assert wheel.expire(deadline + GRANULARITY + ROUNDING) == ["item"]


@given(st.lists(deadlines, min_size=1))
def test_what_expires_together_comes_earliest_first(all_deadlines: list[float]) -> None:
    wheel: DeadlineWheel[int] = DeadlineWheel()
    for item, deadline in enumerate(all_deadlines):
        wheel.add(deadline, item)
    expired = [all_deadlines[item] for item in wheel.expire(2_000_000)]
    assert all(later > earlier - GRANULARITY - ROUNDING for earlier, later in pairwise(expired))
    assert sorted(expired) == sorted(all_deadlines)


def test_what_has_expired_does_not_expire_again() -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    slot = wheel.add(1.0, "item")
    assert wheel.expire(2.0) == ["item"]
    wheel.discard(slot, "item")
    assert wheel.expire(3.0) == []


def test_a_discarded_item_leaves_its_neighbours() -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    slot = wheel.add(1.0, "one")
    assert wheel.add(1.0, "other") == slot
    wheel.discard(slot, "one")
    assert wheel.expire(2.0) == ["other"]


def test_a_slot_that_was_emptied_and_filled_again_expires_once() -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    for _ in range(3):
        slot = wheel.add(1.0, "item")
        wheel.discard(slot, "item")
    wheel.add(1.0, "item")
    assert wheel.expire(2.0) == ["item"]
    assert wheel.next_deadline() is None


@pytest.mark.parametrize("apart", [0.0, 1.0], ids=["one slot", "a slot each"])
def test_far_deadlines_added_and_discarded_leave_memory_flat(apart: float) -> None:
    """As calls do that have a long timeout and end at once."""
    wheel: DeadlineWheel[int] = DeadlineWheel()
    wheel.add(1.0, -1)
    tracemalloc.start()
    try:
        for number in range(100_000):
            slot = wheel.add(10_000.0 + number * apart, number)
            wheel.discard(slot, number)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * 1024
    assert wheel.expire(1e9) == [-1]
    assert wheel.next_deadline() is None


def test_many_items_that_end_early_leave_memory_flat() -> None:
    wheel: DeadlineWheel[int] = DeadlineWheel()
    tracemalloc.start()
    try:
        slots = [wheel.add(10_000.0 + number, number) for number in range(10_000)]
        for number, slot in enumerate(slots):
            wheel.discard(slot, number)
        del slots, slot, number
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(wheel) == 0
    assert held < 400_000  # CPython keeps the table of an emptied dictionary
    assert wheel.next_deadline() is None
