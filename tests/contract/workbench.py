"""What tests of the worker have at hand: commands as callers send them, and workers that die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from aiorpcq import Worker
from aiorpcq.protocol.control import Cancel, CancelMode, Claim, Command, Inquiry, encode_command
from aiorpcq.protocol.deadletters import DeadLetter, read
from aiorpcq.protocol.topology import TO_ALL, Names
from aiorpcq.transports.base import Delivery
from tests.node.control import binary

from .breaking import Breaking
from .parties import Bystander, ReplyQueue, body_of

__all__ = [
    "alarm",
    "answer_to",
    "ask",
    "cancel",
    "claim",
    "command",
    "dead_letter",
    "die",
    "lose_run",
    "ready",
    "unbind",
]

_QUEUE: Final = "rpc.default"


async def die(worker: Worker) -> None:
    """Take a worker's connection away for good, as its death does; its runs go on, like those of a zombie."""
    await worker._started.supervisor.close()


async def lose_run(url: str, queue: str = _QUEUE) -> Delivery:
    """Take one request from a queue, and die with it; return what it was."""
    async with Bystander.connected(url) as doomed:
        taken = ReplyQueue(queue)
        await doomed._link.consume(queue, taken.inbox.put_nowait, prefetch=1)
        return await taken.next()


async def ready(stranger: Bystander, queue: str = _QUEUE) -> int | None:
    """Return how many messages are ready in a queue; None where there is none of that name."""
    status = await stranger._link.inspect(queue)
    return None if status is None else status.messages


async def command(stranger: Bystander, said: Command) -> None:
    """Say something to all workers."""
    await stranger.publish(encode_command(said, Names().control.name, TO_ALL))


async def cancel(stranger: Bystander, task_id: str, origin: str, mode: CancelMode = "kill") -> None:
    """Cancel a task whose request was sent with the reply queue *origin*."""
    await command(stranger, Cancel(task_id, origin, mode, 60.0))


async def claim(
    stranger: Bystander, origin: str, reply_to: str, *task_ids: str, identity: str | None = None, expires: float = 60.0
) -> None:
    """Say that the caller behind *origin* is at *reply_to* now."""
    await command(stranger, Claim(origin, reply_to, task_ids, expires, identity))


async def ask(stranger: Bystander, question: Any, replies: ReplyQueue, identity: str = "i") -> Delivery:
    """Ask all workers; return the first answer."""
    await command(stranger, Inquiry(question, identity, replies.name))
    return await replies.next()


async def answer_to(replies: ReplyQueue, task_id: str) -> tuple[str, Any]:
    """Return name and value of the terminal state of a task; what comes of others is dropped."""
    while True:
        delivery = await replies.next()
        name = delivery.properties.type or ""
        if delivery.properties.correlation_id == task_id and name in ("SUCCESS", "FAILURE", "REVOKED"):
            return name, body_of(delivery)


async def take(stranger: Bystander, queue: str = _QUEUE) -> Delivery:
    """Take the first message of a queue for good."""
    taken = ReplyQueue(queue)
    subscription = await stranger._link.consume(queue, taken.inbox.put_nowait, prefetch=1)
    delivery = await taken.next()
    await subscription.cancel()
    delivery.ack()
    return delivery


async def dead_letter(stranger: Bystander) -> DeadLetter:
    """Take the first dead letter of the default service."""
    delivery = await take(stranger, f"{_QUEUE}.dead")
    return read(delivery.properties, delivery.body)


async def unbind(breaking: Breaking, service: str = "default") -> None:
    """Delete the binding of a service's queue behind everybody's back."""
    if breaking.broker is not None:
        topology = breaking.broker._topology
        topology.exchanges["rpc"].unbind(topology.queues[f"rpc.{service}"])
        return
    vhost = binary(breaking._vhost)
    code = (
        f'Exchange = rabbit_misc:r({vhost}, exchange, <<"rpc">>), '
        f"Queue = rabbit_misc:r({vhost}, queue, {binary(f'rpc.{service}')}), "
        f'ok = rabbit_binding:remove({{binding, Exchange, {binary(f"rpc:{service}")}, Queue, []}}, <<"tests">>)'
    )
    await asyncio.to_thread(breaking._node.eval, code)


@contextlib.asynccontextmanager
async def alarm(breaking: Breaking) -> AsyncIterator[None]:
    """Have the broker take nothing from who publishes."""
    if breaking.broker is not None:
        breaking.broker.block()
        try:
            yield
        finally:
            breaking.broker.unblock()
        return
    await asyncio.to_thread(breaking._node.set_memory_alarm, True)
    try:
        yield
    finally:
        await asyncio.to_thread(breaking._node.set_memory_alarm, False)
