"""Republisher: gives requests back to the broker, each confirmed before the delivery it came with is acknowledged.

A nack with requeue would mark a request as delivered before, as if it had run. So what was not begun is published again
as it was; what has lost a run, with that counted; what is to run later, to a delay queue; what is suspected of killing
its workers, to the dead letters. What the broker has again already, its channel being closed, is left alone: there
would be two of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .errors import RPCError
from .protocol.deadletters import bury, letter_id_of
from .protocol.executions import Execution
from .protocol.messages import History, Outcome, Publication
from .protocol.retries import delay_step
from .protocol.topology import Binding, Exchange, Names, Queue
from .protocol.wire import republish
from .transports.base import Link

__all__ = ["Republisher", "RepublisherStatistics"]

logger = logging.getLogger("aiorpcq.worker")


@dataclass(frozen=True, slots=True)
class RepublisherStatistics:
    """What a republisher has done so far.

    Attributes:
        handed_back: requests that were not begun here and went back as they came.
        counted: requests that went back with one more lost run.
        retried: requests that went to a delay queue because their method raised.
        buried: requests that became dead letters.
        failed: requests that could not be published again; their callers were told.
    """

    handed_back: int
    counted: int
    retried: int
    buried: int
    failed: int


class Republisher:
    """The way back of requests.

    *pending* counts those that wait for their confirm, bounded by the prefetch of the worker's consumers; *on_idle* is
    called when there are none any more. *entities_of* gives what a service stands on, to be declared again where it was
    deleted.
    """

    def __init__(
        self,
        names: Names,
        worker_id: str,
        loop: asyncio.AbstractEventLoop,
        on_idle: Callable[[], None],
        entities_of: Callable[[str], Sequence[Exchange | Queue | Binding]],
    ) -> None:
        self._names = names
        self._entities_of = entities_of
        self._worker_id = worker_id
        self._loop = loop
        self._on_idle = on_idle
        self._link: Link | None = None
        self._declared: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.pending = 0
        self._suspects = self._suspects_sent = 0  # those pending that have lost a run, and all of that kind so far
        self._suspects_settled = asyncio.Event()
        self._handed_back = self._counted = self._retried = self._buried = self._failed = 0

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self._link

    @link.setter
    def link(self, link: Link | None) -> None:
        self._link = link
        self._declared.clear()  # a queue may be gone that was there on the last one

    def statistics(self) -> RepublisherStatistics:
        """Return a snapshot of the counters."""
        return RepublisherStatistics(self._handed_back, self._counted, self._retried, self._buried, self._failed)

    def hand_back(self, service: str, execution: Execution, refused: Callable[[], None]) -> None:
        """Publish a request as it is, from a worker that takes no more.

        *refused* is called where its queue is full. Where it cannot be published for another reason the broker takes
        the delivery back, and flags it.
        """
        self._handed_back += 1
        back = partial(execution.delivery.nack, requeue=True)
        publication = self._request(service, execution, execution.attempt)
        self._send(_Return(execution, publication, self._entities_of(service), refused, failed=back))

    def postpone(self, service: str, execution: Execution, delay: float, refused: Callable[[], None]) -> None:
        """Publish a request that was not begun, to come again after *delay* seconds."""
        self._handed_back += 1
        self._publish_delayed(service, execution, execution.attempt, delay, refused)

    def count(self, service: str, execution: Execution, refused: Callable[[], None]) -> None:
        """Publish a request whose last run was lost, as its next attempt; *execution* has the loss counted."""
        self._counted += 1
        self._publish(service, execution, execution.attempt, refused)

    def retry(
        self,
        service: str,
        execution: Execution,
        delay: float,
        *,
        then: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        """Publish a request whose method wants another attempt after *delay* seconds; *then* acknowledges it."""
        self._retried += 1
        if delay <= 0:
            self._publish(service, execution, execution.attempt + 1, refused, then)
        else:
            self._publish_delayed(service, execution, execution.attempt + 1, delay, refused, then)

    def bury(
        self,
        service: str,
        execution: Execution,
        reason: str,
        *,
        then: Callable[[], None],
        otherwise: Callable[[], None],
    ) -> None:
        """Publish a request to the dead letters of its service.

        *then* answers it, and has it acknowledged, also where the letter cannot be kept; *otherwise* is called where
        the link is lost before that.
        """
        self._buried += 1
        queue = self._names.dead_queue(service)
        delivery = execution.delivery
        letter = bury(
            delivery.properties,
            delivery.body,
            queue.name,
            letter_id=letter_id_of(delivery.properties, delivery.body),
            reason=reason,
            attempt=execution.attempt,
            losses=execution.losses,
            worker_id=self._worker_id,
            now=time.time(),
        )
        self._publish_declared(_Return(execution, letter, (queue,), then, then, otherwise))

    async def flush(self, service: str) -> None:
        """Return once the broker has back what has lost a run, and has read that those deliveries are settled.

        It answers a question about the service's queue that is sent behind them, while none more goes back.

        Raises:
            RPCError: it does not answer.
        """
        sent = -1
        while sent != self._suspects_sent:
            while self._suspects:
                self._suspects_settled.clear()
                await self._suspects_settled.wait()
            sent = self._suspects_sent
            if self._link is not None:
                await self._link.inspect(self._names.service_queue(service).name)

    async def close(self) -> None:
        """End what still waits for a declaration."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _history(self, execution: Execution) -> History:
        history = execution.request.history
        origin = execution.origin if execution.origin != execution.reply_to else None
        return History(origin, execution.losses, None if history is None else history.replay, True)

    def _request(self, service: str, execution: Execution, attempt: int, *, step: float | None = None) -> Publication:
        expiration = execution.request.expiration
        if expiration is not None:
            expiration -= self._loop.time() - execution.received_at + (step or 0.0)
        delivery = execution.delivery
        return republish(
            delivery.properties,
            delivery.body,
            self._names.prefix if step is None else self._names.delay(step)[0].name,
            self._names.routing_key(service),
            attempt=attempt,
            history=self._history(execution),
            reply_to=execution.reply_to,
            expiration=expiration,
            delayed=step is not None,
        )

    def _publish_delayed(
        self,
        service: str,
        execution: Execution,
        attempt: int,
        delay: float,
        refused: Callable[[], None],
        then: Callable[[], None] | None = None,
    ) -> None:
        step = delay_step(delay)
        publication = self._request(service, execution, attempt, step=step)
        self._publish_declared(_Return(execution, publication, self._names.delay(step), refused, then))

    def _publish_declared(self, way: _Return) -> None:
        """Publish to what is declared when it is first needed on a connection."""
        if way.target in self._declared:
            self._send(way)
            return
        self._begin(way)
        task = self._loop.create_task(self._declare_and_send(way))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _declare_and_send(self, way: _Return) -> None:
        link = self._link
        try:
            if link is not None:
                if not link.writable:
                    await link.wait_writable()  # a broker that has blocked us does not answer
                await link.declare(*way.entities)
                if self._link is link:
                    self._declared.add(way.target)
        except RPCError as error:
            if link is None or link.lost.done():
                way.otherwise()
            else:
                logger.warning("task %s cannot be published again: %s", way.execution.task_id, error)
                self._give_up(way)
        else:
            self._send(way)
        finally:
            self._settle(way)

    def _publish(
        self,
        service: str,
        execution: Execution,
        attempt: int,
        refused: Callable[[], None],
        then: Callable[[], None] | None = None,
    ) -> None:
        """Publish to the service's queue, which was there: the request came from it. It may be gone since."""
        publication = self._request(service, execution, attempt)
        self._send(_Return(execution, publication, self._entities_of(service), refused, then))

    def _send(self, way: _Return) -> None:
        """Publish; once it is confirmed, acknowledge the delivery, or let `then` see to that."""

        def settled(_: Publication, outcome: Outcome) -> None:
            if outcome is Outcome.CONFIRMED:
                way.then()
            elif outcome is Outcome.LOST:
                self._declared.discard(way.target)  # the channel may have been closed because it is gone
                way.otherwise()
            elif outcome is Outcome.RETURNED and not way.repeated:
                # What it went to was deleted behind us.
                self._declared.discard(way.target)
                way.repeated = True
                self._publish_declared(way)
            elif outcome is Outcome.REFUSED:
                self._failed += 1
                way.refused()
            else:
                self._give_up(way)
            self._settle(way)

        link = self._link
        if link is None or way.execution.delivery.requeued:
            way.otherwise()
            return
        way.publication.settled = settled
        try:
            link.publish(way.publication)
        except (ValueError, RPCError) as error:
            logger.error("task %s cannot be published again: %s", way.execution.task_id, error)  # noqa: TRY400
            self._give_up(way)
        else:
            self._begin(way)

    def _give_up(self, way: _Return) -> None:
        """Do without: what it is to go to cannot be declared. To have it delivered here again would be for ever."""
        self._failed += 1
        way.failed()

    def _begin(self, way: _Return) -> None:
        self.pending += 1
        if way.execution.losses:
            self._suspects += 1
            self._suspects_sent += 1

    def _settle(self, way: _Return) -> None:
        self.pending -= 1
        if way.execution.losses:
            self._suspects -= 1
            if not self._suspects:
                self._suspects_settled.set()
        if not self.pending:
            self._on_idle()


class _Return:
    """A request on its way back, *publication*, to what *entities* declare.

    *then* is called once it is confirmed, by default to acknowledge the delivery; *refused* where its queue is full;
    *failed* where it cannot be published, by default the same; *otherwise* where link or channel is lost before that:
    the broker delivers the request again.
    """

    __slots__ = ("entities", "execution", "failed", "otherwise", "publication", "refused", "repeated", "then")

    def __init__(
        self,
        execution: Execution,
        publication: Publication,
        entities: Sequence[Exchange | Queue | Binding],
        refused: Callable[[], None],
        then: Callable[[], None] | None = None,
        otherwise: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        self.execution = execution
        self.publication = publication
        self.entities = entities
        self.refused = refused
        self.failed = failed or refused
        self.then = then or execution.delivery.ack
        self.otherwise = otherwise or _wait
        self.repeated = False

    @property
    def target(self) -> str:
        """What is declared for it."""
        return self.publication.exchange or self.publication.routing_key


def _wait() -> None:
    """Do nothing: the request comes again."""
