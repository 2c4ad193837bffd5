"""Consumers: keeps a worker consuming from the queues of its services, whatever becomes of queues and channels."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from .errors import RPCError
from .transports.base import Link, Subscription

__all__ = ["Consumers"]

logger = logging.getLogger("aiorpcq.worker")

_WATCH_INTERVAL: Final = 30.0
"""Seconds between two looks of the watchdog."""

_PAUSE_BASE: Final = 0.05
_PAUSE_LIMIT: Final = 5.0
_DOUBLINGS: Final = 10

Declare = Callable[[Link, str], Awaitable[None]]
"""Declares what a service needs."""

Consume = Callable[[Link, str, Callable[[RPCError], None]], Awaitable[Subscription]]
"""Consumes from the queue of a service; the last argument is the subscription's `on_cancelled`."""


class Consumers:
    """The consumers that a worker should have on the present link, one for each service, and those that it has.

    One that the broker ends is made again at once, then after 0.05 s and twice that each time up to 5 s. A watchdog
    looks every *interval* seconds whether the broker agrees: it declares what each service needs again, which brings
    back an exchange or binding that somebody deleted, and consumes again where a queue has no consumer at all.
    *restored* only grows.
    """

    def __init__(
        self, services: Iterable[str], declare: Declare, consume: Consume, queue_of: Callable[[str], str]
    ) -> None:
        self._services = tuple(services)
        self._declare = declare
        self._consume = consume
        self._queue_of = queue_of
        self._interval = _WATCH_INTERVAL
        self._link: Link | None = None
        self._watched: Link | None = None  # the same, once `start` is over
        self._subscriptions: dict[str, Subscription] = {}
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.restored = 0

    @property
    def missing(self) -> list[str]:
        """The services that are not consumed."""
        return [service for service in self._services if service not in self._subscriptions]

    async def start(self, link: Link) -> None:
        """Consume on a new link.

        Raises:
            RPCError: one of the queues cannot be consumed.
        """
        self._link, self._watched = link, None
        self._subscriptions.clear()
        for service in self._services:
            await self._declare(link, service)
        for service in self._services:  # where one cannot be declared nothing is run of another
            if not await self._begin(link, service):
                self._restore(service)
        self._watched = self._link
        if self._watchdog is None and not self._stopping.is_set():
            self._watchdog = asyncio.get_running_loop().create_task(self._watch(), name="aiorpcq consumer watchdog")

    def lose(self) -> None:
        """Forget the link: it is lost."""
        self._link = self._watched = None
        self._subscriptions.clear()
        for task in self._restoring.values():
            task.cancel()

    async def stop(self) -> None:
        """Cancel every consumer; nothing is made again from here on.

        One that is being made is cancelled when it stands: what is interrupted half-way would go on delivering.
        """
        self._stopping.set()
        await asyncio.gather(*self._restoring.values(), return_exceptions=True)
        for subscription in list(self._subscriptions.values()):
            await subscription.cancel()
        self._subscriptions.clear()

    async def close(self) -> None:
        """Stop the tasks, whatever became of the consumers."""
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        self._stopping.set()
        tasks = [*self._restoring.values()]
        if self._watchdog is not None:
            tasks.append(self._watchdog)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watchdog = None

    async def look(self) -> None:
        """Compare the consumers there should be with those that there are, and mend the difference."""
        link = self._watched
        for service in self._services:
            if link is None or link is not self._watched or link.lost.done() or not link.writable:
                return  # nothing is declared on a connection that the broker has blocked
            subscription = self._subscriptions.get(service)
            if subscription is None:
                self._restore(service)
                continue
            await self._declare(link, service)
            queue = await link.inspect(self._queue_of(service))
            # One that was made meanwhile is not the one that the broker did not know of.
            if (queue is None or not queue.consumers) and self._subscriptions.get(service) is subscription:
                logger.warning("nothing consumes from queue %r; consuming again", self._queue_of(service))
                del self._subscriptions[service]
                self._restore(service)

    async def _begin(self, link: Link, service: str) -> bool:
        """Consume; return False where the broker ended the consumer at once."""
        ended = False
        subscription: Subscription | None = None

        def on_cancelled(error: RPCError) -> None:
            nonlocal ended
            ended = True
            logger.warning("the consumer of service %r was ended: %s", service, error)
            if subscription is not None and self._subscriptions.get(service) is subscription:
                del self._subscriptions[service]
                self._restore(service)

        subscription = await self._consume(link, service, on_cancelled)
        if ended:
            return False
        if self._stopping.is_set() or self._link is not link:
            await subscription.cancel()
        else:
            self._subscriptions[service] = subscription
        return True

    def _restore(self, service: str) -> None:
        restoring = self._restoring.get(service)
        if not self._stopping.is_set() and (restoring is None or restoring.done()):
            task = asyncio.get_running_loop().create_task(self._try(service), name=f"aiorpcq consume {service}")
            self._restoring[service] = task

    async def _try(self, service: str) -> None:
        """Consume again until that succeeds, the link is lost, which brings the next try, or the worker stops."""
        link, failures = self._link, 0
        while link is not None and link is self._link and not link.lost.done() and not self._stopping.is_set():
            try:
                await self._declare(link, service)
                if await self._begin(link, service):
                    self.restored += 1
                    return
            except RPCError as error:
                logger.warning("cannot consume for service %r: %s", service, error)
            if not link.lost.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_PAUSE_LIMIT, _PAUSE_BASE * 2**failures)):
                        await self._stopping.wait()
            failures = min(failures + 1, _DOUBLINGS)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.look()
            except RPCError as error:
                logger.warning("the watchdog could not look: %s", error)
