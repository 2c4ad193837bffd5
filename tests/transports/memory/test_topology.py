"""Declarations: what is idempotent, what is refused, and what goes by itself."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq.errors import ConnectFailed, TopologyMismatch
from aiorpcq.protocol.topology import Binding, Exchange, Queue
from aiorpcq.transports.memory import MemoryBroker, MemoryLink

from .traffic import CONFIRMED, LOST, RETURNED, Clock, Inbox, bodies, connected, publish


class TestTopology:
    async def test_declaring_again_changes_nothing(self, link: MemoryLink) -> None:
        entities = (Exchange("e"), Queue("q", arguments={"x-max-length": 5}), Binding("q", "e", "k"))
        await link.declare(*entities)
        await link.declare(*entities)
        assert await publish(link, "k", b"1", "e") is CONFIRMED
        assert await bodies(link, "q") == [b"1"]

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (
                Exchange("e"),
                Exchange("e", "topic"),
                "'type' for exchange 'e': received 'topic' but current is 'direct'",
            ),
            (Exchange("e"), Exchange("e", durable=False), "'durable' for exchange 'e': received False .* True"),
            (Queue("q"), Queue("q", durable=False), "'durable' for queue 'q': received False but current is True"),
            (Queue("q"), Queue("q", auto_delete=True), "'auto_delete' for queue 'q'"),
            (Queue("q"), Queue("q", arguments={"x-message-ttl": 5}), "'x-message-ttl' .* received 5 .* is none"),
            (Queue("q", arguments={"x-max-length": 5}), Queue("q"), "'x-max-length' .* received none .* is 5"),
            (Queue("q"), Queue("q", arguments={"x-queue-type": "quorum"}), "'x-queue-type' .* 'quorum' .* 'classic'"),
        ],
    )
    async def test_other_properties_are_a_mismatch_that_names_the_difference(
        self, link: MemoryLink, first: Queue | Exchange, second: Queue | Exchange, message: str
    ) -> None:
        await link.declare(first)
        with pytest.raises(TopologyMismatch, match=message):
            await link.declare(second)

    async def test_a_queue_without_type_is_classic_and_unknown_arguments_may_differ(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-queue-type": "classic", "x-mine": 1}))
        await link.declare(Queue("q", arguments={"x-mine": 2}))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"x-message-ttl": -1},
            {"x-message-ttl": "5"},
            {"x-expires": 0},
            {"x-max-length": True},
            {"x-max-priority": 256},
            {"x-overflow": "burst"},
            {"x-queue-type": "stream"},
            {"x-dead-letter-exchange": 5},
            {"x-dead-letter-routing-key": "k"},
            {"x-delivery-limit": 3},
            {"x-queue-type": "quorum", "x-max-priority": 3},
        ],
    )
    async def test_an_impossible_argument_is_refused_by_name(self, link: MemoryLink, arguments: dict[str, Any]) -> None:
        with pytest.raises(TopologyMismatch, match=f"invalid arg '{list(arguments)[-1]}' for queue 'q'"):
            await link.declare(Queue("q", arguments=arguments))

    async def test_a_quorum_queue_that_is_not_durable_is_refused(self, link: MemoryLink) -> None:
        with pytest.raises(TopologyMismatch, match="durable"):
            await link.declare(Queue("q", durable=False, arguments={"x-queue-type": "quorum"}))

    @pytest.mark.parametrize(
        "entity",
        [
            Exchange("e", "headers"),
            Exchange(""),
            Exchange("amq.mine"),
            Queue("amq.mine"),
            Queue(""),
            Binding("q", "nowhere", "k"),
            Binding("nothing", "amq.direct", "k"),
            Binding("q", "", "k"),
        ],
    )
    async def test_what_cannot_be_declared_is_refused(
        self, link: MemoryLink, entity: Exchange | Queue | Binding
    ) -> None:
        await link.declare(Queue("q"))
        with pytest.raises(ConnectFailed):
            await link.declare(entity)
        assert not link.is_lost

    async def test_an_exclusive_queue_is_locked_for_other_links(self, link: MemoryLink, other: MemoryLink) -> None:
        queue = Queue("q", exclusive=True)
        await link.declare(queue)
        with pytest.raises(TopologyMismatch, match="queue 'q' is locked"):
            await other.declare(queue)
        with pytest.raises(ConnectFailed, match="queue 'q' is locked"):
            await other.consume("q", Inbox())
        with pytest.raises(ConnectFailed, match="queue 'q' is locked"):
            await other.declare(Binding("q", "amq.direct", "k"))

    async def test_an_exclusive_queue_takes_publications_of_other_links(
        self, link: MemoryLink, other: MemoryLink
    ) -> None:
        await link.declare(Queue("q", exclusive=True))
        assert await publish(other, "q") is CONFIRMED

    async def test_an_exclusive_queue_dies_with_its_link(self, broker: MemoryBroker, other: MemoryLink) -> None:
        async with connected(broker) as link:
            await link.declare(Queue("q", exclusive=True))
        assert await publish(other, "q") is RETURNED

    async def test_an_auto_delete_queue_dies_with_its_last_consumer(self, link: MemoryLink, other: MemoryLink) -> None:
        await link.declare(Queue("q", auto_delete=True))
        assert await publish(link, "q") is CONFIRMED
        first = await link.consume("q", Inbox())
        second = await other.consume("q", Inbox())
        await first.cancel()
        assert await publish(link, "q") is CONFIRMED
        await second.cancel()
        assert await publish(link, "q") is RETURNED
        assert not link.is_lost

    async def test_an_auto_delete_queue_dies_with_the_link_of_its_last_consumer(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        async with connected(broker) as consuming:
            await consuming.declare(Queue("q", auto_delete=True))
            await consuming.consume("q", Inbox())
        assert await publish(link, "q") is RETURNED

    async def test_an_unused_queue_expires(self, broker: MemoryBroker, link: MemoryLink, clock: Clock) -> None:
        await link.declare(Queue("q", arguments={"x-expires": 1_000}))
        subscription = await link.consume("q", Inbox())
        clock.now += 5
        broker.expire()
        assert await publish(link, "q") is CONFIRMED
        await subscription.cancel()
        clock.now += 1
        broker.expire()
        assert await publish(link, "q") is RETURNED

    async def test_declaring_an_unused_queue_keeps_it(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        queue = Queue("q", arguments={"x-expires": 1_000})
        await link.declare(queue)
        clock.now += 0.9
        await link.declare(queue)
        clock.now += 0.9
        broker.expire()
        assert await publish(link, "q") is CONFIRMED

    async def test_an_auto_delete_exchange_goes_with_its_last_queue(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Exchange("e", auto_delete=True), Queue("q"), Binding("q", "e", "k"))
        broker.delete_queue("q")
        assert await publish(link, "k", exchange="e") is LOST
