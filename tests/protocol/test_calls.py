"""The caller's table: how states merge, that a call ends once, and that nothing of it stays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiorpcq.errors import ConnectionLost
from aiorpcq.protocol.calls import Backlog, Call, CallTable, Phase, Sending, TaskIds
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.outofband import OutOfBandLimits
from aiorpcq.protocol.timers import GRANULARITY
from aiorpcq.states import is_terminal, precedence

from .references import watch_references

PREFIX = "5f0c"
ROUNDING = 1e-6

TERMINAL = ("SUCCESS", "FAILURE", "REVOKED")
UNFINISHED = ("RECEIVED", "STARTED", "PROGRESS", "REJECTED", "RETRY")


def state(
    name: str = "PROGRESS", *, task_id: str = "t", attempt: int = 1, sequence: int = 0, body: bytes = b""
) -> StateMessage:
    return StateMessage(task_id, name, body, "application/msgpack", attempt=attempt, sequence=sequence)


def make_call(
    task_id: str = "t", *, deadline: float | None = None, backlog: Backlog | None = None, foreign: bool = True
) -> Call:
    return Call(task_id, None, deadline, backlog, foreign)


def make_table(*, tombstones: int = 100, tasks: int = 100, size: int = 100_000, age: float = 120.0) -> CallTable:
    return CallTable(TaskIds(PREFIX), OutOfBandLimits(tasks, size, age), tombstones)


def rank(message: StateMessage) -> tuple[int, int, int]:
    """Return what is greater for the state that outdates another."""
    return message.attempt, message.sequence, -precedence(message.name)


def final(call: Call) -> tuple[str, int, StateMessage | None, Phase]:
    return call.name, call.attempt, call.terminal, call.phase


@st.composite
def histories(draw: st.DrawFn) -> list[StateMessage]:
    """The states that some attempts of one task send, each with a sequence of its own, and at most one terminal one."""
    sent = draw(
        st.dictionaries(st.tuples(st.integers(1, 3), st.integers(1, 6)), st.sampled_from(UNFINISHED), max_size=8)
    )
    messages = [state(name, attempt=attempt, sequence=sequence) for (attempt, sequence), name in sent.items()]
    terminal = draw(st.none() | st.tuples(st.sampled_from(TERMINAL), st.integers(1, 3), st.integers(0, 7)))
    if terminal is not None:
        messages.append(state(terminal[0], attempt=terminal[1], sequence=terminal[2], body=b"value"))
    return messages


@given(st.data())
def test_any_order_of_arrival_with_any_duplicates_ends_the_same(data: st.DataObject) -> None:
    sent = data.draw(histories())
    copies = data.draw(st.lists(st.sampled_from(sent), max_size=5)) if sent else []
    arrived = data.draw(st.permutations(sent + copies))
    call = make_call()
    for message in arrived:
        call.merge(message)
    terminal = next((message for message in sent if is_terminal(message.name)), None)
    if terminal is not None:
        assert final(call) == (terminal.name, terminal.attempt, terminal, Phase.SETTLED)
    elif sent:
        newest = max(sent, key=rank)
        assert final(call) == (newest.name, newest.attempt, None, Phase.PENDING)
    else:
        assert final(call) == ("PENDING", 1, None, Phase.PENDING)


@given(st.lists(st.sampled_from(UNFINISHED), min_size=1))
def test_states_that_have_no_sequence_merge_by_precedence_in_any_order(names: list[str]) -> None:
    call = make_call()
    for name in names:
        call.merge(state(name))
    assert call.name == min(names, key=precedence)


@given(st.data())
def test_no_state_ever_regresses(data: st.DataObject) -> None:
    call = make_call()
    seen = (1, 0, -precedence("PENDING"))
    for message in data.draw(st.permutations(data.draw(histories()))):
        before = final(call)
        changed = call.merge(message)
        if before[2] is not None:
            assert not changed
        elif is_terminal(message.name):
            assert changed
        else:
            assert changed == (rank(message) > seen)
            seen = max(seen, rank(message))
        if not changed:
            assert final(call) == before


@given(st.lists(st.sampled_from(TERMINAL), min_size=1), st.integers(1, 3))
def test_the_first_of_several_terminal_states_wins(names: list[str], attempt: int) -> None:
    call = make_call()
    messages = [state(name, attempt=attempt, body=str(number).encode()) for number, name in enumerate(names)]
    changes = [call.merge(message) for message in messages]
    assert changes == [True] + [False] * (len(names) - 1)
    assert call.terminal is messages[0]


def test_progress_of_a_stale_attempt_is_dropped() -> None:
    call = make_call(backlog=Backlog(10))
    call.merge(state("STARTED", attempt=2, sequence=1))
    assert not call.merge(state("PROGRESS", attempt=1, sequence=9))
    assert (call.name, call.attempt) == ("STARTED", 2)


def test_a_terminal_state_of_a_stale_attempt_wins_over_progress() -> None:
    call = make_call()
    call.merge(state("STARTED", attempt=2, sequence=1))
    assert call.merge(state("SUCCESS", attempt=1))
    assert call.phase is Phase.SETTLED


def test_a_call_whose_states_were_not_asked_for_keeps_none() -> None:
    call = make_call()
    call.merge(state(sequence=1))
    assert call.backlog is None


def test_a_backlog_gets_what_changes_the_call_and_nothing_else() -> None:
    backlog = Backlog(10)
    call = make_call(backlog=backlog)
    first, newer, last = state(sequence=2), state(sequence=3), state("SUCCESS", sequence=4)
    for message in (first, first, state(sequence=1), newer, last, state("FAILURE", sequence=5)):
        call.merge(message)
    assert list(backlog.states) == [first, newer, last]


@given(st.integers(1, 5), st.integers(0, 20))
def test_a_backlog_holds_the_newest_and_counts_those_before(limit: int, count: int) -> None:
    backlog = Backlog(limit)
    messages = [state(sequence=sequence) for sequence in range(count)]
    for message in messages:
        backlog.append(message)
    assert list(backlog.states) == messages[-limit:]
    assert backlog.end == count
    dropped = max(0, count - limit)
    assert backlog.dropped == dropped
    assert [backlog.at(position) for position in range(count)] == [None] * dropped + messages[dropped:]


def test_a_backlog_of_large_states_keeps_to_16_mib() -> None:
    backlog = Backlog(1_000)
    messages = [state(sequence=sequence, body=bytes(5 * 1024 * 1024)) for sequence in range(5)]
    for message in messages:
        backlog.append(message)
    assert list(backlog.states) == messages[-3:]
    assert (backlog.dropped, backlog.end) == (2, 5)


def test_a_backlog_keeps_the_newest_state_however_large() -> None:
    backlog = Backlog(1_000)
    messages = [state(sequence=sequence, body=bytes(17 * 1024 * 1024)) for sequence in range(2)]
    for message in messages:
        backlog.append(message)
    assert list(backlog.states) == messages[1:]


@pytest.mark.parametrize(
    ("sending", "maybe_executed"),
    [
        (Sending.UNSENT, False),
        (Sending.SENT, True),
        (Sending.CONFIRMED, True),
        (Sending.LOST, True),
        (Sending.NOT_OURS, True),
    ],
)
def test_a_call_may_have_run_once_its_request_is_out(sending: Sending, maybe_executed: bool) -> None:
    call = make_call()
    call.sending = sending
    assert call.maybe_executed is maybe_executed


def test_task_ids_differ_and_begin_with_the_prefix() -> None:
    ids = TaskIds(PREFIX)
    made = [ids.new() for _ in range(300)]
    assert len(set(made)) == 300
    assert all(task_id.startswith(PREFIX + "-") for task_id in made)


@given(st.integers(0, 300), st.integers(-5, 400))
def test_the_ids_made_so_far_are_known_and_later_ones_are_not(count: int, number: int) -> None:
    ids = TaskIds(PREFIX)
    made = {ids.new() for _ in range(count)}
    task_id = f"{PREFIX}-{number:x}"
    assert ids.made(task_id) == (task_id in made)


@pytest.mark.parametrize(
    "counter", ["", "0", "-1", "+1", "0x1", " 1", "1 ", "1_0", "01", "A", "१", "x", "1-1", "f" * 100_000]
)
def test_an_id_that_only_resembles_a_made_one_is_not_known(counter: str) -> None:
    ids = TaskIds(PREFIX)
    for _ in range(40):
        ids.new()
    assert not ids.made(f"{PREFIX}-{counter}")


@pytest.mark.parametrize("task_id", ["", "1", PREFIX, "5f0d-1"])
def test_an_id_with_another_prefix_is_not_known(task_id: str) -> None:
    ids = TaskIds(PREFIX)
    ids.new()
    assert not ids.made(task_id)


def test_a_pending_id_cannot_be_added_twice() -> None:
    table = make_table()
    table.add(make_call())
    with pytest.raises(ValueError, match="'t' is pending already"):
        table.add(make_call())


def test_an_id_that_has_ended_can_be_used_again() -> None:
    table = make_table()
    table.add(make_call())
    table.receive(state("SUCCESS"), 0.0)
    again = make_call()
    table.add(again)
    assert table.receive(state("FAILURE"), 0.0) is again


def test_a_state_finds_its_call() -> None:
    table = make_table()
    call, other = make_call("a"), make_call("b")
    table.add(call)
    table.add(other)
    assert table.receive(state(task_id="a", sequence=1), 0.0) is call
    assert (call.name, other.name) == ("PROGRESS", "PENDING")


def test_a_stale_state_is_counted_and_changes_no_call() -> None:
    table = make_table()
    table.add(make_call())
    table.receive(state(sequence=2), 0.0)
    assert table.receive(state(sequence=1), 0.0) is None
    assert table.stale == 1


def test_a_late_state_of_a_settled_call_is_counted_and_not_parked() -> None:
    table = make_table()
    table.add(make_call())
    table.receive(state("SUCCESS"), 0.0)
    assert table.receive(state("SUCCESS"), 0.0) is None
    assert (table.duplicates, table.parked, len(table.out_of_band)) == (1, 0, 0)


def test_a_state_that_came_early_is_given_to_whoever_attaches() -> None:
    table = make_table()
    early = state("STARTED", sequence=1)
    table.receive(early, 0.0)
    call = make_call(backlog=Backlog(10))
    table.attach(call)
    assert (call.name, call.sending, table.parked) == ("STARTED", Sending.NOT_OURS, 1)
    assert call.backlog is not None
    assert list(call.backlog.states) == [early]
    assert len(table.out_of_band) == 0
    assert table.pending == {"t": call}


def test_a_terminal_state_that_came_early_settles_whoever_attaches_and_stays_for_others() -> None:
    table = make_table()
    table.receive(state("SUCCESS"), 0.0)
    for _ in range(2):
        call = make_call(deadline=5.0)
        table.attach(call)
        assert call.phase is Phase.SETTLED
    assert table.pending == {}


def test_attaching_to_a_settled_task_leaves_its_late_states_dropped() -> None:
    table = make_table(age=120.0)
    call = make_call(backlog=Backlog(10))
    table.add(call)
    table.receive(state("SUCCESS"), 0.0)
    table.keep(call, 0.0)
    table.attach(make_call(backlog=Backlog(10)))
    table.receive(state("SUCCESS"), 1.0)
    assert (table.duplicates, table.parked) == (1, 0)
    table.expire(120.0)
    assert table.is_gone("t")


def test_a_reader_that_detaches_leaves_what_it_saw_to_the_next() -> None:
    table = make_table()
    first = make_call(backlog=Backlog(10))
    table.attach(first)
    table.receive(state("STARTED", sequence=1), 0.0)
    table.detach(first, 0.0)
    assert first.phase is Phase.ABANDONED
    table.receive(state("PROGRESS", sequence=2), 0.0)
    second = make_call(backlog=Backlog(10))
    table.attach(second)
    assert second.backlog is not None
    assert [message.name for message in second.backlog.states] == ["STARTED", "PROGRESS"]


@pytest.mark.parametrize("failed", [True, False])
def test_what_settled_a_call_is_kept_for_every_later_reader(failed: bool) -> None:
    table = make_table()
    call = make_call(backlog=Backlog(10))
    table.add(call)
    table.receive(state("STARTED", sequence=1), 0.0)
    if failed:
        table.fail(call, ConnectionLost("gone"))
    else:
        table.receive(state("SUCCESS", sequence=2), 0.0)
    table.keep(call, 0.0)
    for _ in range(2):
        reader = make_call(backlog=Backlog(10))
        table.attach(reader)
        assert (*final(reader), reader.error) == (*final(call), call.error)
    assert table.pending == {}


def test_a_call_whose_states_were_not_asked_for_is_not_kept() -> None:
    table = make_table()
    call = make_call()
    table.add(call)
    table.fail(call, ConnectionLost("gone"))
    table.keep(call, 0.0)
    assert table.is_gone("t")


def test_a_call_whose_caller_went_away_is_not_kept() -> None:
    table = make_table()
    call = make_call(backlog=Backlog(10))
    table.add(call)
    table.receive(state("STARTED", sequence=1), 0.0)
    table.abandon(call)
    table.keep(call, 0.0)
    assert table.is_gone("t")


def test_a_reader_that_waited_too_long_leaves_what_it_saw_to_the_next() -> None:
    table = make_table()
    first = make_call(deadline=5.0, backlog=Backlog(10))
    table.attach(first)
    table.receive(state("STARTED", sequence=1), 0.0)
    assert table.expire(6.0) == [first]
    table.receive(state("SUCCESS", sequence=2), 7.0)
    second = make_call(backlog=Backlog(10))
    table.attach(second)
    assert second.backlog is not None
    assert [message.name for message in second.backlog.states] == ["STARTED", "SUCCESS"]


@pytest.mark.parametrize("foreign", [True, False])
def test_a_settled_task_is_gone_and_an_unknown_one_is_not(foreign: bool) -> None:
    ids = TaskIds(PREFIX)
    table = CallTable(ids, OutOfBandLimits())
    task_id = "given" if foreign else ids.new()
    assert table.is_gone(task_id) is not foreign
    table.add(make_call(task_id, foreign=foreign))
    assert not table.is_gone(task_id)
    table.receive(state("SUCCESS", task_id=task_id), 0.0)
    assert table.is_gone(task_id)


def test_a_task_with_parked_states_is_not_gone() -> None:
    table = make_table()
    table.receive(state(), 0.0)
    assert not table.is_gone("t")


def test_forgetting_drops_parked_states_and_those_to_come() -> None:
    table = make_table()
    table.receive(state(sequence=1), 0.0)
    assert table.forget("t") is None
    table.receive(state(sequence=2), 0.0)
    assert (len(table.out_of_band), table.duplicates) == (0, 1)


def test_forgetting_ends_the_call_that_waits() -> None:
    table = make_table()
    call = make_call(deadline=1.0)
    table.add(call)
    assert table.forget("t") is call
    assert (call.phase, table.pending, table.next_deadline()) == (Phase.ABANDONED, {}, None)


def test_a_call_expires_at_its_deadline() -> None:
    table = make_table()
    call = make_call(deadline=5.0)
    table.add(call)
    assert table.expire(5.0 - ROUNDING) == []
    assert table.expire(5.0 + GRANULARITY + ROUNDING) == [call]
    assert (call.phase, table.pending) == (Phase.SETTLED, {})


def test_the_next_deadline_is_that_of_calls_or_of_parked_states() -> None:
    table = make_table(age=10.0)
    assert table.next_deadline() is None
    table.receive(state(task_id="parked"), 0.0)
    assert table.next_deadline() == 11.0
    table.add(make_call("late", deadline=20.0))
    assert table.next_deadline() == 11.0
    table.add(make_call("soon", deadline=5.0))
    assert table.next_deadline() == pytest.approx(5.0, abs=GRANULARITY + ROUNDING)


Ending = Callable[[CallTable, Call], object]

ENDINGS: dict[str, Ending] = {
    "a terminal state": lambda table, call: table.receive(state("SUCCESS", task_id=call.task_id), 0.0),
    "an error": lambda table, call: table.fail(call, ConnectionLost("gone")),
    "its caller going away": lambda table, call: table.abandon(call),
    "its end without an answer": lambda table, call: table.end(call),
    "its reader going away": lambda table, call: table.detach(call, 0.0),
    "being forgotten": lambda table, call: table.forget(call.task_id),
    "its deadline": lambda table, _: table.expire(60.0),
}


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("deadline", [None, 30.0])
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_refers_to_a_call_that_has_ended(ending: str, deadline: float | None, foreign: bool) -> None:
    if ending == "its deadline" and deadline is None:
        return
    ids = TaskIds(PREFIX)
    table = CallTable(ids, OutOfBandLimits())
    call = make_call("given" if foreign else ids.new(), deadline=deadline, foreign=foreign)
    is_referenced = watch_references(call)
    table.add(call)
    ENDINGS[ending](table, call)
    assert call.phase is not Phase.PENDING
    assert is_referenced()
    del call
    assert not is_referenced()
    assert table.next_deadline() is None


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != "its reader going away"])
def test_late_states_of_a_call_that_has_ended_are_not_parked(ending: str, foreign: bool) -> None:
    ids = TaskIds(PREFIX)
    table = CallTable(ids, OutOfBandLimits())
    call = make_call("given" if foreign else ids.new(), deadline=30.0, foreign=foreign)
    table.add(call)
    ENDINGS[ending](table, call)
    assert table.receive(state("SUCCESS", task_id=call.task_id), 60.0) is None
    assert (table.duplicates, table.parked, len(table.out_of_band)) == (1, 0, 0)


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize(
    ("ending", "late"),
    [
        ("a terminal state", 0),
        ("an error", 1),
        ("its caller going away", 1),
        ("its end without an answer", 0),
        ("its deadline", 1),
    ],
)
def test_the_first_answer_of_a_call_that_ended_without_one_is_late(ending: str, late: int, foreign: bool) -> None:
    ids = TaskIds(PREFIX)
    table = CallTable(ids, OutOfBandLimits())
    call = make_call("given" if foreign else ids.new(), deadline=30.0, foreign=foreign)
    table.add(call)
    ENDINGS[ending](table, call)
    for _ in range(2):
        table.receive(state("SUCCESS", task_id=call.task_id), 60.0)
    assert (table.late, table.duplicates, table.orphaned) == (late, 2, 0)


def test_a_terminal_state_of_a_task_that_nobody_knows_is_orphaned() -> None:
    table = make_table()
    table.receive(state("STARTED"), 0.0)
    table.receive(state("SUCCESS"), 0.0)
    assert (table.parked, table.orphaned) == (2, 1)


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
def test_a_call_that_has_ended_does_not_end_again(first: str, second: str) -> None:
    table = make_table()
    call = make_call(deadline=30.0)
    table.add(call)
    ENDINGS[first](table, call)
    ended = (*final(call), call.error)
    ENDINGS[second](table, call)
    assert (*final(call), call.error) == ended
    assert table.pending == {}


@pytest.mark.parametrize("foreign", [True, False])
def test_calls_that_time_out_leave_memory_flat(foreign: bool) -> None:
    ids = TaskIds(PREFIX)
    table = CallTable(ids, OutOfBandLimits(), 100)

    def time_out(count: int) -> None:
        for _ in range(count):
            now = float(ids.count)
            call = make_call(f"given {now}" if foreign else ids.new(), deadline=now + 30.0, foreign=foreign)
            ids.count += foreign
            table.add(call)
            table.expire(now)
        table.expire(ids.count + 60.0)

    time_out(1_000)
    tracemalloc.start()
    try:
        time_out(20_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (table.pending, table.next_deadline()) == ({}, None)
    assert held < 64 * 1024


FOREIGN_IDS = ("a", "b", "c", "d", "e", "f")
OWN_IDS = 6

task_numbers = st.integers(0, len(FOREIGN_IDS) + OWN_IDS)
"""A foreign id, one made by the table, or one that the table has not made yet."""

timeouts = st.none() | st.floats(0, 5)


class TableMachine(RuleBasedStateMachine):
    """Does to a table what a router does, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = TaskIds(PREFIX)
        self.limits = OutOfBandLimits(tasks=3, size=4_000, age=6.0)
        self.tombstones = 3
        self.table = CallTable(self.ids, self.limits, self.tombstones)
        self.own = [self.ids.new() for _ in range(OWN_IDS)]
        self.unmade = f"{PREFIX}-{OWN_IDS + 1:x}"
        self.calls: list[Call] = []
        self.waiting: dict[str, Call] = {}
        self.ended: dict[int, tuple[object, ...]] = {}
        self.now = 0.0
        self.received = self.changed = self.kept = 0
        self.kept_ids: set[str] = set()

    def id_of(self, number: int) -> str:
        return (*FOREIGN_IDS, *self.own, self.unmade)[number]

    def new_call(self, number: int, timeout: float | None, limit: int | None) -> Call:
        task_id = self.id_of(number)
        deadline = None if timeout is None else self.now + timeout
        backlog = None if limit is None else Backlog(limit)
        return Call(task_id, self, deadline, backlog, not self.ids.made(task_id))

    def end(self, call: Call) -> None:
        """Take note that *call* has left PENDING, which it must not have done before."""
        assert self.waiting.pop(call.task_id) is call
        assert call.phase is not Phase.PENDING
        assert id(call) not in self.ended
        self.ended[id(call)] = (*final(call), call.error)

    @rule(number=task_numbers, timeout=timeouts, limit=st.none() | st.integers(1, 3))
    def add(self, number: int, timeout: float | None, limit: int | None) -> None:
        call = self.new_call(number, timeout, limit)
        if call.task_id in self.waiting:
            with pytest.raises(ValueError, match="pending already"):
                self.table.add(call)
        else:
            self.table.add(call)
            self.calls.append(call)
            self.waiting[call.task_id] = call

    @rule(number=task_numbers, timeout=timeouts, limit=st.integers(1, 3))
    def attach(self, number: int, timeout: float | None, limit: int) -> None:
        call = self.new_call(number, timeout, limit)
        if call.task_id in self.waiting:
            return
        parked = list(self.table.out_of_band.read(call.task_id))
        error = self.table.out_of_band.error(call.task_id)
        self.table.attach(call)
        self.calls.append(call)
        terminal = next((message for message in parked if is_terminal(message.name)), None)
        assert call.terminal is terminal
        assert call.error is (error if terminal is None else None)
        if terminal is None and error is None:
            self.waiting[call.task_id] = call
            assert call.task_id not in self.table.out_of_band
        else:
            self.ended[id(call)] = (*final(call), call.error)

    @rule(
        number=task_numbers,
        name=st.sampled_from(TERMINAL + UNFINISHED),
        attempt=st.integers(1, 2),
        sequence=st.integers(0, 3),
        size=st.integers(0, 2_000),
    )
    def receive(self, number: int, name: str, attempt: int, sequence: int, size: int) -> None:
        table, task_id = self.table, self.id_of(number)
        message = state(name, task_id=task_id, attempt=attempt, sequence=sequence, body=b"x" * size)
        parked = table.parked
        call = table.receive(message, self.now)
        self.received += 1
        if self.ids.made(task_id):
            assert table.parked == parked
        if call is None:
            return
        self.changed += 1
        assert call is self.waiting[task_id]
        assert (call.phase is Phase.SETTLED) == is_terminal(name)
        if is_terminal(name):
            self.end(call)
            self.keep(call)

    def keep(self, call: Call) -> None:
        self.note_kept(call)
        self.table.keep(call, self.now)

    def note_kept(self, call: Call) -> None:
        if call.backlog is not None:
            self.kept += len(call.backlog.states)
            self.kept_ids.add(call.task_id)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), keep=st.booleans())
    def fail(self, data: st.DataObject, keep: bool) -> None:
        call = data.draw(st.sampled_from(self.calls))
        pending = call.phase is Phase.PENDING
        assert self.table.fail(call, ConnectionLost("gone")) is pending
        if pending:
            assert call.phase is Phase.SETTLED
            self.end(call)
            if keep:
                self.keep(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), detach=st.booleans())
    def leave(self, data: st.DataObject, detach: bool) -> None:
        call = data.draw(st.sampled_from(self.calls))
        pending = call.phase is Phase.PENDING
        if detach:
            if pending:
                self.note_kept(call)
            self.table.detach(call, self.now)
        else:
            self.table.abandon(call)
        if pending:
            assert call.phase is Phase.ABANDONED
            self.end(call)

    @rule(number=task_numbers)
    def forget(self, number: int) -> None:
        task_id = self.id_of(number)
        call = self.waiting.get(task_id)
        assert self.table.forget(task_id) is call
        if call is not None:
            assert call.phase is Phase.ABANDONED
            self.end(call)
        assert task_id not in self.table.out_of_band
        assert self.table.is_gone(task_id) or task_id == self.unmade

    @rule(passed=st.floats(0, 4))
    def expire(self, passed: float) -> None:
        self.now += passed
        expired = self.table.expire(self.now)
        for call in expired:
            if call.sending is Sending.NOT_OURS:
                self.note_kept(call)
            assert call.deadline is not None
            assert call.deadline <= self.now + ROUNDING
            assert call.phase is Phase.SETTLED
            self.end(call)
        for call in self.waiting.values():
            assert call.deadline is None or call.deadline + GRANULARITY > self.now - ROUNDING
        expiry = self.table.out_of_band.next_expiry()
        assert expiry is None or expiry > self.now

    @invariant()
    def what_has_ended_stays_as_it_ended(self) -> None:
        for call in self.calls:
            if call.phase is not Phase.PENDING:
                assert self.ended[id(call)] == (*final(call), call.error)

    @invariant()
    def the_table_holds_what_waits(self) -> None:
        assert self.table.pending == self.waiting
        assert all(call.phase is Phase.PENDING for call in self.waiting.values())

    @invariant()
    def the_next_deadline_is_of_something_that_is_held(self) -> None:
        deadlines = [call.deadline for call in self.waiting.values() if call.deadline is not None]
        expiry = self.table.out_of_band.next_expiry()
        at = self.table.next_deadline()
        if not deadlines and expiry is None:
            assert at is None
        else:
            earliest = min([*deadlines, *([] if expiry is None else [expiry])])
            assert at is not None
            assert earliest - ROUNDING <= at <= earliest + GRANULARITY + ROUNDING

    @invariant()
    def what_is_kept_is_within_bounds(self) -> None:
        parked = self.table.out_of_band
        assert len(parked) <= self.limits.tasks
        assert parked.size <= self.limits.size
        known = [task_id for task_id in (*FOREIGN_IDS, self.unmade) if self.table.is_gone(task_id)]
        assert len(known) <= self.tombstones

    @invariant()
    def states_of_made_ids_are_parked_for_their_readers_alone(self) -> None:
        assert all(task_id in self.kept_ids for task_id in self.own if task_id in self.table.out_of_band)

    @invariant()
    def every_state_is_counted_once(self) -> None:
        table = self.table
        assert self.changed + table.stale + table.duplicates + table.parked == self.received
        assert table.evicted <= table.parked + self.kept

    def teardown(self) -> None:
        for call in list(self.waiting.values()):
            self.table.abandon(call)
        self.table.expire(self.now + 2 * self.limits.age)
        assert self.table.pending == {}
        assert (len(self.table.out_of_band), self.table.out_of_band.size) == (0, 0)
        assert self.table.next_deadline() is None


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
