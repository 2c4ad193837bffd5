"""The broker to measure on: a private node, or one that is given."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiormq

from tests.node import Node

from .contestants import Setup
from .pending import SERVICES
from .processes import BrokerClock

__all__ = ["Broker", "open_broker"]

_CLEAN_SECONDS = 30.0

# The queues of aio-pika's RPC are neither durable nor exclusive, which RabbitMQ denies by default from 4.3 on.
_DENIED_SINCE = (4, 3)
_PERMIT = {"deprecated_features.permit.transient_nonexcl_queues": "true"}


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that runs."""

    setup: Setup
    clock: BrokerClock
    version: str


@contextlib.asynccontextmanager
async def open_broker(url: str | None, tell: Callable[[str], None]) -> AsyncIterator[Broker]:
    """Start a private node, or use the broker at *url*, of which nothing is kept but what was there before.

    Raises:
        NodeError: the node does not start.
        OSError, aiormq.AMQPError: the broker at *url* cannot be reached.
    """
    if url is None:
        tell("starting a private RabbitMQ node")
        with contextlib.ExitStack() as stack:
            node = stack.enter_context(Node())
            if node.version >= _DENIED_SINCE:
                node.close()
                node = stack.enter_context(Node(config=_PERMIT))
            setup = Setup(node.url(), prefix="rpc", method="add")
            yield Broker(setup, BrokerClock(node.pid), ".".join(map(str, node.version)))
        return
    # Names of our own on a broker that has other users.
    token = secrets.token_hex(4)
    setup = Setup(url, prefix=f"bench-{token}", method=f"bench-{token}-add")
    version = await _version(url)
    try:
        yield Broker(setup, BrokerClock(None), version)
    finally:
        await _clean(setup)


async def _version(url: str) -> str:
    async with asyncio.timeout(_CLEAN_SECONDS):
        connection = await aiormq.connect(url)
        try:
            version = connection.server_properties["version"]
        finally:
            await connection.close()
    return version.decode() if isinstance(version, bytes) else str(version)


async def _clean(setup: Setup) -> None:
    """Delete what aiorpcq's workers declare to stay; aio-pika's RPC leaves nothing."""
    async with asyncio.timeout(_CLEAN_SECONDS):
        connection = await aiormq.connect(setup.url)
        try:
            channel = await connection.channel()
            for service in ("default", *SERVICES):
                await channel.queue_delete(f"{setup.prefix}.{service}")  # no error in RabbitMQ where it is not there
            for exchange in (setup.prefix, f"{setup.prefix}.control"):
                await channel.exchange_delete(exchange)
        finally:
            await connection.close()
