"""The faults that a test can make, and statistics."""

from __future__ import annotations

import asyncio

from aiorpcq.errors import ConnectionLost
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryBroker, MemoryLink

from .traffic import CONFIRMED, LOST, RETURNED, Inbox, connected, idle, publish, publish_all


class TestFaults:
    async def test_dropped_links_are_lost_with_the_reason(self, broker: MemoryBroker, link: MemoryLink) -> None:
        assert broker.drop_links(reason="pulled the plug") == 1
        assert str(await link.lost) == "pulled the plug"

    async def test_only_the_links_that_match_are_dropped(
        self, broker: MemoryBroker, link: MemoryLink, other: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        await other.consume("q", Inbox())
        assert broker.drop_links(lambda candidate: "q" in candidate.queues) == 1
        assert (link.is_lost, other.is_lost) == (False, True)

    async def test_closing_settles_lost_and_may_be_repeated(self, link: MemoryLink) -> None:
        await link.close()
        await link.close()
        assert isinstance(link.lost.result(), ConnectionLost)
        assert str(link.lost.result()) == "closed"

    async def test_while_blocked_publications_are_held_and_deliveries_go_on(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        await publish_all(link, "q", b"1", b"2")
        broker.block()
        assert not link.writable
        held = publish(link, "q", b"3")
        inbox = Inbox(lambda delivery: delivery.ack())
        await link.consume("q", inbox, prefetch=1)
        await idle()
        assert not held.done()
        assert inbox.bodies == [b"1", b"2"]
        broker.unblock()
        assert await held is CONFIRMED
        await inbox.wait(3)
        assert link.writable

    async def test_waiting_until_writable_ends_with_the_alarm(self, broker: MemoryBroker, link: MemoryLink) -> None:
        broker.block()
        waits = [asyncio.create_task(link.wait_writable()) for _ in range(2)]
        await idle()
        assert not any(wait.done() for wait in waits)
        broker.unblock()
        await asyncio.gather(*waits)

    async def test_a_link_made_during_the_alarm_is_not_writable(self, broker: MemoryBroker) -> None:
        broker.block()
        async with connected(broker) as link:
            assert not link.writable

    async def test_waiting_until_writable_ends_when_the_link_is_lost(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        broker.block()
        held = publish(link, "q")
        wait = asyncio.create_task(link.wait_writable())
        await idle()
        broker.drop_links()
        await wait
        assert await held is LOST

    async def test_a_lost_link_is_not_writable_and_nobody_waits_for_it(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        broker.drop_links()
        assert not link.writable
        await link.wait_writable()
        broker.block()
        broker.unblock()
        assert not link.writable
        assert await publish(link, "q") is LOST

    async def test_deleting_a_queue_ends_the_links_that_consume_from_it(
        self, broker: MemoryBroker, link: MemoryLink, other: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        await other.consume("q", Inbox())
        broker.delete_queue("q")
        assert "queue 'q' was deleted" in str(await other.lost)
        assert not link.is_lost
        assert await publish(link, "q") is RETURNED

    async def test_settling_a_message_of_a_deleted_queue_does_nothing(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q")
        await inbox.one()
        await subscription.cancel()
        broker.delete_queue("q")
        await link.declare(Queue("q"))
        inbox.deliveries[0].nack(requeue=True)
        assert broker.queue_depth("q") == 0

    async def test_a_consumer_may_drop_every_link_from_its_callback(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        await publish_all(link, "q", b"1", b"2")

        def drop(_delivery: Delivery) -> None:
            broker.drop_links()

        inbox = Inbox(drop)
        await link.consume("q", inbox)
        await idle()
        assert inbox.bodies == [b"1"]
        assert broker.queue_depth("q") == 2

    async def test_statistics_are_a_snapshot(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        before = broker.statistics()
        inbox = Inbox()
        await link.consume("q", inbox, prefetch=1)
        await publish_all(link, "q", b"1", b"2")
        await publish(link, "nowhere")
        await inbox.one()
        after = broker.statistics()
        assert (before.published, before.queues["q"].depth) == (0, 0)
        assert (after.published, after.unroutable, after.delivered, after.links) == (3, 1, 1, 1)
        counted = after.queues["q"]
        assert (counted.depth, counted.unsettled, counted.consumers) == (1, 1, 1)
