"""ReplyRouter: owns the reply queue of one event loop, and settles the calls whose replies come through it.

One router serves all clients of an event loop that use the same broker URL and the same options. Its reply queue has a
fresh, unguessable name for each generation of its connection; nothing is published before the queue is consumed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import (
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    Poisoned,
    Rejected,
    RPCError,
    Unroutable,
    UsageError,
)
from .protocol.calls import Call, CallTable, Phase, Sending, TaskIds
from .protocol.messages import Outcome, Properties, Publication, StateMessage
from .protocol.outofband import OutOfBandLimits
from .protocol.topology import Names
from .protocol.wire import MalformedMessage, ReturnReason, decode_state, return_reason
from .states import is_terminal
from .transports.base import Delivery, Link
from .transports.registry import make_transport
from .transports.supervisor import Supervisor

__all__ = ["ReplyRouter", "RouterOptions", "RouterStatistics"]

logger = logging.getLogger("aiorpcq.client")

_SECRET_BYTES: Final = 16
_ID_BYTES: Final = 16

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_PENDING: Final = Phase.PENDING
_CONFIRMED: Final = Outcome.CONFIRMED
_SENDING_CONFIRMED: Final = Sending.CONFIRMED

_routers: dict[tuple[asyncio.AbstractEventLoop, RouterOptions], ReplyRouter] = {}


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What clients must have in common to share a router."""

    url: str = field(repr=False)
    names: Names
    max_size: int
    out_of_band: OutOfBandLimits


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """What a router holds now, and what it has counted.

    Attributes:
        generation: how many connections there were; the number of the present or last one.
        pending: calls that are not settled.
        out_of_band: tasks whose states are parked.
        out_of_band_size: bytes of those states.
        duplicates: states of tasks that were settled already.
        stale: states that an earlier one outdated.
        parked: states of tasks that nobody awaited.
        evicted: parked states that a bound pushed out before anybody read them.
        returned: requests that came back from a queue: expired, rejected, over a limit.
        malformed: messages on the reply queue that were no states.
    """

    generation: int
    pending: int
    out_of_band: int
    out_of_band_size: int
    duplicates: int
    stale: int
    parked: int
    evicted: int
    returned: int
    malformed: int


