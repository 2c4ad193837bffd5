"""Links to a real RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlencode

import pytest
from aiormq.channel import Channel as UnderlyingChannel
from pamqp.commands import Channel

from aiorpcq import Client, Worker
from aiorpcq.errors import ConnectFailed, ConnectionLost, DeadlineExceeded, RPCError, TopologyMismatch
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Binding, Exchange, Names, Queue
from aiorpcq.transports.amqp.connection import AMQPLink, AMQPTransport
from aiorpcq.transports.amqp.lane import Lane
from aiorpcq.transports.base import Delivery
from tests.contract.parties import calculator
from tests.node import Node

from . import marshal

PASSWORD = "p4ss-w0rd-of-the-tests"
QUEUE = Queue("q")
WAIT = 10.0
CLOSE_BOUND = 6.0  # what a close may take, with the machine's own slowness


class Inbox:
    """Keeps deliveries, and lets a test wait for them."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._changed = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._changed.set()

    async def wait(self, count: int = 1) -> list[Delivery]:
        async with asyncio.timeout(WAIT):
            while len(self.deliveries) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.deliveries


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[AMQPLink]:
    link = await AMQPTransport(url, max_size=1 << 20, name="tests").connect(WAIT)
    try:
        yield link
    finally:
        await link.close()


@pytest.fixture
async def link(broker_url: str) -> AsyncIterator[AMQPLink]:
    async with connected(broker_url) as opened:
        yield opened


def publish(link: AMQPLink, routing_key: str, body: bytes = b"", exchange: str = "") -> asyncio.Future[Outcome]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(_publication: Publication, result: Outcome) -> None:
        outcome.set_result(result)

    link.publish(Publication(exchange, routing_key, Properties(correlation_id="c", type="t"), body, True, settled))
    return outcome


async def lost(link: AMQPLink) -> str:
    async with asyncio.timeout(WAIT):
        return str(await asyncio.shield(link.lost))


# --- messages


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 300_000])
async def test_a_message_comes_back_as_it_was_sent(link: AMQPLink, size: int) -> None:
    await round_trip(link, size)


async def round_trip(link: AMQPLink, size: int) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", inbox)
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    properties = Properties(
        "text/plain",
        "gzip",
        {"deadline": 5, "nested": {"a": [1, "x", None]}},
        1,
        3,
        "id",
        "rpc.reply",
        60_000,
        type="add",
    )
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    link.publish(
        Publication("", "q", properties, body, settled=lambda _publication, result: outcome.set_result(result))
    )
    (delivery,) = await inbox.wait()
    assert await asyncio.wait_for(outcome, WAIT) is Outcome.CONFIRMED
    assert (delivery.body, delivery.properties) == (body, properties)
    assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", "q", False)
    delivery.ack()


def test_uvloop_carries_messages_too(broker_url: str) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with connected(broker_url) as link:
            await round_trip(link, 300_000)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_thousand_messages_of_every_outcome_settle(link: AMQPLink) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", inbox, prefetch=50)
    outcomes = [publish(link, "q" if number % 3 else "nowhere", b"%d" % number) for number in range(1_000)]
    settled = 0
    expected = [number for number in range(1_000) if number % 3]
    while settled < len(expected):
        for delivery in (await inbox.wait(settled + 1))[settled:]:
            settled += 1
            delivery.ack()
    assert [int(delivery.body) for delivery in inbox.deliveries] == expected
    assert [outcome is Outcome.CONFIRMED for outcome in await asyncio.gather(*outcomes)] == [
        bool(number % 3) for number in range(1_000)
    ]
    assert not link.lost.done()


async def test_a_mandatory_message_without_a_queue_is_returned(link: AMQPLink) -> None:
    assert await asyncio.wait_for(publish(link, "nowhere"), WAIT) is Outcome.RETURNED


async def test_a_binding_routes(link: AMQPLink) -> None:
    names, inbox = Names("t"), Inbox()
    await link.declare(names.requests, names.service_queue("math"), names.binding("math"))
    await link.consume("t.math", inbox)
    assert await asyncio.wait_for(publish(link, "t:math", b"x", "t"), WAIT) is Outcome.CONFIRMED
    (delivery,) = await inbox.wait()
    assert (delivery.exchange, delivery.routing_key) == ("t", "t:math")


