"""Cancelling: what is said to workers, when, and what the caller gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from aiorpcq import DeadlineExceeded, Service, TaskRevoked, UsageError
from aiorpcq.protocol.control import CancelMode

from .breaking import Breaking, kept_apart, next_generation
from .parties import ClientFactory, Gate, ReplyQueue, WorkerFactory, calculator, eventually, leaving
from .understudy import Understudy

MODES = pytest.mark.parametrize("mode", ["skip", "kill", "killnowait"])


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


@pytest.fixture
async def understudy(url: str) -> AsyncIterator[Understudy]:
    async with Understudy.connected(url) as party:
        assert isinstance(party, Understudy)
        await party.listen()
        yield party


class Interrupted:
    """A service whose method says whether it was stopped."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.stopped = asyncio.Event()
        self.service = Service()

        @self.service.method
        async def wait() -> str:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.set()
                raise
            return "done"


async def reply_queue(service: ReplyQueue) -> str:
    """Return the reply queue of the next request."""
    reply_to = (await service.next()).properties.reply_to
    assert reply_to is not None
    return reply_to


# --- with a worker


async def test_kill_stops_the_method_and_waits_for_the_end(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    task = await caller.submit("wait")
    await interrupted.gate.entered()
    await task.cancel("kill")
    assert task.state == "REVOKED"
    await asyncio.wait_for(interrupted.stopped.wait(), 5)
    with pytest.raises(TaskRevoked):
        await task


async def test_killnowait_settles_at_once_and_stops_the_method(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    task = await caller.submit("wait")
    await interrupted.gate.entered()
    await task.cancel("killnowait")
    assert task.done
    with pytest.raises(TaskRevoked) as caught:
        await task
    assert caught.value.maybe_executed
    await asyncio.wait_for(interrupted.stopped.wait(), 5)


async def test_skip_leaves_a_method_that_has_begun_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    task = await caller.submit("wait")
    await interrupted.gate.entered()
    await task.cancel("skip")
    interrupted.gate.open()
    assert await task == "done"


async def test_cancelling_an_awaited_call_stops_its_method(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    limit = asyncio.timeout(None)

    async def call() -> None:
        async with limit:
            await caller.call("wait")

    calling = asyncio.ensure_future(call())
    await interrupted.gate.entered()
    limit.reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await calling
    await asyncio.wait_for(interrupted.stopped.wait(), 5)
    assert (caller.statistics().pending, caller.statistics().cancelled) == (0, 1)


async def test_a_task_is_cancelled_by_its_id(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    task = await caller.submit("wait")
    await interrupted.gate.entered()
    await caller.cancel(task.id)
    assert task.state == "REVOKED"


async def test_the_bridge_cancels_from_another_thread(client: ClientFactory, worker: WorkerFactory) -> None:
    interrupted = Interrupted()
    await worker(interrupted.service)
    caller = await client()
    task = await caller.submit("wait")
    await interrupted.gate.entered()
    await asyncio.to_thread(caller.from_thread.cancel, task, timeout=5)
    assert task.state == "REVOKED"


async def test_ten_thousand_callers_cancelled_at_once_leave_nothing(
    client: ClientFactory, understudy: Understudy
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("odd.one")) for _ in range(10_000)]
    for _ in calls:
        await service.next()
    for call in calls:
        call.cancel()
    assert {type(error) for error in await asyncio.gather(*calls, return_exceptions=True)} == {asyncio.CancelledError}
    ids = {(await understudy.cancel())[1].task_id for _ in calls}
    assert len(ids) == 10_000
    statistics = caller.statistics()
    assert (statistics.pending, statistics.cancelled, statistics.out_of_band) == (0, 10_000, 0)


# --- what is said


@MODES
async def test_a_cancel_goes_to_the_workers_of_the_service_with_the_proof_of_its_caller(
    client: ClientFactory, understudy: Understudy, mode: str
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    replies = await reply_queue(service)
    cancelling = asyncio.ensure_future(task.cancel(mode))  # type: ignore[arg-type]  # one of them
    key, cancel = await understudy.cancel()
    assert key == "service.odd"
    assert (cancel.task_id, cancel.reply_to, cancel.mode) == (task.id, replies, mode)
    assert 25 < cancel.expires <= 30.1
    if mode == "kill":
        assert not cancelling.done()
        await understudy.state(replies, task.id, "REVOKED")
    await cancelling


async def test_the_cancel_of_a_task_without_deadline_is_remembered_for_an_hour(
    client: ClientFactory, understudy: Understudy
) -> None:
    service = await understudy.serve("odd")
    caller = await client(timeout=None)
    task = await caller.submit("odd.one")
    await service.next()
    await task.cancel("skip")
    assert (await understudy.cancel())[1].expires == 3600


async def test_kill_ends_with_whatever_comes_first(client: ClientFactory, understudy: Understudy) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    replies = await reply_queue(service)
    cancelling = asyncio.ensure_future(task.cancel())
    await understudy.cancel()
    await understudy.state(replies, task.id, "SUCCESS", "was faster")
    await cancelling
    assert await task == "was faster"


async def test_kill_waits_no_longer_than_its_timeout(client: ClientFactory, understudy: Understudy) -> None:
    await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    with pytest.raises(DeadlineExceeded):
        await task.cancel(timeout=0.05)
    assert not task.done


@MODES
async def test_cancelling_what_has_ended_says_nothing(
    client: ClientFactory, worker: WorkerFactory, understudy: Understudy, mode: str
) -> None:
    await worker(calculator())
    caller = await client()
    task = await caller.submit("add", 1, 2)
    assert await task == 3
    await task.cancel(mode)  # type: ignore[arg-type]  # one of them
    await caller.cancel(task.id, mode)  # type: ignore[arg-type]  # the same
    assert await task == 3
    assert caller.statistics().cancelled == 0


async def test_a_task_that_was_not_submitted_here_is_cancelled_everywhere(
    client: ClientFactory, understudy: Understudy
) -> None:
    caller = await client()
    replies = await understudy.reply_queue_of(caller)
    async with leaving(caller.stream("foreign")) as states:
        reading = asyncio.ensure_future(anext(states))
        await eventually(lambda: caller.statistics().pending == 1)
        cancelling = asyncio.ensure_future(caller.cancel("foreign"))
        key, cancel = await understudy.cancel()
        assert (key, cancel.task_id, cancel.reply_to) == ("all", "foreign", replies)
        await understudy.state(replies, "foreign", "REVOKED")
        await cancelling
        assert (await reading).name == "REVOKED"
    await caller.cancel("unknown", "skip")
    assert (await understudy.cancel())[1].task_id == "unknown"
    assert caller.statistics().pending == 0


async def test_the_wait_for_the_end_of_an_unknown_task_leaves_nothing(
    client: ClientFactory, understudy: Understudy
) -> None:
    caller = await client()
    with pytest.raises(DeadlineExceeded):
        await caller.cancel("unknown", timeout=0.05)
    assert caller.statistics().pending == 0


@pytest.mark.parametrize(("mode", "timeout"), [("stop", None), ("", None), ("kill", -1), ("kill", "1")])
async def test_a_cancel_that_cannot_be_is_a_value_error(
    client: ClientFactory, understudy: Understudy, mode: str, timeout: float
) -> None:
    await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    for cancel in (task.cancel, lambda *args, **kwargs: caller.cancel(task.id, *args, **kwargs)):
        with pytest.raises(ValueError, match="mode" if timeout is None else "timeout"):
            await cancel(mode, timeout=timeout)  # type: ignore[arg-type]  # wrong on purpose
    assert not task.done


# --- whose end is a cancel, and whose is not


async def test_a_call_that_is_told_so_leaves_its_task_alone(client: ClientFactory, understudy: Understudy) -> None:
    service = await understudy.serve("odd")
    caller = (await client()).with_options(cancel_task=False)
    call = asyncio.ensure_future(caller.call("odd.one"))
    await service.next()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (caller.statistics().cancelled, caller.statistics().pending) == (0, 0)


async def test_a_call_that_was_not_sent_cancels_nothing(client: ClientFactory, breaking: Breaking) -> None:
    if breaking.broker is None:
        pytest.skip("an alarm is for the whole of the suite's broker; see tests/faults")
    caller = await client()
    breaking.broker.block()
    call = asyncio.ensure_future(caller.call("odd.one"))
    await eventually(lambda: caller.statistics().pending == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (caller.statistics().cancelled, caller.statistics().pending) == (0, 0)


@MODES
@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_a_cancel_of_what_was_not_sent_ends_it_and_nothing_is_sent(
    client: ClientFactory, understudy: Understudy, breaking: Breaking, way: str, mode: CancelMode
) -> None:
    if breaking.broker is None:
        pytest.skip("an alarm is for the whole of the suite's broker; see tests/faults")
    service = await understudy.serve("odd")
    caller = await client()
    breaking.broker.block()
    waiting = asyncio.ensure_future(getattr(caller.with_options(task_id="mine"), way)("odd.one"))
    await eventually(lambda: caller.statistics().pending == 1)
    await caller.cancel("mine", mode)
    with pytest.raises(TaskRevoked) as caught:
        await waiting
    assert (caught.value.task_id, caught.value.maybe_executed) == ("mine", False)
    breaking.broker.unblock()
    await caller.with_options(task_id="next").cast("odd.one")
    assert (await service.next()).properties.correlation_id == "next"
    assert caller.statistics().cancelled == 0


@pytest.mark.parametrize("way", ["deadline", "stream", "result", "closing"])
async def test_other_ends_of_a_wait_are_no_cancel(
    client: ClientFactory, understudy: Understudy, jump: Callable[[float], None], way: str
) -> None:
    await understudy.serve("odd")
    caller, staying = await client(timeout=10), await client()
    task = await caller.submit("odd.one")
    if way == "deadline":
        jump(11)
        with pytest.raises(DeadlineExceeded):
            await task
    elif way == "stream":
        async with leaving(task.stream()) as states:
            reading = asyncio.ensure_future(anext(states))
            await asyncio.sleep(0)
            reading.cancel()
    elif way == "result":
        waiting = asyncio.ensure_future(task.result())
        await asyncio.sleep(0)
        waiting.cancel()
    else:
        await caller.aclose()
    assert staying.statistics().cancelled == 0


# --- cancels that come too early, or too late


async def test_a_cancel_without_a_connection_is_sent_on_the_next(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    replies = await reply_queue(service)
    async with kept_apart(caller):
        await breaking.cut("client")
        await eventually(lambda: not caller.health().ready)
        await task.cancel("killnowait")
        with pytest.raises(TaskRevoked):
            await task
    _, cancel = await understudy.cancel()
    assert (cancel.task_id, cancel.reply_to) == (task.id, replies)


async def test_a_cancel_after_a_loss_names_the_queue_that_the_request_was_sent_with(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    replies = await reply_queue(service)
    await breaking.cut("client")
    await next_generation(caller)
    await task.cancel("skip")
    assert (await understudy.cancel())[1].reply_to == replies


@pytest.mark.parametrize("mode", ["kill", "killnowait"])
async def test_a_worker_that_begins_with_a_cancelled_task_is_told(
    client: ClientFactory, understudy: Understudy, mode: str
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    replies = await reply_queue(service)
    cancelling = asyncio.ensure_future(task.cancel(mode))  # type: ignore[arg-type]  # one of them
    _, first = await understudy.cancel()
    await understudy.started(replies, task.id, "late-worker")
    key, again = await understudy.cancel()
    assert key == "worker.late-worker"
    assert (again.task_id, again.reply_to, again.mode) == (first.task_id, first.reply_to, mode)
    assert again.expires <= first.expires
    await understudy.state(replies, task.id, "REVOKED", sequence=2)
    await cancelling
    assert caller.statistics().cancelled == 1


async def test_a_worker_that_begins_with_another_task_is_not(client: ClientFactory, understudy: Understudy) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    cancelled, other = await caller.submit("odd.one"), await caller.submit("odd.one")
    replies = await reply_queue(service)
    await cancelled.cancel("killnowait")
    await understudy.cancel()
    await understudy.started(replies, other.id, "worker")
    await eventually(lambda: other.state == "STARTED")
    assert understudy.commands.empty()


async def test_direct_replies_know_no_cancel(client: ClientFactory, understudy: Understudy) -> None:
    service = await understudy.serve("odd")
    caller = await client(reply_queue="direct")
    with pytest.raises(UsageError, match="reply_queue"):
        await caller.cancel("t")
    call = asyncio.ensure_future(caller.call("odd.one"))
    await service.next()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert caller.statistics().cancelled == 0
