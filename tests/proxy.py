"""Proxy: a TCP link between client and broker that a test can slow down, slice, silence, cut and reset.

It listens on loopback and knows nothing of AMQP: bytes go through as they come, in both directions, and the end of a
stream as well. What a test does to the link takes effect at the next byte; what came of it can be awaited, so no test
has to sleep::

    async with Proxy(node.port) as proxy, Client(proxy.url(broker_url)) as client:
        proxy.to_client.cut_after(100)
        await proxy.wait_closed()
        await proxy.wait_connections(2)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

from tests.node.ports import Ports

__all__ = ["Proxy", "Way"]

_CHUNK = 64 * 1024
_CHUNKS = 64
"""Chunks that one direction holds while they are delayed; past it the sender feels it, as on a real link."""

_PATIENCE = 10.0
"""Seconds that a wait for what must come may take; nothing is timed by it."""

_NO_LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing send a reset instead of an end (socket(7))."""


class Way:
    """One direction of every connection through a proxy.

    Attributes:
        latency: seconds by which each byte is delayed; it does not bound the throughput.
        bandwidth: bytes a second, None for no bound.
        slice_to: bytes of one write; a receiver on the same event loop gets no more in one read. None for no bound.
        passed: bytes that went through, of all connections.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.latency = 0.0
        self.bandwidth: float | None = None
        self.slice_to: int | None = None
        self.passed = 0
        self._changed = changed
        self._open = asyncio.Event()
        self._open.set()
        self._cut_at: int | None = None

    def blackhole(self) -> None:
        """Let nothing more through, and keep what comes: neither bytes nor the end of a stream. `heal` ends it."""
        self._open.clear()

    def heal(self) -> None:
        """Let through what was held, and all that follows."""
        self._open.set()

    @property
    def is_open(self) -> bool:
        """Whether bytes go through."""
        return self._open.is_set()

    async def wait_open(self) -> None:
        """Wait until bytes go through."""
        await self._open.wait()

    def cut_after(self, size: int) -> None:
        """End the connection that brings the byte number *size* from now; that byte is the last one to go through."""
        self._cut_at = self.passed + size

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes until the stream ends or is cut; raises `_Cut` then, `OSError` where a socket fails."""
        chunks: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(_CHUNKS)
        loop = asyncio.get_running_loop()

        async def read() -> None:
            data: bytes | OSError = b"first"
            while data and isinstance(data, bytes):
                try:
                    data = await reader.read(_CHUNK)
                except OSError as error:
                    data = error
                await chunks.put((loop.time() + self.latency, data))

        reading = loop.create_task(read())
        try:
            while True:
                due, data = await chunks.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._open.wait()
                if isinstance(data, OSError):
                    raise data
                if not data:
                    break
                await self._write(writer, data)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if writer.can_write_eof():
            writer.write_eof()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        start = 0
        while start < len(data):
            await self._open.wait()
            size = min(self.slice_to or len(data), len(data) - start)
            if self.bandwidth is not None:
                size = min(size, max(1, int(self.bandwidth / 100)))
            cut = self._cut_at is not None and self.passed + size >= self._cut_at
            if self._cut_at is not None and cut:
                size = self._cut_at - self.passed
            writer.write(data[start : start + size])
            await writer.drain()
            self.passed += size
            start += size
            self._changed()
            if cut:
                self._cut_at = None
                raise _Cut
            if self.bandwidth is not None:
                await asyncio.sleep(size / self.bandwidth)
            elif self.slice_to is not None:
                # A receiver on this loop is told in the next iteration and reads after us: one more, and it has read.
                await asyncio.sleep(0)
                await asyncio.sleep(0)


class _Cut(Exception):
    """The connection is to end here."""


class _Pair:
    """One connection: the client's socket, and the broker's once it is open."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """End both sockets with RST."""
        for writer in self.writers:
            endpoint = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is closed already
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()


class Proxy:
    """Carries connections from `port` to *upstream*, both on loopback, while the `async with` block runs.

    The link is perfect until something is done to it. `to_broker` and `to_client` are its two directions.

    Attributes:
        port: where it listens; it stays the same.
        accepted: connections that clients have opened, so far.
        open: those that are not closed.

    Args:
        upstream: port of the broker.
        latency, bandwidth, slice_to: of both directions, see `Way`.
    """

    def __init__(
        self, upstream: int, *, latency: float = 0.0, bandwidth: float | None = None, slice_to: int | None = None
    ) -> None:
        self._ports = Ports(1)
        (self.port,) = self._ports.numbers
        self.accepted = 0
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self.to_broker = Way(self._changed)
        self.to_client = Way(self._changed)
        for way in (self.to_broker, self.to_client):
            way.latency, way.bandwidth, way.slice_to = latency, bandwidth, slice_to

    def url(self, broker_url: str) -> str:
        """Return the broker's URL with the way through the proxy."""
        parts = urlsplit(broker_url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{credentials}{at}{parts.hostname}:{self.port}").geturl()

    @property
    def open(self) -> int:
        return len(self._pairs)

    def blackhole(self) -> None:
        """Silence the link: nothing goes through, nothing ends, and new connections are taken and get no answer."""
        self.to_broker.blackhole()
        self.to_client.blackhole()

    def heal(self) -> None:
        """End the silence; what was held goes through."""
        self.to_broker.heal()
        self.to_client.heal()

    def reset(self) -> int:
        """Reset every connection (RST, to both ends) and return how many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()
        return len(pairs)

    async def refuse(self) -> None:
        """Refuse new connections until `accept`; those that are open stand."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await asyncio.sleep(0)  # the listening socket is closed in the next iteration

    async def accept(self) -> None:
        """Take new connections."""
        if self._server is None:
            self._server = await asyncio.start_server(self._on_client, "127.0.0.1", self.port)

    async def wait_connections(self, count: int) -> None:
        """Wait until *count* connections have been accepted, so far."""
        await self.wait(lambda: self.accepted >= count)

    async def wait_closed(self) -> None:
        """Wait until no connection is open."""
        await self.wait(lambda: not self._pairs)

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is asked whenever bytes pass and connections open and close.

        Raises:
            TimeoutError: it did not within ten seconds.
        """
        async with asyncio.timeout(_PATIENCE):
            while not condition():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.reset()
        tasks = [pair.task for pair in self._pairs if pair.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ports.close()

    def _changed(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        self.accepted += 1
        pair.task = asyncio.get_running_loop().create_task(self._serve(pair, reader, writer))
        self._changed()

    async def _serve(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not (self.to_broker.is_open or self.to_client.is_open):
                await self.to_broker.wait_open()  # a silent link opens no connection either
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            pair.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.to_broker.carry(reader, far_writer))
                group.create_task(self.to_client.carry(far_reader, writer))
        except* _Cut:
            pass
        except* OSError:
            pair.reset()  # one end was reset, or the broker is not there: so is the other
        finally:
            self._pairs.discard(pair)
            for end in pair.writers:
                end.close()
            for end in pair.writers:
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            self._changed()
