"""The transport, and the brokers that its URLs name."""

from __future__ import annotations

import asyncio
import gc

import pytest

from aiorpcq.errors import ConnectFailed
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.base import Link, Subscription, Transport
from aiorpcq.transports.memory import MemoryBroker, MemoryLink, MemoryTransport, memory_broker

from .traffic import RETURNED, Clock, Inbox, connected, dead_lettering, idle, publish, publish_all, read


class TestTransport:
    async def test_it_is_a_transport_with_links_and_subscriptions(self) -> None:
        transport: Transport = MemoryTransport("memory://test")
        link: Link = await transport.connect(1)
        await link.declare(Queue("q"))
        subscription: Subscription = await link.consume("q", Inbox())
        await subscription.cancel()
        await link.close()

    async def test_transports_of_one_name_meet_on_one_broker(self) -> None:
        first, second = MemoryTransport("memory://meet"), MemoryTransport("memory://meet")
        assert first.broker is second.broker is memory_broker("meet")

    async def test_without_a_name_the_broker_is_the_default_one(self) -> None:
        assert MemoryTransport("memory://").broker is memory_broker("default")

    async def test_brokers_of_different_names_know_nothing_of_each_other(self) -> None:
        async with connected(memory_broker("left")) as left, connected(memory_broker("right")) as right:
            await left.declare(Queue("q"))
            assert await publish(right, "q") is RETURNED

    async def test_a_broker_that_nobody_holds_is_forgotten_at_once(self) -> None:
        async def use() -> None:
            async with connected(memory_broker("brief")) as link, connected(memory_broker("brief")) as peer:
                await link.declare(Queue("q"), dead_lettering(x_message_ttl=60_000))
                inbox = Inbox()
                await peer.consume("q", inbox)
                await publish_all(link, "q", b"1", b"2")
                await publish(link, "work")
                await inbox.wait(2)

        gc.disable()
        try:
            await use()
            await idle()
            assert memory_broker("brief").statistics().queues == {}
        finally:
            gc.enable()

    @pytest.mark.parametrize("url", ["amqp://host", "memory://a/vhost", "memory://a?x=1", "memory://a b"])
    def test_a_url_of_another_form_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"form|does not match"):
            MemoryTransport(url)

    def test_the_address_and_the_errors_have_no_password(self) -> None:
        assert MemoryTransport("memory://user:secret@place").address == "memory://place"
        with pytest.raises(ValueError, match="place") as caught:
            MemoryTransport("memory://user:secret@place/x")
        assert "secret" not in str(caught.value)

    async def test_refused_connections_say_why_until_they_are_accepted_again(self, broker: MemoryBroker) -> None:
        broker.refuse_connections("maintenance")
        with pytest.raises(ConnectFailed, match="maintenance"):
            await MemoryTransport(f"memory://{broker.name}").connect(1)
        broker.accept_connections()
        async with connected(broker):
            pass

    async def test_a_clock_for_a_broker_that_exists_is_refused(self, broker: MemoryBroker) -> None:
        with pytest.raises(ValueError, match="exists already"):
            memory_broker(broker.name, now=Clock())

    def test_a_second_event_loop_is_refused_while_links_of_the_first_are_open(self, broker: MemoryBroker) -> None:
        transport = MemoryTransport(f"memory://{broker.name}")
        with asyncio.Runner() as first, asyncio.Runner() as second:
            link = first.run(transport.connect(1))
            with pytest.raises(ConnectFailed, match="another event loop"):
                second.run(transport.connect(1))
            first.run(link.close())
            second.run(second.run(transport.connect(1)).close())

    def test_links_of_a_closed_loop_are_lost_and_what_they_held_is_there_in_the_next(
        self, broker: MemoryBroker
    ) -> None:
        async def leave() -> MemoryLink:
            link = await MemoryTransport(f"memory://{broker.name}").connect(1)
            await link.declare(Queue("q"))
            inbox = Inbox()
            await link.consume("q", inbox)
            await publish(link, "q", b"held")
            await inbox.one()
            return link

        async def find() -> list[tuple[bytes, bool]]:
            async with connected(broker) as link:
                return [(delivery.body, delivery.redelivered) for delivery in await read(link, "q")]

        left = asyncio.run(leave())
        assert asyncio.run(find()) == [(b"held", True)]
        assert left.is_lost
