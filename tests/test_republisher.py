"""The way back of requests, where the broker refuses, loses or blocks at the one moment that matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits, Codecs, Service, Worker
from aiorpcq.protocol.executions import Execution, ExecutionTable
from aiorpcq.protocol.messages import History, Outcome, Publication, Request
from aiorpcq.protocol.topology import Names
from aiorpcq.protocol.wire import encode_request
from aiorpcq.republisher import Republisher
from aiorpcq.testing import memory_broker
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryTransport
from tests.contract.parties import Bystander, eventually, request_for
from tests.contract.workbench import answer_to, lose_run

NAMES = Names()
QUEUE = NAMES.service_queue("default")


class Bench:
    """A republisher on a broker in the process, with the requests that were delivered to it."""

    def __init__(self, republisher: Republisher, transport: MemoryTransport, link: Any, idle: asyncio.Event) -> None:
        self.republisher = republisher
        self.broker = transport.broker
        self.link = link
        self.idle = idle
        self.requests: asyncio.Queue[Delivery] = asyncio.Queue()
        self._table = ExecutionTable(CacheLimits())

    async def execution(self, task_id: str = "t", *, expiration: float | None = None) -> Execution:
        """Send a request, and begin with it."""
        body = Codecs().encode([[], {}])
        request = Request(task_id, "run", *body, reply_to="rpc.reply.1", expiration=expiration)
        self.link.publish(encode_request(request, NAMES.prefix, NAMES.routing_key("default")))
        return await self.begin()

    async def begin(self) -> Execution:
        """Begin with the next request."""
        delivery = await self.requests.get()
        request = Request(delivery.properties.correlation_id or "", "run", b"", "", None, delivery.properties.reply_to)
        _, execution = self._table.begin(request, delivery, None, asyncio.get_running_loop().time())
        self._table.abandon(execution)
        return execution

    async def settled(self) -> None:
        """Wait until nothing is on its way back any more."""
        async with asyncio.timeout(10):
            while self.republisher.pending:
                self.idle.clear()
                await self.idle.wait()


@asynccontextmanager
async def bench(*, prefetch: int = 0, arguments: dict[str, Any] | None = None) -> AsyncIterator[Bench]:
    transport = MemoryTransport(f"memory://{uuid4().hex}")
    link = await transport.connect(10)
    idle = asyncio.Event()
    republisher = Republisher(NAMES, "worker", asyncio.get_running_loop(), idle.set)
    republisher.link = link
    made = Bench(republisher, transport, link, idle)
    queue = NAMES.service_queue("default", arguments)
    await link.declare(NAMES.requests, queue, NAMES.binding("default"))
    await link.consume(queue.name, made.requests.put_nowait, prefetch=prefetch, on_cancelled=lambda _: None)
    try:
        yield made
    finally:
        await republisher.close()
        await link.close()


async def test_a_request_is_acknowledged_once_its_copy_is_confirmed() -> None:
    async with bench(prefetch=1) as made:
        execution = await made.execution()
        made.republisher.hand_back("default", execution)
        assert made.requests.empty()
        await made.settled()
        again = await made.begin()  # which a prefetch of one lets come now
        assert not again.delivery.redelivered
        assert made.republisher.statistics().handed_back == 1


async def test_a_copy_that_the_queue_refuses_leaves_the_request_where_it_was() -> None:
    async with bench(prefetch=1, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}) as made:
        execution = await made.execution()
        filler = Request("filler", "run", b"", "", reply_to="rpc.reply.1")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        publication = encode_request(filler, NAMES.prefix, NAMES.routing_key("default"))
        publication.settled = lambda _, settled: outcome.set_result(settled)
        made.link.publish(publication)
        assert await outcome is Outcome.CONFIRMED
        made.republisher.hand_back("default", execution)
        await made.settled()
        again = await made.begin()
        assert (again.task_id, again.delivery.redelivered) == ("t", True)
        assert made.republisher.statistics().failed == 1


async def test_without_a_link_nothing_is_done_since_the_broker_delivers_again() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.republisher.link = None
        lost = asyncio.Event()
        made.republisher.hand_back("default", execution)
        made.republisher.retry("default", execution, 0.1)
        made.republisher.bury("default", execution, "no reason", then=pytest.fail, otherwise=lost.set)
        await asyncio.wait_for(lost.wait(), 10)
        await made.settled()
        assert made.broker.statistics().queues[QUEUE.name].unsettled == 1


async def test_what_is_to_be_declared_waits_while_the_broker_blocks() -> None:
    async with bench() as made:
        execution = await made.execution(expiration=60.0)
        made.broker.block()
        made.republisher.retry("default", execution, 0.1)
        await asyncio.sleep(0)
        assert made.republisher.pending == 1
        assert "rpc.retry.100" not in made.broker.statistics().queues
        made.broker.unblock()
        await made.settled()
        assert made.broker.queue_depth("rpc.retry.100") == 1


async def test_a_worker_that_closes_does_not_wait_for_what_the_broker_blocks() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.broker.block()
        made.republisher.retry("default", execution, 0.1)
        await asyncio.sleep(0)
        await made.republisher.close()
        assert made.republisher.pending == 0


async def test_a_delay_queue_with_other_arguments_has_the_request_delivered_again() -> None:
    async with bench() as made:
        execution = await made.execution()
        exchange, queue, _ = NAMES.delay(0.1)
        await made.link.declare(exchange, type(queue)(queue.name))
        made.republisher.retry("default", execution, 0.1)
        await made.settled()
        again = await made.begin()
        assert (again.delivery.redelivered, made.republisher.statistics().failed) == (True, 1)


async def test_a_dead_letter_that_cannot_be_kept_is_answered_all_the_same() -> None:
    async with bench() as made:
        execution = await made.execution()
        await made.link.declare(type(QUEUE)(NAMES.dead_queue("default").name))
        answered = asyncio.Event()
        made.republisher.bury("default", execution, "no reason", then=answered.set, otherwise=pytest.fail)
        await asyncio.wait_for(answered.wait(), 10)
        assert made.republisher.statistics().failed == 1


async def test_a_queue_that_goes_again_and_again_does_not_keep_it_trying() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.republisher.retry("default", await made.execution("first"), 0.1)
        await made.settled()
        publish = made.link.publish

        def delete_first(publication: Publication) -> None:
            made.broker.delete_queue("rpc.retry.100")
            publish(publication)

        made.link.publish = delete_first
        made.republisher.retry("default", execution, 0.1)
        await made.settled()
        made.link.publish = publish
        assert (await made.begin()).delivery.redelivered


def counting() -> tuple[Service, list[str]]:
    service, runs = Service(), list[str]()

    @service.method
    async def run() -> str:
        runs.append("run")
        return "done"

    return service, runs


async def test_a_request_is_not_lost_where_the_link_is_lost_as_it_is_published_again() -> None:
    """It was not acknowledged before its confirm; what comes twice then is run once."""
    url = f"memory://{uuid4().hex}"
    broker = memory_broker(url.removeprefix("memory://"))
    service, runs = counting()
    async with Bystander.connected(url) as stranger:
        await stranger.declare("default")
        replies = await stranger.reply_queue()
        await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
        await lose_run(url)
        broker.lose_confirms(lambda publication: "losses" in (publication.properties.headers or {}))
        async with Worker(url, [service]) as serving:
            assert await answer_to(replies, "t") == ("SUCCESS", "done")
            await eventually(lambda: serving.statistics().answered + serving.statistics().adopted == 1)
            assert runs == ["run"]


async def test_a_poisoned_request_is_answered_where_the_link_is_lost_as_it_is_buried() -> None:
    url = f"memory://{uuid4().hex}"
    broker = memory_broker(url.removeprefix("memory://"))
    service, runs = counting()
    async with Bystander.connected(url) as stranger, Worker(url, [service]) as serving:
        replies = await stranger.reply_queue()
        broker.lose_confirms(lambda publication: publication.routing_key == "rpc.default.dead")
        await stranger.request(request_for("run", task_id="t", reply_to=replies.name, history=History(losses=5)))
        _, value = await answer_to(replies, "t")
        assert (value["error"], runs, serving.statistics().republisher.buried) == ("Poisoned", [], 2)
