"""ResultPublisher: sends the states of executions to their callers, and acknowledges requests when that is safe.

A terminal state is published mandatory and confirmed, and only then is the request acknowledged. One whose reply queue
is gone comes back; it stays in the cache, and the request is acknowledged all the same, since running it again would
not bring the caller back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from .codec import Codecs, EncodedBody, JsonCodec
from .codec.errors import refuse_encoding
from .errors import CodecError, PayloadTooLarge, RemoteError, RPCError
from .protocol.executions import Execution, ExecutionPhase, ExecutionTable
from .protocol.failures import describe_error, describe_exception
from .protocol.messages import Outcome, Publication, StateMessage
from .protocol.wire import encode_state
from .publisherstatistics import PublisherStatistics
from .states import FAILURE, REVOKED, SUCCESS
from .transports.base import Link

__all__ = ["ResultPublisher"]

logger = logging.getLogger("aiorpcq.worker")

_SHORT_TEXT: Final = 64
_json: Final = JsonCodec()
_ESSENTIAL: Final = frozenset({"error", "maybe_executed", "message", "module", "type"})

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_RUNNING: Final = ExecutionPhase.RUNNING
_CONFIRMED: Final = Outcome.CONFIRMED
_UNANSWERED: Final = (ExecutionPhase.RUNNING, ExecutionPhase.STOPPING)  # a tuple: it compares by identity first


class ResultPublisher:
    """The outgoing side of a worker.

    *on_idle* is called whenever the last unconfirmed terminal state has its confirm.
    """

    def __init__(
        self,
        table: ExecutionTable,
        codecs: Codecs,
        max_size: int,
        worker_id: str,
        loop: asyncio.AbstractEventLoop,
        on_idle: Callable[[], None],
    ) -> None:
        self._table = table
        self._codecs = codecs
        self._max_size = max_size
        self._worker_id = worker_id
        self._time = loop.time
        self._on_idle = on_idle
        self._settled_callback = self._settled  # bound once: one is handed over with every terminal state
        self.link: Link | None = None
        self._unconfirmed: dict[Publication, Execution] = {}
        self._rejecting = 0
        self._succeeded = self._failed = self._updates = 0
        self._returned = self._refused = self._lost = self._moved = self._resent = 0

    @property
    def unconfirmed(self) -> int:
        """Terminal states that wait for their confirm."""
        return len(self._unconfirmed) + self._rejecting

    def statistics(self) -> PublisherStatistics:
        """Return a snapshot of the counters."""
        return PublisherStatistics(
            self._succeeded,
            self._failed,
            self._updates,
            self._returned,
            self._refused,
            self._lost,
            self._moved,
            self._resent,
            self.unconfirmed,
        )

    def prepare(self, execution: Execution, value: Any) -> EncodedBody | None:
        """Return *value* as `update` takes it; None where the caller asked for no states, or the task has ended.

        Raises:
            CodecError: *value* cannot be encoded.
            PayloadTooLarge: it is too large.
        """
        if execution.request.states and execution.phase is _RUNNING:
            return self._encode(value)
        return None

    def update(self, execution: Execution, name: str, body: EncodedBody) -> None:
        """Publish a state that is not terminal, if the task has not ended since."""
        if execution.phase is _RUNNING:
            self._send_update(execution, name, body)

    def announce(self, execution: Execution, name: str, value: Any) -> None:
        """Publish one of the worker's own states without waiting."""
        self._send_update(execution, name, self._encode_own(value))

    def succeed(self, execution: Execution, value: Any) -> None:
        """Publish SUCCESS with *value*, or the failure to encode it."""
        if execution.phase not in _UNANSWERED:
            return
        if execution.reply_to is None:
            body, content_type, content_encoding = b"", "", None
        else:
            try:
                body, content_type, content_encoding = self._encode(value)
            except (CodecError, PayloadTooLarge) as error:
                error.maybe_executed = True
                self.refuse(execution, error)
                return
        self._succeeded += 1
        self._answer(execution, SUCCESS, body, content_type, content_encoding)

    def fail(self, execution: Execution, exception: BaseException) -> None:
        """Publish FAILURE: the method raised *exception*."""
        if execution.phase is ExecutionPhase.RUNNING:
            self._fail(execution, self._describe(execution, exception))

    def refuse(self, execution: Execution, error: RPCError) -> None:
        """Publish FAILURE: *error* is the library's own.

        A refusal of what was not run and may be tried again is not kept: who tries again under the same id wants a run.
        """
        if execution.phase in _UNANSWERED:
            if execution.may_have_run:
                error.maybe_executed = True
            description = describe_error(error)
            if not error.maybe_executed:
                execution.refusal = description
            self._fail(execution, description, kept=error.maybe_executed or not error.retryable)

    def revoke(self, execution: Execution) -> None:
        """Publish REVOKED: the caller has cancelled the task, or is gone."""
        if execution.phase in _UNANSWERED:
            self._failed += 1
            self._answer(execution, REVOKED, *self._encode_own(None))

    def resend(self, terminal: StateMessage, reply_to: str) -> None:
        """Publish a cached terminal state to a caller that asks for it; it asks again where that is lost."""
        link = self.link
        if link is not None:
            self._resent += 1
            self._send(link, encode_state(terminal, reply_to))

    def reject(self, execution: Execution, error: BaseException, *, raised: bool = False) -> None:
        """Publish FAILURE for a request that has no part in the table, and acknowledge it once that is confirmed.

        *error* is the library's own, or what the method *raised*.
        """
        self._failed += 1
        link, delivery = self.link, execution.delivery
        if link is None:
            return  # the broker delivers it again
        description = self._describe(execution, error) if raised else describe_error(cast(RPCError, error))
        if execution.reply_to is None:
            self._log_cast(execution, description)
            delivery.ack()
            return
        body = self._encode_failure(description)
        message = StateMessage(execution.task_id, FAILURE, *body, attempt=execution.attempt)

        def settled(_: Publication, outcome: Outcome) -> None:
            self._rejecting -= 1
            if outcome is not Outcome.LOST:
                delivery.ack()
            if not self.unconfirmed:
                self._on_idle()

        link.publish(encode_state(message, execution.reply_to, settled))
        self._rejecting += 1

    def answer_again(self, execution: Execution) -> None:
        """Publish the cached terminal state of a task that was delivered again."""
        self._publish(execution)

    def _send_update(self, execution: Execution, name: str, body: EncodedBody) -> None:
        if self.link is None or execution.reply_to is None:
            return
        execution.sequence += 1
        message = StateMessage(
            execution.task_id,
            name,
            *body,
            attempt=execution.attempt,
            sequence=execution.sequence,
            worker_id=self._worker_id,
        )
        self._updates += 1
        self.link.publish(encode_state(message, execution.reply_to))

    def _fail(self, execution: Execution, description: dict[str, Any], *, kept: bool = True) -> None:
        self._failed += 1
        if execution.reply_to is None:
            self._log_cast(execution, description)
        self._answer(execution, FAILURE, *self._encode_failure(description), kept=kept)

    def _describe(self, execution: Execution, exception: BaseException) -> dict[str, Any]:
        try:
            return describe_exception(exception, self._can_encode)
        except BaseException:  # whatever the exception's own class does when it is looked at
            logger.warning("method %s raised what cannot be described", execution.request.method)
            return describe_error(RemoteError("the method raised what cannot be described"))

    def _log_cast(self, execution: Execution, description: dict[str, Any]) -> None:
        """Log a failure of which nobody is told, so that somebody can find it."""
        kind, text = description.get("type", description["error"]), description["message"]
        logger.warning("method %s failed in a cast: %s: %.200s", execution.request.method, kind, text)

    def _encode_failure(self, description: dict[str, Any]) -> EncodedBody:
        """Return *description* as it can be sent: whole, or what is essential, or that in JSON, which always can be."""
        try:
            return self._encode(description)
        except (CodecError, PayloadTooLarge):
            essential = {name: value for name, value in description.items() if name in _ESSENTIAL}
            return self._encode_own(essential)

    def _answer(
        self,
        execution: Execution,
        name: str,
        body: bytes,
        content_type: str,
        content_encoding: str | None,
        *,
        kept: bool = True,
    ) -> None:
        sequence = execution.sequence
        message = StateMessage(
            execution.task_id,
            name,
            body,
            content_type,
            content_encoding,
            execution.attempt,
            sequence + 1 if sequence else 0,
        )
        self._table.answer(execution, message, self._time() if kept else None)
        self._publish(execution)

    def _publish(self, execution: Execution) -> None:
        """Publish the terminal state of *execution*; what follows is in `_settled`.

        Of a request that was acknowledged before its run nothing follows, and nothing is confirmed.
        """
        terminal, reply_to = execution.terminal, execution.reply_to
        assert terminal is not None
        link = self.link
        if reply_to is None:
            self._finish(execution)
        elif execution.acknowledged or link is None:
            # Either nothing follows, or the broker delivers the request again and it gets the state from the cache.
            if link is None:
                self._lose(execution)
            else:
                self._send(link, encode_state(terminal, reply_to))
                self._table.end(execution)
        else:
            publication = encode_state(terminal, reply_to, self._settled_callback)
            if self._send(link, publication):
                self._unconfirmed[publication] = execution
            else:
                self._finish(execution)

    def _send(self, link: Link, publication: Publication) -> bool:
        """Publish; return False where the state cannot be sent to its caller, and will never be."""
        try:
            link.publish(publication)
        except (ValueError, PayloadTooLarge) as error:
            logger.error("task %s cannot be answered: %s", publication.properties.correlation_id, error)  # noqa: TRY400
            return False
        return True

    def _lose(self, execution: Execution) -> None:
        """End *execution*, whose terminal state may not have reached the broker.

        The broker gives its request to any worker. So what was not run here may be run there, and who is told of it
        later is not to hear that it was not.
        """
        self._lost += 1
        terminal, refusal, is_kept = execution.terminal, execution.refusal, execution.answered_at is not None
        if terminal is not None and refusal is not None and is_kept and not execution.acknowledged:
            body = self._encode_failure({**refusal, "maybe_executed": True})
            execution.terminal = StateMessage(
                execution.task_id, FAILURE, *body, attempt=terminal.attempt, sequence=terminal.sequence
            )
        self._table.end(execution)

    def _settled(self, publication: Publication, outcome: Outcome) -> None:
        execution = self._unconfirmed.pop(publication)
        if outcome is _CONFIRMED:
            self._table.end(execution)
            execution.delivery.ack()
        elif outcome is Outcome.RETURNED and publication.routing_key != execution.reply_to:
            self._moved += 1
            self._publish(execution)
        elif outcome is Outcome.RETURNED:
            self._returned += 1
            self._table.end(execution, returned=True)
            execution.delivery.ack()
        elif outcome is Outcome.REFUSED:
            # A reply queue with a length limit is full, or the broker failed: the caller's timer will tell it.
            self._refused += 1
            self._table.end(execution)
            execution.delivery.ack()
        else:
            self._lose(execution)
        if not self._unconfirmed:
            self._on_idle()

    def _finish(self, execution: Execution) -> None:
        self._table.end(execution)
        execution.delivery.ack()

    def _encode_own(self, value: Any) -> EncodedBody:
        """Return what the worker itself has to say: as it is, or shortened, or that in JSON, which always can be."""
        try:
            return self._encode(value)
        except (CodecError, PayloadTooLarge):
            shortened = _shortened(value)
        try:
            return self._encode(shortened)
        except (CodecError, PayloadTooLarge):
            return _json.encode(shortened), _json.content_type, None

    def _encode(self, value: Any) -> EncodedBody:
        try:
            encoded = self._codecs.encode(value)
        except (CodecError, PayloadTooLarge):
            raise
        except BaseException as error:  # a user's codec no more ends a run without an answer than a method does
            refuse_encoding(error)
        size = len(encoded[0])
        if size > self._max_size:  # the codecs may have been given a limit of their own
            raise PayloadTooLarge(f"body of {size} bytes, the limit max_size is {self._max_size}")
        return encoded

    def _can_encode(self, value: Any) -> bool:
        try:
            self._encode(value)
        except (CodecError, PayloadTooLarge):
            return False
        return True


def _shortened(value: Any) -> Any:
    """Return *value* with what is long in it cut: the smallest `max_size` takes that."""
    if not isinstance(value, dict):
        return value
    return {name: part[:_SHORT_TEXT] if isinstance(part, str) else part for name, part in value.items()}
