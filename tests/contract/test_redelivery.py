"""Requests that come again: one run, one answer."""

from __future__ import annotations

import pytest

from aiorpcq import CacheLimits, Context, Service, WorkerLost
from aiorpcq.protocol.deliveries import DeliveryMode
from aiorpcq.protocol.messages import History

from .parties import BystanderFactory, ClientFactory, Gate, WorkerFactory, calculator, eventually, request_for


def counting(gate: Gate | None = None) -> tuple[Service, list[int]]:
    """A service that remembers its runs."""
    service, runs = Service(), []

    @service.method
    async def run(ctx: Context, number: int) -> int:
        runs.append(number)
        await ctx.progress("running")
        if gate is not None:
            await gate.wait()
        return len(runs)

    return service, runs


async def test_a_request_that_comes_again_while_it_runs_is_adopted(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate = Gate()
    service, runs = counting(gate)
    serving = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]
    assert (runs, serving.statistics().started) == ([1], 1)
    await eventually(lambda: serving.statistics().running == 0)


async def test_an_adopted_request_leaves_nothing_in_the_queue(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate = Gate()
    service, runs = counting(gate)
    first = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await eventually(lambda: first.statistics().adopted == 1)
    gate.open()
    await replies.until_terminal()
    await first.aclose()
    second_service, second_runs = counting()
    await worker(second_service)
    assert await (await client()).call("run", 2) == 1
    assert (runs, second_runs) == ([1], [2])


@pytest.mark.parametrize("step", [0, 1])
async def test_a_request_that_comes_again_after_its_end_gets_the_same_answer(
    worker: WorkerFactory, bystander: BystanderFactory, step: int
) -> None:
    """As a later attempt too: another worker has counted a run as lost whose worker lives, and has the answer."""
    service, runs = counting()
    serving = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    for losses in (0, step, 2 * step):
        history = History(losses=losses, republished=True) if losses else None
        await stranger.request(
            request_for("run", 1, task_id="t", reply_to=replies.name, attempt=1 + losses, history=history)
        )
        assert await replies.until_terminal() == [("SUCCESS", 1)]
        await eventually(lambda: serving.statistics().running == 0)
    assert runs == [1]
    assert serving.statistics().answered == 2


async def test_an_error_is_answered_again_too(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    for _ in range(2):
        await stranger.request(request_for("fail", "boom", task_id="t", reply_to=replies.name))
        name, value = (await replies.until_terminal())[-1]
        assert (name, value["message"]) == ("FAILURE", "boom")
        await eventually(lambda: serving.statistics().running == 0)
    assert serving.statistics().started == 1


async def test_an_answer_is_kept_for_as_long_as_the_cache_has_room(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, runs = counting()
    serving = await worker(service, cache=CacheLimits(size=1))
    stranger = await bystander()
    replies = await stranger.reply_queue()
    for number in (1, 2):
        await stranger.request(request_for("run", number, task_id="t", reply_to=replies.name))
        assert await replies.until_terminal() == [("SUCCESS", number)]
        await eventually(lambda: serving.statistics().running == 0)
    assert runs == [1, 2]
    assert serving.statistics().cached_size <= 1


async def test_another_callers_request_of_the_same_id_is_a_run_of_its_own(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, runs = counting()
    await worker(service)
    stranger = await bystander()
    for number in (1, 2):
        replies = await stranger.reply_queue()
        await stranger.request(request_for("run", number, task_id="t", reply_to=replies.name))
        assert await replies.until_terminal() == [("SUCCESS", number)]
    assert runs == [1, 2]


async def test_another_callers_request_of_an_id_that_runs_is_rejected(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate = Gate()
    service, runs = counting(gate)
    await worker(service)
    stranger = await bystander()
    first, second = await stranger.reply_queue(), await stranger.reply_queue()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=first.name))
    await gate.entered()
    await stranger.request(request_for("run", 2, task_id="t", reply_to=second.name))
    name, value = (await second.until_terminal())[-1]
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "Rejected", False)
    gate.open()
    assert await first.until_terminal() == [("SUCCESS", 1)]
    assert runs == [1]


async def test_an_answer_whose_caller_is_gone_harms_nothing(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to="rpc.reply.nobody"))
    assert await (await client()).call("add", 3, 4) == 7
    await eventually(lambda: serving.statistics().publisher.returned == 1)
    await eventually(lambda: serving.statistics().running == 0)


async def test_progress_for_a_caller_that_is_gone_harms_nothing(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    await stranger.request(request_for("count", 9, task_id="t", reply_to="rpc.reply.nobody", states=True))
    assert await (await client()).call("add", 3, 4) == 7
    await eventually(lambda: serving.statistics().publisher.returned == 1)


async def test_reply_to_names_a_queue_and_nothing_else(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """An exchange and a key in `reply_to` do not make a worker publish there."""
    service, runs = counting()
    serving = await worker(service)
    await (await bystander()).request(request_for("run", 1, task_id="t", reply_to="rpc/rpc:default"))
    assert await (await client()).call("run", 2) == 2
    await eventually(lambda: serving.statistics().publisher.returned == 1)
    assert runs == [1, 2]


def stopped_midway(gate: Gate, delivery: DeliveryMode) -> Service:
    service = Service(delivery=delivery)

    @service.method
    async def run(ctx: Context) -> tuple[int, bool]:
        await gate.wait()
        return ctx.attempt, ctx.redelivered

    return service


async def test_a_run_that_its_worker_gives_back_is_run_as_its_next_attempt(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    first = await worker(stopped_midway(gate, "at_least_once"), grace=0.0)
    task = await (await client()).submit("run")
    await gate.entered()
    await first.aclose()
    gate.open()
    await worker(stopped_midway(gate, "at_least_once"))
    assert await task == (2, False)


async def test_a_run_that_was_acknowledged_at_its_start_is_answered_by_the_worker_that_stops(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    serving = await worker(stopped_midway(gate, "at_most_once"), grace=0.0)
    task = await (await client()).submit("run")
    await gate.entered()
    await serving.aclose()
    with pytest.raises(WorkerLost) as caught:
        await task
    assert caught.value.maybe_executed


async def test_a_request_that_was_acknowledged_at_its_start_is_acknowledged_again_where_it_comes_again(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """With a prefetch of one nothing more would come, were it not."""
    gate = Gate()
    service, runs = counting(gate)
    serving = await worker(service, delivery="at_most_once", concurrency=1)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("run", 1, task_id="t", reply_to=replies.name))
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]
    assert await (await client(timeout=5)).call("run", 2) == 2
    assert runs == [1, 2]
