"""Runs whose callers are gone: stopped after a grace where the method says so, else finished and kept."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import CacheLimits, Service, Worker
from aiorpcq.method import OnCallerGone

from .breaking import Breaking
from .parties import BystanderFactory, ClientFactory, Gate, ReplyQueue, WorkerFactory, eventually, request_for
from .workbench import answer_to, claim, ready

GRACE = 0.2
PROBES = 10
"""Longer than twice the grace, in which there are four: what would be stopped is stopped by then."""


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


class Waiting:
    """A service whose method waits, and which remembers whether it was stopped."""

    def __init__(self, says: OnCallerGone) -> None:
        self.service = Service()
        self.gate = Gate()
        self.stopped = asyncio.Event()

        @self.service.method(on_caller_gone=says)
        async def work() -> str:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.set()
                raise
            return "done"


async def until_probed(replies: ReplyQueue) -> None:
    """Wait until a reply queue has had `PROBES` probes, which have no type, unlike states."""
    probes = 0
    while probes < PROBES:
        probes += (await replies.next()).properties.type is None


def watched(serving: Worker) -> list[str]:
    """Return the task ids of the runs whose callers a worker looks for."""
    return list(serving._started.executor.callers._watched)


@pytest.mark.parametrize("states", [False, True])
async def test_a_run_is_stopped_when_its_caller_has_been_gone_for_the_grace(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, states: bool
) -> None:
    waiting, stranger = Waiting("cancel"), await bystander()
    serving = await worker(waiting.service, caller_gone_grace=GRACE)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, states=states))
    await waiting.gate.entered()
    await until_probed(replies)
    assert serving.statistics().callers_gone == 0
    gone_at = asyncio.get_running_loop().time()
    await breaking.delete_queue(replies.name)
    async with asyncio.timeout(10):
        await waiting.stopped.wait()
    assert asyncio.get_running_loop().time() - gone_at >= GRACE
    await eventually(lambda: serving.statistics().publisher.returned == 1)
    statistics = serving.statistics()
    assert (statistics.callers_gone, statistics.revoked, statistics.running) == (1, 1, 0)


async def test_a_run_whose_caller_was_never_there_is_stopped(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting("cancel"), await bystander()
    serving = await worker(waiting.service, caller_gone_grace=GRACE)
    await stranger.request(request_for("work", task_id="t", reply_to="rpc.reply.gone"))
    async with asyncio.timeout(10):
        await waiting.stopped.wait()
    await eventually(lambda: serving.statistics().running == 0)
    assert await ready(stranger) == 0


async def test_a_caller_that_moves_within_the_grace_keeps_its_run(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting("cancel"), await bystander()
    serving = await worker(waiting.service, caller_gone_grace=1.0)
    new = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to="rpc.reply.gone"))
    await waiting.gate.entered()
    await claim(stranger, "rpc.reply.gone", new.name, "t")
    await eventually(lambda: serving.statistics().claims == 1)
    await until_probed(new)
    assert (serving.statistics().callers_gone, waiting.stopped.is_set()) == (0, False)
    waiting.gate.open()
    assert await answer_to(new, "t") == ("SUCCESS", "done")


async def test_a_cast_has_no_caller_that_could_be_gone(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    waiting, stranger = Waiting("cancel"), await bystander()
    serving = await worker(waiting.service, caller_gone_grace=0.01)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await waiting.gate.entered()
    assert watched(serving) == []
    waiting.gate.open()
    await eventually(lambda: serving.statistics().publisher.succeeded == 1)
    assert serving.statistics().callers_gone == 0


async def test_a_run_that_may_finish_is_returned_cached_and_evicted(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting("finish"), await bystander()
    serving = await worker(waiting.service, caller_gone_grace=0.01, cache=CacheLimits(age=0.5))
    await stranger.request(request_for("work", task_id="t", reply_to="rpc.reply.gone"))
    await waiting.gate.entered()
    assert watched(serving) == []
    waiting.gate.open()
    await eventually(lambda: serving.statistics().publisher.returned == 1)
    assert (serving.statistics().callers_gone, serving.statistics().cached) == (0, 1)
    new = await stranger.reply_queue()
    await claim(stranger, "rpc.reply.gone", new.name, "t")
    assert await answer_to(new, "t") == ("SUCCESS", "done")
    await eventually(lambda: serving.statistics().cached == 0)
    assert serving.statistics().cache_evicted == 1


async def test_a_caller_with_a_direct_reply_queue_is_not_taken_for_gone(
    worker: WorkerFactory, client: ClientFactory
) -> None:
    """What is sent to one comes back where it is mandatory, whoever is there."""
    waiting = Waiting("cancel")
    serving = await worker(waiting.service, caller_gone_grace=GRACE)
    calling = asyncio.ensure_future((await client(reply_queue="direct")).call("work"))
    await waiting.gate.entered()
    assert watched(serving) == []
    waiting.gate.open()
    assert await calling == "done"
    assert serving.statistics().callers_gone == 0


async def test_who_was_answered_is_not_watched_any_more(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    waiting, stranger = Waiting("cancel"), await bystander()
    serving = await worker(waiting.service)
    waiting.gate.open()
    replies = await stranger.reply_queue()
    for number in range(50):
        await stranger.request(request_for("work", task_id=str(number), reply_to=replies.name))
        assert await answer_to(replies, str(number)) == ("SUCCESS", "done")
    assert watched(serving) == []
