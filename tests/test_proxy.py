"""The proxy does to a link what the fault tests rely on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.proxy import Proxy

_SOON = 10.0


class Peer:
    """One end of a connection: it notes what each read brings, and how the stream ends."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.ended = asyncio.Event()
        self.error: Exception | None = None
        self.writer: asyncio.Transport | None = None
        self._waiters: list[tuple[int, asyncio.Event]] = []

    @property
    def received(self) -> bytes:
        return b"".join(self.reads)

    async def size(self, size: int) -> bytes:
        """Wait for so many bytes."""
        if len(self.received) < size:
            there = asyncio.Event()
            self._waiters.append((size, there))
            await asyncio.wait_for(there.wait(), _SOON)
        return self.received

    def take(self, data: bytes) -> None:
        self.reads.append(data)
        for size, there in self._waiters:
            if len(self.received) >= size:
                there.set()

    def write(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)


class _Protocol(asyncio.Protocol):
    def __init__(self, peer: Peer, *, echoes: bool) -> None:
        self._peer = peer
        self._echoes = echoes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._peer.writer = transport

    def data_received(self, data: bytes) -> None:
        self._peer.take(data)
        if self._echoes:
            self._peer.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.error = exc
        self._peer.ended.set()


class Echo:
    """A server that sends back what it gets; *peers* are its ends of the connections."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.port = 0

    def protocol(self) -> _Protocol:
        self.peers.append(Peer())
        return _Protocol(self.peers[-1], echoes=True)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    listening = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    for peer in server.peers:
        if peer.writer is not None:
            peer.writer.abort()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(echo.port) as running:
        yield running


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Peer]:
    peer = Peer()
    await asyncio.get_running_loop().create_connection(lambda: _Protocol(peer, echoes=False), "127.0.0.1", proxy.port)
    try:
        yield peer
    finally:
        assert peer.writer is not None
        peer.writer.abort()
        await asyncio.wait_for(peer.ended.wait(), _SOON)


async def ended(peer: Peer) -> Exception | None:
    await asyncio.wait_for(peer.ended.wait(), _SOON)
    return peer.error


async def test_bytes_go_through_in_both_directions_and_are_counted(proxy: Proxy) -> None:
    async with connected(proxy) as peer:
        peer.write(b"x" * 300_000)
        assert await peer.size(300_000) == b"x" * 300_000
        assert (proxy.to_broker.passed, proxy.to_client.passed) == (300_000, 300_000)
        assert (proxy.accepted, proxy.open) == (1, 1)
    await proxy.wait_closed()
    assert (proxy.accepted, proxy.open) == (1, 0)


async def test_the_end_of_a_stream_goes_through_with_what_came_before_it(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as peer:
        peer.write(b"last")
        await peer.size(4)
        assert peer.writer is not None
        peer.writer.write_eof()
        assert await ended(echo.peers[0]) is None
        assert echo.peers[0].received == b"last"
        assert await ended(peer) is None


async def test_a_connection_is_counted_when_it_is_there(proxy: Proxy) -> None:
    async with connected(proxy), connected(proxy):
        await proxy.wait_connections(2)
        assert proxy.open == 2


async def test_a_reset_reaches_both_ends(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as peer:
        peer.write(b"x")
        await peer.size(1)
        assert proxy.reset() == 1
        assert isinstance(await ended(peer), ConnectionResetError)
        assert isinstance(await ended(echo.peers[0]), ConnectionResetError)
        await proxy.wait_closed()


async def test_a_black_hole_takes_everything_and_gives_it_back_when_it_heals(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as peer:
        peer.write(b"1")
        await peer.size(1)
        proxy.blackhole()
        peer.write(b"2")
        async with connected(proxy) as other:  # taken, and never answered
            other.write(b"3")
            await proxy.wait_connections(2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(other.ended.wait(), 0.05)
            assert (peer.received, other.received) == (b"1", b"")
            assert len(echo.peers) == 1
            proxy.heal()
            assert await peer.size(2) == b"12"
            assert await other.size(1) == b"3"


async def test_one_direction_may_be_silent_alone(proxy: Proxy, echo: Echo) -> None:
    proxy.to_client.blackhole()
    async with connected(proxy) as peer:
        peer.write(b"heard")
        await proxy.wait(lambda: proxy.to_broker.passed == 5)
        await echo.peers[0].size(5)
        assert proxy.to_client.passed == 0
        proxy.to_client.heal()
        assert await peer.size(5) == b"heard"


async def test_a_silent_link_keeps_the_end_of_a_stream_to_itself(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as peer:
        peer.write(b"x")
        await peer.size(1)
        proxy.blackhole()
        writer = echo.peers[0].writer
        assert writer is not None
        writer.close()
        await ended(echo.peers[0])
        assert not peer.ended.is_set()
        proxy.heal()
        assert await ended(peer) is None


@pytest.mark.parametrize("size", [1, 3])
async def test_slices_arrive_one_by_one(echo: Echo, size: int) -> None:
    async with Proxy(echo.port, slice_to=size) as proxy, connected(proxy) as peer:
        peer.write(bytes(range(200)))
        assert await peer.size(200) == bytes(range(200))
        assert {len(read) for read in peer.reads} <= set(range(1, size + 1))
        assert max(len(read) for read in echo.peers[0].reads) <= size


@pytest.mark.parametrize("size", [1, 7, 10])
async def test_a_cut_comes_after_the_byte_that_was_named(proxy: Proxy, echo: Echo, size: int) -> None:
    async with connected(proxy) as peer:
        peer.write(b"before")
        await peer.size(6)
        proxy.to_client.cut_after(size)
        peer.write(b"0123456789")
        await ended(peer)
        assert peer.received == b"before" + b"0123456789"[:size]
        await ended(echo.peers[0])
        await proxy.wait_closed()
    async with connected(proxy) as peer:  # it was for that one connection
        peer.write(b"y" * 100)
        await peer.size(100)


async def test_latency_delays_each_byte_and_does_not_bound_the_throughput(echo: Echo) -> None:
    async with Proxy(echo.port, latency=0.2) as proxy, connected(proxy) as peer:
        loop = asyncio.get_running_loop()
        start = loop.time()
        peer.write(b"x" * 4_000_000)  # sixty reads and more: one after another they would take 24 seconds
        await peer.size(4_000_000)
        assert 0.4 <= loop.time() - start < 8.0


async def test_bandwidth_bounds_the_throughput(echo: Echo) -> None:
    async with Proxy(echo.port) as proxy, connected(proxy) as peer:
        proxy.to_client.bandwidth = 100_000
        loop = asyncio.get_running_loop()
        start = loop.time()
        peer.write(b"x" * 20_000)
        await peer.size(20_000)
        assert loop.time() - start >= 0.15


async def test_a_port_that_refuses_takes_connections_again(proxy: Proxy) -> None:
    async with connected(proxy) as standing:
        await proxy.refuse()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", proxy.port)) != 0
        standing.write(b"x")
        assert await standing.size(1) == b"x"
        await proxy.accept()
        async with connected(proxy) as peer:
            peer.write(b"x")
            await peer.size(1)


async def test_a_broker_that_is_not_there_is_a_reset(echo: Echo) -> None:
    async with Proxy(1) as proxy, connected(proxy) as peer:
        assert isinstance(await ended(peer), ConnectionResetError)


async def test_closing_ends_what_is_open_and_leaves_no_task(echo: Echo) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with Proxy(echo.port) as proxy:
            peers = [await stack.enter_async_context(connected(proxy)) for _ in range(3)]
            proxy.blackhole()
            for peer in peers:
                peer.write(b"x" * 1_000_000)
            await proxy.wait_connections(3)
        for peer in peers:
            await ended(peer)


async def test_the_url_keeps_all_but_the_port() -> None:
    given = "amqp://a%2F:b@localhost:5672/v%2Fh?heartbeat=1"
    async with Proxy(1) as proxy:
        assert proxy.url(given) == f"amqp://a%2F:b@localhost:{proxy.port}/v%2Fh?heartbeat=1"
