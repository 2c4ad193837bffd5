"""Recovery: what is said to the broker beside requests, once there is a link that takes it.

Requests that may have been lost and may be sent twice, cancels that found no link, claims for the calls whose answers
were to go to a reply queue that is gone, and questions after the calls without a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Final, Protocol

from ..deadline import RETURN_GRACE
from ..errors import RPCError
from ..protocol.calls import Call, Phase, Sending
from ..protocol.claims import ClaimTable
from ..protocol.control import Answer, encode_command
from ..protocol.messages import History, Outcome, Publication
from ..protocol.retries import DELAY_STEPS
from ..protocol.topology import TO_ALL, Names
from ..protocol.watches import WatchTable
from ..protocol.wire import republish
from ..transports.base import Link
from .endings import lost_error, unknown_error
from .waking import wake

__all__ = ["Recovery"]

logger = logging.getLogger("aiorpcq.client")

_OUTBOX: Final = 16_384
_PATIENCE: Final = 30.0


class _Asked(Protocol):
    """Calls that workers and queues are asked after."""

    def heard(self, task_ids: Iterable[str], now: float) -> None: ...

    def silent(self, now: float, patience: float) -> list[Call]: ...


class Recovery:
    """Keeps calls alive over the loss of a connection, and ends those that nobody knows and no deadline will end.

    One task sends what there is to send; it is made when there is something first. Of the commands that wait for a link
    the newest 16,384 are kept. A call without a deadline is given up after *patience* seconds of claims in which no
    worker said to hold it and its queue, each time it was asked, was empty; where its connection was not lost, after
    four times as long.

    *pending* are all calls; *settled* takes the broker's answer to a request that was sent again, *fail* settles a
    call.
    """

    def __init__(
        self,
        names: Names,
        identity: str,
        pending: Mapping[str, Call],
        settled: Callable[[Publication, Outcome], None],
        fail: Callable[[Call, RPCError], None],
        loop: asyncio.AbstractEventLoop,
        rng: Random,
    ) -> None:
        self._names = names
        self._exchange = names.control.name
        self._inquiry = f"{identity}-held"
        self._pending = pending
        self._settled = settled
        self._fail = fail
        self._loop = loop
        self._rng = rng
        self._link: Link | None = None
        self._reply_to = ""
        self._origin: str | None = None
        self._claims = ClaimTable()
        self._watches = WatchTable()
        self._again: deque[Call] = deque()
        self._outbox: deque[Publication] = deque(maxlen=_OUTBOX)
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.patience = _PATIENCE
        self.claimed = 0
        self.republished = 0

    @property
    def resumed(self) -> int:
        """Calls that were answered after the connection they were sent on was lost."""
        self._claims.drop_settled()
        return self._claims.resumed

    def connected(self, link: Link, reply_to: str, origin: str | None) -> None:
        """Go on with *link*: claim what is to be claimed for the reply queue *reply_to*.

        *origin* is the name that proves whose calls they are; None where answers are direct, and nothing can be asked.
        """
        self._link, self._reply_to, self._origin = link, reply_to, origin
        self._claims.start(self._loop.time())
        if any(call.deadline is None for call in self._pending.values()):
            self.watch()
        if self._claims.due is not None or self._again or self._outbox:
            self._wake()

    def lost(self) -> None:
        """Take in that the link is lost."""
        self._link = None
        self._claims.stop()
        self._watches.stop()

    def claim(self, call: Call) -> None:
        """Have *call*, which has an origin, claimed with the next link."""
        self._claims.add(call)

    def claim_soon(self, call: Call) -> None:
        """Have *call*, which has an origin, claimed on this link too, and again until it is settled."""
        self._claims.add(call)
        if self._link is not None:
            self._claims.hasten(self._loop.time())
            self._wake()

    def watch(self) -> None:
        """Have calls without a deadline asked after from time to time: there is one."""
        if self._link is not None and self._origin is not None and self._watches.due is None:
            self._watches.start(self._loop.time(), self.patience)
            self._wake()

    def on_gap(self, calls: Iterable[Call], error: RPCError) -> None:
        """Have the answers to *calls* sent again, which may have been lost with a channel on a link that stands.

        A call that is not to be claimed ends. One that is not confirmed was not sent over that channel, or is lost.
        """
        for call in calls:
            if call.sending is not Sending.CONFIRMED:
                continue
            if call.origin is None:
                self._fail(call, lost_error(call, str(error)))
            else:
                self.claim_soon(call)

    def repeat(self, call: Call) -> None:
        """Publish the request of *call* again, as soon as a link takes it."""
        self._again.append(call)
        self._wake()

    def send(self, publication: Publication) -> None:
        """Publish a command, at once or as soon as a link takes it."""
        publication.settled = self._command_settled
        link = self._link
        if link is not None and link.writable and not self._outbox:
            link.publish(publication)
        else:
            self._outbox.append(publication)
            self._wake()

    def on_held(self, answer: Answer) -> bool:
        """Take in which tasks of a claim a worker holds; return False where nobody asked."""
        if answer.id != self._inquiry or not isinstance(answer.value, list):
            return False
        held = [task_id for task_id in answer.value if isinstance(task_id, str)]
        self._claims.heard(held, self._loop.time())
        self._watches.heard(held, self._loop.time())
        for task_id in held:
            call = self._pending.get(task_id)
            if call is not None and call.sending is Sending.LOST:
                call.sending = Sending.CONFIRMED  # who holds it says no less than the confirm would have
                wake(call)
        return True

    async def close(self) -> None:
        """Send nothing more."""
        self._is_closed = True
        self.lost()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _command_settled(self, publication: Publication, outcome: Outcome) -> None:
        if outcome is Outcome.LOST:
            self._outbox.append(publication)
            self._wake()

    def _wake(self) -> None:
        self._work.set()
        if self._task is None and not self._is_closed:
            self._task = self._loop.create_task(self._run(), name="aiorpcq client recovery")

    async def _run(self) -> None:
        while True:
            self._work.clear()
            link = self._link
            if link is not None:
                try:
                    await self._perform(link)
                except RPCError as error:  # the link was lost meanwhile, or may not be asked about a queue
                    logger.debug("claims are interrupted: %s", error)
                except Exception:  # without this task, calls without a deadline would wait for ever
                    logger.exception("claims are interrupted")
            due = [at for at in (self._claims.due, self._watches.due) if at is not None]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._work.wait()

    async def _perform(self, link: Link) -> None:
        """Send all that is to be sent by now, as long as *link* stands."""
        while self._again and await self._is_usable(link):
            call = self._again.popleft()
            try:
                self._publish_again(link, call)
            except Exception as error:  # one that cannot be sent again is not to keep the others
                logger.exception("the request of task %s cannot be sent again", call.task_id)
                if call.origin is None and call.phase is Phase.PENDING:
                    self._fail(call, lost_error(call, f"it cannot be sent again: {error}"))
        while self._outbox and await self._is_usable(link):
            link.publish(self._outbox.popleft())
        now = self._loop.time()
        if self._watches.due is not None and self._watches.due <= now:
            await self._ask_after_watched(link, now)
        if self._claims.due is not None and self._claims.due <= now:
            await self._claim(link, now)

    async def _claim(self, link: Link, now: float) -> None:
        claims = self._claims
        for claim in claims.take(self._reply_to, now, self._rng.random(), self._inquiry):
            if not await self._is_usable(link):
                return
            link.publish(encode_command(claim, self._exchange, TO_ALL))
            self.claimed += 1
        await self._ask_queues(link, claims, claims.unbounded, "the connection was lost, and ")

    async def _ask_after_watched(self, link: Link, now: float) -> None:
        assert self._origin is not None
        calls = self._pending.items()
        unbounded = [call for task_id, call in calls if call.deadline is None and task_id not in self._claims]
        watches, chance = self._watches, self._rng.random()
        for claim in watches.take(unbounded, self._origin, now, self.patience, chance, self._inquiry):
            if not await self._is_usable(link):
                return
            link.publish(encode_command(claim, self._exchange, TO_ALL))
        await self._ask_queues(link, watches, watches.asked, "")

    async def _is_usable(self, link: Link) -> bool:
        """Wait until *link* takes a publication; return False where it is lost."""
        if not link.writable:
            await link.wait_writable()
        return self._link is link and not link.lost.done()

    def _publish_again(self, link: Link, call: Call) -> None:
        publication = call.publication
        if call.phase is not Phase.PENDING or call.sending is not Sending.LOST or publication is None:
            return
        remaining: float | None = None
        if call.deadline is not None and publication.properties.expiration is not None:
            remaining = call.deadline - RETURN_GRACE - self._loop.time()
            if remaining <= 0:
                return
        link.publish(
            republish(
                publication.properties,
                publication.body,
                publication.exchange,
                publication.routing_key,
                attempt=1,
                history=History(origin=call.origin),
                reply_to=None if call.origin is None else self._reply_to,
                expiration=remaining,
                settled=self._settled,
            )
        )
        call.sending = Sending.SENT
        call.repeated = True
        self.republished += 1

    async def _ask_queues(self, link: Link, asked: _Asked, calls: Iterable[Call], before: str) -> None:
        """Ask the queues of *calls*, which are without a deadline, and give up those that nobody has."""
        by_service: dict[str, list[str]] = {}
        for call in calls:
            if call.route is not None:  # None of a task that was submitted elsewhere
                by_service.setdefault(call.route.service, []).append(call.task_id)
        for service, task_ids in by_service.items():
            if not await self._is_usable(link):
                return
            status = await link.inspect(self._names.service_queue(service).name)
            if status is not None and status.messages:
                asked.heard(task_ids, self._loop.time())
        silent = self._silent(asked)
        if silent and await self._any_delayed(link):
            asked.heard((call.task_id for call in silent), self._loop.time())
            return
        if silent:
            silent = self._silent(asked)  # a worker may have answered meanwhile
        for call in silent:
            self._fail(call, unknown_error(call, before))

    def _silent(self, asked: _Asked) -> list[Call]:
        return [call for call in asked.silent(self._loop.time(), self.patience) if call.route is not None]

    async def _any_delayed(self, link: Link) -> bool:
        """Tell whether a request waits, in a queue for delays, to be run again; whose it is cannot be seen."""
        for step in DELAY_STEPS:
            _, queue, _ = self._names.delay(step)
            status = await link.inspect(queue.name)
            if status is not None and status.messages:
                return True
        return False
