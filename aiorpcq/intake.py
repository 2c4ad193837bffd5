"""Intake: decides about every request that is delivered to a worker, before anything of it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Final

from .deadline import run_deadline
from .errors import (
    DeadlineExceeded,
    MethodNotFound,
    Overloaded,
    PayloadTooLarge,
    Poisoned,
    Rejected,
    RPCError,
    UnsupportedVersion,
    WorkerLost,
)
from .executor import Executor
from .method import Method
from .places import Places, RunOptions
from .protocol.deliveries import Decision, decide
from .protocol.executions import Execution, ExecutionTable, Verdict
from .protocol.messages import Request
from .protocol.wire import MalformedMessage, VersionRefused, decode_request, delivery_count
from .publisher import ResultPublisher
from .republisher import Republisher
from .transports.base import Delivery

__all__ = ["Intake"]

logger = logging.getLogger("aiorpcq.worker")

_RUN: Final = Verdict.RUN  # a global: in Python 3.11 a member costs four times as much to look up on its class


class Intake:
    """The incoming side of a worker. *rejected* and *lost* only grow: messages that are no requests, and requests that
    were answered `WorkerLost`.
    """

    def __init__(
        self,
        table: ExecutionTable,
        publisher: ResultPublisher,
        republisher: Republisher,
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        options: RunOptions,
    ) -> None:
        self._table = table
        self._publisher = publisher
        self._republisher = republisher
        self._executor = executor
        self._loop = loop
        self._options = options
        self.rejected = self.lost = 0

    def on_delivery(self, places: Places, delivery: Delivery) -> None:
        """Decide about one delivery."""
        try:
            request = decode_request(delivery.properties, delivery.body)
        except MalformedMessage as error:
            self._refuse_malformed(places, delivery, error)
            return
        method = places.methods.get(request.method)
        loop = self._loop
        now = loop.time()
        deadline = run_deadline(request.expiration, request.deadline, now, time.time())
        if method is not None and method.timeout is not None:
            deadline = now + method.timeout if deadline is None else min(deadline, now + method.timeout)
        verdict, execution = self._table.begin(request, delivery, deadline, now)
        if verdict is not _RUN:
            self._on_known(places, verdict, execution, delivery)
            return
        if self._executor.draining and not delivery.oversize:  # of that there is no body to give back
            self._give_back(places, execution, method)
            return
        if method is None or delivery.oversize or (deadline is not None and deadline <= now):
            self._publisher.refuse(execution, self._refusal(execution, method))
            return
        if (request.history is not None or delivery.redelivered) and not self._admit(places, execution, method):
            return
        self._executor.accept(places, execution, method, now)

    def _give_back(self, places: Places, execution: Execution, method: Method | None) -> None:
        """Give back what came while the worker drains; lost runs are counted first, since the copy is not flagged."""
        if not execution.delivery.redelivered or (method is not None and self._admit(places, execution, method)):
            self._executor.hand_back(places, execution)
        elif method is None:
            self._table.abandon(execution)
            execution.delivery.nack(requeue=True)

    def _refusal(self, execution: Execution, method: Method | None) -> RPCError:
        """Return why a request is not run at all."""
        oversize = execution.delivery.oversize
        if oversize:
            return PayloadTooLarge(f"the body has {oversize} bytes, the limit max_size is {self._options.max_size}")
        if method is None:
            return MethodNotFound(f"the service has no method {execution.request.method!r}")
        return DeadlineExceeded("the deadline was past before the run", maybe_executed=execution.may_have_run)

    def _admit(self, places: Places, execution: Execution, method: Method) -> bool:
        """Decide about a request that was published or delivered before; tell whether it is to run here and now."""
        delivery, most = execution.delivery, method.options.max_attempts or self._options.max_attempts
        counted = delivery_count(delivery.properties.headers)
        decision, execution.losses = decide(
            method.delivery or self._options.delivery,
            redelivered=delivery.redelivered,
            counted=counted,
            losses=execution.losses,
            max_attempts=most,
        )
        if delivery.redelivered:
            execution.attempt += counted or 1
        if decision is Decision.RUN:
            return True
        if decision is Decision.LOST:
            self.lost += 1
            self._publisher.refuse(execution, WorkerLost("the worker that had the request was lost"))
        elif decision is Decision.COUNT:
            self._table.abandon(execution)
            full = Overloaded("a run was lost, and the queue does not take the request again", maybe_executed=True)
            refused = partial(self._publisher.reject, execution, full)
            self._republisher.count(places.service, execution, refused)
        else:
            self._bury(places, execution, f"{execution.losses} runs were lost with their workers, the limit is {most}")
        return False

    def _bury(self, places: Places, execution: Execution, reason: str) -> None:
        self._table.detain(execution)
        answer = partial(self._publisher.refuse, execution, Poisoned(reason))
        # Where the link is lost the broker delivers the request again, and it must not be taken for one that runs.
        abandon = partial(self._table.abandon, execution)
        self._republisher.bury(places.service, execution, reason, then=answer, otherwise=abandon)

    def _repeat_retry(self, places: Places, execution: Execution) -> None:
        """Take in a request whose run here has ended with another attempt to be made.

        Where that is known to be at the broker, this is a copy too many; else the request is published once more.
        """
        ended = self._table.retries[execution.key]
        if ended.is_out:
            execution.delivery.ack()
            return
        execution.attempt = ended.attempt
        full = Overloaded("the method is to run again, and the queue does not take the request", maybe_executed=True)
        self._republisher.retry(
            places.service,
            execution,
            max(0.0, ended.due - self._loop.time()),
            then=execution.delivery.ack,
            refused=partial(self._publisher.reject, execution, full),
        )

    def _on_known(self, places: Places, verdict: Verdict, execution: Execution, delivery: Delivery) -> None:
        """Handle a request that is running or has ended here already."""
        if verdict is Verdict.ANSWERED:
            self._publisher.answer_again(execution)
        elif verdict is Verdict.ADOPTED:
            # On a link that is lost this does nothing; on this one the new delivery is now the one that counts.
            self._table.adopt(execution, delivery).ack()
            if execution.acknowledged:
                delivery.ack()
            # Between two connections a worker hears no cancel; this has the caller say it again.
            self._executor.announce_started(execution)
        elif verdict is Verdict.SUPERSEDED:
            self._repeat_retry(places, execution)
        elif verdict is Verdict.REVOKED:
            self._executor.revoked += 1
            self._publisher.revoke(execution)
        else:
            self._publisher.reject(execution, Rejected("another caller's task of the same id runs here"))

    def _refuse_malformed(self, places: Places, delivery: Delivery, error: MalformedMessage) -> None:
        """Answer what can be answered, and have the rest dead-lettered: to its caller, where it has a CC header."""
        self.rejected += 1
        properties = delivery.properties
        if isinstance(error, VersionRefused) and properties.reply_to and properties.correlation_id:
            request = Request(properties.correlation_id, "", b"", "", None, properties.reply_to)
            verdict, execution = self._table.begin(request, delivery, None, self._loop.time())
            if verdict is Verdict.RUN:
                self._publisher.refuse(execution, UnsupportedVersion(str(error)))
            else:
                self._on_known(places, verdict, execution, delivery)
            return
        if self.rejected == 1:
            logger.warning("a message on a service queue is no request (later ones are only counted): %s", error)
        if delivery.exchange:
            delivery.nack(requeue=False)
        else:
            # It came by the queue's own name, and the default exchange would dead-letter it back here without end.
            delivery.ack()
