"""Faults that a test makes, on whichever broker it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

import pytest

from aiorpcq import Client, Worker
from aiorpcq.protocol.calls import Sending
from aiorpcq.transports.base import Link
from aiorpcq.transports.memory import BrokerLink, MemoryBroker, memory_broker
from tests.node import Node

from .parties import eventually

__all__ = ["Breaking", "kept_apart", "next_generation", "only_lost"]

Side = Literal["client", "worker"]

_REPLY_QUEUES: Final = "rpc.reply."
_LANE_CHANNEL: Final = 2  # the first is for declarations


class Breaking:
    """What breaks the connections, channels and queues of one side; both brokers do the same at it."""

    def __init__(self, url: str, request: pytest.FixtureRequest) -> None:
        self.broker: MemoryBroker | None = None
        if url.startswith("memory://"):
            self.broker = memory_broker(url.removeprefix("memory://"))
        else:
            self._node: Node = request.getfixturevalue("node")
            self._vhost: str = request.getfixturevalue("vhost")

    async def cut(self, side: Side) -> None:
        """Take the connection of every client, or every worker, away."""
        if self.broker is not None:
            assert self.broker.drop_links(_of(side))
        else:
            closed = await asyncio.to_thread(self._node.close_connections, name=_name(side), vhost=self._vhost)
            assert closed

    async def close_channels(self, side: Side) -> None:
        """Have the broker close the channel that messages go over; the connection stands."""
        if self.broker is not None:
            assert self.broker.close_channels(_of(side))
        else:
            close = self._node.close_channels
            closed = await asyncio.to_thread(close, 406, number=_LANE_CHANNEL, name=_name(side), vhost=self._vhost)
            assert closed

    async def delete_queue(self, name: str) -> None:
        """Delete a queue behind everybody's back."""
        if self.broker is not None:
            self.broker.delete_queue(name)
        else:
            await asyncio.to_thread(self._node.delete_queue, name, self._vhost)

    def has_queue(self, name: str) -> bool:
        """Tell whether there is a queue of that name."""
        if self.broker is not None:
            return name in self.broker.statistics().queues
        return name in self._node.queues(self._vhost)


async def next_generation(client: Client, generation: int = 2) -> None:
    """Wait until *client* is connected again."""
    await eventually(lambda: client.statistics().generation == generation and client.health().ready)


async def only_lost(client: Client) -> None:
    """Wait until nothing is pending of *client* but calls whose requests the broker may not have."""
    pending = client._session.router().table.pending
    await eventually(lambda: all(call.sending is Sending.LOST for call in pending.values()))


@contextlib.asynccontextmanager
async def kept_apart(party: Client | Worker) -> AsyncIterator[None]:
    """Keep *party* from connecting again until the end of the block; it might, before a test has seen the loss."""
    supervisor = party._session.router()._supervisor if isinstance(party, Client) else party._started.supervisor
    reconnect, allowed = supervisor._reconnect, asyncio.Event()

    async def reconnect_when_allowed() -> Link:
        await allowed.wait()
        return await reconnect()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "_reconnect", reconnect_when_allowed)
        try:
            yield
        finally:
            allowed.set()


def _name(side: Side) -> str:
    return f"aiorpcq {side}"


def _of(side: Side) -> Callable[[BrokerLink], bool]:
    """Pick links by what they consume: a client has a reply queue, and a bystander of the test neither of the two."""

    def is_of(link: BrokerLink) -> bool:
        replies = any(queue.startswith(_REPLY_QUEUES) for queue in link.queues)
        control = any(queue.startswith("rpc.control.") for queue in link.queues)
        return replies if side == "client" else control

    return is_of
