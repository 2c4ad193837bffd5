"""Serving: what a started worker is made of, and how that takes up each new connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from .codec import Codecs
from .consumers import Consumers
from .controller import Controller
from .errors import RPCError
from .executor import Executor
from .intake import Intake
from .places import Places, RunOptions
from .protocol.control import Question
from .protocol.executions import ExecutionTable
from .protocol.topology import Binding, Exchange, Names, Queue
from .publisher import ResultPublisher
from .publisherstatistics import PublisherStatistics
from .republisher import Republisher, RepublisherStatistics
from .service import Service
from .transports.base import Link, Subscription, Transport
from .transports.supervisor import Supervisor

__all__ = ["Serving", "WorkerStatistics"]

logger = logging.getLogger("aiorpcq.worker")

_LISTEN_PAUSE: Final = 1.0
"""Seconds before the next try to consume from the control queue."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker does now, and what it has counted.

    Attributes:
        running: executions that have not ended.
        started: requests whose method was run.
        adopted: redeliveries of what ran here already.
        answered: redeliveries that got their terminal state from the cache.
        expired: runs that were stopped at their deadline.
        rejected: messages that were no requests.
        revoked: tasks that were answered REVOKED: cancelled, or left by their callers.
        lost: requests that were answered `WorkerLost`.
        callers_gone: runs that were stopped because their callers were gone.
        cancels: cancels that came.
        claims: messages of callers that had reconnected.
        inquiries: questions that were answered.
        control_ignored: control messages that were malformed or of another version.
        restored: consumers that were made again because the broker had ended them.
        cached: terminal states that are held for duplicates and for callers that reconnect.
        cached_size: their bytes.
        cache_evicted: those that a bound has pushed out.
        publisher: what the publisher has counted.
        republisher: what went back to the broker.
    """

    running: int
    started: int
    adopted: int
    answered: int
    expired: int
    rejected: int
    revoked: int
    lost: int
    callers_gone: int
    cancels: int
    claims: int
    inquiries: int
    control_ignored: int
    restored: int
    cached: int
    cached_size: int
    cache_evicted: int
    publisher: PublisherStatistics
    republisher: RepublisherStatistics


class Serving:
    """The parts of a started worker, and the topology they stand on.

    *confirmed* is set when nothing that it has published is unconfirmed.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        services: Mapping[str, Service],
        names: Names,
        codecs: Codecs,
        table: ExecutionTable,
        options: RunOptions,
    ) -> None:
        loop = asyncio.get_running_loop()
        worker_id = self._worker_id = options.worker_id
        self._services = services
        self._names = names
        self._concurrency = options.concurrency
        self._delivery = options.delivery
        self._control: tuple[Exchange | Queue | Binding, ...] = ()  # of the present link
        self._tasks: set[asyncio.Task[None]] = set()  # those that bring the control consumer back
        self.table = table
        self.confirmed = asyncio.Event()
        self.publisher = ResultPublisher(table, codecs, options.max_size, worker_id, loop, self.confirmed.set)
        self.republisher = Republisher(names, worker_id, loop, self.confirmed.set, self._entities_of)
        self.executor = Executor(table, self.publisher, self.republisher, codecs, loop, options)
        self.intake = Intake(table, self.publisher, self.republisher, self.executor, loop, options)
        self.controller = Controller(table, self.executor, self.publisher, worker_id, loop, self._describe)
        self.places = {name: Places(name, service.methods, self._concurrency) for name, service in services.items()}
        self.consumers = Consumers(services, self._declare, self._consume, lambda name: names.service_queue(name).name)
        self.supervisor = Supervisor(transports, self.setup, self.on_lost, logger)

    @property
    def unconfirmed(self) -> int:
        """Terminal states and requests that wait for their confirm."""
        return self.publisher.unconfirmed + self.republisher.pending

    def statistics(self) -> WorkerStatistics:
        """Return a snapshot."""
        table = self.table
        executor, control = self.executor, self.controller
        return WorkerStatistics(
            running=len(table.running),
            started=executor.started,
            adopted=table.adopted,
            answered=table.answered,
            expired=executor.expired,
            rejected=self.intake.rejected,
            revoked=executor.revoked,
            lost=self.intake.lost,
            callers_gone=self.executor.callers.gone,
            cancels=control.cancels,
            claims=control.claims,
            inquiries=control.inquiries,
            control_ignored=control.ignored,
            restored=self.consumers.restored,
            cached=len(table.cache),
            cached_size=table.cache.size,
            cache_evicted=table.cache.evicted,
            publisher=self.publisher.statistics(),
            republisher=self.republisher.statistics(),
        )

    async def setup(self, link: Link, generation: int) -> None:
        """Listen for control messages and serve; what was unacknowledged on the last link comes again by itself."""
        names = self._names
        self.publisher.link = self.republisher.link = self.executor.callers.link = link
        link.on_returned = self.executor.callers.on_returned
        await self._listen(link, generation)
        heard_from = time.time()
        for name, places in self.places.items():
            status = await link.inspect(names.service_queue(name).name)
            # What waits there by now may have been cancelled before this worker could hear of it.
            places.older_than = heard_from if status is not None and status.messages else None
        if not self.executor.draining:  # what runs may still be answered
            await self.consumers.start(link)

    async def _listen(self, link: Link, generation: int) -> None:
        names = self._names
        queue = names.control_queue(self._worker_id, generation)
        bindings = names.control_bindings(self._worker_id, generation, self._services)
        self._control = names.control, queue, *bindings
        await link.declare(names.requests, *self._control)

        def on_cancelled(error: RPCError) -> None:
            for places in self.places.values():
                places.older_than = float("inf")  # nobody listens: what begins meanwhile may have been cancelled
            listening = asyncio.get_running_loop().create_task(consume(), name="aiorpcq control consumer")
            self._tasks.add(listening)
            listening.add_done_callback(self._tasks.discard)

        async def consume() -> None:
            while not link.lost.done():
                try:
                    await link.declare(*self._control)
                    await link.consume(queue.name, self.controller.on_delivery, no_ack=True, on_cancelled=on_cancelled)
                except RPCError as error:
                    logger.warning("cannot listen for control messages: %s", error)
                    await asyncio.sleep(_LISTEN_PAUSE)
                    continue
                # What was said while nobody listened is lost; a caller that hears of its run says it again.
                for places in self.places.values():
                    places.older_than = time.time()
                self.executor.announce_running()
                return

        await link.consume(queue.name, self.controller.on_delivery, no_ack=True, on_cancelled=on_cancelled)

    def _entities_of(self, name: str) -> tuple[Exchange, Queue, Binding]:
        names = self._names
        queue = names.service_queue(name, self._services[name].queue_arguments)
        return names.requests, queue, names.binding(name)

    async def _declare(self, link: Link, name: str) -> None:
        # Control too, each time: somebody may have deleted the exchange, and its bindings with it.
        await link.declare(*self._control, *self._entities_of(name))

    async def _consume(self, link: Link, name: str, on_cancelled: Callable[[RPCError], None]) -> Subscription:
        return await link.consume(
            self._names.service_queue(name).name,
            partial(self.intake.on_delivery, self.places[name]),
            prefetch=self._concurrency,
            on_cancelled=on_cancelled,
        )

    def _describe(self, question: Question) -> Any:
        """Return what a caller is told who asks about this worker."""
        if question == "stats":
            return asdict(self.statistics())
        if question == "info":
            return {
                "services": {
                    service.name: {
                        name: {"delivery": method.delivery or self._delivery, "idempotent": method.options.idempotent}
                        for name, method in service.methods.items()
                    }
                    for service in self._services.values()
                },
                "concurrency": self._concurrency,
                "running": len(self.table.running),
                "started": self.executor.started,
                "draining": self.executor.draining,
            }
        return None

    def on_lost(self, error: RPCError) -> None:
        """Let runs go on: their requests are redelivered, here or elsewhere, and adopted where they still run."""
        self.publisher.link = self.republisher.link = self.executor.callers.link = None
        self.consumers.lose()

    async def wait_confirmed(self) -> None:
        """Wait until nothing is unconfirmed."""
        while self.unconfirmed:
            self.confirmed.clear()
            await self.confirmed.wait()

    async def close(self) -> None:
        """Stop timers and tasks, then close the connection."""
        self.executor.close()
        await self.consumers.close()
        await self.republisher.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.close()
