"""Context: what a running method knows of its call, and says of it while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import anyio.from_thread

from .states import PENDING, PROGRESS, READY_STATES, RECEIVED, RETRY, STARTED

__all__ = ["Context"]

_RESERVED_STATES: Final = READY_STATES | {PENDING, RECEIVED, STARTED, RETRY}
_STATE_NAME_LIMIT: Final = 255


class StateSink(Protocol):
    """Where a context sends its states: the worker's publisher, by way of `ExecutionStates`."""

    async def update(self, name: str, value: Any) -> None:
        """Publish a state that is not terminal."""

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline, None where there is none."""

    def is_stopped(self) -> bool:
        """Tell whether nobody waits for the run's value any more."""


class Context:
    """What a method knows of the call it answers; a parameter annotated `Context` gets it.

    Attributes:
        task_id: id of the task.
        method: name of the method.
        attempt: 1 for the first run of the request.
        redelivered: whether a run of the request was lost before, with its worker or the connection of that.
        parent_id: task id of the call in whose method this call was made, or None.
        root_id: task id at the root of that chain; the task's own id where it has no parent.
        metadata: what the caller gave as `metadata`; never None.
    """

    __slots__ = ("_sink", "attempt", "metadata", "method", "parent_id", "redelivered", "root_id", "task_id")

    def __init__(
        self,
        sink: StateSink,
        *,
        task_id: str,
        method: str,
        attempt: int = 1,
        redelivered: bool = False,
        parent_id: str | None = None,
        root_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._sink = sink
        self.task_id = task_id
        self.method = method
        self.attempt = attempt
        self.redelivered = redelivered
        self.parent_id = parent_id
        self.root_id = root_id or task_id
        self.metadata: Mapping[str, Any] = metadata or {}

    def __repr__(self) -> str:
        return f"<Context of {self.method} task {self.task_id}>"

    @property
    def remaining(self) -> float | None:
        """Seconds left until the run is stopped, at least 0; None where it has no deadline."""
        return self._sink.remaining()

    @property
    def is_cancelled(self) -> bool:
        """Whether the run was told to stop: its deadline is past, its caller cancelled it or is gone, or the worker
        closes.

        An `async def` gets `CancelledError`; a plain `def` cannot be stopped, and is to look here now and then. May be
        read from any thread.
        """
        return self._sink.is_stopped()

    async def progress(self, value: Any) -> None:
        """Publish a PROGRESS state with *value*.

        Nothing is sent where the caller did not ask for states (`call`, `cast`). Waits while the connection cannot
        take more.

        Raises:
            CodecError: *value* cannot be encoded.
            PayloadTooLarge: it is too large.
        """
        await self._sink.update(PROGRESS, value)

    async def update_state(self, name: str, value: Any = None) -> None:
        """Publish a custom state; otherwise like `progress`.

        Raises:
            ValueError: *name* is empty, too long, or one of the states that only the worker may publish.
        """
        if not isinstance(name, str) or not name or len(name.encode()) > _STATE_NAME_LIMIT:
            raise ValueError(f"state name {name!r:.100} is empty or longer than {_STATE_NAME_LIMIT} bytes")
        if name in _RESERVED_STATES:
            raise ValueError(f"state {name} is published by the worker alone")
        await self._sink.update(name, value)

    def progress_from_thread(self, value: Any) -> None:
        """Do what `progress` does, for a plain `def` method, which runs in a thread."""
        anyio.from_thread.run(self.progress, value)

    def update_state_from_thread(self, name: str, value: Any = None) -> None:
        """Do what `update_state` does, for a plain `def` method, which runs in a thread."""
        anyio.from_thread.run(self.update_state, name, value)
