"""How long a cancel is remembered."""

from __future__ import annotations

from aiorpcq.protocol.cancels import CancelRing
from aiorpcq.protocol.control import Cancel


def cancel(task_id: str = "t", expires: float = 10.0) -> Cancel:
    return Cancel(task_id, "queue", "kill", expires)


def test_a_cancel_is_found_with_what_is_left_of_its_time() -> None:
    ring = CancelRing()
    ring.add(cancel(), 5.0)
    assert ring.find("t", 8.0) == cancel(expires=7.0)
    assert ring.find("other", 8.0) is None


def test_an_expired_cancel_is_forgotten() -> None:
    ring = CancelRing()
    ring.add(cancel(), 0.0)
    assert ring.find("t", 10.0) is None
    assert len(ring) == 0


def test_past_the_limit_the_oldest_goes() -> None:
    ring = CancelRing(2)
    for task_id in ("a", "b", "a", "c"):
        ring.add(cancel(task_id), 0.0)
    assert [ring.find(task_id, 0.0) is None for task_id in ("a", "b", "c")] == [False, True, False]


def test_expired_cancels_go_with_the_next_that_comes() -> None:
    ring = CancelRing()
    ring.add(cancel("a", expires=1.0), 0.0)
    ring.add(cancel("b", expires=2.0), 0.0)
    ring.add(cancel("c"), 2.0)
    assert list(ring.cancels) == ["c"]


def test_a_cancel_without_time_is_not_remembered() -> None:
    ring = CancelRing()
    ring.add(cancel(expires=0.0), 5.0)
    assert len(ring) == 0
