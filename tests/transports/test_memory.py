"""The broker in the process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.errors import ConnectFailed, ConnectionLost, PayloadTooLarge, TopologyMismatch
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Binding, Exchange, Names, Queue
from aiorpcq.transports.base import Delivery, Link, Subscription, Transport
from aiorpcq.transports.memory import MemoryBroker, MemoryLink, MemoryTransport, memory_broker

CONFIRMED, RETURNED, REFUSED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REFUSED, Outcome.LOST


NUMBERS = itertools.count(1)  # no test meets the broker of another one


class Clock:
    """Time that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Inbox:
    """Keeps deliveries, and lets a test wait for them."""

    def __init__(self, then: Callable[[Delivery], None] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self._then = then
        self._changed = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._changed.set()
        if self._then is not None:
            self._then(delivery)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    async def wait(self, count: int = 1) -> list[Delivery]:
        async with asyncio.timeout(2):
            while len(self.deliveries) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.deliveries

    async def one(self) -> Delivery:
        return (await self.wait())[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    return memory_broker(f"test-{next(NUMBERS)}", now=clock)


@pytest.fixture
async def link(broker: MemoryBroker) -> AsyncIterator[MemoryLink]:
    async with connected(broker) as opened:
        yield opened


@pytest.fixture
async def other(broker: MemoryBroker) -> AsyncIterator[MemoryLink]:
    async with connected(broker) as opened:
        yield opened


@asynccontextmanager
async def connected(broker: MemoryBroker, **options: Any) -> AsyncIterator[MemoryLink]:
    link = await MemoryTransport(f"memory://{broker.name}", **options).connect(1)
    try:
        yield link
    finally:
        await link.close()


async def idle() -> None:
    """Give the broker more iterations of the loop than anything it does takes."""
    for _ in range(20):
        await asyncio.sleep(0)


def publish(
    link: Link, routing_key: str, body: bytes = b"", exchange: str = "", mandatory: bool = True, **properties: Any
) -> asyncio.Future[Outcome]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(_publication: Publication, result: Outcome) -> None:
        outcome.set_result(result)

    link.publish(Publication(exchange, routing_key, Properties(**properties), body, mandatory, settled))
    return outcome


async def publish_all(link: Link, routing_key: str, *bodies: bytes, **options: Any) -> list[Outcome]:
    return list(await asyncio.gather(*(publish(link, routing_key, body, **options) for body in bodies)))


async def read(link: Link, queue: str) -> list[Delivery]:
    """Take everything that is ready."""
    inbox = Inbox()
    subscription = await link.consume(queue, inbox, no_ack=True)
    await idle()
    await subscription.cancel()
    return inbox.deliveries


async def bodies(link: Link, queue: str) -> list[bytes]:
    return [delivery.body for delivery in await read(link, queue)]


def dead_lettering(name: str = "work", **arguments: Any) -> Queue:
    """A queue whose dead letters go to the queue "dead"."""
    named = {argument.replace("_", "-"): value for argument, value in arguments.items()}
    return Queue(name, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", **named})


DEAD = Queue("dead")


def headers_of(delivery: Delivery) -> dict[str, Any]:
    return dict(delivery.properties.headers or {})


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


class TestRouting:
    async def test_the_default_exchange_routes_by_queue_name(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        assert await publish(link, "q", b"1") is CONFIRMED
        [delivery] = await read(link, "q")
        assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", "q", False)

    @pytest.mark.parametrize(
        ("pattern", "matching", "others"),
        [
            ("a.b", ["a.b"], ["a", "a.c", "a.b.c"]),
            ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
            ("a.#", ["a", "a.b", "a.b.c"], ["b", "b.a"]),
            ("#", ["", "a", "a.b"], []),
            ("#.c", ["c", "a.c", "a.b.c"], ["", "c.a"]),
            ("a.#.c", ["a.c", "a.b.c", "a.b.b.c"], ["a", "a.b"]),
            ("*", ["a"], ["", "a.b"]),
            ("*.#.*", ["a.b", "a.b.c"], ["a"]),
        ],
    )
    async def test_a_topic_matches_words(
        self, link: MemoryLink, pattern: str, matching: list[str], others: list[str]
    ) -> None:
        await link.declare(Exchange("e", "topic"), Queue("q"), Binding("q", "e", pattern))
        outcomes = [await publish(link, key, exchange="e") for key in matching + others]
        assert outcomes == [CONFIRMED] * len(matching) + [RETURNED] * len(others)

    async def test_a_topic_exchange_sees_bindings_made_after_it_has_routed(self, link: MemoryLink) -> None:
        await link.declare(Exchange("e", "topic"), Queue("q"))
        assert await publish(link, "a", exchange="e") is RETURNED
        await link.declare(Binding("q", "e", "#"))
        assert await publish(link, "a", exchange="e") is CONFIRMED

    async def test_a_fanout_exchange_gives_every_queue_one_copy(self, link: MemoryLink) -> None:
        await link.declare(Exchange("e", "fanout"), Queue("q1"), Queue("q2"))
        await link.declare(Binding("q1", "e", "a"), Binding("q1", "e", "b"), Binding("q2", "e", ""))
        await publish(link, "anything", b"1", "e")
        assert [await bodies(link, queue) for queue in ("q1", "q2")] == [[b"1"], [b"1"]]

    async def test_cc_keys_route_too_without_a_second_copy_for_a_queue(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"CC": ("q2", "q1")})
        [first], [second] = await read(link, "q1"), await read(link, "q2")
        assert headers_of(first) == headers_of(second) == {"CC": ["q2", "q1"]}
        assert second.routing_key == "q1"

    async def test_bcc_keys_route_too_and_are_not_shown(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"BCC": ["q2"], "kept": 1})
        assert [headers_of(delivery) for delivery in await read(link, "q2")] == [{"kept": 1}]

    async def test_a_request_is_not_copied_to_the_queue_in_its_cc_header(self, link: MemoryLink) -> None:
        names = Names()
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        assert await publish(link, "rpc:math", exchange="rpc", headers={"CC": ["reply"]}) is CONFIRMED
        assert await bodies(link, "reply") == []


class TestPublishing:
    async def test_unroutable_and_mandatory_is_returned(self, link: MemoryLink) -> None:
        assert await publish(link, "nowhere") is RETURNED

    async def test_unroutable_and_not_mandatory_is_confirmed(self, link: MemoryLink) -> None:
        assert await publish(link, "nowhere", mandatory=False) is CONFIRMED

    async def test_publications_are_settled_later_and_in_order(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        settled: list[tuple[bytes, Outcome]] = []
        for body, key in ((b"1", "q"), (b"2", "nowhere"), (b"3", "q")):
            link.publish(Publication("", key, Properties(), body, True, lambda p, o: settled.append((p.body, o))))
        assert settled == []
        await idle()
        assert settled == [(b"1", CONFIRMED), (b"2", RETURNED), (b"3", CONFIRMED)]

    async def test_an_unknown_exchange_ends_the_link(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        outcomes = [publish(link, "q"), publish(link, "k", exchange="nowhere"), publish(link, "q")]
        assert [await outcome for outcome in outcomes] == [CONFIRMED, LOST, LOST]
        assert isinstance(link.lost.result(), ConnectionLost)
        assert "no exchange 'nowhere'" in str(link.lost.result())

    async def test_a_closing_link_settles_what_it_has_published_as_lost(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        outcome = publish(link, "q")
        assert not outcome.done()
        await link.close()
        assert outcome.result() is LOST

    async def test_on_a_lost_link_everything_is_lost(self, link: MemoryLink) -> None:
        await link.close()
        assert await publish_all(link, "q", b"1", b"2") == [LOST, LOST]

    async def test_a_link_that_is_lost_by_a_settlement_loses_what_was_published_after(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))

        def drop(_publication: Publication, _outcome: Outcome) -> None:
            broker.drop_links()

        link.publish(Publication("", "q", Properties(), b"", True, drop))
        assert await publish(link, "q") is LOST

    async def test_a_body_above_the_limit_is_refused_at_once(self, broker: MemoryBroker) -> None:
        async with connected(broker, max_size=3) as link:
            await link.declare(Queue("q"))
            assert await publish(link, "q", b"123") is CONFIRMED
            with pytest.raises(PayloadTooLarge, match="4 bytes is larger than the limit of 3"):
                publish(link, "q", b"1234")

    @pytest.mark.parametrize(
        "properties",
        [
            {"expiration": -1},
            {"expiration": 2**32},
            {"priority": 256},
            {"priority": -1},
            {"headers": {"CC": "q"}},
            {"correlation_id": "é" * 200},
        ],
    )
    async def test_a_property_that_does_not_fit_is_refused_at_once(
        self, link: MemoryLink, properties: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"."):
            publish(link, "q", **properties)
        await idle()
        assert not link.is_lost

    async def test_headers_that_the_publisher_changes_later_arrive_as_they_were(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        headers: dict[str, Any] = {"path": ["a"], "table": {"k": 1}}
        outcome = publish(link, "q", headers=headers)
        headers["path"].append("b")
        headers["table"]["k"] = 2
        headers["more"] = 1
        await outcome
        [delivery] = await read(link, "q")
        assert headers_of(delivery) == {"path": ["a"], "table": {"k": 1}}

    async def test_a_mutable_body_arrives_as_it_was(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        body = bytearray(b"12")
        outcome = publish(link, "q", body)  # type: ignore[arg-type]  # what a careless publisher may do
        body[0] = 0
        await outcome
        assert await bodies(link, "q") == [b"12"]

    async def test_every_queue_has_headers_of_its_own(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"CC": ["q2"]})
        [first], [second] = await read(link, "q1"), await read(link, "q2")
        assert first.properties.headers is not second.properties.headers

    async def test_properties_arrive_unchanged(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        properties = Properties("text/plain", None, {"a": 1}, 1, 3, "id", "reply", 5_000, "m", 7, "type", "user", "app")
        link.publish(Publication("", "q", properties, b"body"))
        [delivery] = await read(link, "q")
        assert delivery.properties == properties

    async def test_many_publications_make_the_link_wait_until_they_are_routed(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        for _ in range(4_096):
            assert link.writable
            publish(link, "q")
        assert not link.writable
        await link.wait_writable()
        assert link.writable
        assert await publish(link, "q") is CONFIRMED

    async def test_a_settled_callback_that_raises_is_logged_and_the_next_is_called(
        self, link: MemoryLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_publication: Publication, _outcome: Outcome) -> None:
            raise RuntimeError("mine")

        await link.declare(Queue("q"))
        link.publish(Publication("", "q", Properties(), b"", True, fail))
        assert await publish(link, "q") is CONFIRMED
        assert [(record.name, record.levelno) for record in caplog.records] == [("aiorpcq.memory", logging.ERROR)]


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


class TestLimits:
    async def test_a_full_queue_drops_its_head(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 2}))
        assert await publish_all(link, "q", b"1", b"2", b"3") == [CONFIRMED] * 3
        assert await bodies(link, "q") == [b"2", b"3"]

    async def test_what_a_full_queue_drops_is_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering("q", x_max_length=1))
        await publish_all(link, "q", b"1", b"2")
        await idle()
        [letter] = await read(link, "dead")
        assert (letter.body, headers_of(letter)["x-death"][0]["reason"]) == (b"1", "maxlen")

    async def test_a_full_queue_that_refuses_refuses(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 2, "x-overflow": "reject-publish"}))
        assert await publish_all(link, "q", b"1", b"2", b"3") == [CONFIRMED, CONFIRMED, REFUSED]
        assert await bodies(link, "q") == [b"1", b"2"]

    async def test_what_a_full_queue_refuses_can_be_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering("q", x_max_length=1, x_overflow="reject-publish-dlx"))
        assert await publish_all(link, "q", b"1", b"2") == [CONFIRMED, REFUSED]
        await idle()
        assert await bodies(link, "dead") == [b"2"]

    @pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
    async def test_the_limit_counts_only_what_no_consumer_takes(self, link: MemoryLink, overflow: str) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 1, "x-overflow": overflow}))
        inbox = Inbox()
        await link.consume("q", inbox)
        assert await publish_all(link, "q", *[b"x"] * 10) == [CONFIRMED] * 10
        await inbox.wait(10)

    async def test_what_is_given_back_to_a_full_queue_pushes_its_head_out(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 1}))
        inbox = Inbox()
        subscription = await link.consume("q", inbox, prefetch=1)
        await publish_all(link, "q", b"1", b"2")
        await idle()
        await subscription.cancel()
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert await bodies(link, "q") == [b"2"]


