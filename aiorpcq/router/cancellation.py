"""Cancellation: tells workers which tasks are no longer wanted, those included that come to know of them later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..protocol.cancels import CancelRing
from ..protocol.control import Cancel, CancelMode, encode_command
from ..protocol.messages import Publication, StateMessage
from ..protocol.topology import TO_ALL, Names, to_service, to_worker

__all__ = ["Cancellation"]

_UNBOUNDED: Final = 3600.0
"""Seconds that workers remember the cancel of a task without a deadline."""


class Cancellation:
    """Sends cancels, and remembers the last 16,384 of them until they expire. *sent* only grows."""

    def __init__(self, names: Names, send: Callable[[Publication], None], now: Callable[[], float]) -> None:
        self._exchange = names.control.name
        self._send = send
        self._now = now
        self.ring = CancelRing()
        self.sent = 0

    def cancel(
        self, task_id: str, origin: str, mode: CancelMode, *, service: str | None, deadline: float | None
    ) -> None:
        """Have the workers of *service*, or all, revoke a task whose request was sent with the reply queue *origin*."""
        now = self._now()
        expires = _UNBOUNDED if deadline is None else max(0.0, deadline - now)
        cancel = Cancel(task_id, origin, mode, expires)
        self.ring.add(cancel, now)
        self._send(encode_command(cancel, self._exchange, TO_ALL if service is None else to_service(service)))
        self.sent += 1

    def on_started(self, message: StateMessage) -> None:
        """Tell the worker that began with a task, if it was cancelled before the worker could hear of that."""
        if message.worker_id is None:
            return
        cancel = self.ring.find(message.task_id, self._now())
        if cancel is not None:
            self._send(encode_command(cancel, self._exchange, to_worker(message.worker_id)))
