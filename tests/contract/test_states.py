"""The states of a task: its stream, its result, and what is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aiorpcq import (
    BacklogLimitExceeded,
    Client,
    CodecError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    OutOfBandLimits,
    RemoteError,
    Service,
    State,
    Task,
    UnknownTask,
    Unroutable,
    UsageError,
)
from aiorpcq.protocol.messages import Properties

from .parties import (
    PATIENCE,
    BystanderFactory,
    ClientFactory,
    Gate,
    WorkerFactory,
    calculator,
    eventually,
    leaving,
    request_for,
)


async def collected(client: Client, task_id: str) -> list[State]:
    async with leaving(client.stream(task_id)) as states:
        return [state async for state in states]


def names(states: list[State]) -> list[str]:
    return [state.name for state in states]


def stepping(gate: Gate) -> Service:
    """A service whose method "steps" reports, waits at *gate*, and reports again."""
    service = calculator()

    @service.method
    async def steps(ctx: Context, count: int = 1) -> str:
        await ctx.progress("before")
        await gate.wait()
        for step in range(count):
            await ctx.progress(step)
        return "done"

    return service


# --- streams


async def test_a_stream_shows_every_state_once_and_in_order(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def resize(ctx: Context) -> str:
        await ctx.progress({"done": 1})
        await ctx.update_state("UPLOADING", [1, 2])
        await ctx.progress({"done": 2})
        return "a.png"

    await worker(service)
    caller = await client()
    task = await caller.submit("resize")
    states = await collected(caller, task.id)
    assert names(states) == ["RECEIVED", "STARTED", "PROGRESS", "UPLOADING", "PROGRESS", "SUCCESS"]
    assert [state.value for state in states[2:]] == [{"done": 1}, [1, 2], {"done": 2}, "a.png"]
    assert [state.is_terminal for state in states] == [False] * 5 + [True]
    assert {state.task_id for state in states} == {task.id}
    assert {state.attempt for state in states} == {1}


async def test_the_states_say_which_worker_they_come_from(client: ClientFactory, worker: WorkerFactory) -> None:
    serving = await worker(calculator())
    caller = await client()
    task = await caller.submit("count", 1)
    states = await collected(caller, task.id)
    assert {state.worker_id for state in states[:-1]} == {serving.id}
    assert set(states[1].value) == {"pid", "hostname"}


async def test_a_plain_method_has_the_same_states(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    def digest(data: bytes) -> int:
        return len(data)

    await worker(service)
    caller = await client()
    task = await caller.submit("digest", b"123")
    assert names(await collected(caller, task.id)) == ["RECEIVED", "STARTED", "SUCCESS"]


async def test_many_states_all_arrive_in_order(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("count", 900)
    states = await collected(caller, task.id)
    assert [state.value for state in states[2:-1]] == list(range(1, 901))


async def test_many_tasks_streamed_at_once_keep_their_states_apart(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client()

    async def follow(steps: int) -> bool:
        task = await caller.submit("count", steps)
        states = await collected(caller, task.id)
        return [state.value for state in states[2:]] == [*range(1, steps + 1), steps]

    assert all(await asyncio.gather(*(follow(number % 7) for number in range(300))))


async def test_a_failure_ends_the_stream_with_the_error_as_its_value(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("fail", "boom")
    states = await collected(caller, task.id)
    assert names(states) == ["RECEIVED", "STARTED", "FAILURE"]
    error = states[-1].value
    assert isinstance(error, RemoteError)
    assert (error.type, error.args, error.task_id) == ("ValueError", ("boom",), task.id)


async def test_states_come_while_the_task_runs(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps")
    async with leaving(task.stream()) as states:
        seen = [(await anext(states)).name for _ in range(3)]
        assert seen == ["RECEIVED", "STARTED", "PROGRESS"]
        assert task.state == "PROGRESS"
        gate.open()
        assert names([state async for state in states]) == ["PROGRESS", "SUCCESS"]


async def test_several_readers_each_see_all(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps", 5)
    readers = [asyncio.ensure_future(collected(caller, task.id)) for _ in range(3)]
    await gate.entered()
    gate.open()
    first, second, third = await asyncio.gather(*readers)
    assert len(first) == 9
    assert first == second == third


@pytest.mark.parametrize("way", ["client", "task"])
async def test_a_late_reader_sees_all_again(client: ClientFactory, worker: WorkerFactory, way: str) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("count", 3)
    assert await task == 3
    for _ in range(2):
        async with leaving(caller.stream(task.id) if way == "client" else task.stream()) as states:
            seen = [state async for state in states]
        assert names(seen) == ["RECEIVED", "STARTED", "PROGRESS", "PROGRESS", "PROGRESS", "SUCCESS"]


async def test_leaving_a_stream_early_leaves_the_task_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps")
    async with leaving(caller.stream(task.id)) as states:
        async for state in states:
            if state.name == "PROGRESS":
                break
    gate.open()
    assert await task == "done"
    assert len(await collected(caller, task.id)) == 5


async def test_cancelling_a_reader_leaves_the_task_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps")
    reader = asyncio.ensure_future(collected(caller, task.id))
    await gate.entered()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    gate.open()
    assert await task == "done"


async def test_a_stream_shows_a_task_of_another_client_of_the_loop(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(stepping(gate))
    submitter, reader = await client(), await client()
    task = await submitter.submit("steps")
    early = asyncio.ensure_future(collected(reader, task.id))
    await gate.entered()
    gate.open()
    await task
    assert len(await early) == 5
    assert len(await collected(reader, task.id)) == 5


async def test_closing_the_client_of_a_task_does_not_end_the_stream_of_another(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(stepping(gate))
    submitter, reader = await client(), await client()
    task = await submitter.submit("steps")
    states = asyncio.ensure_future(collected(reader, task.id))
    await gate.entered()
    waiter = asyncio.ensure_future(task.result())
    await asyncio.sleep(0)
    await submitter.aclose()
    with pytest.raises(ConnectionLost):
        await waiter
    gate.open()
    assert names(await states) == ["RECEIVED", "STARTED", "PROGRESS", "PROGRESS", "SUCCESS"]


async def test_closing_a_client_ends_its_streams_of_anothers_task_and_leaves_the_task_alone(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(stepping(gate))
    submitter, reader = await client(), await client()
    task = await submitter.submit("steps")
    await gate.entered()
    async with leaving(reader.stream(task.id)) as states:
        for _ in range(3):
            await anext(states)
        following = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        await reader.aclose()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConnectionLost):
                await following
    gate.open()
    assert await task == "done"


async def test_the_states_of_a_call_cannot_be_streamed(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.with_options(task_id="t").call("steps"))
    await gate.entered()
    with pytest.raises(UsageError, match="submit"):
        await collected(caller, "t")
    gate.open()
    assert await call == "done"


async def test_a_settled_call_has_no_states_to_stream(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    await caller.with_options(task_id="t").call("add", 1, 2)
    with pytest.raises(UnknownTask):
        await collected(caller, "t")


async def test_an_unknown_way_to_overflow_is_a_value_error(client: ClientFactory) -> None:
    with pytest.raises(ValueError, match="overflow"):
        async with leaving((await client()).stream("t", overflow="never")) as states:  # type: ignore[arg-type]  # wrong
            await anext(states)


async def test_a_call_gets_its_terminal_state_and_nothing_else(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    for number in range(3):
        await stranger.request(request_for("count", 5, task_id=f"t{number}", reply_to=replies.name))
        assert await replies.until_terminal() == [("SUCCESS", 5)]
    assert serving.statistics().publisher.updates == 0


async def test_a_plain_success_has_no_headers(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name))
    properties = (await replies.next()).properties
    assert (properties.type, properties.correlation_id, properties.reply_to) == ("SUCCESS", "t", None)
    assert not properties.headers


async def test_a_cast_gets_nothing(client: ClientFactory, worker: WorkerFactory) -> None:
    serving = await worker(calculator())
    caller = await client()
    await caller.cast("count", 5)
    await caller.call("add", 1, 2)
    assert serving.statistics().publisher.updates == 0
    assert caller.statistics().duplicates == caller.statistics().parked == 0


async def test_a_state_that_a_method_publishes_after_its_end_reaches_nobody(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service, kept = calculator(), []

    @service.method
    async def keep(ctx: Context) -> None:
        kept.append(ctx)

    await worker(service)
    caller = await client()
    await (await caller.submit("keep"))
    await kept[0].progress("late")
    await caller.call("add", 1, 2)
    assert (caller.statistics().duplicates, caller.statistics().stale) == (0, 0)


# --- backlog


async def fallen_behind(caller: Client, gate: Gate, overflow: Any) -> tuple[list[State], Task]:
    """Read three states, let the task end, and read on."""
    task = await caller.submit("steps", 20)
    async with leaving(caller.stream(task.id, overflow=overflow)) as states:
        seen = [await anext(states) for _ in range(3)]
        await gate.entered()
        gate.open()
        await task
        seen += [state async for state in states]
    return seen, task


async def test_a_reader_that_falls_behind_goes_on_with_the_oldest_that_is_kept(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(stepping(gate))
    seen, _ = await fallen_behind(await client(backlog=4), gate, "fast_forward")
    assert [state.value for state in seen[3:]] == [17, 18, 19, "done"]


async def test_a_reader_that_falls_behind_gets_an_error_where_it_asked_for_it(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(stepping(gate))
    with pytest.raises(BacklogLimitExceeded, match="4"):
        await fallen_behind(await client(backlog=4), gate, "error")


async def test_a_reader_that_keeps_up_misses_nothing_however_small_the_backlog(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    turn, service = asyncio.Semaphore(0), Service()

    @service.method
    async def slowly(ctx: Context) -> None:
        for step in range(10):
            await turn.acquire()
            await ctx.progress(step)
        await turn.acquire()

    await worker(service)
    caller = await client(backlog=2)
    task = await caller.submit("slowly")
    seen = []
    async with leaving(caller.stream(task.id, overflow="error")) as states:
        async for state in states:
            seen.append(state.value)
            if state.name != "RECEIVED":
                turn.release()
    assert seen[2:] == [*range(10), None]


async def test_the_result_does_not_depend_on_the_backlog(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    assert await (await (await client(backlog=1)).submit("count", 50)) == 50


# --- tasks


async def test_awaiting_a_task_gives_its_value_any_number_of_times(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    task = await (await client()).submit("add", 1, 2)
    assert [await task, await task, await task.result()] == [3, 3, 3]


async def test_a_failed_task_raises_for_every_waiter(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    task = await (await client()).submit("fail", "boom")
    results = await asyncio.gather(*(task.result() for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["ValueError: boom"] * 3
    with pytest.raises(RemoteError):
        await task


async def test_a_task_knows_its_state(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps")
    await gate.entered()
    await eventually(lambda: task.state == "PROGRESS")
    assert not task.done
    gate.open()
    await task
    assert (task.state, task.done) == ("SUCCESS", True)
    assert repr(task) == f"<Task {task.id} SUCCESS>"


async def test_a_task_without_states_is_pending(client: ClientFactory, bystander: BystanderFactory) -> None:
    await (await bystander()).declare("idle")
    task = await (await client()).submit("idle.method")
    assert (task.state, task.done) == ("PENDING", False)


async def test_several_waiters_get_the_same(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    task = await (await client()).submit("steps")
    waiters = [asyncio.ensure_future(task.result()) for _ in range(5)]
    await gate.entered()
    gate.open()
    assert await asyncio.gather(*waiters) == ["done"] * 5


async def test_the_end_of_a_waits_timeout_leaves_the_task_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    task = await (await client()).submit("steps")
    with pytest.raises(DeadlineExceeded, match=r"0\.05") as caught:
        await task.result(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.task_id == task.id
    assert not task.done
    gate.open()
    assert await task.result(timeout=5) == "done"


async def test_cancelling_a_wait_leaves_the_task_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    task = await (await client()).submit("steps")
    waiter = asyncio.ensure_future(task.result())
    await gate.entered()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    gate.open()
    assert await task == "done"


async def test_the_result_of_a_task_that_is_done_needs_no_time(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    task = await (await client()).submit("add", 1, 2)
    await task
    assert await task.result(timeout=0) == 3


async def test_a_task_that_is_done_keeps_its_value_past_the_client(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("add", 1, 2)
    await task
    await caller.aclose()
    assert await task == 3


async def test_a_task_is_dropped_without_harm(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task_id = (await caller.submit("steps")).id
    gate.open()
    assert names(await collected(caller, task_id))[-1] == "SUCCESS"


async def test_ids_of_tasks_are_unique(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    callers = [await client(), await client()]
    tasks = [await caller.submit("add", 1, 2) for caller in callers for _ in range(50)]
    assert len({task.id for task in tasks}) == 100
    await asyncio.gather(*tasks)


async def test_a_task_may_be_given_its_id(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.with_options(task_id="report-7").submit("count", 1)
    assert task.id == "report-7"
    assert await task == 1
    assert names(await collected(caller, "report-7"))[-1] == "SUCCESS"


async def test_an_id_that_is_pending_is_refused(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = (await client()).with_options(task_id="t")
    task = await caller.submit("steps")
    for way in (caller.call, caller.submit, caller.cast):
        with pytest.raises(UsageError, match="pending"):
            await way("steps")
    gate.open()
    assert await task == "done"


# --- forgetting


async def test_who_waits_for_a_forgotten_task_is_told(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps")
    waiting = [asyncio.ensure_future(task.result()), asyncio.ensure_future(collected(caller, task.id))]
    await gate.entered()
    await eventually(lambda: task.state == "PROGRESS")
    task.forget()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, UnknownTask)
        assert error.task_id == task.id
    assert caller.statistics().pending == 0
    gate.open()


async def test_late_states_of_a_forgotten_task_are_dropped(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(stepping(gate))
    caller = await client()
    task = await caller.submit("steps", 3)
    await gate.entered()
    await eventually(lambda: task.state == "PROGRESS")
    caller.forget(task.id)
    gate.open()
    await eventually(lambda: caller.statistics().duplicates == 4)
    assert caller.statistics().out_of_band == 0


async def test_nothing_is_held_of_a_forgotten_task(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("count", 3)
    await task
    assert caller.statistics().out_of_band == 1
    caller.forget(task.id)
    assert (caller.statistics().out_of_band, caller.statistics().out_of_band_size) == (0, 0)
    with pytest.raises(UnknownTask):
        await collected(caller, task.id)


async def test_forgetting_what_is_not_known_does_nothing(client: ClientFactory) -> None:
    (await client()).forget("nothing")


# --- states that come before their reader


async def test_states_that_come_early_wait_for_their_reader(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    await stranger.state(replies, "early", "STARTED", sequence=1)
    await stranger.state(replies, "early", "PROGRESS", 50, sequence=2)
    await stranger.state(replies, "early", "SUCCESS", "done", sequence=3)
    await eventually(lambda: caller.statistics().parked == 3)
    for _ in range(2):
        states = await collected(caller, "early")
        assert [(state.name, state.value) for state in states[1:]] == [("PROGRESS", 50), ("SUCCESS", "done")]
    assert caller.statistics().evicted == 0


async def test_a_stream_may_begin_before_the_first_state(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    reader = asyncio.ensure_future(collected(caller, "late"))
    await eventually(lambda: caller.statistics().pending == 1)
    await stranger.state(replies, "late", "PROGRESS", 1, sequence=1)
    await stranger.state(replies, "late", "SUCCESS", 2, sequence=2)
    assert [(state.name, state.value) for state in await reader] == [("PROGRESS", 1), ("SUCCESS", 2)]


async def test_a_task_submitted_elsewhere_can_be_read_again_after_its_end(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    reader = asyncio.ensure_future(collected(caller, "foreign"))
    await eventually(lambda: caller.statistics().pending == 1)
    await stranger.state(replies, "foreign", "PROGRESS", 1, sequence=1)
    await stranger.state(replies, "foreign", "SUCCESS", 2, sequence=2)
    first = await reader
    assert [state.value for state in first] == [1, 2]
    assert await collected(caller, "foreign") == first


async def test_half_of_the_states_may_come_before_the_reader(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    await stranger.state(replies, "half", "PROGRESS", 1, sequence=1)
    await eventually(lambda: caller.statistics().parked == 1)
    async with leaving(caller.stream("half")) as states:
        assert (await anext(states)).value == 1
        await stranger.state(replies, "half", "PROGRESS", 2, sequence=2)
        assert (await anext(states)).value == 2
    async with leaving(caller.stream("half")) as states:  # one reader left, the next begins anew
        assert [(await anext(states)).value, (await anext(states)).value] == [1, 2]
        await stranger.state(replies, "half", "SUCCESS", 3, sequence=3)
        assert [state.value async for state in states] == [3]


async def test_a_stream_of_a_task_that_says_nothing_ends_at_the_deadline(client: ClientFactory) -> None:
    caller = (await client()).with_options(timeout=0.05)
    with pytest.raises(DeadlineExceeded) as caught:
        await collected(caller, "silent")
    assert caught.value.task_id == "silent"
    assert caller.statistics().pending == 0


async def test_a_stream_that_ended_at_its_deadline_can_be_taken_up_again(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    await stranger.state(replies, "slow", "PROGRESS", 1, sequence=1)
    await eventually(lambda: caller.statistics().parked == 1)
    with pytest.raises(DeadlineExceeded):
        await collected(caller.with_options(timeout=0.05), "slow")
    await stranger.state(replies, "slow", "SUCCESS", 2, sequence=2)
    assert [state.value for state in await collected(caller, "slow")] == [1, 2]


async def test_an_id_whose_states_are_awaited_already_is_pending(client: ClientFactory) -> None:
    caller = (await client()).with_options(task_id="report-7")
    reader = asyncio.ensure_future(collected(caller, "report-7"))
    await eventually(lambda: caller.statistics().pending == 1)
    with pytest.raises(UsageError, match="pending"):
        await caller.submit("count", 1)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


async def test_closing_the_client_ends_its_streams(client: ClientFactory) -> None:
    caller = await client()
    reader = asyncio.ensure_future(collected(caller, "silent"))
    await eventually(lambda: caller.statistics().pending == 1)
    await caller.aclose()
    with pytest.raises(ConnectionLost):
        await reader


async def test_tasks_whose_streams_were_read_to_the_end_are_not_counted_as_evicted(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client(out_of_band=OutOfBandLimits(tasks=1))
    for _ in range(5):
        task = await caller.submit("count", 3)
        assert len(await collected(caller, task.id)) == 6
    assert (caller.statistics().out_of_band, caller.statistics().evicted) == (1, 0)


async def test_nothing_is_held_of_a_task_that_could_not_be_submitted(client: ClientFactory) -> None:
    caller = await client()
    for using in (caller, caller.with_options(task_id="given")):
        with pytest.raises(Unroutable):
            await using.submit("nobody.method")
    assert (caller.statistics().out_of_band, caller.statistics().out_of_band_size) == (0, 0)
    assert caller.statistics().pending == 0


@pytest.mark.parametrize("limits", [OutOfBandLimits(tasks=2), OutOfBandLimits(size=2 * 600)])
async def test_what_passes_a_bound_of_the_buffer_goes_oldest_first_and_is_counted(
    client: ClientFactory, bystander: BystanderFactory, limits: OutOfBandLimits
) -> None:
    stranger, caller = await bystander(), await client(out_of_band=limits)
    replies = await stranger.reply_queue_of(caller)
    for number in range(5):
        await stranger.state(replies, f"t{number}", "SUCCESS", number)
    await eventually(lambda: caller.statistics().parked == 5)
    assert (caller.statistics().out_of_band, caller.statistics().evicted) == (2, 3)
    assert caller.statistics().out_of_band_size <= 1_200
    assert [state.value for state in await collected(caller, "t4")] == [4]
    with pytest.raises(DeadlineExceeded):
        await collected(caller.with_options(timeout=0.01), "t0")


async def test_what_a_reader_leaves_at_its_deadline_is_parked_once(
    client: ClientFactory, bystander: BystanderFactory, jump: Callable[[float], None]
) -> None:
    stranger, caller = await bystander(), await client()
    replies = await stranger.reply_queue_of(caller)
    await stranger.state(replies, "early", "PROGRESS", 50, sequence=1)
    await eventually(lambda: caller.statistics().parked == 1)
    size = caller.statistics().out_of_band_size
    states = caller.with_options(timeout=10).stream("later")
    first = asyncio.ensure_future(anext(states))
    await eventually(lambda: caller.statistics().pending == 1)
    await stranger.state(replies, "later", "PROGRESS", 50, sequence=1)
    await first
    jump(11)
    with pytest.raises(DeadlineExceeded):
        await anext(states)
    assert (caller.statistics().out_of_band, caller.statistics().out_of_band_size) == (2, 2 * size)


async def test_what_a_reader_leaves_is_parked_no_longer_than_the_rest(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client(timeout=None, out_of_band=OutOfBandLimits(age=0.05))
    replies = await stranger.reply_queue_of(caller)
    states = caller.stream("t")
    first = asyncio.ensure_future(anext(states))
    await eventually(lambda: caller.statistics().pending == 1)
    await stranger.state(replies, "t", "PROGRESS", sequence=1)
    await first
    await states.aclose()
    assert caller.statistics().out_of_band == 1
    await eventually(lambda: caller.statistics().out_of_band == 0)


async def test_what_is_parked_for_too_long_goes_by_itself(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger, caller = await bystander(), await client(out_of_band=OutOfBandLimits(age=0.05))
    replies = await stranger.reply_queue_of(caller)
    await stranger.state(replies, "t", "SUCCESS")
    await eventually(lambda: caller.statistics().evicted == 1)
    assert (caller.statistics().out_of_band, caller.statistics().out_of_band_size) == (0, 0)


# --- states that come twice, late or in the wrong order


async def test_a_second_terminal_state_is_counted_and_dropped(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    service = await stranger.serve("odd")
    task = await caller.submit("odd.one")
    replies = (await service.next()).properties.reply_to
    assert replies is not None
    await stranger.state(replies, task.id, "SUCCESS", "first", sequence=1)
    await stranger.state(replies, task.id, "SUCCESS", "second", sequence=1)
    await stranger.state(replies, task.id, "FAILURE", None, sequence=2)
    await stranger.state(replies, task.id, "PROGRESS", 1, sequence=3)
    await eventually(lambda: caller.statistics().duplicates == 3)
    assert await task == "first"
    assert names(await collected(caller, task.id)) == ["SUCCESS"]


async def test_states_that_are_outdated_are_counted_and_dropped(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    service = await stranger.serve("odd")
    task = await caller.submit("odd.one")
    replies = (await service.next()).properties.reply_to
    assert replies is not None
    await stranger.state(replies, task.id, "PROGRESS", "kept", sequence=3)
    await stranger.state(replies, task.id, "STARTED", "older", sequence=2)
    await stranger.state(replies, task.id, "PROGRESS", "again", sequence=3)
    await stranger.state(replies, task.id, "RECEIVED", "next attempt", sequence=1, attempt=2)
    await stranger.state(replies, task.id, "PROGRESS", "attempt before", sequence=9, attempt=1)
    await stranger.state(replies, task.id, "SUCCESS", "value")
    assert await task == "value"
    assert [state.value for state in await collected(caller, task.id)] == ["kept", "next attempt", "value"]
    assert caller.statistics().stale == 3


@pytest.mark.parametrize("early", ["own", "given"])
async def test_states_after_the_terminal_one_reach_nobody(
    client: ClientFactory, bystander: BystanderFactory, early: str
) -> None:
    stranger, caller = await bystander(), await client()
    service = await stranger.serve("odd")
    using = caller if early == "own" else caller.with_options(task_id="given")
    call = asyncio.ensure_future(using.call("odd.one"))
    properties = (await service.next()).properties
    assert properties.reply_to is not None
    assert properties.correlation_id is not None
    await stranger.state(properties.reply_to, properties.correlation_id, "SUCCESS", 1)
    assert await call == 1
    await stranger.state(properties.reply_to, properties.correlation_id, "SUCCESS", 2)
    await eventually(lambda: caller.statistics().duplicates == 1)
    assert caller.statistics().out_of_band == 0


async def test_a_reply_that_cannot_be_decoded_is_an_error_of_its_call(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    service = await stranger.serve("odd")
    task = await caller.submit("odd.one")
    replies = (await service.next()).properties.reply_to
    assert replies is not None
    properties = Properties(content_type="application/msgpack", correlation_id=task.id, type="SUCCESS")
    await stranger.message(replies, properties, b"\xc1")
    with pytest.raises(CodecError) as caught:
        await task
    assert caught.value.task_id == task.id
    assert caught.value.maybe_executed


async def test_a_state_that_cannot_be_decoded_is_an_error_with_the_id_of_its_task(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger, caller = await bystander(), await client()
    service = await stranger.serve("odd")
    task = await caller.submit("odd.one")
    replies = (await service.next()).properties.reply_to
    assert replies is not None
    properties = Properties(content_type="application/msgpack", correlation_id=task.id, type="PROGRESS")
    await stranger.message(replies, properties, b"\xc1")
    async with leaving(task.stream()) as states:
        with pytest.raises(CodecError) as caught:
            await anext(states)
    assert caught.value.task_id == task.id
