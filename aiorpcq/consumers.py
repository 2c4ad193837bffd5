"""Consumers: keeps a worker consuming from the queues of its services, whatever becomes of queues and channels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from .errors import ConnectionLost, RPCError
from .transports.base import Link, Subscription

__all__ = ["Consumers"]

logger = logging.getLogger("aiorpcq.worker")

WATCH_INTERVAL: Final = 30.0
"""Seconds between two looks of the watchdog."""

_PAUSE_BASE: Final = 0.05
_PAUSE_LIMIT: Final = 5.0

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
        self._interval = WATCH_INTERVAL
        self._link: Link | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._stopped = False
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
        self._link = link
        self._subscriptions.clear()
        for service in self._services:
            await self._begin(link, service)
        if self._watchdog is None and not self._stopped:
            self._watchdog = asyncio.get_running_loop().create_task(self._watch(), name="aiorpcq consumer watchdog")

    def lose(self) -> None:
        """Forget the link: it is lost."""
        self._link = None
        self._subscriptions.clear()
        for task in self._restoring.values():
            task.cancel()

    async def stop(self) -> None:
        """Cancel every consumer; nothing is made again from here on."""
        await self._end_tasks()
        for subscription in list(self._subscriptions.values()):
            await subscription.cancel()
        self._subscriptions.clear()

    async def close(self) -> None:
        """Stop the tasks, whatever became of the consumers."""
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        self._stopped = True
        tasks = [*self._restoring.values()]
        if self._watchdog is not None:
            tasks.append(self._watchdog)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watchdog = None

    async def look(self) -> None:
        """Compare the consumers there should be with those that there are, and mend the difference."""
        link = self._link
        for service in self._services:
            if link is None or link is not self._link or link.lost.done() or not link.writable:
                return  # nothing is declared on a connection that the broker has blocked
            if service not in self._subscriptions:
                self._restore(service)
                continue
            await self._declare(link, service)
            queue = await link.inspect(self._queue_of(service))
            if queue is None or not queue.consumers:
                logger.warning("nothing consumes from queue %r; consuming again", self._queue_of(service))
                self._subscriptions.pop(service, None)
                self._restore(service)

    async def _begin(self, link: Link, service: str) -> None:
        def on_cancelled(error: RPCError) -> None:
            if self._link is link and self._subscriptions.get(service) in (subscription, None):
                self._subscriptions.pop(service, None)
                logger.warning("the consumer of service %r was ended: %s", service, error)
                self._restore(service)

        subscription: Subscription | None = None
        await self._declare(link, service)
        subscription = await self._consume(link, service, on_cancelled)
        if self._link is link:
            self._subscriptions[service] = subscription

    def _restore(self, service: str) -> None:
        if not self._stopped and service not in self._restoring:
            task = asyncio.get_running_loop().create_task(self._try(service), name=f"aiorpcq consume {service}")
            self._restoring[service] = task
            task.add_done_callback(lambda _: self._restoring.pop(service, None))

    async def _try(self, service: str) -> None:
        link, failures = self._link, 0
        while link is not None and link is self._link and not link.lost.done():
            try:
                await self._begin(link, service)
            except ConnectionLost:
                return  # the next link brings the next try
            except RPCError as error:
                logger.warning("cannot consume for service %r: %s", service, error)
                await asyncio.sleep(min(_PAUSE_LIMIT, _PAUSE_BASE * 2**failures))
                failures = min(failures + 1, 10)
            else:
                self.restored += 1
                return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.look()
            except RPCError as error:
                logger.warning("the watchdog could not look: %s", error)
