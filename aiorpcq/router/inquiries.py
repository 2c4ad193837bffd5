"""Inquiries: questions to workers, and the answers that come within a given time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..protocol.control import Answer, Inquiry, Question, encode_command
from ..protocol.messages import Publication
from ..protocol.topology import TO_ALL

__all__ = ["Inquiries", "WorkerInfo"]

_ANSWERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself.

    Attributes:
        worker_id: the worker.
        value: what it said, of JSON's types; its `services` with their methods, for instance.
    """

    worker_id: str
    value: Mapping[str, Any]

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services it serves."""
        services = self.value.get("services", ())
        return tuple(map(str, services)) if isinstance(services, (list, dict)) else ()


class Inquiries:
    """Questions that are open, by id. Of the answers to one the first 10,000 are kept, one of each worker."""

    def __init__(self, prefix: str, exchange: str, send: Callable[[Publication], None]) -> None:
        self._prefix = prefix
        self._exchange = exchange
        self._send = send
        self._count = 0
        self._open: dict[str, dict[str, Answer]] = {}

    async def workers(self, reply_to: str, timeout: float) -> list[WorkerInfo]:
        """Return what the workers that answer within *timeout* seconds say of themselves."""
        answers = await self._ask("info", TO_ALL, reply_to, timeout)
        return [
            WorkerInfo(answer.worker_id, answer.value if isinstance(answer.value, dict) else {}) for answer in answers
        ]

    async def _ask(self, question: Question, routing_key: str, reply_to: str, timeout: float) -> list[Answer]:
        self._count += 1
        identity = f"{self._prefix}-inquiry-{self._count:x}"
        answers = self._open[identity] = {}
        try:
            self._send(encode_command(Inquiry(question, identity, reply_to), self._exchange, routing_key))
            await asyncio.sleep(timeout)
        finally:
            del self._open[identity]
        return list(answers.values())

    def receive(self, answer: Answer) -> bool:
        """Take an answer in; return False where nobody waits for it."""
        answers = self._open.get(answer.id)
        if answers is None:
            return False
        if len(answers) < _ANSWERS:
            answers.setdefault(answer.worker_id, answer)
        return True
