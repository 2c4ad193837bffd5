"""The channel of a link, closed by the broker while the link stands (fault 35)."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq.errors import ConnectFailed, ConnectionLost, RPCError
from aiorpcq.protocol.messages import Outcome
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.base import Delivery, Link

from .conftest import WAIT, Bench, Consuming, Inbox, publish

QUEUE = Queue("q")
LOAD = 200


async def test_the_channel_alone_is_replaced_and_its_consumers_are_told(bench: Bench, link: Link) -> None:
    await link.declare(QUEUE, Queue("other"))
    first, second = Consuming(link, "q"), Consuming(link, "other")
    await first.start()
    await second.start()
    assert await bench.close_channel(link) is Outcome.LOST
    await asyncio.wait_for(link.wait_writable(), WAIT)
    assert await asyncio.wait_for(publish(link, "q", b"1"), WAIT) is Outcome.CONFIRMED
    assert await asyncio.wait_for(publish(link, "other", b"2"), WAIT) is Outcome.CONFIRMED
    assert (await first.bodies(1), await second.bodies(1)) == ([b"1"], [b"2"])
    for consuming in (first, second):
        await consuming.settle()
        assert ["no-such-exchange" in str(error) or "no exchange" in str(error) for error in consuming.ended] == [True]
    assert not link.lost.done()


async def test_what_is_unconfirmed_is_lost_and_until_there_is_a_channel_all_is(bench: Bench, link: Link) -> None:
    ended = Inbox()
    between: list[asyncio.Future[Outcome]] = []
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=ended)
    bad = publish(link, "k", exchange="no-such-exchange")
    behind = publish(link, "q")
    bad.add_done_callback(lambda _: between.append(publish(link, "q")))
    assert await asyncio.wait_for(bad, WAIT) is Outcome.LOST
    assert await asyncio.wait_for(behind, WAIT) is Outcome.LOST
    await ended.wait()
    assert link.writable
    (meanwhile,) = between
    assert await asyncio.wait_for(meanwhile, WAIT) in (Outcome.LOST, Outcome.CONFIRMED)
    assert await asyncio.wait_for(publish(link, "q"), WAIT) is Outcome.CONFIRMED


async def test_the_link_is_writable_again_when_its_consumers_have_been_told(bench: Bench, link: Link) -> None:
    """So that an owner who looks at both never takes a consumer that has ended for one that stands."""
    told: list[bool] = []
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=lambda _: told.append(link.writable))
    await bench.close_channel(link)
    await asyncio.wait_for(link.wait_writable(), WAIT)
    assert told == [False]


async def test_deliveries_in_hand_are_void_and_come_again(bench: Bench, link: Link) -> None:
    await link.declare(QUEUE)
    consuming = Consuming(link, "q")
    await consuming.start()
    for body in (b"1", b"2", b"3"):
        await publish(link, "q", body)
    in_hand: list[Delivery] = list(await consuming.inbox.wait(3))
    assert not any(delivery.requeued or delivery.is_void for delivery in in_hand)
    await bench.close_channel(link)
    assert await consuming.bodies(6) == [b"1", b"2", b"3"] * 2
    assert all(delivery.requeued and delivery.is_void for delivery in in_hand)
    again: list[Delivery] = consuming.inbox.items[3:]
    assert all(delivery.redelivered for delivery in again)
    for delivery in in_hand:
        delivery.ack()
        delivery.nack(requeue=True)
    assert await publish(link, "nowhere") is Outcome.RETURNED  # the broker has read what came before
    assert len(consuming.inbox.items) == 6
    for delivery in again:
        delivery.ack()
    assert await publish(link, "nowhere") is Outcome.RETURNED
    status = await link.inspect("q")
    assert status is not None
    assert (status.messages, status.consumers, link.lost.done()) == (0, 1, False)


async def test_what_is_settled_is_not_requeued_and_the_rest_is_void_and_is_as_long_as_the_link_stands(
    bench: Bench, link: Link
) -> None:
    inbox, replies, ended = Inbox(), Inbox(), Inbox()
    await link.declare(QUEUE, Queue("replies"))
    await link.consume("q", inbox, on_cancelled=ended)
    await link.consume("replies", replies, no_ack=True, on_cancelled=ended)
    for queue in ("q", "q", "q", "replies"):
        await publish(link, queue)
    acked, nacked, in_hand = await inbox.wait(3)
    (reply,) = await replies.wait()
    acked.ack()
    nacked.nack(requeue=False)
    await bench.close_channel(link)
    deliveries = (acked, nacked, reply, in_hand)
    assert [delivery.requeued for delivery in deliveries] == [False, False, False, True]
    await link.close()
    assert not any(delivery.requeued for delivery in deliveries)
    assert [delivery.is_void for delivery in deliveries] == [False, False, False, True]


async def test_under_load_every_publication_settles_and_every_confirmed_one_arrives(bench: Bench, link: Link) -> None:
    await link.declare(QUEUE)
    consuming = Consuming(link, "q")
    await consuming.start()
    outcomes: dict[bytes, asyncio.Future[Outcome]] = {}
    for round_number in range(5):
        for number in range(LOAD):
            body = b"%d.%d" % (round_number, number)
            outcomes[body] = publish(link, "q", body)
            if number == LOAD // 2:
                outcomes[b"bad %d" % round_number] = publish(link, "k", b"", "no-such-exchange")
            if number % 20 == 0:
                await asyncio.sleep(0)
            for delivery in consuming.inbox.items[-10:]:
                delivery.ack()
        await asyncio.wait_for(link.wait_writable(), WAIT)
    async with asyncio.timeout(WAIT):
        settled = await asyncio.gather(*outcomes.values())
    confirmed = {body for body, outcome in zip(outcomes, settled, strict=True) if outcome is Outcome.CONFIRMED}
    assert set(settled) <= {Outcome.CONFIRMED, Outcome.LOST}
    assert Outcome.LOST in settled
    async with asyncio.timeout(WAIT):
        acked = 0
        while not confirmed <= {delivery.body for delivery in consuming.inbox.items}:
            await consuming.inbox.wait(acked + 1)
            for delivery in consuming.inbox.items[acked:]:
                delivery.ack()
                acked += 1
    assert not link.lost.done()


async def test_a_consumer_that_cannot_be_told_takes_the_link_with_it(bench: Bench, link: Link) -> None:
    ended = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=ended)
    await link.consume("q", Inbox())
    assert await bench.close_channel(link) is Outcome.LOST
    error = await asyncio.wait_for(asyncio.shield(link.lost), WAIT)
    assert isinstance(error, ConnectionLost)
    assert ended.items == []
    with pytest.raises(ConnectionLost):
        await link.declare(QUEUE)
    with pytest.raises(ConnectionLost):
        await link.consume("q", Inbox())
    assert await publish(link, "q") is Outcome.LOST


async def test_a_refused_consumer_is_raised_and_the_others_are_told(link: Link) -> None:
    await link.declare(QUEUE)
    consuming = Consuming(link, "q")
    await consuming.start()
    with pytest.raises(ConnectFailed, match="nowhere"):
        await link.consume("nowhere", Inbox(), on_cancelled=Inbox())
    await asyncio.wait_for(link.wait_writable(), WAIT)
    await publish(link, "q", b"x")
    assert await consuming.bodies(1) == [b"x"]
    assert (len(consuming.ended), link.lost.done()) == (1, False)


async def test_a_consumer_that_is_asked_for_meanwhile_consumes_from_the_next_channel(bench: Bench, link: Link) -> None:
    await link.declare(QUEUE)
    inbox = Inbox()
    bad = publish(link, "k", exchange="no-such-exchange")
    await link.consume("q", inbox, on_cancelled=lambda _error: None)
    assert await asyncio.wait_for(bad, WAIT) is Outcome.LOST
    await asyncio.wait_for(link.wait_writable(), WAIT)
    status = await link.inspect("q")
    assert status is not None
    assert not link.lost.done()


async def test_channels_that_are_closed_again_and_again_end_the_link(link: Link) -> None:
    refused = 0
    ended: list[RPCError] = []

    async def again() -> None:
        nonlocal refused
        try:
            await link.consume("nowhere", Inbox(), on_cancelled=ended.append)
        except ConnectFailed:
            refused += 1

    async with asyncio.timeout(WAIT):
        while not link.lost.done():
            await link.wait_writable()
            try:
                await again()
            except ConnectionLost:
                break
        assert "11 channels were closed within 10 s" in str(await asyncio.shield(link.lost))
    assert 10 <= refused <= 11
    assert ended == []


async def test_a_link_that_is_closed_while_its_channel_is_replaced_ends(bench: Bench, link: Link) -> None:
    ended = Inbox()
    await link.declare(QUEUE)
    await link.consume("q", Inbox(), on_cancelled=ended)
    await bench.close_channel(link)
    await asyncio.wait_for(link.close(), WAIT)
    assert await publish(link, "q") is Outcome.LOST
    await link.wait_writable()
