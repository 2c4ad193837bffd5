"""From a queue to its consumers, and back."""

from __future__ import annotations

import pytest

from aiorpcq.errors import ConnectFailed, ConnectionLost
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryBroker, MemoryLink

from .traffic import DEAD, Inbox, bodies, connected, dead_lettering, headers_of, idle, publish, publish_all, read


class TestConsuming:
    async def test_messages_come_in_order(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        await link.consume("q", inbox)
        await publish_all(link, "q", b"1", b"2", b"3")
        await inbox.wait(3)
        assert inbox.bodies == [b"1", b"2", b"3"]

    async def test_prefetch_bounds_what_is_unsettled(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        await link.consume("q", inbox, prefetch=2)
        await publish_all(link, "q", b"1", b"2", b"3", b"4")
        await idle()
        assert inbox.bodies == [b"1", b"2"]
        inbox.deliveries[1].ack()
        await inbox.wait(3)
        await idle()
        assert inbox.bodies == [b"1", b"2", b"3"]

    async def test_consumers_take_turns(self, link: MemoryLink, other: MemoryLink) -> None:
        await link.declare(Queue("q"))
        first, second = Inbox(), Inbox()
        await link.consume("q", first)
        await other.consume("q", second)
        await publish_all(link, "q", b"1", b"2", b"3", b"4")
        await idle()
        assert (first.bodies, second.bodies) == ([b"1", b"3"], [b"2", b"4"])

    async def test_a_consumer_without_credit_is_passed_over(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        narrow, wide = Inbox(), Inbox()
        await link.consume("q", narrow, prefetch=1)
        await link.consume("q", wide)
        await publish_all(link, "q", b"1", b"2", b"3", b"4")
        await idle()
        assert (narrow.bodies, wide.bodies) == ([b"1"], [b"2", b"3", b"4"])

    async def test_settling_twice_settles_once(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        await link.consume("q", inbox, prefetch=1)
        await publish_all(link, "q", b"1", b"2", b"3")
        await idle()
        inbox.deliveries[0].ack()
        inbox.deliveries[0].ack()
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert inbox.bodies == [b"1", b"2"]
        assert broker.statistics().queues["q"].unsettled == 1

    async def test_a_delivery_given_back_cannot_settle_the_next_one(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        await link.consume("q", inbox)
        await publish(link, "q", b"1")
        await idle()
        inbox.deliveries[0].nack(requeue=True)
        await inbox.wait(2)
        inbox.deliveries[0].ack()
        assert broker.statistics().queues["q"].unsettled == 1

    async def test_without_ack_a_message_is_gone_once_delivered(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        await link.consume("q", inbox, prefetch=1, no_ack=True)
        await publish_all(link, "q", b"1", b"2")
        await idle()
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert inbox.bodies == [b"1", b"2"]
        assert broker.statistics().queues["q"].unsettled == 0

    async def test_messages_given_back_keep_their_old_places(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox, prefetch=3)
        await publish_all(link, "q", b"1", b"2", b"3", b"4")
        await idle()
        await subscription.cancel()
        inbox.deliveries[2].nack(requeue=True)
        inbox.deliveries[0].nack(requeue=True)
        found = [(delivery.body, delivery.redelivered) for delivery in await read(link, "q")]
        assert found == [(b"1", True), (b"3", True), (b"4", False)]

    async def test_a_lost_link_gives_back_what_it_has_not_settled(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        async with connected(broker) as consuming:
            await consuming.consume("q", inbox)
            await publish_all(link, "q", b"1", b"2", b"3")
            await inbox.wait(3)
            inbox.deliveries[1].ack()
        inbox.deliveries[0].ack()
        found = [(delivery.body, delivery.redelivered) for delivery in await read(link, "q")]
        assert found == [(b"1", True), (b"3", True)]

    async def test_a_cancelled_consumer_gets_nothing_more_and_can_settle_the_rest(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q", b"1")
        await idle()
        await subscription.cancel()
        await subscription.cancel()
        await publish(link, "q", b"2")
        await idle()
        assert inbox.bodies == [b"1"]
        inbox.deliveries[0].ack()
        assert broker.queue_depth("q") == 1
        assert broker.statistics().queues["q"].unsettled == 0

    async def test_what_a_cancelled_consumer_holds_comes_back_when_its_link_is_lost(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        async with connected(broker) as consuming:
            inbox = Inbox()
            subscription = await consuming.consume("q", inbox)
            await publish(link, "q", b"1")
            await inbox.one()
            await subscription.cancel()
            await consuming.consume("q", Inbox(), prefetch=1)
        assert broker.queue_depth("q") == 1

    async def test_an_exclusive_consumer_lets_no_other_in(self, link: MemoryLink, other: MemoryLink) -> None:
        await link.declare(Queue("q"))
        subscription = await link.consume("q", Inbox(), exclusive=True)
        with pytest.raises(ConnectFailed, match="queue 'q' is in exclusive use"):
            await other.consume("q", Inbox())
        await subscription.cancel()
        await other.consume("q", Inbox())
        with pytest.raises(ConnectFailed, match="queue 'q' is in exclusive use"):
            await link.consume("q", Inbox(), exclusive=True)

    async def test_an_unknown_queue_cannot_be_consumed(self, link: MemoryLink) -> None:
        with pytest.raises(ConnectFailed, match="no queue 'q'"):
            await link.consume("q", Inbox())

    async def test_a_lost_link_neither_declares_nor_consumes(self, link: MemoryLink) -> None:
        await link.close()
        with pytest.raises(ConnectionLost):
            await link.declare(Queue("q"))
        with pytest.raises(ConnectionLost):
            await link.consume("q", Inbox())

    async def test_a_delivery_callback_that_raises_is_logged_and_the_next_message_comes(
        self, link: MemoryLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_delivery: Delivery) -> None:
            raise RuntimeError("mine")

        await link.declare(Queue("q"))
        inbox = Inbox(fail)
        await link.consume("q", inbox)
        await publish_all(link, "q", b"1", b"2")
        await inbox.wait(2)
        assert [record.name for record in caplog.records] == ["aiorpcq.memory"] * 2

    async def test_a_consumer_that_gives_everything_back_does_not_hold_the_loop_up(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox(lambda delivery: delivery.nack(requeue=True))
        subscription = await link.consume("q", inbox)
        await publish(link, "q", b"1")
        await inbox.wait(5)
        await subscription.cancel()

    async def test_a_long_queue_is_delivered_in_portions(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        await publish_all(link, "q", *[b""] * 2_500)
        inbox = Inbox()
        await link.consume("q", inbox)
        await inbox.wait(1)
        assert 1 <= len(inbox.deliveries) < 2_500
        await inbox.wait(2_500)

    async def test_higher_priorities_come_first_and_each_keeps_its_order(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-priority": 3}))
        for body, priority in ((b"a", None), (b"b", 1), (b"c", 9), (b"d", 3), (b"e", 1), (b"f", 0)):
            await publish(link, "q", body, priority=priority)
        assert await bodies(link, "q") == [b"c", b"d", b"b", b"e", b"a", b"f"]

    async def test_a_quorum_queue_counts_redeliveries_in_a_header(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-queue-type": "quorum"}))
        inbox = Inbox(lambda delivery: delivery.nack(requeue=True) if len(inbox.deliveries) < 3 else None)
        await link.consume("q", inbox)
        await publish(link, "q", headers={"a": 1})
        await inbox.wait(3)
        assert [headers_of(delivery) for delivery in inbox.deliveries] == [
            {"a": 1},
            {"a": 1, "x-delivery-count": 1},
            {"a": 1, "x-delivery-count": 2},
        ]

    async def test_a_quorum_queue_dead_letters_past_its_delivery_limit(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering("q", x_queue_type="quorum", x_delivery_limit=1))
        inbox = Inbox(lambda delivery: delivery.nack(requeue=True))
        await link.consume("q", inbox)
        await publish(link, "q")
        await idle()
        [letter] = await read(link, "dead")
        assert len(inbox.deliveries) == 2
        assert headers_of(letter)["x-death"][0]["reason"] == "delivery_limit"
        assert "x-delivery-count" not in headers_of(letter)
