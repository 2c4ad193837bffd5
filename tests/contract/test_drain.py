"""How a worker ends: what it has not begun goes back as it came, what runs may end, and nobody is poisoned by that."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Literal

import pytest

from aiorpcq import Context, Service, Worker
from aiorpcq.protocol.deliveries import DeliveryMode

from .breaking import Breaking
from .parties import BystanderFactory, ClientFactory, Gate, WorkerFactory, eventually, request_for
from .workbench import alarm, answer_to, lose_run, ready, take

Kind = Literal["classic", "quorum"]


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


def plain(go_on: threading.Event, begun: list[int], **options: Any) -> Service:
    """A service whose method takes a thread until it may go on."""
    service = Service(**options)

    @service.method
    def work(ctx: Context, number: int) -> tuple[int, bool]:
        begun.append(number)
        go_on.wait(10)
        return ctx.attempt, ctx.redelivered

    return service


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_what_waits_for_a_thread_goes_back_as_it_came(
    worker: WorkerFactory, bystander: BystanderFactory, kind: Kind, mode: DeliveryMode
) -> None:
    go_on, begun, stranger = threading.Event(), list[int](), await bystander()
    service = plain(go_on, begun, queue_type=kind, delivery=mode)
    stopping = await worker(service, concurrency=3, threads=1, grace=0)
    replies = await stranger.reply_queue()
    for number in range(3):
        await stranger.request(request_for("work", number, task_id=str(number), reply_to=replies.name))
    await eventually(lambda: len(begun) == 1 and stopping.statistics().running == 3)
    await stopping.aclose()
    go_on.set()
    for _ in range(2 if mode == "no_rerun" else 3):
        taken = await take(stranger)
        assert not taken.redelivered
        headers = taken.properties.headers or {}
        was_begun = taken.properties.correlation_id == str(begun[0])
        assert (headers.get("attempt", 1), headers.get("losses", 0)) == ((2, 0) if was_begun else (1, 0))
        assert headers["republished"]
    assert await ready(stranger) == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_request_that_had_lost_a_run_goes_back_with_that(
    worker: WorkerFactory, bystander: BystanderFactory, url: str, kind: Kind
) -> None:
    """Its copy is not flagged as delivered before, so the loss is in its headers."""
    go_on, begun, stranger = threading.Event(), list[int](), await bystander()
    await stranger.declare("default", {} if kind == "classic" else {"x-queue-type": kind})
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", 1, task_id="lost", reply_to=replies.name))
    await lose_run(url)
    blocking = request_for("work", 0, task_id="blocking", reply_to=replies.name)
    service = plain(go_on, begun, queue_type=kind)
    # The one that has no thread is the one that was published again, or delivered again, whichever comes first.
    stopping = await worker(service, concurrency=2, threads=1, grace=0)
    await stranger.request(blocking)
    await eventually(lambda: stopping.statistics().started == 2 and len(begun) == 1)
    await stopping.aclose()
    go_on.set()
    histories = {}
    for _ in range(2):
        taken = await take(stranger)
        headers = taken.properties.headers or {}
        histories[taken.properties.correlation_id] = (headers.get("attempt", 1), headers.get("losses", 0))
    if begun == [0]:
        assert histories == {"blocking": (2, 0), "lost": (2, 1)}
    else:
        assert histories == {"blocking": (1, 0), "lost": (3, 1)}


async def test_saturated_workers_that_are_replaced_one_after_the_other_lose_nothing(
    client: ClientFactory, bystander: BystanderFactory, url: str
) -> None:
    """Nothing is poisoned, and nothing is answered `WorkerLost` that never ran."""
    service = Service(delivery="no_rerun", max_attempts=2)
    runs: list[int] = []
    gate = Gate()

    @service.method
    async def work(number: int) -> int:
        runs.append(number)
        await gate.wait()
        return number

    caller = await client()
    serving = Worker(url, [service], concurrency=5, grace=10)
    await serving.start()
    calls = [asyncio.ensure_future(caller.call("work", number)) for number in range(60)]
    await gate.entered(5)
    for _ in range(5):
        following = Worker(url, [service], concurrency=5, grace=10)
        await following.start()
        closing = asyncio.ensure_future(serving.aclose())
        await gate.entered(5)
        await asyncio.sleep(0)
        serving, previous = following, closing
        gate.open()
        await previous
        gate._open.clear()
    gate.open()
    assert await asyncio.gather(*calls) == list(range(60))
    assert sorted(runs) == list(range(60))
    await serving.aclose()


async def test_a_drain_ends_in_time_without_a_connection(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> str:
        await gate.wait()
        return "done"

    stopping = await worker(service, grace=0)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await gate.entered()
    await breaking.cut("worker")
    async with asyncio.timeout(5):
        await stopping.aclose()
    gate.open()
    await worker(service)
    assert await answer_to(replies, "t") == ("SUCCESS", "done")


async def test_a_run_whose_channel_is_closed_in_the_grace_goes_back_once(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    """The broker has it again; a copy of it would run beside it."""
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> None:
        await gate.wait()

    stopping = await worker(service, grace=60)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await gate.entered()
    closing = asyncio.ensure_future(stopping.aclose())
    await eventually(lambda: stopping._hurry is not None)
    (execution,) = stopping._started.table.running.values()
    await breaking.close_channels("worker")
    await eventually(lambda: execution.delivery.requeued)
    assert stopping._hurry is not None
    stopping._hurry.set()
    await closing
    assert await ready(stranger) == 1
    assert (await take(stranger)).redelivered


async def test_a_worker_that_was_told_twice_does_not_wait_for_its_grace(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await gate.wait()  # a run that does not let itself be stopped
        return "done"

    stopping = await worker(service, grace=60)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await gate.entered()
    closing = asyncio.ensure_future(stopping.aclose())
    await eventually(lambda: stopping._hurry is not None)
    assert stopping._hurry is not None
    stopping._hurry.set()
    async with asyncio.timeout(10):
        await closing
    gate.open()
    await eventually(lambda: stopping.statistics().running == 0)


async def test_what_a_full_queue_does_not_take_back_is_answered(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """To leave it to the broker would be to have it counted as a lost run elsewhere."""
    gate, stranger = Gate(), await bystander()
    service = Service(max_length=1, overflow="reject-publish")

    @service.method
    async def work() -> None:
        await gate.wait()

    stopping = await worker(service, concurrency=1, grace=0)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="running", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("work", task_id="waiting", reply_to=replies.name))
    await stopping.aclose()
    name, value = await answer_to(replies, "running")
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "Overloaded", True)
    assert await ready(stranger) == 1


async def test_a_second_signal_cuts_the_wait_for_confirms_short(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> str:
        await gate.wait()
        return "done"

    stopping = await worker(service, grace=60)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await gate.entered()
    async with alarm(breaking):
        gate.open()
        await eventually(lambda: stopping.statistics().publisher.unconfirmed == 1)
        closing = asyncio.ensure_future(stopping.aclose())
        await eventually(lambda: stopping._hurry is not None)
        assert stopping._hurry is not None
        stopping._hurry.set()
        async with asyncio.timeout(4):  # five seconds it would wait for the confirm alone
            await closing