async def test_a_message_given_back_comes_again(link: AMQPLink) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", inbox)
    publish(link, "q", b"x")
    (await inbox.wait())[0].nack(requeue=True)
    second = (await inbox.wait(2))[1]
    assert (second.body, second.redelivered) == (b"x", True)


async def test_prefetch_bounds_what_is_unsettled(link: AMQPLink) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    await asyncio.gather(*(publish(link, "q", b"%d" % number) for number in range(5)))
    await link.consume("q", inbox, prefetch=2)
    await inbox.wait(2)
    await publish(link, "nowhere")  # on the same channel, so that a third delivery would be here by now
    assert len(inbox.deliveries) == 2
    inbox.deliveries[1].ack()
    assert [delivery.body for delivery in await inbox.wait(3)] == [b"0", b"1", b"2"]


async def test_a_cancelled_subscription_gets_nothing_more(link: AMQPLink, node: Node, vhost: str) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    subscription = await link.consume("q", inbox)
    publish(link, "q", b"kept")
    (kept,) = await inbox.wait()
    await subscription.cancel()
    assert await publish(link, "q", b"late") is Outcome.CONFIRMED
    assert len(inbox.deliveries) == 1
    kept.ack()
    await publish(link, "nowhere")  # the broker has read the ack by then
    assert (await asyncio.to_thread(node.queues, vhost))["q"].messages == 1


# --- topology


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (Queue("q"), Queue("q", durable=False), ["queue 'q'", "durable", "'true'", "'false'"]),
        (
            Queue("q", arguments={"x-max-length": 5}),
            Queue("q", arguments={"x-max-length": 6}),
            ["queue 'q'", "x-max-length", "'5'", "'6'"],
        ),
        (Queue("q"), Queue("q", arguments={"x-message-ttl": 1_000}), ["queue 'q'", "x-message-ttl", "'1000'", "none"]),
        (Exchange("e"), Exchange("e", "topic"), ["exchange 'e'", "type", "'direct'", "'topic'"]),
    ],
)
async def test_a_mismatch_names_what_differs_and_both_values(
    broker_url: str, first: Queue | Exchange, second: Queue | Exchange, named: list[str]
) -> None:
    async with connected(broker_url) as link:
        await link.declare(first, first)
        with pytest.raises(TopologyMismatch) as caught:
            await link.declare(second)
    text = str(caught.value)
    assert [part for part in named if part not in text] == []


async def test_after_a_mismatch_the_link_can_still_declare(link: AMQPLink, node: Node, vhost: str) -> None:
    await link.declare(QUEUE)
    for number in range(3):
        with pytest.raises(TopologyMismatch):
            await link.declare(Queue("q", durable=False))
        await link.declare(Queue(f"other{number}"))
    assert not link.lost.done()
    assert set(await asyncio.to_thread(node.queues, vhost)) == {"q", "other0", "other1", "other2"}


async def test_a_reply_queue_is_its_links_alone(link: AMQPLink, broker_url: str) -> None:
    queue = Names().reply_queue("router", 1, "secret")
    await link.declare(queue)
    async with connected(broker_url) as other:
        with pytest.raises(TopologyMismatch, match=f"queue '{queue.name}' belongs to another connection"):
            await other.declare(queue)
    async with connected(broker_url) as other:
        with pytest.raises(ConnectFailed, match=queue.name):
            await other.consume(queue.name, Inbox())


async def test_a_reply_queue_ends_with_its_link(broker_url: str, node: Node, vhost: str) -> None:
    async with connected(broker_url) as link:
        await link.declare(Names().reply_queue("router", 1, "secret"))
        assert len(await asyncio.to_thread(node.queues, vhost)) == 1
    async with asyncio.timeout(WAIT):
        while await asyncio.to_thread(node.queues, vhost):  # each look is an exchange with the broker
            pass


async def test_consuming_from_a_queue_that_is_not_there_says_so(link: AMQPLink) -> None:
    with pytest.raises(ConnectFailed, match="queue 'nowhere' does not exist"):
        await link.consume("nowhere", Inbox())


