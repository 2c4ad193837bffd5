"""A link whose bytes stop, are cut off, or come one by one (faults 9 and 30)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.amqp.connection import AMQPLink, AMQPTransport
from aiorpcq.transports.amqp.stream import _LOOKS_PER_HEARTBEAT
from aiorpcq.transports.base import Delivery
from tests.proxy import Proxy

HEARTBEAT = 1
WAIT = 20.0


@pytest.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    port = urlsplit(broker_url).port
    assert port is not None
    async with Proxy(port) as started:
        yield started


@pytest.fixture
async def link(proxy: Proxy, broker_url: str) -> AsyncIterator[AMQPLink]:
    url = f"{proxy.url(broker_url)}?heartbeat={HEARTBEAT}"
    opened = await AMQPTransport(url, max_size=1 << 20, name="tests").connect(WAIT)
    yield opened
    await opened.close()


def publish(link: AMQPLink, body: bytes) -> asyncio.Future[Outcome]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    link.publish(
        Publication("", "q", Properties(), body, True, lambda _publication, result: outcome.set_result(result))
    )
    return outcome


@pytest.mark.parametrize("way", ["both", "to_client"])
async def test_silence_without_an_end_loses_the_link_within_two_heartbeats(
    looks: Counter[float], proxy: Proxy, link: AMQPLink, way: str
) -> None:
    await link.declare(Queue("q"))
    if way == "both":
        proxy.blackhole()
    else:
        proxy.to_client.blackhole()
    before = looks[HEARTBEAT]
    outcome = publish(link, b"x")
    async with asyncio.timeout(WAIT):
        reason = await asyncio.shield(link.lost)
        assert await outcome is Outcome.LOST
    assert looks[HEARTBEAT] - before <= 2 * _LOOKS_PER_HEARTBEAT
    assert f"silent for 2 heartbeats of {HEARTBEAT} s" in str(reason)


async def test_a_link_that_nobody_uses_is_kept_by_its_heartbeats(link: AMQPLink) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(link.lost), 4 * HEARTBEAT)


async def test_bytes_that_come_one_by_one_give_the_same_messages(proxy: Proxy, link: AMQPLink) -> None:
    bodies: list[bytes] = []
    every = asyncio.Event()

    def on_delivery(delivery: Delivery) -> None:
        bodies.append(delivery.body)
        delivery.ack()
        if len(bodies) == 20:
            every.set()

    proxy.to_client.slice_to = proxy.to_broker.slice_to = 1
    await link.declare(Queue("q"))
    await link.consume("q", on_delivery)
    outcomes = [publish(link, bytes([number]) * number) for number in range(20)]
    async with asyncio.timeout(WAIT):
        assert set(await asyncio.gather(*outcomes)) == {Outcome.CONFIRMED}
        await every.wait()
    assert bodies == [bytes([number]) * number for number in range(20)]


@pytest.mark.parametrize("after", [1, 9, 40])
async def test_a_link_cut_in_the_midst_of_a_frame_is_lost_and_settles_everything(
    proxy: Proxy, link: AMQPLink, after: int
) -> None:
    await link.declare(Queue("q"))
    await link.consume("q", lambda _delivery: None)
    proxy.to_client.cut_after(after)
    outcomes = [publish(link, b"x" * 100) for _ in range(5)]
    async with asyncio.timeout(WAIT):
        settled = await asyncio.gather(*outcomes)
        await asyncio.shield(link.lost)
    assert Outcome.LOST in settled
