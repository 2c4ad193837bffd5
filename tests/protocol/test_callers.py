"""What a worker knows of its callers: moves and revocations, each for its time, and no more than so many."""

from __future__ import annotations

from aiorpcq.protocol.callers import Moves, Revocations

MOST_MOVES = 10_000
MOST_REVOCATIONS = 16_384
DAY = 24 * 3600.0


def test_a_caller_that_has_not_moved_is_where_it_was() -> None:
    assert Moves().resolve("old", "old", 0.0) == "old"


def test_a_caller_that_has_moved_is_found_there_for_as_long_as_it_said() -> None:
    moves = Moves()
    moves.put("old", "new", 5.0, 10.0)
    assert [moves.resolve("old", "old", now) for now in (10.0, 15.0, 15.1)] == ["new", "new", "old"]
    assert len(moves) == 0


def test_a_caller_that_moves_on_is_found_where_it_went_last() -> None:
    moves = Moves()
    moves.put("old", "second", 5.0, 0.0)
    moves.put("old", "third", 5.0, 1.0)
    assert (moves.resolve("old", "old", 6.0), len(moves)) == ("third", 1)


def test_a_move_is_kept_for_a_day_at_the_most() -> None:
    moves = Moves()
    moves.put("old", "new", 1e9, 0.0)
    assert [moves.resolve("old", "old", now) for now in (DAY, DAY + 1)] == ["new", "old"]


def test_the_oldest_moves_give_way_and_are_counted() -> None:
    moves = Moves()
    for number in range(MOST_MOVES + 2):
        moves.put(f"old-{number}", "new", 60.0, 0.0)
    assert (len(moves), moves.evicted) == (MOST_MOVES, 2)
    assert [moves.resolve(f"old-{number}", f"old-{number}", 0.0) for number in (1, 2)] == ["old-1", "new"]


def test_what_is_past_its_time_goes_without_being_counted() -> None:
    moves, revocations = Moves(), Revocations()
    for entries in (moves, revocations):
        entries.put("a", "queue", 1.0, 0.0)
        entries.put("b", "queue", 1.0, 2.0)
        assert (len(entries), entries.evicted) == (1, 0)


def test_a_task_is_revoked_by_who_can_name_its_reply_queue_for_as_long_as_that_said() -> None:
    revocations = Revocations()
    revocations.put("t", "queue", 5.0, 10.0)
    assert revocations.covers("t", "queue", 15.0)
    assert not revocations.covers("t", "queue", 15.1)
    assert not revocations.covers("t", "other", 10.0)
    assert not revocations.covers("u", "queue", 10.0)
    assert not revocations.covers("t", None, 10.0)


def test_a_forged_revocation_does_not_take_the_place_of_the_callers() -> None:
    revocations = Revocations()
    revocations.put("t", "queue", 5.0, 0.0)
    revocations.put("t", "guess", 5.0, 0.0)
    assert revocations.covers("t", "queue", 1.0)


def test_a_revocation_is_kept_for_a_day_at_the_most() -> None:
    revocations = Revocations()
    revocations.put("t", "queue", 1e9, 0.0)
    assert revocations.covers("t", "queue", DAY)
    assert not revocations.covers("t", "queue", DAY + 1)


def test_the_oldest_revocations_give_way_and_are_counted() -> None:
    revocations = Revocations()
    for number in range(MOST_REVOCATIONS + 2):
        revocations.put(str(number), "queue", 60.0, 0.0)
    assert (len(revocations), revocations.evicted) == (MOST_REVOCATIONS, 2)
    assert [revocations.covers(str(number), "queue", 0.0) for number in (1, 2)] == [False, True]


def test_a_revocation_that_is_said_again_is_renewed() -> None:
    revocations = Revocations()
    revocations.put("t", "queue", 5.0, 0.0)
    revocations.put("t", "queue", 5.0, 4.0)
    assert (revocations.covers("t", "queue", 9.0), len(revocations)) == (True, 1)
