"""What a client does that needs a real broker to be seen."""

from __future__ import annotations

import asyncio

from aiorpcq import Client, Service, Worker
from aiorpcq.transports.amqp.connection import AMQPLink

_CALLS = 500
_SIZE = 200_000
_MIB = 1 << 20


async def test_what_many_large_calls_made_at_once_buffer_is_bounded(broker_url: str) -> None:
    service, argument, peak = Service(), b"x" * _SIZE, 0

    @service.method
    async def size(data: bytes) -> int:
        return len(data)

    async with Worker(broker_url, [service]), Client(broker_url, timeout=60) as caller:

        async def call() -> int:
            nonlocal peak
            calling = asyncio.ensure_future(caller.call("size", argument))
            while not calling.done():
                peak = max(peak, buffered(caller))
                await asyncio.wait((calling,), timeout=0.01)
            answer: int = await calling
            return answer

        assert await asyncio.gather(*(call() for _ in range(_CALLS))) == [_SIZE] * _CALLS
    # What one iteration may have to send, and the call that made it so much; once again for what the socket holds.
    assert _SIZE < peak < 4 * _MIB


def buffered(caller: Client) -> int:
    """Return the bytes that wait for the socket or in its transport."""
    link = caller._session.router().link
    assert isinstance(link, AMQPLink)
    protocol = link._protocol
    assert protocol is not None
    assert protocol._socket is not None
    return sum(map(len, protocol._out)) + protocol._socket.get_write_buffer_size()
