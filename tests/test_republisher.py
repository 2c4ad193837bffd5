"""The way back of requests, where the broker refuses, loses or blocks at the one moment that matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits, Codecs, Context, DeadLetters, Retry, Service, Worker
from aiorpcq.errors import ConnectionLost
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
FULL_AT_ONE = {"x-max-length": 1, "x-overflow": "reject-publish"}


class Bench:
    """A republisher on a broker in the process, with the requests that were delivered to it."""

    def __init__(self, republisher: Republisher, transport: MemoryTransport, link: Any, idle: asyncio.Event) -> None:
        self.republisher = republisher
        self.transport = transport
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

    async def fill(self) -> None:
        """Put one more request into the queue, which a prefetch of one leaves there."""
        filler = Request("filler", "run", b"", "", reply_to="rpc.reply.1")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        publication = encode_request(filler, NAMES.prefix, NAMES.routing_key("default"))
        publication.settled = lambda _, settled: outcome.set_result(settled)
        self.link.publish(publication)
        assert await outcome is Outcome.CONFIRMED

    def depth(self) -> int:
        """How many requests are ready in the queue."""
        return self.broker.queue_depth(QUEUE.name)

    def unsettled(self) -> int:
        """How many are delivered and not settled."""
        return self.broker.statistics().queues[QUEUE.name].unsettled

    def retry(self, execution: Execution, delay: float, refused: Callable[[], None]) -> None:
        """Have a request run again after *delay* seconds."""
        self.republisher.retry("default", execution, delay, then=execution.delivery.ack, refused=refused)

    async def give_back_in_vain(self, execution: Execution) -> None:
        """Give a request back in every way, none of which is to be confirmed or refused."""
        lost, republisher = asyncio.Event(), self.republisher
        republisher.hand_back("default", execution, pytest.fail)
        republisher.count("default", execution, pytest.fail)
        self.retry(execution, 0.1, pytest.fail)
        republisher.postpone("default", execution, 0.1, pytest.fail)
        republisher.bury("default", execution, "no reason", then=pytest.fail, otherwise=lost.set)
        await asyncio.wait_for(lost.wait(), 10)
        await self.settled()

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
    queue = NAMES.service_queue("default", arguments)
    entities = (NAMES.requests, queue, NAMES.binding("default"))
    republisher = Republisher(NAMES, "worker", asyncio.get_running_loop(), idle.set, lambda _: entities)
    republisher.link = link
    made = Bench(republisher, transport, link, idle)
    await link.declare(*entities)
    await link.consume(queue.name, made.requests.put_nowait, prefetch=prefetch, on_cancelled=lambda _: None)
    try:
        yield made
    finally:
        await republisher.close()
        await link.close()


async def test_a_request_is_acknowledged_once_its_copy_is_confirmed() -> None:
    async with bench(prefetch=1) as made:
        execution = await made.execution()
        made.republisher.hand_back("default", execution, pytest.fail)
        assert made.requests.empty()
        await made.settled()
        again = await made.begin()  # which a prefetch of one lets come now
        assert not again.delivery.redelivered
        assert made.republisher.statistics().handed_back == 1


async def test_what_cannot_be_handed_back_is_left_where_it_was() -> None:
    async with bench(prefetch=1) as made:
        execution = await made.execution()
        publish = made.link.publish

        def unbind_first(publication: Publication) -> None:
            made.broker._exchanges["rpc"].unbind(made.broker._queues[QUEUE.name])
            publish(publication)

        made.link.publish = unbind_first
        made.republisher.hand_back("default", execution, pytest.fail)
        await made.settled()
        again = await made.begin()
        assert (again.task_id, again.delivery.redelivered) == ("t", True)
        assert made.republisher.statistics().failed == 1


async def test_without_a_link_nothing_is_done_since_the_broker_delivers_again() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.republisher.link = None
        await made.give_back_in_vain(execution)
        assert made.unsettled() == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_what_the_broker_has_taken_back_is_not_published_again(begun: bool) -> None:
    """There would be two of it: its channel was closed, and the link stands."""
    async with bench() as made:
        execution = await made.execution()
        execution.begun = begun
        made.broker.close_channels()
        await made.give_back_in_vain(execution)
        ready = {name: queue.depth for name, queue in made.broker.statistics().queues.items() if queue.depth}
        assert ready == {QUEUE.name: 1}


async def test_what_a_broker_may_have_lost_with_the_link_is_published_again() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.broker.restart()
        assert made.depth() == 0
        link = made.republisher.link = await made.transport.connect(10)
        made.republisher.hand_back("default", execution, pytest.fail)
        await made.settled()
        assert made.depth() == 1
        await link.close()


async def test_what_is_to_be_declared_waits_while_the_broker_blocks() -> None:
    async with bench() as made:
        execution = await made.execution(expiration=60.0)
        made.broker.block()
        made.retry(execution, 0.1, pytest.fail)
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
        made.retry(execution, 0.1, pytest.fail)
        await asyncio.sleep(0)
        await made.republisher.close()
        assert made.republisher.pending == 0


async def test_what_a_delay_queue_with_other_arguments_cannot_hold_is_refused() -> None:
    """To have it delivered again would be for ever, each time as one more lost run."""
    async with bench() as made:
        execution, refused = await made.execution(), asyncio.Event()
        exchange, queue, _ = NAMES.delay(0.1)
        await made.link.declare(exchange, type(queue)(queue.name))
        made.retry(execution, 0.1, refused.set)
        await made.settled()
        assert (refused.is_set(), made.republisher.statistics().failed) == (True, 1)
        assert (made.depth(), made.unsettled()) == (0, 1)  # whoever is told settles it


@pytest.mark.parametrize("way", ["count", "retry", "hand_back"])
async def test_a_copy_that_a_full_queue_does_not_take_is_refused(way: str) -> None:
    async with bench(prefetch=1, arguments=FULL_AT_ONE) as made:
        execution, refused = await made.execution(), asyncio.Event()
        await made.fill()
        if way == "retry":
            made.retry(execution, 0.0, refused.set)
        else:
            getattr(made.republisher, way)("default", execution, refused.set)
        await made.settled()
        assert (refused.is_set(), made.republisher.statistics().failed) == (True, 1)
        assert (made.depth(), made.unsettled()) == (1, 1)


async def test_what_cannot_be_declared_on_a_link_that_stands_is_refused_and_not_forgotten() -> None:
    """A channel that the broker closes fails what is declared there, and brings nothing back that was delivered."""
    async with bench() as made:
        execution, refused = await made.execution(), asyncio.Event()

        async def fail(*_: object) -> None:
            raise ConnectionLost("the control channel was closed")

        declare, made.link.declare = made.link.declare, fail
        made.retry(execution, 0.1, refused.set)
        await made.settled()
        made.link.declare = declare
        assert refused.is_set()


async def test_what_the_broker_has_lost_is_declared_again_after_its_channel_was_closed() -> None:
    """It closes the channel for a publication to an exchange that is not there, which says nothing more."""
    async with bench() as made:
        first, second, third = [await made.execution(task_id) for task_id in ("first", "second", "third")]
        made.retry(first, 0.1, pytest.fail)
        await made.settled()
        made.broker._exchanges.pop("rpc.retry.100")
        made.retry(second, 0.1, pytest.fail)
        await made.settled()
        assert "rpc.retry.100" not in made.broker._exchanges
        await made.link.wait_writable()
        made.retry(third, 0.1, pytest.fail)
        await made.settled()
        assert "rpc.retry.100" in made.broker._exchanges


async def test_a_service_queue_that_was_deleted_meanwhile_is_declared_for_what_goes_back() -> None:
    async with bench() as made:
        execution = await made.execution()
        made.broker.delete_queue(QUEUE.name)
        made.republisher.hand_back("default", execution, pytest.fail)
        await made.settled()
        assert (made.depth(), made.republisher.statistics().failed) == (1, 0)


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
        execution, refused = await made.execution(), asyncio.Event()
        made.retry(await made.execution("first"), 0.1, pytest.fail)
        await made.settled()
        publish = made.link.publish

        def delete_first(publication: Publication) -> None:
            made.broker.delete_queue("rpc.retry.100")
            publish(publication)

        made.link.publish = delete_first
        made.retry(execution, 0.1, refused.set)
        await made.settled()
        made.link.publish = publish
        assert refused.is_set()


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
        async with DeadLetters(url) as letters:
            first, second = await letters.list()
            assert first.id == second.id
            for _ in range(2):
                await letters.replay(first.id)
        assert await answer_to(replies, "t") == ("SUCCESS", "done")
        await eventually(lambda: serving.statistics().answered + serving.statistics().adopted == 1)
        assert runs == ["run"]


@pytest.mark.usefixtures("skipped_time")
@pytest.mark.parametrize("delay", [0.0, 0.1])
async def test_a_retry_whose_confirm_is_lost_with_the_link_makes_no_second_chain_of_attempts(delay: float) -> None:
    """The request comes again, and so does its copy."""
    url = f"memory://{uuid4().hex}"
    broker, service, attempts = memory_broker(url.removeprefix("memory://")), Service(), list[int]()

    @service.method
    async def run(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise Retry(delay=delay)
        return ctx.attempt

    async with Bystander.connected(url) as stranger, Worker(url, [service]) as serving:
        replies = await stranger.reply_queue()
        broker.lose_confirms(lambda publication: (publication.properties.headers or {}).get("attempt") == 2)
        await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
        assert await answer_to(replies, "t") == ("SUCCESS", 3)
        await eventually(lambda: serving.statistics().running == 0)
        await asyncio.sleep(3 * delay)
        assert (attempts, broker.queue_depth(QUEUE.name)) == ([1, 2, 3], 0)


async def test_a_retry_that_the_broker_has_taken_back_is_made_no_sooner() -> None:
    """Its request comes again at once, its channel being closed, and not the next attempt with it."""
    url = f"memory://{uuid4().hex}"
    broker, service, times = memory_broker(url.removeprefix("memory://")), Service(), list[float]()
    loop = asyncio.get_running_loop()

    @service.method
    async def run(ctx: Context) -> int:
        times.append(loop.time())
        if ctx.attempt == 1:
            broker.close_channels(lambda link: any(queue.startswith("rpc.control.") for queue in link.queues))
            raise Retry(delay=0.5)
        return ctx.attempt

    async with Bystander.connected(url) as stranger, Worker(url, [service]):
        replies = await stranger.reply_queue()
        await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
        assert await answer_to(replies, "t") == ("SUCCESS", 2)
    first, second = times
    assert second - first >= 0.5


@pytest.mark.parametrize("delay", [0.0, 0.1])
async def test_a_retry_that_is_lost_with_the_link_is_made_once_more(delay: float) -> None:
    url = f"memory://{uuid4().hex}"
    broker, service, attempts = memory_broker(url.removeprefix("memory://")), Service(), list[int]()

    @service.method
    async def run(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            asyncio.get_running_loop().call_soon(drop)
            raise Retry(delay=delay)
        return ctx.attempt

    def drop() -> None:
        broker.drop_links(lambda link: any(queue.startswith("rpc.control.") for queue in link.queues))

    async with Bystander.connected(url) as stranger, Worker(url, [service]):
        replies = await stranger.reply_queue()
        await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
        assert await answer_to(replies, "t") == ("SUCCESS", 2)
        assert attempts == [1, 2]