async def test_consuming_exclusively_from_a_queue_in_use_says_so(link: AMQPLink, broker_url: str) -> None:
    await link.declare(QUEUE)
    await link.consume("q", Inbox())
    async with connected(broker_url) as other:
        with pytest.raises(ConnectFailed, match="queue 'q'"):
            await other.consume("q", Inbox(), exclusive=True)


async def test_cancelling_a_declare_leaves_the_channel_open(link: AMQPLink) -> None:
    for number in range(5):
        declare = asyncio.create_task(link.declare(Queue(f"q{number}")))
        for _ in range(number):  # in any state of it
            await asyncio.sleep(0)
        declare.cancel()
        with pytest.raises(asyncio.CancelledError):
            await declare
        await link.declare(Binding("after", "amq.direct", "k")) if number > 2 else await link.declare(Queue("after"))
    assert not link.lost.done()


@pytest.mark.parametrize("way", ["declare", "consume"])
async def test_what_the_user_may_not_do_is_said(node: Node, vhost: str, way: str) -> None:
    await asyncio.to_thread(node.add_user, f"limited-{vhost}", PASSWORD)
    await asyncio.to_thread(node.set_permissions, f"limited-{vhost}", vhost, configure="^mine$", read="^mine$")
    async with connected(node.url(f"limited-{vhost}", PASSWORD, vhost)) as link:
        await link.declare(Queue("mine"))
        async with connected(node.url(vhost=vhost)) as other:
            await other.declare(Queue("theirs"))
        with pytest.raises(ConnectFailed, match="no permission for queue 'theirs'") as caught:
            await (
                link.declare(Queue("theirs", durable=False)) if way == "declare" else link.consume("theirs", Inbox())
            )
    assert PASSWORD not in everything(caught.value)


# --- connecting


def everything(error: BaseException) -> str:
    """All that can be read off an error, its chain included."""
    texts = ["".join(traceback.format_exception(error))]
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None:
            texts += [str(link), repr(link), repr(link.args), repr(vars(link))]
            chain += [link.__cause__, link.__context__]
    return "\n".join(texts)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("password", ["refused the user name or password of 'alice'"]),
        ("vhost", ["vhost", "no-such-vhost", "not found"]),
        ("permission", ["vhost", "refused", "alice"]),
        ("nobody", ["cannot be reached", "Connect call failed"]),
        ("host", ["cannot be reached"]),
        ("silence", ["did not answer within 0.5 s"]),
    ],
)
async def test_a_failed_connect_says_why_and_not_the_password(
    node: Node, vhost: str, silent_port: int, caplog: pytest.LogCaptureFixture, fault: str, named: list[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with contextlib.suppress(Exception):
        await asyncio.to_thread(node.add_user, "alice", PASSWORD)
    if fault != "permission":
        await asyncio.to_thread(node.set_permissions, "alice", vhost)
    with socket.create_server(("127.0.0.1", 0)) as free:
        free_port = free.getsockname()[1]
    url = {
        "password": node.url("alice", PASSWORD + "-wrong", vhost),
        "vhost": node.url("alice", PASSWORD, "no-such-vhost"),
        "permission": node.url("alice", PASSWORD, vhost),
        "nobody": node.url("alice", PASSWORD, vhost, port=free_port),
        "host": f"amqp://alice:{PASSWORD}@host.invalid/",
        "silence": node.url("alice", PASSWORD, vhost, port=silent_port),
    }[fault]
    transport = AMQPTransport(url, max_size=1, name="tests")
    with pytest.raises(ConnectFailed) as caught:
        await transport.connect(0.5 if fault == "silence" else WAIT)
    assert [part for part in named if part not in str(caught.value)] == []
    assert str(caught.value).startswith(transport.address)
    for text in (everything(caught.value), caplog.text, transport.address, repr(transport)):
        assert PASSWORD not in text


async def test_a_peer_that_speaks_something_else_is_refused() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectFailed, match=f"^amqp://127.0.0.1:{port}/"):
            await AMQPTransport(f"amqp://u:{PASSWORD}@127.0.0.1:{port}/", max_size=1, name="tests").connect(WAIT)


@pytest.mark.parametrize(
    "url", [f"http://u:{PASSWORD}@h/", f"amqp://u:{PASSWORD}@/v", f"amqp://u:{PASSWORD}@h:port/", "amqp"]
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: ") as caught:
        AMQPTransport(url, max_size=1, name="tests")
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value)


@pytest.fixture(scope="module")
def tls_node() -> Iterator[Node]:
    with Node(tls=True) as started:
        yield started


async def test_tls_carries_messages(tls_node: Node) -> None:
    async with connected(f"{tls_node.url(tls=True)}?{urlencode({'cafile': tls_node.ca_file})}") as link:
        await round_trip(link, 300_000)


async def test_a_certificate_of_an_unknown_authority_is_refused(tls_node: Node) -> None:
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        await AMQPTransport(tls_node.url(tls=True), max_size=1, name="tests").connect(WAIT)


@pytest.fixture
def limitless_url(node: Node, broker_url: str) -> Iterator[str]:
    """The URL of a broker that sets no limit to frames."""
    limit = node.eval("element(2, application:get_env(rabbit, frame_max))")
    node.eval("application:set_env(rabbit, frame_max, 0)")
    try:
        yield broker_url
    finally:
        node.eval(f"application:set_env(rabbit, frame_max, {limit})")


async def test_bodies_of_any_size_come_from_a_broker_that_sets_no_limit_to_frames(limitless_url: str) -> None:
    async with connected(limitless_url) as link:
        await round_trip(link, 300_000)


# --- losing


async def test_the_link_is_lost_when_the_queue_of_a_consumer_is_deleted(link: AMQPLink, node: Node, vhost: str) -> None:
    await link.declare(QUEUE)
    await link.consume("q", Inbox())
    await asyncio.to_thread(node.eval, delete_queue(vhost, "q"))
    assert "the broker cancelled a consumer" in await lost(link)
    assert not link.writable
    await asyncio.wait_for(link.wait_writable(), WAIT)


def delete_queue(vhost: str, queue: str) -> str:
    return (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)), '
        'rabbit_amqqueue:delete(Q, false, false, <<"tests">>)'
    )


