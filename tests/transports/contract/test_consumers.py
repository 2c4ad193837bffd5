"""Consumers that the broker ends, and queues that are asked about."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq.errors import ConnectFailed, ConnectionLost, TopologyMismatch
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Binding, Exchange, Queue
from aiorpcq.transports.base import Delivery, Link, QueueStatus

from .conftest import WAIT, Bench, Consuming, Inbox, publish

QUEUE = Queue("q")
DIRECT = "amq.rabbitmq.reply-to"


# --- the broker cancels a consumer


async def test_a_consumer_whose_queue_is_deleted_is_told_and_the_link_stands(bench: Bench, link: Link) -> None:
    other = Inbox()
    await link.declare(QUEUE, Queue("other"))
    consuming = Consuming(link, "q", then=lambda: link.declare(QUEUE))
    await consuming.start()
    await link.consume("other", other)
    await bench.delete_queue("q")
    async with asyncio.timeout(WAIT):
        while not consuming.ended:  # noqa: ASYNC110 - whatever comes next comes by itself
            await asyncio.sleep(0)
    await consuming.settle()
    assert isinstance(consuming.ended[0], ConnectionLost)
    assert await publish(link, "q", b"again") is Outcome.CONFIRMED
    assert await publish(link, "other", b"other") is Outcome.CONFIRMED
    assert await consuming.bodies(1) == [b"again"]
    await other.wait()
    assert (len(consuming.ended), link.lost.done()) == (1, False)


async def test_what_was_delivered_before_may_be_settled_after(bench: Bench, link: Link) -> None:
    ended, inbox = Inbox(), Inbox()
    await link.declare(QUEUE)
    await link.consume("q", inbox, on_cancelled=ended)
    await publish(link, "q", b"1")
    await publish(link, "q", b"2")
    deliveries = await inbox.wait(2)
    await bench.delete_queue("q")
    await ended.wait()
    deliveries[0].ack()
    deliveries[1].nack(requeue=True)
    assert await publish(link, "nowhere") is Outcome.RETURNED
    assert not link.lost.done()


async def test_a_link_with_a_consumer_that_cannot_be_told_is_lost(bench: Bench, link: Link) -> None:
    ended = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", Inbox())
    await link.consume("q", Inbox(), on_cancelled=ended)
    await bench.delete_queue("q")
    await asyncio.wait_for(asyncio.shield(link.lost), WAIT)


async def test_a_consumer_that_its_owner_cancels_is_not_told(bench: Bench, link: Link) -> None:
    ended = Inbox()
    await link.declare(QUEUE, Queue("other"))
    subscription = await link.consume("q", Inbox(), on_cancelled=ended)
    await link.consume("other", Inbox(), on_cancelled=ended)
    await subscription.cancel()
    await bench.delete_queue("q")
    await bench.delete_queue("other")
    await ended.wait()
    await bench.close_channel(link)
    await asyncio.wait_for(link.wait_writable(), WAIT)
    assert len(ended.items) == 1


async def test_no_consumer_is_told_of_the_loss_of_the_link(link: Link) -> None:
    ended = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=ended)
    await link.close()
    assert ended.items == []


# --- asking about a queue


async def test_a_queue_tells_what_is_ready_and_who_consumes(bench: Bench, link: Link) -> None:
    await link.declare(QUEUE)
    assert await link.inspect("q") == QueueStatus(messages=0, consumers=0)
    for _ in range(3):
        assert await publish(link, "q") is Outcome.CONFIRMED
    assert await link.inspect("q") == QueueStatus(messages=3, consumers=0)
    inbox = Inbox()
    await link.consume("q", inbox, prefetch=2)
    await inbox.wait(2)
    assert await link.inspect("q") == QueueStatus(messages=1, consumers=1)


async def test_a_queue_that_is_not_there_is_none_and_everything_goes_on(link: Link) -> None:
    inbox = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", inbox)
    assert await asyncio.gather(*(link.inspect("nowhere") for _ in range(5))) == [None] * 5
    statuses = await asyncio.gather(link.inspect("nowhere"), link.declare(Queue("later")), link.inspect("q"))
    assert list(statuses) == [None, None, QueueStatus(messages=0, consumers=1)]
    assert await link.inspect("later") is not None
    await publish(link, "q")
    await inbox.wait()


async def test_anothers_exclusive_queue_cannot_be_asked_about(bench: Bench, link: Link) -> None:
    other = await bench.connect()
    await other.declare(Queue("mine", durable=False, exclusive=True))
    with pytest.raises(TopologyMismatch):
        await link.inspect("mine")
    assert await other.inspect("mine") == QueueStatus(messages=0, consumers=0)


async def test_a_lost_link_is_not_asked(link: Link) -> None:
    await link.close()
    with pytest.raises(ConnectionLost):
        await link.inspect("q")


# --- returns that nobody waits for


async def test_a_return_that_nobody_waits_for_is_told(link: Link) -> None:
    returned: list[tuple[str, str | None]] = []
    link.publish(Publication("", "nowhere", Properties(correlation_id="0"), b""))
    link.on_returned = lambda key, properties: returned.append((key, properties.correlation_id))
    await link.declare(QUEUE)
    link.publish(Publication("", "nowhere", Properties(correlation_id="1", type="STARTED"), b""))
    link.publish(Publication("", "nowhere", Properties(correlation_id="2"), b"", mandatory=False))
    link.publish(Publication("", "q", Properties(correlation_id="3"), b""))
    assert await publish(link, "nowhere", correlation_id="4") is Outcome.RETURNED
    assert returned[-1] == ("nowhere", "1")
    assert {task for _, task in returned} <= {"0", "1"}


# --- prefetch, one consumer after another


async def test_each_consumer_has_its_own_prefetch(link: Link) -> None:
    first, second = Inbox(), Inbox()
    await link.declare(QUEUE, Queue("other"))
    for _ in range(4):
        await publish(link, "q")
        await publish(link, "other")
    await asyncio.gather(link.consume("q", first, prefetch=1), link.consume("other", second))
    await asyncio.gather(first.wait(1), second.wait(4))
    assert await publish(link, "nowhere") is Outcome.RETURNED
    assert len(first.items) == 1


# --- direct reply-to


async def test_a_direct_reply_comes_back_over_no_declared_queue(bench: Bench, link: Link) -> None:
    server, requests, replies = await bench.connect(), Inbox(), Inbox()
    await server.declare(QUEUE)
    await server.consume("q", requests)
    await link.consume(DIRECT, replies, no_ack=True)
    assert await publish(link, "q", b"request", reply_to=DIRECT) is Outcome.CONFIRMED
    request: Delivery = (await requests.wait())[0]
    assert request.properties.reply_to is not None
    assert request.properties.reply_to.startswith(f"{DIRECT}.")
    assert await publish(server, request.properties.reply_to, b"1", mandatory=False) is Outcome.CONFIRMED
    # RabbitMQ 3.10 delivers it and returns it, since such a name is no queue; 4.3 confirms it.
    assert await publish(server, request.properties.reply_to, b"2") in (Outcome.RETURNED, Outcome.CONFIRMED)
    assert [delivery.body for delivery in await replies.wait(2)] == [b"1", b"2"]


async def test_direct_replies_end_with_the_channel(bench: Bench, link: Link) -> None:
    server, requests, replies, ended = await bench.connect(), Inbox(), Inbox(), Inbox()
    await server.declare(QUEUE)
    await server.consume("q", requests)
    await link.consume(DIRECT, replies, no_ack=True, on_cancelled=ended)
    await publish(link, "q", reply_to=DIRECT)
    await requests.wait()
    await bench.close_channel(link)
    await ended.wait()
    await link.consume(DIRECT, replies, no_ack=True, on_cancelled=ended)
    await publish(link, "q", reply_to=DIRECT)
    for body, request in zip((b"former", b"present"), await requests.wait(2), strict=True):
        await publish(server, request.properties.reply_to, body, mandatory=False)
    assert [delivery.body for delivery in await replies.wait()] == [b"present"]


async def test_direct_replies_cannot_be_acknowledged(link: Link) -> None:
    with pytest.raises(ConnectFailed):
        await link.consume(DIRECT, Inbox())


async def test_asking_for_a_direct_reply_without_a_consumer_closes_the_channel(link: Link) -> None:
    await link.declare(QUEUE)
    assert await asyncio.wait_for(publish(link, "q", reply_to=DIRECT), WAIT) is Outcome.LOST
    await asyncio.wait_for(link.wait_writable(), WAIT)
    assert await publish(link, "q") is Outcome.CONFIRMED


# --- delay queues


async def test_a_delay_queue_gives_a_message_back_with_its_key_and_its_copies(link: Link) -> None:
    delay = Queue("wait", arguments={"x-message-ttl": 50, "x-dead-letter-exchange": "rpc"})
    await link.declare(
        Exchange("rpc"),
        Exchange("rpc.retry.50", "fanout"),
        QUEUE,
        Queue("reply"),
        delay,
        Binding("q", "rpc", "rpc:math"),
        Binding("wait", "rpc.retry.50", ""),
    )
    back, reply = Inbox(), Inbox()
    await link.consume("q", back)
    await link.consume("reply", reply)
    headers = {"CC": ["reply"]}
    assert await publish(link, "rpc:math", b"x", "rpc.retry.50", headers=headers) is Outcome.CONFIRMED
    delivery: Delivery = (await back.wait())[0]
    assert (delivery.exchange, delivery.routing_key, delivery.body) == ("rpc", "rpc:math", b"x")
    assert delivery.properties.headers is not None
    assert delivery.properties.headers["CC"] == ["reply"]
    (death,) = delivery.properties.headers["x-death"]
    assert (death["reason"], death["queue"]) == ("expired", "wait")
    assert reply.items == []  # `rpc` has no binding for it
