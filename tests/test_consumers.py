"""The consumers of a worker, with links whose broker ends them at the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from aiorpcq.consumers import Consumers
from aiorpcq.errors import ConnectFailed, ConnectionLost, RPCError
from aiorpcq.protocol.topology import Names
from aiorpcq.transports.base import Delivery, Link, QueueStatus, Subscription
from aiorpcq.transports.memory import MemoryTransport
from tests.contract.parties import eventually

NAMES = Names()


class Bench:
    """Consumers of two services on a broker in the process.

    *refusals* are raised before the next ones; *on_consumed* is called when the broker has made one, before the answer.
    """

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.broker = transport.broker
        self.refusals: list[RPCError] = []
        self.on_consumed: Callable[[], Awaitable[None]] | None = None
        self.consumed = 0
        self.consumers = Consumers(("a", "b"), self._declare, self._consume, lambda name: f"rpc.{name}")

    async def _declare(self, link: Link, service: str) -> None:
        await link.declare(NAMES.requests, NAMES.service_queue(service), NAMES.binding(service))

    async def _consume(self, link: Link, service: str, on_cancelled: Callable[[RPCError], None]) -> Subscription:
        if self.refusals:
            raise self.refusals.pop(0)
        self.consumed += 1
        subscription = await link.consume(f"rpc.{service}", _drop, prefetch=1, on_cancelled=on_cancelled)
        if self.on_consumed is not None:
            await self.on_consumed()
        return subscription

    def count(self, service: str) -> int:
        """How many consumers the broker knows of."""
        return self.broker.statistics().queues[f"rpc.{service}"].consumers


def _drop(delivery: Delivery) -> None:
    delivery.ack()


@asynccontextmanager
async def bench() -> AsyncIterator[tuple[Bench, Link]]:
    made = Bench(MemoryTransport(f"memory://{uuid4().hex}"))
    link = await made.transport.connect(10)
    await made.consumers.start(link)
    try:
        yield made, link
    finally:
        await made.consumers.close()
        await link.close()


async def test_every_service_is_consumed_once() -> None:
    async with bench() as (made, _):
        assert (made.consumers.missing, made.count("a"), made.count("b")) == ([], 1, 1)


async def test_a_consumer_that_the_broker_ends_is_made_again() -> None:
    async with bench() as (made, _):
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: made.consumers.restored == 1)
        assert (made.consumers.missing, made.count("a"), made.consumed) == ([], 1, 3)


async def test_a_queue_that_is_deleted_is_declared_again() -> None:
    async with bench() as (made, _):
        made.broker.delete_queue("rpc.a")
        await eventually(lambda: made.consumers.restored == 1)
        assert made.count("a") == 1


async def test_what_is_refused_is_tried_again() -> None:
    async with bench() as (made, _):
        made.refusals = [ConnectFailed("not yet"), ConnectFailed("not yet")]
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: made.consumers.restored == 1)
        assert made.refusals == []


async def test_a_link_that_is_lost_meanwhile_leaves_it_to_the_next() -> None:
    async with bench() as (made, _):
        made.refusals = [ConnectionLost("gone")]
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: not made.refusals)
        made.consumers.lose()
        assert made.consumers.missing == ["a", "b"]
        made.broker.drop_links()
        second = await made.transport.connect(10)
        await made.consumers.start(second)
        assert (made.consumers.missing, made.count("a"), made.count("b")) == ([], 1, 1)
        await second.close()


async def test_an_end_that_a_former_link_tells_of_changes_nothing() -> None:
    async with bench() as (made, first):
        made.broker.cancel_consumers("rpc.a")
        second = await made.transport.connect(10)
        made.consumers.lose()
        await first.close()
        await made.consumers.start(second)
        await asyncio.sleep(0)
        assert (made.consumers.missing, made.consumers.restored, made.count("a")) == ([], 0, 1)
        await second.close()


async def test_the_watchdog_consumes_where_the_broker_knows_of_no_consumer() -> None:
    async with bench() as (made, _):
        queue = made.broker._queues["rpc.a"]
        (consumer,) = queue.consumers
        queue.unsubscribe(consumer, 0.0)  # the broker forgets it, and says nothing
        await made.consumers.look()
        await eventually(lambda: made.consumers.restored == 1)
        assert (made.count("a"), made.count("b")) == (1, 1)


async def test_the_watchdog_declares_what_somebody_has_deleted() -> None:
    async with bench() as (made, _):
        made.broker._exchanges["rpc"].unbind(made.broker._queues["rpc.a"])
        await made.consumers.look()
        assert made.consumers.restored == 0
        assert made.broker._exchanges["rpc"].route("rpc:a")


async def test_the_watchdog_declares_nothing_while_the_broker_blocks() -> None:
    async with bench() as (made, _):
        made.broker._exchanges["rpc"].unbind(made.broker._queues["rpc.a"])
        made.broker.block()
        await made.consumers.look()
        assert not made.broker._exchanges["rpc"].route("rpc:a")
        made.broker.unblock()


async def test_after_a_stop_nothing_is_made_again() -> None:
    async with bench() as (made, _):
        await made.consumers.stop()
        assert (made.consumers.missing, made.count("a")) == (["a", "b"], 0)
        await made.consumers.look()
        await asyncio.sleep(0)
        assert (made.count("a"), made.consumers.restored) == (0, 0)


async def test_a_service_that_cannot_be_consumed_at_the_start_is_an_error() -> None:
    made = Bench(MemoryTransport(f"memory://{uuid4().hex}"))
    link = await made.transport.connect(10)
    made.refusals = [ConnectFailed("no")]
    with pytest.raises(ConnectFailed):
        await made.consumers.start(link)
    await made.consumers.close()
    await link.close()


@pytest.mark.parametrize("turns", [0, 3])
async def test_a_consumer_that_the_broker_ends_as_soon_as_it_is_made_is_made_again(turns: int) -> None:
    async with bench() as (made, _):

        async def end() -> None:
            made.on_consumed = None
            made.broker.cancel_consumers("rpc.a")
            for _ in range(turns):
                await asyncio.sleep(0)

        made.on_consumed = end
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: made.on_consumed is None)
        await eventually(lambda: not made.consumers.missing)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (made.consumers.missing, made.count("a")) == ([], 1)


async def test_a_consumer_that_the_broker_ends_as_it_is_made_at_the_start_is_made_again() -> None:
    made = Bench(MemoryTransport(f"memory://{uuid4().hex}"))
    link = await made.transport.connect(10)

    async def end() -> None:
        made.on_consumed = None
        made.broker.cancel_consumers("rpc.a")
        for _ in range(3):
            await asyncio.sleep(0)

    made.on_consumed = end
    await made.consumers.start(link)
    await eventually(lambda: not made.consumers.missing)
    assert (made.consumers.restored, made.count("a"), made.count("b")) == (1, 1, 1)
    await made.consumers.close()
    await link.close()


@pytest.mark.parametrize("when", ["start", "restore"])
async def test_a_consumer_that_is_made_while_the_worker_stops_is_cancelled(when: str) -> None:
    """It would go on delivering to a worker that gives everything back."""
    made = Bench(MemoryTransport(f"memory://{uuid4().hex}"))
    link = await made.transport.connect(10)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    if when == "restore":
        await made.consumers.start(link)
        made.on_consumed = wait
        made.broker.cancel_consumers("rpc.a")
        making = None
    else:
        made.on_consumed = wait
        making = asyncio.ensure_future(made.consumers.start(link))
    await begun.wait()
    stopping = asyncio.ensure_future(made.consumers.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    if making is not None:
        await making
    assert (made.count("a"), made.count("b"), len(made.consumers.missing)) == (0, 0, 2)
    await made.consumers.close()
    await link.close()


async def test_a_stop_does_not_wait_for_the_next_try_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiorpcq.consumers._PAUSE_BASE", 60.0)
    monkeypatch.setattr("aiorpcq.consumers._PAUSE_LIMIT", 60.0)
    async with bench() as (made, _):
        made.refusals = [ConnectFailed("no")]
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: not made.refusals)
        async with asyncio.timeout(5):
            await made.consumers.stop()
        assert (made.count("b"), made.consumers.restored) == (0, 0)


async def test_a_consumer_that_ended_as_the_link_was_lost_is_made_again_on_the_next() -> None:
    """The task that was to make it is cancelled before its first step."""
    async with bench() as (made, first):
        made.broker.cancel_consumers("rpc.a")
        await asyncio.sleep(0)
        assert not made.consumers._restoring["a"].done()
        made.consumers.lose()
        await first.close()
        second = await made.transport.connect(10)
        await made.consumers.start(second)
        made.broker.cancel_consumers("rpc.a")
        await eventually(lambda: made.count("a") == 1 and not made.consumers.missing)
        await second.close()


async def test_the_watchdog_leaves_a_link_alone_until_its_start_is_over() -> None:
    """What it missed would be consumed twice: by it, and by the start."""
    async with bench() as (made, first):
        made.consumers.lose()
        await first.close()
        second = await made.transport.connect(10)
        begun, go_on, declare = asyncio.Event(), asyncio.Event(), made.consumers._declare

        async def wait(link: Link, service: str) -> None:
            begun.set()
            await go_on.wait()
            await declare(link, service)

        made.consumers._declare = wait
        starting = asyncio.ensure_future(made.consumers.start(second))
        await begun.wait()
        await made.consumers.look()
        go_on.set()
        await starting
        for _ in range(5):
            await asyncio.sleep(0)
        assert (made.consumers.missing, made.count("a"), made.count("b")) == ([], 1, 1)
        await made.consumers.stop()
        assert (made.count("a"), made.count("b")) == (0, 0)
        await second.close()


async def test_the_watchdog_does_not_take_a_consumer_that_was_made_meanwhile_for_the_one_that_was_missing() -> None:
    async with bench() as (made, link):
        inspect = link.inspect

        async def tell_late(queue: str) -> QueueStatus | None:
            if queue != "rpc.a":
                return await inspect(queue)
            made.broker.cancel_consumers(queue)
            await eventually(lambda: made.consumers.restored == 1)
            return QueueStatus(0, 0)

        link.inspect = tell_late  # type: ignore[method-assign]
        await made.consumers.look()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (made.consumers.missing, made.count("a"), made.count("b")) == ([], 1, 1)