async def test_an_ack_of_an_unknown_delivery_closes_the_channel_alone(link: AMQPLink) -> None:
    ended: asyncio.Queue[RPCError] = asyncio.Queue()
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=ended.put_nowait)
    link._lane.ack(77)
    error = await asyncio.wait_for(ended.get(), WAIT)
    assert "406 PRECONDITION_FAILED - unknown delivery tag 77" in str(error)
    inbox = Inbox()
    await link.consume("q", inbox)
    assert await publish(link, "q", b"x") is Outcome.CONFIRMED
    await inbox.wait()


async def test_a_consumer_that_holds_a_message_too_long_loses_its_channel_alone(private_node: Node) -> None:
    await asyncio.to_thread(private_node.eval, consumer_timeout(200, 100))
    try:
        async with connected(private_node.url()) as link:
            ended: asyncio.Queue[RPCError] = asyncio.Queue()
            inbox = Inbox()
            await link.declare(QUORUM)
            await link.consume("quorum", inbox, on_cancelled=ended.put_nowait)
            await publish(link, "quorum", b"x")
            (held,) = await inbox.wait()
            # RabbitMQ 3.10 closes the channel, 4.3 cancels the consumer.
            error = str(await asyncio.wait_for(ended.get(), WAIT))
            assert "timed out" in error or "held a message for too long" in error
            await link.consume("quorum", inbox, on_cancelled=ended.put_nowait)
            held.ack()
            (await inbox.wait(2))[1].ack()
            await publish(link, "nowhere")  # the broker has read the acknowledgements by then
            assert ended.empty()
            assert not link.lost.done()
    finally:
        await asyncio.to_thread(private_node.eval, consumer_timeout(1_800_000, 60_000))


def consumer_timeout(timeout: int, looks: int) -> str:
    """Have a consumer hold a message for *timeout* ms at most, looking every *looks* ms."""
    return (
        f"application:set_env(rabbit, consumer_timeout, {timeout}), "
        f"application:set_env(rabbit, channel_tick_interval, {looks})"
    )


