"""What a worker says of itself, and what it does when queues, bindings and consumers go behind its back."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import Service, Worker
from aiorpcq.protocol.messages import Outcome

from .breaking import Breaking
from .parties import BystanderFactory, Gate, WorkerFactory, calculator, eventually, request_for
from .workbench import alarm, answer_to, die, ready, take, unbind


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


async def test_a_worker_is_ready_from_its_start_to_its_end(worker: WorkerFactory, url: str) -> None:
    unstarted = Worker(url, [calculator()])
    assert (unstarted.health().ready, unstarted.health().reason) == (False, "not started")
    serving = await worker(calculator())
    assert serving.health()
    assert serving.health().reason is None
    await serving.aclose()
    assert serving.health().reason == "draining"


async def test_a_worker_that_drains_says_so(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> None:
        await gate.wait()

    serving = await worker(service, grace=10)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await gate.entered()
    closing = asyncio.ensure_future(serving.aclose())
    await eventually(lambda: serving.health().reason == "draining")
    gate.open()
    await closing


async def test_a_worker_that_has_lost_its_connection_says_where_to(worker: WorkerFactory, url: str) -> None:
    serving = await worker(calculator())
    await die(serving)
    reason = serving.health().reason or ""
    assert reason.startswith("not connected to ")
    assert "guest:guest" not in reason


async def test_a_worker_is_ready_again_on_its_next_connection(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    serving, stranger = await worker(calculator()), await bystander()
    await breaking.cut("worker")
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", 3)
    await eventually(lambda: serving.health().ready)  # it serves a moment before its set-up ends


async def test_a_worker_whose_broker_takes_nothing_says_so(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> str:
        await gate.wait()
        return "done"

    serving = await worker(service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await gate.entered()
    async with alarm(breaking):
        gate.open()  # RabbitMQ blocks a connection when it publishes
        await eventually(lambda: not serving.health())
        assert "blocked" in (serving.health().reason or "")
    await eventually(lambda: serving.health().ready)
    assert await answer_to(replies, "t") == ("SUCCESS", "done")


async def test_a_service_queue_that_was_deleted_is_declared_and_consumed_again(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    stranger = await bystander()
    serving = await worker(calculator("first"), calculator("second"))
    replies = await stranger.reply_queue()
    for times in (1, 2):
        await breaking.delete_queue("rpc.first")
        await eventually(lambda expected=times: serving.statistics().restored == expected)  # type: ignore[misc]
        assert serving.health()
        for name in ("first", "second"):
            request = request_for("add", 1, 2, task_id=f"{name}-{times}", reply_to=replies.name)
            assert await stranger.request(request, service=name) is Outcome.CONFIRMED
            assert await answer_to(replies, f"{name}-{times}") == ("SUCCESS", 3)


async def test_a_worker_that_does_not_consume_says_for_which_service(worker: WorkerFactory, breaking: Breaking) -> None:
    serving = await worker(calculator("first"), calculator("second"))
    assert serving._parts is not None
    await serving._parts.consumers.stop()  # as between the end of a consumer and the next
    assert serving.health().reason == "not consuming for services: first, second"


async def test_what_runs_when_its_queue_is_deleted_is_still_answered(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    gate, service, stranger = Gate(), Service(), await bystander()

    @service.method
    async def work() -> str:
        await gate.wait()
        return "done"

    serving = await worker(service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await gate.entered()
    await breaking.delete_queue("rpc.default")
    await eventually(lambda: serving.statistics().restored == 1)
    gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    await stranger.request(request_for("work", task_id="u", reply_to=replies.name))
    assert await answer_to(replies, "u") == ("SUCCESS", "done")


async def test_a_binding_that_was_deleted_is_brought_back_by_the_watchdog(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    replies = await stranger.reply_queue()
    request = request_for("add", 1, 2, task_id="t", reply_to=replies.name)
    await unbind(breaking)
    assert await stranger.request(request) is Outcome.RETURNED
    assert serving._parts is not None
    await serving._parts.consumers.look()
    assert await stranger.request(request) is Outcome.CONFIRMED
    assert await answer_to(replies, "t") == ("SUCCESS", 3)
    assert serving.statistics().restored == 0


async def test_a_watchdog_that_finds_all_as_it_should_be_changes_nothing(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    assert serving._parts is not None
    await serving._parts.consumers.look()
    assert (serving.health().ready, serving.statistics().restored, await ready(stranger)) == (True, 0, 0)


async def test_what_goes_back_while_the_binding_is_gone_brings_it_back(
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
    await unbind(breaking)
    await stopping.aclose()
    assert stopping.statistics().republisher.failed == 0
    taken = await take(stranger)
    headers = taken.properties.headers or {}
    assert (taken.redelivered, headers["attempt"], "losses" in headers) == (False, 2, False)
