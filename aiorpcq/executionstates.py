"""ExecutionStates: how the context of a run publishes its states, and knows what time it has."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from .protocol.executions import Execution, ExecutionPhase
from .publisher import ResultPublisher

__all__ = ["ExecutionStates"]

_RUNNING: Final = ExecutionPhase.RUNNING  # a global: in Python 3.11 a member costs four times as much to look up


class ExecutionStates:
    """A context's way to the publisher; what it raises is what `Context` says."""

    __slots__ = ("_execution", "_loop", "_publisher")

    def __init__(self, publisher: ResultPublisher, execution: Execution, loop: asyncio.AbstractEventLoop) -> None:
        self._publisher = publisher
        self._execution = execution
        self._loop = loop

    async def update(self, name: str, value: Any) -> None:
        publisher, execution = self._publisher, self._execution
        body = publisher.prepare(execution, value)
        if body is None:
            return
        if publisher.link is not None and not publisher.link.writable:
            await publisher.link.wait_writable()
        publisher.update(execution, name, body)  # it may have been stopped meanwhile

    def remaining(self) -> float | None:
        deadline = self._execution.deadline
        return None if deadline is None else max(0.0, deadline - self._loop.time())

    def is_stopped(self) -> bool:
        return self._execution.phase is not _RUNNING
