"""Declarations on a channel of aiormq, and what the broker's refusals mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from ...errors import ConnectFailed, ConnectionLost, RPCError, TopologyMismatch
from ...protocol.topology import Binding, Exchange, Queue
from ..base import QueueStatus

__all__ = ["declare_entity", "describe", "inspect_queue", "refusal"]

_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<entity>.+?) in vhost .*?: (?P<difference>.*)"
)


async def declare_entity(channel: AbstractChannel, entity: Exchange | Queue | Binding) -> None:
    """Declare one exchange, queue or binding; whatever goes wrong is the caller's to translate with `refusal`."""
    if isinstance(entity, Exchange):
        await channel.exchange_declare(
            entity.name,
            exchange_type=entity.kind,
            durable=entity.durable,
            auto_delete=entity.auto_delete,
            arguments=_arguments(entity.arguments),
        )
    elif isinstance(entity, Queue):
        await channel.queue_declare(
            entity.name,
            durable=entity.durable,
            exclusive=entity.exclusive,
            auto_delete=entity.auto_delete,
            arguments=_arguments(entity.arguments),
        )
    else:
        await channel.queue_bind(entity.queue, entity.exchange, routing_key=entity.routing_key)


async def inspect_queue(channel: AbstractChannel, queue: str) -> QueueStatus:
    """Ask about a queue without making one: a passive declare, which the broker refuses where there is none."""
    answer = await channel.queue_declare(queue, passive=True)
    return QueueStatus(messages=answer.message_count or 0, consumers=answer.consumer_count or 0)


def refusal(error: BaseException, subject: str) -> RPCError:
    """Return the error that says why the broker refused *subject*."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, ChannelPreconditionFailed):
        found = _INEQUIVALENT.search(text)
        if found is not None:
            argument, difference = found["argument"], found["difference"]
            return TopologyMismatch(f"{subject} exists with another {argument}: {difference}")
        return TopologyMismatch(f"{subject} does not fit what exists: {text}")
    if isinstance(error, ChannelLockedResource):
        return TopologyMismatch(f"{subject} belongs to another connection: {text}")
    if isinstance(error, ChannelAccessRefused):
        return ConnectFailed(f"no permission for {subject}: {text}")
    if isinstance(error, ChannelNotFoundEntity):
        return ConnectFailed(f"{subject} does not exist: {text}")
    if isinstance(error, TimeoutError):
        return ConnectionLost(f"the broker did not answer about {subject} in time")
    if isinstance(error, (ChannelInvalidStateError, AMQPError, ConnectionError, RuntimeError)):
        return ConnectionLost(f"the connection was lost at {subject}: {text}")
    return ConnectionLost(f"{subject} failed: {type(error).__name__}")


def describe(entity: Exchange | Queue | Binding) -> str:
    """Return what an error calls *entity*."""
    if isinstance(entity, Binding):
        return f"binding of queue {entity.queue!r} to exchange {entity.exchange!r} by {entity.routing_key!r}"
    return f"{'exchange' if isinstance(entity, Exchange) else 'queue'} {entity.name!r}"


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(arguments) or None