class ReplyRouter:
    """The shell around `CallTable`: futures, timers and the link.

    Get one with `acquire`, give it back with `release`.
    """

    def __init__(self, options: RouterOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._options = options
        self._loop = loop
        self._id = secrets.token_hex(_ID_BYTES)
        self.ids = TaskIds(self._id)
        self.table = CallTable(self.ids, options.out_of_band)
        self.now = loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._users = 0
        self._starting: asyncio.Task[None] | None = None
        self._returned = 0
        self._malformed = 0
        self.request_settled = self._request_settled  # bound once: one is handed over with every request
        self.reply_to = ""
        transport = make_transport(options.url, max_size=options.max_size, name="aiorpcq client")
        self._address = transport.address
        self._supervisor = Supervisor(transport, self._setup, self._on_lost, logger)

    def __repr__(self) -> str:
        return f"<ReplyRouter of {self._address} with {len(self.table.pending)} pending>"

    @classmethod
    async def acquire(cls, options: RouterOptions) -> ReplyRouter:
        """Return the router for *options* on the running loop, connected.

        Raises:
            ConnectFailed: the broker cannot be reached or refuses what is needed.
            ValueError: the URL cannot be read.
        """
        loop = asyncio.get_running_loop()
        for key in [key for key in _routers if key[0].is_closed()]:  # its clients were never closed
            del _routers[key]
        router = _routers.get((loop, options))
        if router is None:
            router = _routers[loop, options] = cls(options, loop)
            router._starting = loop.create_task(router._supervisor.start(), name="aiorpcq client start")
        router._users += 1
        assert router._starting is not None
        try:
            await asyncio.shield(router._starting)
        except BaseException:
            await router.release()
            raise
        return router

    async def release(self) -> None:
        """Give the router back; the last one to do so closes it."""
        self._users -= 1
        if self._users:
            return
        if _routers.get((self._loop, self._options)) is self:
            del _routers[self._loop, self._options]
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        await self._supervisor.close()

    def statistics(self) -> RouterStatistics:
        """Return a snapshot."""
        table = self.table
        return RouterStatistics(
            generation=self._supervisor.generation,
            pending=len(table.pending),
            out_of_band=len(table.out_of_band),
            out_of_band_size=table.out_of_band.size,
            duplicates=table.duplicates,
            stale=table.stale,
            parked=table.parked,
            evicted=table.evicted,
            returned=self._returned,
            malformed=self._malformed,
        )

    @property
    def link(self) -> Link | None:
        """The link to publish on, None while there is none."""
        return self._supervisor.link

    def add(self, call: Call) -> None:
        """Register *call*; from now on it is settled at its deadline at the latest.

        Raises:
            UsageError: its task id is pending already.
        """
        try:
            self.table.add(call)
        except ValueError as error:
            raise UsageError(str(error), task_id=call.task_id) from None
        call.waiter = self._loop.create_future()
        if call.deadline is not None and call.deadline < self._timer_at:
            self._schedule()

    def attach(self, call: Call) -> None:
        """Register *call* for a task that was submitted elsewhere."""
        self.table.attach(call)
        self._schedule()

    def leave(self, call: Call) -> None:
        """Let go of *call*: its last reader went. A task that was submitted elsewhere is no longer awaited here."""
        if call.sending is Sending.NOT_OURS:
            self.table.detach(call, self.now())

    def forget(self, task_id: str) -> None:
        """Drop all that is held of a task."""
        call = self.table.forget(task_id)
        if call is not None:
            wake(call)

    async def wait_writable(self, call: Call) -> Link | None:
        """Return a link that takes a publication, as soon as there is one; None once *call* is settled.

        Cancelling the wait leaves *call* to its caller.
        """
        waiting: asyncio.Task[Any] | None = None
        try:
            while call.phase is Phase.PENDING:
                link = self.link
                if link is not None and link.writable:
                    return link
                wait = self._supervisor.wait_link() if link is None else link.wait_writable()
                waiting = self._loop.create_task(wait)
                await asyncio.wait((waiting, call.waiter), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done() and waiting.exception() is not None:
                    self.fail(call, ConnectionLost("the connection is closed", task_id=call.task_id))
                elif not waiting.done():
                    waiting.cancel()
        finally:
            if waiting is not None and not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        return None

    def fail(self, call: Call, error: RPCError) -> None:
        """Settle *call* with *error*, if it is not settled."""
        if self.table.fail(call, error):
            if call.backlog is not None:
                self._keep(call)
            wake(call)

    def close_calls(self, owner: object) -> None:
        """Settle every call of *owner*: it closes. One that another client's stream follows goes over to that.

        Its own streams of other clients' tasks are woken, and find that it is closed.
        """
        for call in [call for call in self.table.pending.values() if call.owner is owner or owner in call.readers]:
            if call.owner is not owner:
                wake(call)
                continue
            heirs = [reader for reader in call.readers if reader is not owner]
            if heirs:
                call.owner = heirs[0]
                wake(call)
                continue
            error = ConnectionLost("the client was closed", task_id=call.task_id, maybe_executed=call.maybe_executed)
            self.fail(call, error)

    async def _setup(self, link: Link, generation: int) -> None:
        names = self._options.names
        queue = names.reply_queue(self._id[:8], generation, secrets.token_hex(_SECRET_BYTES))
        await link.declare(names.requests, names.control, queue)
        await link.consume(queue.name, self._on_reply, no_ack=True, exclusive=True)
        self.reply_to = queue.name

    def _on_lost(self, error: RPCError) -> None:
        """Settle what was under way: nothing of it can come through a reply queue that is gone."""
        for call in list(self.table.pending.values()):
            if call.sending is not Sending.UNSENT:
                self.fail(
                    call,
                    ConnectionLost(
                        f"the connection was lost while the call was under way: {error}",
                        task_id=call.task_id,
                        maybe_executed=True,
                    ),
                )

    def _on_reply(self, delivery: Delivery) -> None:
        properties = delivery.properties
        if properties.reply_to is not None:
            # Whatever its type says: only requests have a reply_to.
            self._on_returned_request(properties)
            return
        try:
            message = decode_state(properties, delivery.body)
        except MalformedMessage as error:
            if not self._malformed:
                logger.warning("a message on the reply queue is no state (later ones are only counted): %s", error)
            self._malformed += 1
            return
        if delivery.oversize:
            self._on_oversize(message, delivery.oversize)
            return
        call = self.table.receive(message, self.now())
        if call is None:
            self._schedule()
        else:
            if call.backlog is not None:
                self._keep(call)
            wake(call)

    def _on_oversize(self, message: StateMessage, size: int) -> None:
        """Settle the call whose answer was skipped for its size."""
        call = self.table.pending.get(message.task_id)
        if call is not None and is_terminal(message.name):
            text = f"the answer's body has {size} bytes, the limit max_size is {self._options.max_size}"
            self.fail(call, PayloadTooLarge(text, task_id=call.task_id, maybe_executed=True))
        else:
            self._malformed += 1

    def _on_returned_request(self, properties: Properties) -> None:
        self._returned += 1
        call = self.table.pending.get(properties.correlation_id or "")
        if call is None or call.sending is Sending.NOT_OURS:
            self.table.duplicates += 1
            return
        self.fail(call, _returned_error(return_reason(properties.headers), call.task_id))

    def _request_settled(self, publication: Publication, outcome: Outcome) -> None:
        """Take the broker's answer to a request."""
        call = self.table.pending.get(publication.properties.correlation_id or "")
        if call is None:
            return
        if outcome is _CONFIRMED:
            call.sending = _SENDING_CONFIRMED
            if call.watchers:
                wake(call)
        elif outcome is Outcome.RETURNED:
            key = publication.routing_key
            self.fail(call, Unroutable(f"no queue is bound for {key!r}", task_id=call.task_id))
        elif outcome is Outcome.REFUSED:
            self.fail(call, Overloaded("the broker refused the request: its queue is full", task_id=call.task_id))
        # A LOST request is settled by `_on_lost`, with the rest of its generation.

    def _keep(self, call: Call) -> None:
        self.table.keep(call, self.now())
        self._schedule()

    def _schedule(self) -> None:
        """Have the timer fire at the earliest deadline."""
        at = self.table.next_deadline()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        for call in self.table.expire(self.now()):
            call.error = DeadlineExceeded(
                "no terminal state came by the deadline" if call.maybe_executed else "the request could not be sent",
                task_id=call.task_id,
                maybe_executed=call.maybe_executed,
            )
            if call.backlog is not None:
                self.table.keep(call, self.now())
            wake(call)
        self._schedule()


def wake(call: Call) -> None:
    """Wake whoever waits for *call*: its end, or its next state."""
    waiter = call.waiter
    if waiter is not None and call.phase is not _PENDING and not waiter.done():
        waiter.set_result(None)
    if call.watchers:
        watchers, call.watchers = call.watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)


def _returned_error(reason: ReturnReason, task_id: str) -> RPCError:
    if reason is ReturnReason.EXPIRED:
        return DeadlineExceeded("the request expired in its queue", task_id=task_id, maybe_executed=False)
    if reason is ReturnReason.DELIVERY_LIMIT:
        return Poisoned("the request passed its queue's delivery limit", task_id=task_id)
    if reason is ReturnReason.QUEUE_FULL:
        return Overloaded("the request was dropped from a full queue", task_id=task_id)
    return Rejected("the request was rejected", task_id=task_id)