class TestExpiry:
    async def test_a_message_expires_by_its_own_expiration(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"1", expiration=1_000)
        clock.now += 0.9
        broker.expire()
        assert broker.queue_depth("q") == 1
        clock.now += 0.1
        broker.expire()
        assert broker.queue_depth("q") == 0

    @pytest.mark.parametrize(("ttl", "expiration"), [(500, 1_000), (1_000, 500)])
    async def test_the_shorter_of_both_times_counts(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock, ttl: int, expiration: int
    ) -> None:
        await link.declare(Queue("q", arguments={"x-message-ttl": ttl}))
        await publish(link, "q", expiration=expiration)
        clock.now += 0.5
        broker.expire()
        assert broker.queue_depth("q") == 0

    async def test_messages_expire_only_at_the_head(self, broker: MemoryBroker, link: MemoryLink, clock: Clock) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"long", expiration=2_000)
        await publish(link, "q", b"short", expiration=1_000)
        clock.now += 1.5
        broker.expire()
        assert broker.queue_depth("q") == 2
        clock.now += 0.5
        broker.expire()
        assert broker.queue_depth("q") == 0

    async def test_an_expired_message_is_not_delivered(self, link: MemoryLink, clock: Clock) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"old", expiration=1_000)
        await publish(link, "q", b"new")
        clock.now += 2
        assert await bodies(link, "q") == [b"new"]

    async def test_with_no_time_at_all_a_message_goes_to_a_waiting_consumer(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q", b"1", expiration=0)
        await inbox.one()
        await subscription.cancel()
        await publish(link, "q", b"2", expiration=0)
        await idle()
        assert broker.queue_depth("q") == 0

    async def test_a_message_given_back_keeps_its_time(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q", expiration=1_000)
        await inbox.one()
        await subscription.cancel()
        clock.now += 1
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert broker.queue_depth("q") == 0

    async def test_by_the_loops_clock_a_timer_expires_messages_one_after_the_other(self) -> None:
        async with connected(memory_broker("real")) as link:
            await link.declare(dead_lettering(), DEAD)
            inbox = Inbox()
            await link.consume("dead", inbox)
            await publish(link, "work", b"1", expiration=5)
            await publish(link, "work", b"2", expiration=15)
            await inbox.wait(2)
            assert inbox.bodies == [b"1", b"2"]

    async def test_by_the_loops_clock_a_timer_deletes_an_unused_queue(self) -> None:
        async with connected(memory_broker("real")) as link:
            await link.declare(Queue("q", arguments={"x-expires": 5}))
            async with asyncio.timeout(2):
                while await publish(link, "q") is CONFIRMED:
                    pass


class TestDeadLetters:
    async def test_a_rejected_message_says_where_it_has_been(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering(), Exchange("e"), Binding("work", "e", "k"))
        await link.consume("work", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "k", b"1", "e", expiration=5_000, headers={"CC": ["copy"], "mine": 1})
        await idle()
        [letter] = await read(link, "dead")
        death = headers_of(letter)["x-death"][0]
        assert isinstance(death["time"], datetime)
        assert death["time"].tzinfo is UTC
        assert list(death) == [
            "count",
            "reason",
            "queue",
            "time",
            "exchange",
            "routing-keys",
            "original-expiration",
        ]
        assert headers_of(letter) == {
            "mine": 1,
            "x-first-death-reason": "rejected",
            "x-first-death-queue": "work",
            "x-first-death-exchange": "e",
            "x-death": [
                {
                    "count": 1,
                    "reason": "rejected",
                    "queue": "work",
                    "time": death["time"],
                    "exchange": "e",
                    "routing-keys": ["k", "copy"],
                    "original-expiration": "5000",
                }
            ],
        }
        assert letter.properties.expiration is None
        assert (letter.exchange, letter.routing_key) == ("", "dead")

    async def test_the_same_death_again_counts_and_comes_first(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work", "x-message-ttl": 100}
        forth = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "delay"}
        await link.declare(Queue("work", arguments=forth), Queue("delay", arguments=back))
        rejecting = await link.consume("work", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "work")
        await idle()
        clock.now += 1
        broker.expire()
        await idle()
        await rejecting.cancel()
        clock.now += 1
        broker.expire()
        await idle()
        [delivery] = await read(link, "work")
        deaths = headers_of(delivery)["x-death"]
        assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == [
            ("delay", "expired", 2),
            ("work", "rejected", 2),
        ]
        assert headers_of(delivery)["x-first-death-reason"] == "rejected"

    async def test_a_cycle_without_a_rejection_is_dropped(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        arguments = {"x-dead-letter-exchange": "", "x-message-ttl": 100}
        await link.declare(Queue("q", arguments=arguments))
        await publish(link, "q")
        clock.now += 1
        broker.expire()
        await idle()
        assert broker.queue_depth("q") == 0
        assert broker.statistics().dropped == 1

    @pytest.mark.parametrize("exchange", ["amq.direct", "nowhere"])
    async def test_a_message_that_dead_letters_nowhere_is_dropped(
        self, broker: MemoryBroker, link: MemoryLink, exchange: str
    ) -> None:
        await link.declare(Queue("q", arguments={"x-dead-letter-exchange": exchange}))
        await link.consume("q", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "q")
        await idle()
        assert broker.statistics().dropped == 1

    async def test_an_expired_request_returns_to_its_sender(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        names = Names()
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        headers = {"CC": ["reply"]}
        await publish(link, "rpc:math", b"request", "rpc", headers=headers, expiration=50, reply_to="reply")
        clock.now += 1
        broker.expire()
        await idle()
        assert headers == {"CC": ["reply"]}
        [returned] = await read(link, "reply")
        assert (returned.exchange, returned.routing_key) == ("", "rpc:math")
        assert headers_of(returned)["CC"] == ["reply"]
        assert headers_of(returned)["x-death"][0]["reason"] == "expired"
        assert headers_of(returned)["x-death"][0]["routing-keys"] == ["rpc:math", "reply"]
        assert returned.properties.reply_to == "reply"

    async def test_a_bcc_key_still_counts_when_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-dead-letter-exchange": "e"}), Exchange("e"))
        await link.declare(Queue("hidden"), Binding("hidden", "e", "secret"))
        await link.consume("q", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "q", headers={"BCC": ["secret"]})
        await idle()
        [letter] = await read(link, "hidden")
        assert headers_of(letter)["x-death"][0]["routing-keys"] == ["q"]

    async def test_what_waits_in_a_delay_queue_comes_back_to_the_service_and_to_no_one_else(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        names = Names()
        delay = Queue("rpc.retry.1", arguments={"x-dead-letter-exchange": "rpc", "x-message-ttl": 100})
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        await link.declare(Exchange("rpc.retry"), delay, Binding("rpc.retry.1", "rpc.retry", "rpc:math"))
        await publish(link, "rpc:math", b"again", "rpc.retry", headers={"CC": ["reply"]})
        clock.now += 1
        broker.expire()
        await idle()
        assert await bodies(link, "rpc.math") == [b"again"]
        assert await bodies(link, "reply") == []


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


# A step is what happens to the system between two looks at it; numbers pick among what is there.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["ack", "requeue", "reject"]), st.integers(0, 50)),
        st.tuples(st.sampled_from(["drop publisher", "drop consumer", "run", "block", "unblock"]), st.just(0)),
    ),
    max_size=60,
)


class System:
    """A publisher and a consumer with a prefetch on one queue, and what became of every message."""

    def __init__(self, broker: MemoryBroker, prefetch: int) -> None:
        self.broker = broker
        self.prefetch = prefetch
        self.count = 0
        self.outcomes: dict[bytes, list[Outcome]] = {}
        self.held: list[Delivery] = []
        self.seen: list[tuple[bytes, bool]] = []
        self.acked: list[bytes] = []
        self.rejected: list[bytes] = []

    async def start(self) -> None:
        self.publisher = await self._connect()
        await self.publisher.declare(dead_lettering(), DEAD)
        await self._consume()

    async def step(self, action: str, number: int) -> None:
        match action:
            case "publish":
                for _ in range(number):
                    self._publish()
            case "ack" | "requeue" | "reject" if self.held:
                self._settle(action, self.held.pop(number % len(self.held)))
            case "drop publisher":
                self.publisher.lose(ConnectionLost("dropped"))
                self.publisher = await self._connect()
            case "drop consumer":
                self.consumer.lose(ConnectionLost("dropped"))
                self.held.clear()
                await self._consume()
            case "run":
                await idle()
            case "block":
                self.broker.block()
            case "unblock":
                self.broker.unblock()

    async def finish(self) -> tuple[list[bytes], list[bytes]]:
        """Return what is left in the queue, and its dead letters."""
        self.broker.unblock()
        await idle()
        self.broker.drop_links()
        await idle()
        async with connected(self.broker) as link:
            return await bodies(link, "work"), await bodies(link, "dead")

    async def _connect(self) -> MemoryLink:
        return await MemoryTransport(f"memory://{self.broker.name}").connect(1)

    async def _consume(self) -> None:
        self.consumer = await self._connect()
        await self.consumer.consume("work", self._receive, prefetch=self.prefetch)

    def _publish(self) -> None:
        self.count += 1
        body = b"%06d" % self.count
        outcomes = self.outcomes[body] = []
        settled = Publication("", "work", Properties(), body, True, lambda _p, outcome: outcomes.append(outcome))
        self.publisher.publish(settled)

    def _receive(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self.seen.append((delivery.body, delivery.redelivered))
        assert not self.prefetch or len(self.held) <= self.prefetch

    def _settle(self, action: str, delivery: Delivery) -> None:
        if action == "ack":
            self.acked.append(delivery.body)
            delivery.ack()
        elif action == "reject":
            self.rejected.append(delivery.body)
            delivery.nack(requeue=False)
        else:
            delivery.nack(requeue=True)


@given(steps=STEPS, prefetch=st.integers(0, 4))
def test_no_message_is_lost_or_doubled_whatever_happens(steps: list[tuple[str, int]], prefetch: int) -> None:
    async def play() -> None:
        system = System(memory_broker("invariant"), prefetch)
        await system.start()
        for action, number in steps:
            await system.step(action, number)
        left, dead = await system.finish()
        assert all(len(outcomes) == 1 for outcomes in system.outcomes.values())
        confirmed = [body for body, [outcome] in system.outcomes.items() if outcome is CONFIRMED]
        assert sorted(system.acked + dead + left) == confirmed
        assert sorted(dead) == sorted(system.rejected)
        assert left == sorted(left)
        first_time = [body for body, redelivered in system.seen if not redelivered]
        assert first_time == sorted(set(first_time))
        assert system.broker.statistics().dropped == 0

    asyncio.run(play())


@given(
    publishers=st.lists(st.lists(st.integers(0, 1), max_size=20), min_size=1, max_size=3),
    limit=st.integers(1, 5),
    refuse=st.booleans(),
)
def test_a_queue_never_holds_more_than_its_limit_and_accounts_for_the_rest(
    publishers: list[list[int]], limit: int, refuse: bool
) -> None:
    async def play() -> None:
        overflow = "reject-publish" if refuse else "drop-head"
        async with connected(memory_broker("invariant")) as link:
            await link.declare(DEAD, dead_lettering(x_max_length=limit, x_overflow=overflow))
            outcomes: list[Outcome] = []
            for burst in publishers:
                outcomes += await publish_all(link, "work", *[b"x"] * len(burst))
                await idle()
                assert memory_broker("invariant").queue_depth("work") <= limit
            taken = outcomes.count(CONFIRMED)
            assert refuse or taken == len(outcomes)
            assert len(await bodies(link, "work")) + len(await bodies(link, "dead")) == taken

    asyncio.run(play())
