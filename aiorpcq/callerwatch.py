"""CallerWatch: notices that the caller of a run is gone, for methods that are to be stopped then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from .protocol.control import Answer, encode_answer
from .protocol.executions import Execution, ExecutionPhase
from .protocol.messages import Outcome, Properties, Publication
from .transports.base import Link

__all__ = ["CallerWatch"]

_PROBE_INTERVAL: Final = 10.0
"""Seconds between two looks at a caller's reply queue."""

_SHORTEST_INTERVAL: Final = 0.05
"""However short the grace is: a probe is a message for the broker, and for a caller that is there."""

_LOOKS_PER_GRACE: Final = 4
_DIRECT: Final = "amq.rabbitmq.reply-to"


class CallerWatch:
    """The runs that are stopped when their callers are gone, bounded by the worker's concurrency.

    A mandatory message to each caller's reply queue, at the start and every 10 s, or four times in the grace where that
    is shorter, comes back where the queue is gone. That alone may mean a caller that is reconnecting: it acts when one
    comes back *grace* seconds later as well, and the caller has neither said that it has moved nor made its queue again
    in between. While the broker takes nothing the grace stands still: no caller can say where it is then. It should be
    longer than a caller needs to notice a dead link and come back. *gone* only grows.
    """

    def __init__(
        self, worker_id: str, loop: asyncio.AbstractEventLoop, grace: float, stop: Callable[[Execution], None]
    ) -> None:
        self._worker_id = worker_id
        self._loop = loop
        self._grace = grace
        self._interval = max(_SHORTEST_INTERVAL, min(_PROBE_INTERVAL, grace / _LOOKS_PER_GRACE))
        self._stop = stop
        self._watched: dict[str, Execution] = {}
        self._missed: dict[str, tuple[str, float]] = {}  # since when which reply queue is not there
        self._timer: asyncio.TimerHandle | None = None
        self._link: Link | None = None
        self.gone = 0

    @property
    def link(self) -> Link | None:
        """The present link; what was missed on another says nothing, since a caller that moved was not heard."""
        return self._link

    @link.setter
    def link(self, link: Link | None) -> None:
        self._link = link
        self._missed.clear()

    def watch(self, execution: Execution) -> None:
        """Watch the caller of *execution* until that ends; a cast has none."""
        if execution.reply_to is None or execution.reply_to.startswith(_DIRECT):
            return  # a mandatory message to a direct reply-to comes back whether its caller is there or not (seen)
        self._watched[execution.task_id] = execution
        self._probe(execution)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._look)

    def unwatch(self, execution: Execution) -> None:
        """Forget *execution*: it has ended."""
        if self._watched.get(execution.task_id) is execution:
            del self._watched[execution.task_id]
            self._missed.pop(execution.task_id, None)

    def on_returned(self, routing_key: str, properties: Properties) -> None:
        """Take in a state or probe that found no reply queue: its caller is gone if that was so a grace ago as well."""
        execution = self._watched.get(properties.correlation_id or "")
        if execution is None or execution.reply_to != routing_key or execution.phase is not ExecutionPhase.RUNNING:
            return
        now, missed = self._loop.time(), self._missed.get(execution.task_id)
        if missed is None or missed[0] != routing_key:
            self._missed[execution.task_id] = (routing_key, now)
        elif now - missed[1] >= self._grace:
            self.gone += 1
            self._stop(execution)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watched.clear()
        self._missed.clear()

    def _look(self) -> None:
        self._timer = None
        if self._link is not None and not self._link.writable:
            self._missed = {
                task_id: (queue, since + self._interval) for task_id, (queue, since) in self._missed.items()
            }
        for task_id, execution in list(self._watched.items()):
            if execution.phase is ExecutionPhase.RUNNING:
                self._probe(execution)
            else:
                del self._watched[task_id]
                self._missed.pop(task_id, None)
        if self._watched:
            self._timer = self._loop.call_later(self._interval, self._look)

    def _probe(self, execution: Execution) -> None:
        link, reply_to = self._link, execution.reply_to
        if link is not None and link.writable and reply_to is not None:  # what is not writable would keep every probe
            probe = encode_answer(Answer("ping", execution.task_id, self._worker_id, None), reply_to)
            probe.mandatory = True
            probe.settled = partial(self._on_probed, link)
            link.publish(probe)

    def _on_probed(self, link: Link, probe: Publication, outcome: Outcome) -> None:
        if link is not self._link:
            return
        if outcome is Outcome.RETURNED:
            self.on_returned(probe.routing_key, probe.properties)
        elif outcome is not Outcome.LOST:  # a message that a queue refuses has found it
            task_id = probe.properties.correlation_id or ""
            missed = self._missed.get(task_id)
            if missed is not None and missed[0] == probe.routing_key:
                del self._missed[task_id]
