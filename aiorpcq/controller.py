"""Controller: does what control messages ask of a worker, and answers what they want to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from .executor import Executor
from .protocol.control import Answer, Cancel, Claim, Question, decode_command, encode_answer
from .protocol.executions import ExecutionTable
from .protocol.wire import MalformedMessage
from .publisher import ResultPublisher
from .transports.base import Delivery

__all__ = ["Controller"]

logger = logging.getLogger("aiorpcq.worker")


class Controller:
    """The handler of a worker's control queue.

    *describe* gives what "info" and "stats" are answered with, of JSON's types. The counters only grow: *cancels*,
    *claims*, *inquiries*, and *ignored*, of messages that were malformed or of another version.
    """

    def __init__(
        self,
        table: ExecutionTable,
        executor: Executor,
        publisher: ResultPublisher,
        worker_id: str,
        loop: asyncio.AbstractEventLoop,
        describe: Callable[[Question], Any],
    ) -> None:
        self._table = table
        self._executor = executor
        self._publisher = publisher
        self._worker_id = worker_id
        self._now = loop.time
        self._describe = describe
        self.cancels = self.claims = self.inquiries = self.ignored = 0

    def on_delivery(self, delivery: Delivery) -> None:
        """Handle one control message."""
        try:
            if delivery.oversize:
                raise MalformedMessage(f"a body of {delivery.oversize} bytes")
            command = decode_command(delivery.properties, delivery.body)
        except MalformedMessage as error:
            self.ignored += 1
            if self.ignored == 1:
                logger.warning("a control message is ignored (later ones are only counted): %s", error)
            return
        if isinstance(command, Cancel):
            self.cancels += 1
            self._executor.revoke(command)
        elif isinstance(command, Claim):
            self.claims += 1
            self._resume(command)
        else:
            self.inquiries += 1
            self._answer(command.question, command.id, command.reply_to, self._describe(command.question))

    def _resume(self, claim: Claim) -> None:
        """Send the caller's answers to where it is now, those again that it has missed."""
        table, origin = self._table, claim.origin
        table.move(origin, claim.reply_to, claim.expires, self._now())
        held: list[str] = []
        for task_id in claim.task_ids:
            if table.held(task_id, origin) is not None:
                held.append(task_id)
                continue
            terminal = table.cache.get(task_id, task_id, origin)
            if terminal is not None:
                self._publisher.resend(terminal, claim.reply_to)
        if claim.id is not None:
            self._answer("held", claim.id, claim.reply_to, held)

    def _answer(self, question: Question, identity: str, reply_to: str, value: Any) -> None:
        link = self._publisher.link
        if link is not None:
            link.publish(encode_answer(Answer(question, identity, self._worker_id, value), reply_to))
