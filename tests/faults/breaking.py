"""What a test can do to a broker, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, Protocol

import pytest

from aiorpcq.transports.memory import BrokerLink, MemoryBroker
from tests.contract.parties import PATIENCE
from tests.node import Node

from .link import Side

__all__ = ["Breaker", "ChannelError", "MemoryBreaker", "NodeBreaker", "until_left", "until_queued"]

ChannelError = Literal[404, 406]

_REPLY_QUEUES = "rpc.reply."
_CLIENT, _WORKER = "aiorpcq client", "aiorpcq worker"
_NAMES: Final[dict[Side, str]] = {"client": _CLIENT, "worker": _WORKER}
_REASONS: Final[dict[ChannelError, str]] = {404: "NOT_FOUND", 406: "PRECONDITION_FAILED"}


class Breaker(Protocol):
    """Breaks one broker, and looks at what is left in it."""

    async def set_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm."""

    async def cut_clients(self) -> None:
        """Take the connection of every client away."""

    async def cut_workers(self) -> None:
        """Take the connection of every worker away."""

    async def delete_queue(self, name: str) -> None:
        """Delete a queue behind everybody's back."""

    async def close_channels(self, side: Side, code: ChannelError) -> None:
        """Have the broker close the channel that the messages of every client, or worker, go over."""

    async def connections(self) -> set[str]:
        """The connections that stand, each under a name that no other ever has."""

    async def messages(self, queue: str) -> int:
        """How many messages a queue holds, those delivered and not acknowledged included."""

    async def describe(self, queue: str) -> str:
        """What a queue holds and who consumes from it, for whoever did not find there what was to be."""

    async def leftovers(self) -> list[str]:
        """Connections and reply queues: nothing of them may outlive clients and workers."""


class MemoryBreaker:
    """See `Breaker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def set_alarm(self, on: bool) -> None:
        if on:
            self._broker.block()
        else:
            self._broker.unblock()

    async def cut_clients(self) -> None:
        self._broker.drop_links(_is_client)

    async def cut_workers(self) -> None:
        self._broker.drop_links(lambda link: not _is_client(link))

    async def delete_queue(self, name: str) -> None:
        self._broker.delete_queue(name)

    async def close_channels(self, side: Side, code: ChannelError) -> None:
        reason = f"{code} {_REASONS[code]}"
        assert self._broker.close_channels(lambda link: link.name.startswith(_NAMES[side]), reason=reason)

    async def connections(self) -> set[str]:
        names: set[str] = set()

        def look(link: BrokerLink) -> bool:
            names.add(link.name)
            return False

        self._broker.drop_links(look)
        return names

    async def messages(self, queue: str) -> int:
        statistics = self._broker.statistics().queues[queue]
        return statistics.depth + statistics.unsettled

    async def describe(self, queue: str) -> str:
        return str(self._broker.statistics().queues[queue])

    async def leftovers(self) -> list[str]:
        statistics = self._broker.statistics()
        queues = [name for name in statistics.queues if name.startswith(_REPLY_QUEUES)]
        return [*queues, *["connection"] * statistics.links]


class NodeBreaker:
    """See `Breaker`; of the virtual host *vhost* of *node*, except the alarm, which is the whole node's."""

    def __init__(self, node: Node, vhost: str) -> None:
        self._node = node
        self._vhost = vhost

    async def set_alarm(self, on: bool) -> None:
        await asyncio.to_thread(self._node.set_memory_alarm, on)

    async def cut_clients(self) -> None:
        await asyncio.to_thread(self._node.close_connections, name=_CLIENT, vhost=self._vhost)

    async def cut_workers(self) -> None:
        await asyncio.to_thread(self._node.close_connections, name=_WORKER, vhost=self._vhost)

    async def delete_queue(self, name: str) -> None:
        await asyncio.to_thread(self._node.delete_queue, name, self._vhost)

    async def close_channels(self, side: Side, code: ChannelError) -> None:
        close = self._node.close_channels
        assert await asyncio.to_thread(close, code, number=None, name=_NAMES[side], vhost=self._vhost)

    async def connections(self) -> set[str]:
        connections = await asyncio.to_thread(self._node.connections, self._vhost)
        return {f"{connection.name} from port {connection.port}" for connection in connections}

    async def messages(self, queue: str) -> int:
        return (await asyncio.to_thread(self._node.queues, self._vhost))[queue].messages

    async def describe(self, queue: str) -> str:
        return str((await asyncio.to_thread(self._node.queues, self._vhost))[queue])

    async def leftovers(self) -> list[str]:
        queues = await asyncio.to_thread(self._node.queues, self._vhost)
        connections = await asyncio.to_thread(self._node.connections, self._vhost)
        return [
            *[name for name in queues if name.startswith(_REPLY_QUEUES)],
            *[f"connection of {connection.name}" for connection in connections],
        ]


async def until_left(breaker: Breaker, count: int = 0, queue: str = "rpc.default") -> None:
    """Wait until no more than so many requests are in the queue or in the hands of its workers.

    A worker does not wait for its acks: the caller has its value while they are on their way to the broker.
    """
    await _until_messages(breaker, queue, lambda messages: messages <= count)


async def until_queued(breaker: Breaker, count: int, queue: str = "rpc.default") -> None:
    """Wait until so many requests are in the queue or in the hands of its workers."""
    await _until_messages(breaker, queue, lambda messages: messages >= count)


async def _until_messages(breaker: Breaker, queue: str, is_enough: Callable[[int], bool]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not is_enough(await breaker.messages(queue)):  # noqa: ASYNC110 - a broker tells nobody what it has
                await asyncio.sleep(0.001)
    except TimeoutError:
        pytest.fail(f"after {PATIENCE:g} s the queue is still {await breaker.describe(queue)}")


def _is_client(link: BrokerLink) -> bool:
    """Whether it has a reply queue; a worker has none."""
    return any(queue.startswith(_REPLY_QUEUES) for queue in link.queues)
