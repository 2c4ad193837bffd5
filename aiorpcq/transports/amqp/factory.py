"""The socket of a connection: opened as aiormq would, with our own protocol on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from .stream import LaneProtocol

__all__ = ["LaneFactory"]


class LaneFactory(TransportFactory):
    """Opens the socket with a `LaneProtocol` on it, and gives aiormq a reader and writer as it expects them."""

    def __init__(self, make_protocol: Callable[[asyncio.StreamReader], LaneProtocol]) -> None:
        self._make_protocol = make_protocol
        self.protocol: LaneProtocol | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to *url*; called by aiormq."""
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider", None)
        context = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        protocol = self.protocol = self._make_protocol(reader)
        if url.host is None or url.port is None:
            raise AMQPConnectionError("the URL names no host")
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, host=url.host, port=url.port, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
