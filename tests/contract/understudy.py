"""A worker that the test plays itself: it hears the commands of callers, and answers only what it is told to."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar
from uuid import uuid4

from aiorpcq.protocol.control import Answer, Cancel, Claim, Command, Inquiry, decode_command, encode_answer
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.topology import Binding, Names, Queue
from aiorpcq.protocol.wire import encode_state
from aiorpcq.transports.base import Delivery

from .parties import PATIENCE, Bystander

__all__ = ["Understudy"]

C = TypeVar("C", Cancel, Claim, Inquiry)


class Understudy(Bystander):
    """A bystander that listens on the control exchange; `commands` has what came, with the routing key."""

    commands: asyncio.Queue[tuple[str, Command]]

    async def listen(self) -> None:
        """Hear every command from now on."""
        self.commands = asyncio.Queue()
        queue = f"understudy.{uuid4().hex}"
        await self._link.declare(
            Names().control, Queue(queue, durable=False, exclusive=True), Binding(queue, Names().control.name, "#")
        )
        await self._link.consume(queue, self._on_command, no_ack=True)

    def _on_command(self, delivery: Delivery) -> None:
        self.commands.put_nowait((delivery.routing_key, decode_command(delivery.properties, delivery.body)))

    async def cancel(self) -> tuple[str, Cancel]:
        """Return the next cancel, and what it was addressed to."""
        return await self._next(Cancel)

    async def claim(self) -> Claim:
        """Return the next claim, which is addressed to all workers."""
        key, claim = await self._next(Claim)
        assert key == "all"
        return claim

    async def inquiry(self) -> Inquiry:
        """Return the next inquiry."""
        _, inquiry = await self._next(Inquiry)
        return inquiry

    async def answer(self, inquiry: Claim | Inquiry, worker_id: str, value: Any) -> None:
        """Answer as the worker *worker_id*."""
        assert inquiry.id is not None
        question = "held" if isinstance(inquiry, Claim) else inquiry.question
        await self.publish(encode_answer(Answer(question, inquiry.id, worker_id, value), inquiry.reply_to))

    async def started(self, reply_to: str, task_id: str, worker_id: str) -> None:
        """Say that *worker_id* has begun with a task."""
        message = StateMessage(task_id, "STARTED", b"", "", sequence=1, worker_id=worker_id)
        await self.publish(encode_state(message, reply_to))

    async def _next(self, kind: type[C]) -> tuple[str, C]:
        async with asyncio.timeout(PATIENCE):
            while True:
                key, command = await self.commands.get()
                if isinstance(command, kind):
                    return key, command
