"""The faults of the broker in the process that have no like on a real one that a test could cause so exactly."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq.errors import ConnectionLost, RPCError
from aiorpcq.protocol.messages import Publication
from aiorpcq.protocol.topology import Binding, Exchange, Queue
from aiorpcq.transports.memory import BrokerLink, MemoryBroker, MemoryLink

from .traffic import CONFIRMED, LOST, RETURNED, Inbox, bodies, connected, idle, publish, publish_all

PERSISTENT = 2


class TestChannels:
    async def test_only_the_channels_that_match_are_closed(
        self, broker: MemoryBroker, link: MemoryLink, other: MemoryLink
    ) -> None:
        ended: list[RPCError] = []
        await link.declare(Queue("q"))
        await link.consume("q", Inbox(), on_cancelled=ended.append)
        await other.consume("q", Inbox(), on_cancelled=ended.append)
        outcomes = [publish(link, "q"), publish(other, "q")]
        assert broker.close_channels(lambda candidate: candidate.name == link.name, reason="406 too slow") == 1
        assert (link.writable, other.writable) == (False, True)
        meanwhile = publish(link, "q")
        assert [await outcome for outcome in (*outcomes, meanwhile)] == [LOST, CONFIRMED, LOST]
        assert [str(error) for error in ended] == ["the broker closed the channel: 406 too slow"]
        assert (link.writable, link.is_lost) == (True, False)
        assert await publish(link, "q") is CONFIRMED

    async def test_what_is_in_hand_comes_again_in_its_place(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        first, again = Inbox(), Inbox()
        ended = asyncio.Event()
        await link.consume("q", first, prefetch=2, on_cancelled=lambda _error: ended.set())
        await publish_all(link, "q", b"1", b"2", b"3")
        broker.close_channels()
        await ended.wait()
        first.deliveries[0].ack()
        await link.consume("q", again)
        await again.wait(3)
        assert [(delivery.body, delivery.redelivered) for delivery in again.deliveries] == [
            (b"1", True),
            (b"2", True),
            (b"3", False),
        ]

    async def test_an_auto_delete_queue_goes_and_an_exclusive_one_stays(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("auto", auto_delete=True), Queue("mine", exclusive=True))
        for name in ("auto", "mine"):
            await link.consume(name, Inbox(), on_cancelled=lambda _error: None)
        broker.close_channels()
        await idle()
        assert await publish(link, "auto") is RETURNED
        assert await publish(link, "mine") is CONFIRMED

    async def test_during_the_alarm_the_next_channel_waits_for_its_end(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        broker.block()
        held = publish(link, "q")
        broker.close_channels()
        assert await held is LOST
        assert not link.writable
        broker.unblock()
        assert link.writable

    async def test_a_callback_that_closes_the_channel_again_does_no_harm(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        ended: list[RPCError] = []

        def again(error: RPCError) -> None:
            ended.append(error)
            broker.close_channels()

        await link.declare(Queue("q"))
        for _ in range(2):
            await link.consume("q", Inbox(), on_cancelled=again)
        broker.close_channels()
        await idle()
        assert len(ended) == 2
        assert await publish(link, "q") is CONFIRMED


class TestConsumers:
    async def test_cancelled_consumers_are_told_and_the_queue_stays(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        ended: list[RPCError] = []
        inbox = Inbox()
        await link.declare(Queue("q", auto_delete=True))
        await link.consume("q", inbox, on_cancelled=ended.append)
        await publish_all(link, "q", b"1", b"2")
        assert broker.cancel_consumers("q") == 1
        inbox.deliveries[0].ack()
        inbox.deliveries[1].nack(requeue=True)
        await idle()
        assert len(ended) == 1
        assert broker.queue_depth("q") == 1
        with pytest.raises(KeyError):
            broker.cancel_consumers("nowhere")

    async def test_a_callback_that_raises_is_logged(
        self, broker: MemoryBroker, link: MemoryLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_error: RPCError) -> None:
            raise ZeroDivisionError

        await link.declare(Queue("q"))
        await link.consume("q", Inbox(), on_cancelled=fail)
        broker.cancel_consumers("q")
        await idle()
        assert "callback of a cancelled consumer" in caplog.text
        assert not link.is_lost


class TestFreezing:
    async def test_nothing_goes_either_way_until_the_link_is_dropped(
        self, broker: MemoryBroker, link: MemoryLink, other: MemoryLink
    ) -> None:
        await link.declare(Queue("q"), Queue("out"))
        inbox = Inbox()
        await link.consume("q", inbox, prefetch=2)
        await publish(other, "q", b"before")
        assert broker.freeze_links(lambda candidate: "q" in candidate.queues) == 1
        inbox.deliveries[0].ack()
        outcome = publish(link, "out", b"lost")
        assert await publish_all(other, "q", b"1", b"2") == [CONFIRMED, CONFIRMED]
        waiting = [
            asyncio.ensure_future(link.declare(Queue("late"))),
            asyncio.ensure_future(link.inspect("q")),
            asyncio.ensure_future(link.consume("q", inbox)),
        ]
        await idle()
        assert (inbox.bodies, outcome.done()) == ([b"before"], False)
        assert not any(each.done() for each in waiting)
        assert broker.queue_depth("q") == 1  # the broker has no way to know, and gives it what prefetch allows

        broker.drop_links(lambda candidate: candidate.is_frozen)
        assert await outcome is LOST
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in errors} == {ConnectionLost}
        assert await bodies(other, "q") == [b"before", b"1", b"2"]
        assert await bodies(other, "out") == []

    async def test_its_owner_may_close_it(self, broker: MemoryBroker, link: MemoryLink) -> None:
        broker.freeze_links()
        outcome = publish(link, "q")
        await link.close()
        assert outcome.result() is LOST
        assert broker.statistics().links == 0

    async def test_cancelling_a_subscription_waits_for_the_end_of_the_link(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        subscription = await link.consume("q", Inbox())
        broker.freeze_links()
        cancelling = asyncio.ensure_future(subscription.cancel())
        await idle()
        assert not cancelling.done()
        broker.drop_links()
        await cancelling


class TestConfirms:
    async def test_the_message_arrives_and_its_publisher_does_not_know(
        self, broker: MemoryBroker, link: MemoryLink, other: MemoryLink
    ) -> None:
        def second(publication: Publication) -> bool:
            return publication.body == b"2"

        await link.declare(Queue("q"))
        broker.lose_confirms(second)
        outcomes = [publish(link, "q", body) for body in (b"1", b"2", b"3")]
        assert [await outcome for outcome in outcomes] == [CONFIRMED, LOST, LOST]
        assert "before a confirm" in str(link.lost.result())
        assert await bodies(other, "q") == [b"1", b"2"]

    async def test_each_call_is_for_one_publication(self, broker: MemoryBroker, other: MemoryLink) -> None:
        await other.declare(Queue("q"))
        broker.lose_confirms()
        broker.lose_confirms()
        for _ in range(2):
            async with connected(broker) as link:
                assert await publish(link, "q") is LOST
        assert await publish(other, "q") is CONFIRMED


class TestRestart:
    async def test_what_is_not_persistent_is_gone(self, broker: MemoryBroker, link: MemoryLink) -> None:
        quorum = Queue("quorum", arguments={"x-queue-type": "quorum"})
        await link.declare(
            Queue("durable"), Queue("transient", durable=False), quorum, Exchange("e", durable=False), Exchange("kept")
        )
        await link.declare(Binding("durable", "kept", "k"))
        await link.consume("durable", Inbox(), prefetch=1)
        for queue in ("durable", "transient", "quorum"):
            await publish_all(link, queue, b"1", b"2")
            await publish_all(link, queue, b"3", b"4", delivery_mode=PERSISTENT)
        broker.restart()
        assert "restarted" in str(await link.lost)
        async with connected(broker) as after:
            assert await after.inspect("transient") is None
            assert await publish(after, "k", b"5", "kept") is CONFIRMED
            assert await bodies(after, "durable") == [b"3", b"4", b"5"]
            assert await bodies(after, "quorum") == [b"1", b"2", b"3", b"4"]
            assert await publish(after, "k", b"", "e") is LOST

    async def test_one_queue_alone_may_lose_its_messages(self, broker: MemoryBroker, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"1")
        await publish(link, "q", b"2", delivery_mode=PERSISTENT)
        assert broker.drop_messages("q") == 1
        assert await bodies(link, "q") == [b"2"]
        assert broker.statistics().dropped == 1


def test_a_predicate_is_given_a_link(broker: MemoryBroker) -> None:
    def never(_link: BrokerLink) -> bool:
        raise AssertionError("there is no link")

    assert broker.drop_links(never) == broker.close_channels(never) == broker.freeze_links(never) == 0
