"""ReplyRouter: owns the reply queue of one event loop, and settles the calls whose replies come through it.

One router serves all clients of an event loop that use the same broker URLs and the same options. Nothing is published
before its reply queue is consumed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from random import Random
from typing import Final

from ..errors import ConnectionLost, PayloadTooLarge, RPCError, TaskRevoked, UsageError
from ..health import Health
from ..protocol.calls import Call, CallTable, Phase, Sending, TaskIds
from ..protocol.control import CancelMode, decode_answer
from ..protocol.messages import Outcome, Properties, Publication, StateMessage
from ..protocol.wire import MalformedMessage, decode_state
from ..states import STARTED, is_terminal
from ..transports.base import Delivery, Link
from ..transports.registry import make_transports
from ..transports.supervisor import Supervisor
from .cancellation import Cancellation
from .endings import deadline_error, lost_error, refused_error, returned_error
from .inquiries import Inquiries, WorkerInfo
from .options import RouterOptions
from .recovery import Recovery
from .replies import ReplyConsumer
from .statistics import RouterStatistics
from .waitlist import Waitlist
from .waking import wake

__all__ = ["ReplyRouter"]

logger = logging.getLogger("aiorpcq.client")

_ID_BYTES: Final = 16

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_PENDING: Final = Phase.PENDING
_CONFIRMED: Final = Outcome.CONFIRMED
_SENDING_CONFIRMED: Final = Sending.CONFIRMED


class ReplyRouter:
    """The shell around `CallTable`: futures, timers and the link.

    Get one with `sharing.acquire`, give it back with `sharing.release`. *rng* spreads the claims of many clients over
    time.
    """

    def __init__(self, options: RouterOptions, loop: asyncio.AbstractEventLoop, rng: Random | None = None) -> None:
        self._options = options
        self._loop = loop
        self._id = secrets.token_hex(_ID_BYTES)
        self.ids = TaskIds(self._id)
        self.table = CallTable(self.ids, options.out_of_band)
        self.now = loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_closed = False
        self._returned = 0
        self._malformed = 0
        self._orphaned = 0
        self.retried = 0
        self.request_settled = self._request_settled  # bound once: one is handed over with every request
        self.reply_to = ""
        self.origin: str | None = None
        transports = make_transports(options.urls, max_size=options.max_size, name="aiorpcq client")
        self._supervisor = Supervisor(transports, self._setup, self._on_lost, logger)
        self._lost: tuple[float, RPCError] | None = None
        self.waitlist = Waitlist(self.table.pending)
        self._waiters = self.waitlist.waiters  # one look less for every answer
        names, identity, pending = options.names, self._id, self.table.pending
        settled, chance = self.request_settled, Random() if rng is None else rng
        self.recovery = Recovery(names, identity, pending, settled, self.fail, loop, chance)
        self._cancellation = Cancellation(names, self.recovery.send, self.now)
        self._cancelled = self._cancellation.ring.cancels  # and here
        self._inquiries = Inquiries(identity, names.control.name, self.recovery.send)
        self._replies = ReplyConsumer(options, identity, self._on_reply, self._on_gap, self._supervisor.reset, loop)

    def __repr__(self) -> str:
        return f"<ReplyRouter of {self._supervisor.address} with {len(self.table.pending)} pending>"

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectFailed: the broker cannot be reached or refuses what is needed.
        """
        await self._supervisor.start()

    async def close(self) -> None:
        """Disconnect; there are no calls any more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self.recovery.close()
        await self._replies.close()
        await self._supervisor.close()

    def statistics(self) -> RouterStatistics:
        """Return a snapshot."""
        table = self.table
        return RouterStatistics(
            generation=self._supervisor.generation,
            pending=len(table.pending),
            waiting=len(self.waitlist),
            out_of_band=len(table.out_of_band),
            out_of_band_size=table.out_of_band.size,
            duplicates=table.duplicates,
            late=table.late,
            stale=table.stale,
            parked=table.parked,
            orphaned=table.orphaned + self._orphaned,
            evicted=table.evicted,
            returned=self._returned,
            malformed=self._malformed,
            claims=self.recovery.claimed,
            resumed=self.recovery.resumed,
            republished=self.recovery.republished,
            cancelled=self._cancellation.sent,
            retried=self.retried,
        )

    def health(self) -> Health:
        """Tell whether a call that is made now is sent now, and its answer would be heard."""
        link = self.link
        if link is None:
            address, lost = self._supervisor.address, self._lost
            if lost is None:
                return Health(False, f"not connected to {address} yet")
            at, error = lost
            return Health(False, f"not connected to {address} for {self.now() - at:.1f} s: {error}")
        if link.lost.done():
            return Health(False, f"not connected to {self._supervisor.address} any more: {link.lost.result()}")
        if not self._replies.is_consumed:
            return Health(False, f"the reply queue {self.reply_to} is not consumed")
        if not link.writable:
            return Health(False, "the broker has blocked the connection, or does not read as fast as we write")
        return Health(True)

    async def workers(self, timeout: float) -> list[WorkerInfo]:
        """Return what the workers that answer within *timeout* seconds say of themselves."""
        return await self._inquiries.workers(self.reply_to, timeout)

    @property
    def link(self) -> Link | None:
        """The link to publish on, None while there is none."""
        return self._supervisor.link

    async def wait_link(self) -> Link:
        """Return the link, or the next one as soon as it is there.

        Raises:
            ConnectionLost: the router is closed.
        """
        return await self._supervisor.wait_link()

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
        if call.deadline is None:
            self.recovery.watch()
        elif call.deadline < self._timer_at:
            self._schedule()

    def attach(self, call: Call) -> None:
        """Register *call* for a task that was submitted elsewhere.

        Where its answers come through a durable reply queue they are claimed: a restart of the broker drops them there.
        """
        self.table.attach(call)
        self._schedule()
        if self._options.reply_queue == "durable" and call.phase is _PENDING and self.origin is not None:
            call.origin = self.origin
            self.recovery.claim_soon(call)

    def leave(self, call: Call) -> None:
        """Let go of *call*: its last reader went. A task that was submitted elsewhere is no longer awaited here."""
        if call.sending is Sending.NOT_OURS:
            self.table.detach(call, self.now())
            self._schedule()
            self._admit()

    def forget(self, task_id: str) -> None:
        """Drop all that is held of a task."""
        call = self.table.forget(task_id)
        if call is not None:
            wake(call)
            self._admit()

    def end(self, call: Call) -> None:
        """Let go of *call*, which no answer comes for."""
        self.table.end(call)
        self._admit()

    def give_up(self, call: Call, *, cancel: bool) -> None:
        """Let go of *call*, whose caller went away; with *cancel* its task is stopped, if it was sent."""
        if cancel and call.phase is _PENDING and call.sending is not Sending.UNSENT:
            self._send_cancel(call, "killnowait")
        self.table.abandon(call)
        self._admit()

    def cancel(self, call: Call, mode: CancelMode) -> None:
        """Revoke the task of *call*, if it has not ended. With "killnowait", or not sent yet, it ends here at once."""
        if call.phase is not _PENDING:
            return
        is_unsent = call.sending is Sending.UNSENT
        if not is_unsent:
            self._send_cancel(call, mode)
        if is_unsent or mode == "killnowait":
            error = TaskRevoked("the task was revoked", task_id=call.task_id, maybe_executed=call.maybe_executed)
            self.fail(call, error)

    def cancel_unknown(self, task_id: str, mode: CancelMode, deadline: float | None) -> None:
        """Revoke a task that was submitted with this reply queue, and not by a call that is known here."""
        self._cancellation.cancel(task_id, self.reply_to, mode, service=None, deadline=deadline)

    def fail(self, call: Call, error: RPCError) -> None:
        """Settle *call* with *error*, if it is not settled."""
        if self.table.fail(call, error):
            if call.backlog is not None:
                self._keep(call)
            wake(call)
            self._admit()

    def close_calls(self, owner: object) -> None:
        """Settle every call of *owner*: it closes. One that another client's stream follows goes over to that.

        Its own streams of other clients' tasks are woken, and find that it is closed.
        """
        self.waitlist.close(owner)
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

    def _send_cancel(self, call: Call, mode: CancelMode) -> None:
        if self.origin is None:
            return  # in direct mode nobody but the broker knows the name that would prove whose task it is
        service = None if call.route is None else call.route.service
        origin = call.origin or self.origin
        self._cancellation.cancel(call.task_id, origin, mode, service=service, deadline=call.deadline)

    def _admit(self) -> None:
        if self._waiters:
            self.waitlist.admit()

    async def _setup(self, link: Link, generation: int) -> None:
        await self._replies.open(link, generation)
        self.reply_to, self.origin = self._replies.name, self._replies.origin
        self.recovery.connected(link, self.reply_to, self.origin)

    def _on_lost(self, error: RPCError) -> None:
        """Settle what can no longer be answered; what can be is claimed with the next link."""
        self._lost = self.now(), error
        self._replies.lost()
        self.recovery.lost()
        for call in list(self.table.pending.values()):
            if call.sending is Sending.UNSENT:
                continue
            if call.sending is Sending.SENT:
                self._on_request_lost(call, str(error))
            elif call.origin is None and call.publication is None and call.sending is not Sending.NOT_OURS:
                self.fail(call, lost_error(call, str(error)))
            if call.origin is not None and call.phase is _PENDING:
                self.recovery.claim(call)

    def _on_gap(self, error: RPCError) -> None:
        self.recovery.on_gap(list(self.table.pending.values()), error)

    def _on_request_lost(self, call: Call, reason: str) -> None:
        """Take in that the broker may not have the request of *call*."""
        call.sending = Sending.LOST
        if call.publication is not None:
            self.recovery.repeat(call)
        elif call.origin is None:
            self.fail(call, lost_error(call, reason))

    def _on_reply(self, delivery: Delivery) -> None:
        properties = delivery.properties
        if properties.reply_to is not None:
            # Whatever its type says: only requests have a reply_to.
            self._on_returned_request(properties)
            return
        try:
            message = decode_state(properties, delivery.body)
        except MalformedMessage as error:
            self._on_other(delivery, error)
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
            if self._waiters:
                self.waitlist.admit()
        if self._cancelled and message.name == STARTED:
            self._cancellation.on_started(message)

    def _on_other(self, delivery: Delivery, error: MalformedMessage) -> None:
        """Take what is no state: an answer of a worker to what it was asked, or nothing that we know."""
        try:
            answer = decode_answer(delivery.properties, delivery.body)
        except MalformedMessage:
            if not self._malformed:
                logger.warning("a message on the reply queue is no state (later ones are only counted): %s", error)
            self._malformed += 1
            return
        is_expected = self.recovery.on_held(answer) if answer.question == "held" else self._inquiries.receive(answer)
        if not is_expected and answer.question != "ping":  # a worker that looks for its caller pings unasked
            self._orphaned += 1

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
        self.fail(call, returned_error(call, properties, repeated=call.repeated))

    def _request_settled(self, publication: Publication, outcome: Outcome) -> None:
        """Take the broker's answer to a request."""
        call = self.table.pending.get(publication.properties.correlation_id or "")
        if call is None:
            return
        if outcome is _CONFIRMED:
            call.sending = _SENDING_CONFIRMED
            if call.watchers:
                wake(call)
        elif outcome is Outcome.LOST:
            # The link may stand: where the broker closes its channel, that alone is replaced.
            if call.sending is Sending.SENT:
                self._on_request_lost(call, "its channel was closed")
                if call.origin is not None and call.phase is _PENDING:
                    self.recovery.claim_soon(call)  # its answer may be lost as well, or nobody may have it
        else:
            self.fail(call, refused_error(call, publication, outcome, repeated=call.repeated))

    def _keep(self, call: Call) -> None:
        self.table.keep(call, self.now())
        self._schedule()

    def _schedule(self) -> None:
        """Have the timer fire at the earliest deadline; not once this is closed, or a stream is left after the loop."""
        if self._is_closed or self._loop.is_closed():
            return
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
            call.error = deadline_error(call)
            if call.backlog is not None and call.sending is not Sending.NOT_OURS:  # those are parked already
                self.table.keep(call, self.now())
            wake(call)
        self._admit()
        self._schedule()
