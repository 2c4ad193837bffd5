"""The cache of terminal states: for whom it answers, and what it keeps past its bounds."""

from __future__ import annotations

import gc
import sys

import pytest

from aiorpcq.limits import CacheLimits
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.terminals import TerminalCache

OVERHEAD = 500


def success(task_id: str = "t", *, attempt: int = 1, size: int = 0, sequence: int = 0) -> StateMessage:
    return StateMessage(task_id, "SUCCESS", b"x" * size, "application/msgpack", None, attempt, sequence)


def test_a_state_comes_back_as_it_was_but_for_who_sent_it() -> None:
    cache = TerminalCache(CacheLimits())
    message = StateMessage("t", "FAILURE", b"body", "application/json", "gzip", 3, 7)
    cache.put("t", message, "queue", 0.0)
    assert cache.get("t", "t", "queue") == message


def test_it_answers_nobody_who_cannot_name_the_reply_queue() -> None:
    cache = TerminalCache(CacheLimits())
    cache.put("t", success(), "queue", 0.0)
    assert cache.get("t", "t", "guess") is None
    assert cache.get("t", "t", None) is None
    assert cache.get("u", "u", "queue") is None


def test_a_replays_answer_is_that_of_its_task_under_another_key() -> None:
    cache = TerminalCache(CacheLimits())
    cache.put("t letter", success(), "queue", 0.0)
    assert cache.get("t", "t", "queue") is None
    assert cache.get("t letter", "t", "queue") == success()


def test_a_state_takes_the_place_of_the_one_before() -> None:
    cache = TerminalCache(CacheLimits())
    cache.put("t", success(size=100), "queue", 0.0)
    cache.mark_returned("t")
    cache.put("t", success(attempt=2, size=10), "queue", 0.0)
    assert (len(cache), cache.size, cache.evicted) == (1, OVERHEAD + 10, 0)
    assert cache.get("t", "t", "queue") == success(attempt=2, size=10)


def test_marking_what_is_not_there_does_nothing() -> None:
    cache = TerminalCache(CacheLimits())
    cache.mark_returned("t")
    assert (len(cache), cache.size) == (0, 0)


def test_a_large_cache_that_overflows_makes_room_for_more_than_one() -> None:
    limit = 2 * 1024 * 1024
    cache = TerminalCache(CacheLimits(size=limit))
    count = limit // (OVERHEAD + 500) + 1
    for number in range(count):
        cache.put(str(number), success(str(number), size=500), "queue", 0.0)
    assert limit - limit // 64 - 1_000 <= cache.size <= limit - limit // 64
    assert len(cache) + cache.evicted == count
    assert cache.get("0", "0", "queue") is None


def test_states_of_many_callers_are_told_apart() -> None:
    cache = TerminalCache(CacheLimits())
    for number in range(2_500):
        cache.put(str(number), success(str(number)), f"queue-{number}", 0.0)
    assert all(cache.get(str(number), str(number), f"queue-{number}") is not None for number in range(2_500))
    assert cache.get("7", "7", "queue-8") is None


def test_the_garbage_collector_visits_none_of_its_entries() -> None:
    cache = TerminalCache(CacheLimits())
    for number in range(1_000):
        cache.put(str(number), success(str(number), size=number), "queue", 0.0)
    for number in range(500):
        cache.mark_returned(str(number))
    kept = (cache._bodies, cache._delivered, cache._returned)
    assert [len(entries) for entries in kept] == [1_000, 500, 500]
    assert not any(gc.is_tracked(value) for entries in kept for value in entries.values())
    if sys.version_info < (3, 14):  # from there on every dict is tracked (gh-127010)
        assert not any(map(gc.is_tracked, kept))


def test_what_is_too_much_goes_oldest_first_and_states_without_a_caller_last() -> None:
    cache = TerminalCache(CacheLimits(size=3 * OVERHEAD))
    for number in range(3):
        cache.put(str(number), success(str(number)), "queue", float(number))
    cache.mark_returned("0")
    cache.put("3", success("3"), "queue", 3.0)
    held = [cache.get(str(number), str(number), "queue") is not None for number in range(4)]
    assert held == [True, False, True, True]
    cache.evict(123.5)  # past the age of all
    assert (len(cache), cache.size, cache.evicted) == (0, 0, 4)


@pytest.mark.parametrize("origin", ["queue", "reply queue of Zoë\n", "\ud800", "\ud83d\ude00", "", None])
@pytest.mark.parametrize("body", [b"", b"\n\x00\xff", b'{"a": 1}'])
def test_whatever_an_entry_holds_comes_back(origin: str | None, body: bytes) -> None:
    cache = TerminalCache(CacheLimits())
    message = StateMessage("t", 'FAIL"URE\n', body, "a/b", None, 10**5_000, 5)
    cache.put("t", message, origin, 1e9)
    assert cache.get("t", "t", origin) == message
    assert cache.next_expiry(0.0) == 121.0
    assert cache.next_expiry(2e9) == 1e9 + 121.0