QUORUM = Queue("quorum", arguments={"x-queue-type": "quorum"})


async def test_a_channel_that_cannot_be_replaced_loses_the_link(private_node: Node) -> None:
    async with connected(f"{private_node.url()}?heartbeat=1") as link:
        link._protocol.data_received(channel_close(link._lane.channel))  # type: ignore[union-attr]  # it is open
        await asyncio.to_thread(private_node.pause)
        assert await lost(link)
        assert await asyncio.wait_for(publish(link, "q"), WAIT) is Outcome.LOST


def channel_close(channel: int) -> bytes:
    """What the broker sends to close a channel."""
    return marshal(Channel.Close(406, "PRECONDITION_FAILED", 0, 0), channel)


async def test_a_channel_replaced_again_and_again_leaves_nothing_behind(
    link: AMQPLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link._replacements, "may_replace", lambda _now: True)
    ended: asyncio.Queue[RPCError] = asyncio.Queue()
    await link.declare(QUEUE)

    async def replace(times: int) -> int:
        for _ in range(times):
            await link.consume("q", Inbox(), prefetch=5, on_cancelled=ended.put_nowait)
            publish(link, "k", exchange="no-such-exchange")
            await asyncio.wait_for(ended.get(), WAIT)
        gc.collect()
        return sum(isinstance(kept, (UnderlyingChannel, Lane, asyncio.Future)) for kept in gc.get_objects())

    few = await replace(20)
    assert await replace(200) <= few + 5
    assert len(link._under.channels) == 2


async def test_subscriptions_that_come_and_go_leave_nothing_behind(link: AMQPLink) -> None:
    await link.declare(QUEUE)
    for _ in range(20):
        await (await link.consume("q", Inbox())).cancel()
    assert not link._lane_channel.consumers
    assert not link._lane._consumers


async def test_an_operator_closing_the_connection_is_told(link: AMQPLink, node: Node) -> None:
    await link.declare(QUEUE)
    await asyncio.to_thread(node.close_connections, "maintenance")
    assert "320 CONNECTION_FORCED - maintenance" in await lost(link)


@pytest.mark.parametrize("others_wait", [False, True])
async def test_what_is_published_after_aiormq_has_ended_its_side_is_lost(
    link: AMQPLink, caplog: pytest.LogCaptureFixture, others_wait: bool
) -> None:
    """It does when it has read the broker's end, before the transport tells of that."""
    await link.declare(QUEUE)
    socket = link._protocol._socket  # type: ignore[union-attr]
    assert socket is not None
    outcomes = [publish(link, "q")] if others_wait else []
    socket.write_eof()
    outcomes.append(publish(link, "q"))
    outcomes.append(publish(link, "q"))
    assert await lost(link)
    for outcome in outcomes[-2:]:
        assert await asyncio.wait_for(outcome, WAIT) is Outcome.LOST
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_killed_broker_loses_the_link(private_node: Node) -> None:
    async with connected(private_node.url()) as link:
        await link.declare(QUEUE)
        await asyncio.to_thread(private_node.pause)  # so that nothing is confirmed before it dies
        outcome = publish(link, "q", b"x")
        await asyncio.to_thread(private_node.kill)
        assert await lost(link)
        assert await asyncio.wait_for(outcome, WAIT) is Outcome.LOST


async def test_a_frozen_broker_is_noticed_after_two_heartbeats(private_node: Node) -> None:
    async with connected(f"{private_node.url()}?heartbeat=1") as link:
        await asyncio.to_thread(private_node.pause)
        assert "silent for 2 heartbeats of 1 s" in await lost(link)


# --- closing


async def test_closing_settles_everything_and_twice_does_no_harm(
    link: AMQPLink, node: Node, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    await link.declare(QUEUE)
    assert await asyncio.to_thread(node.connection_count, vhost) == 1
    await asyncio.gather(link.close(), link.close())
    await link.close()
    assert "was closed" in await lost(link)
    assert await publish(link, "q") is Outcome.LOST
    await link.wait_writable()
    with pytest.raises(ConnectionLost):
        await link.declare(QUEUE)
    async with asyncio.timeout(WAIT):
        while await asyncio.to_thread(node.connection_count, vhost):
            pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_declaration_that_waits_for_a_quorum_queue_to_rest_ends_with_the_link(
    link: AMQPLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(link, "_on_control", lambda *about: asked.append(about))
    link._resting[QUEUE.name] = asyncio.get_running_loop().time() + 60.0
    declare = asyncio.create_task(link.declare(QUEUE))
    await asyncio.sleep(0)  # it waits now
    await link.close()
    with pytest.raises(ConnectionLost, match=QUEUE.name):
        await declare
    assert not asked


async def test_closing_ends_what_is_under_way(private_node: Node) -> None:
    async with connected(private_node.url()) as link:
        await asyncio.to_thread(private_node.pause)
        declare = asyncio.create_task(link.declare(QUEUE))
        outcome = publish(link, "q")
        await asyncio.sleep(0)
        async with asyncio.timeout(CLOSE_BOUND):
            await link.close()
            with pytest.raises(ConnectionLost):
                await declare
            assert await outcome is Outcome.LOST


async def test_a_cancelled_close_goes_on(private_node: Node) -> None:
    link = await AMQPTransport(private_node.url(), max_size=1, name="tests").connect(WAIT)
    await asyncio.to_thread(private_node.pause)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(link.close(), 0.01)
    async with asyncio.timeout(CLOSE_BOUND):
        assert await lost(link)
        await link.close()


async def not_writable(link: AMQPLink) -> None:
    async with asyncio.timeout(WAIT):
        while link.writable:  # noqa: ASYNC110 - a link tells when it becomes writable, not when it ceases to be
            await asyncio.sleep(0.01)


async def test_who_stops_waiting_for_a_blocked_connection_leaves_nothing_behind(private_node: Node) -> None:
    async with connected(private_node.url()) as link:
        await link.declare(QUEUE)
        await asyncio.to_thread(private_node.set_memory_alarm, True)
        publish(link, "q", b"x")
        await not_writable(link)
        waiting = [asyncio.create_task(link.wait_writable()) for _ in range(100)]
        await asyncio.sleep(0)
        for waiter in waiting[1:]:
            waiter.cancel()
        await asyncio.wait(waiting[1:])
        assert len(link._writable_waiters) == 1
        await asyncio.to_thread(private_node.set_memory_alarm, False)
        await asyncio.wait_for(waiting[0], WAIT)
        assert not link._writable_waiters


async def test_calls_that_time_out_while_the_broker_blocks_leave_nothing_behind(private_node: Node) -> None:
    async with Worker(private_node.url(), [calculator()]), Client(private_node.url()) as caller:
        await asyncio.to_thread(private_node.set_memory_alarm, True)
        link = caller._session.router().link
        assert isinstance(link, AMQPLink)
        answer = asyncio.create_task(caller.call("add", 1, 2))
        await not_writable(link)
        hurried = caller.with_options(timeout=0.01)
        outcomes = await asyncio.gather(*(hurried.call("add", 1, 2) for _ in range(200)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        assert not any(outcome.maybe_executed for outcome in outcomes if isinstance(outcome, DeadlineExceeded))
        assert not link._writable_waiters
        assert caller.statistics().pending == 1
        await asyncio.to_thread(private_node.set_memory_alarm, False)
        assert await answer == 3
        assert await caller.call("add", 3, 4) == 7


async def test_a_blocked_connection_is_not_writable_and_closes_in_time(private_node: Node) -> None:
    async with connected(private_node.url()) as link:
        await link.declare(QUEUE)
        await asyncio.to_thread(private_node.set_memory_alarm, True)
        publish(link, "q", b"x")  # a broker blocks a connection when it publishes
        await not_writable(link)
        waiting = asyncio.create_task(link.wait_writable())
        await asyncio.to_thread(private_node.set_memory_alarm, False)
        await asyncio.wait_for(waiting, WAIT)
        assert link.writable

        await asyncio.to_thread(private_node.set_memory_alarm, True)
        outcome = publish(link, "q", b"y")
        await not_writable(link)
        async with asyncio.timeout(CLOSE_BOUND):
            await link.close()
            assert await outcome is Outcome.LOST
