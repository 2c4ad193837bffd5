"""What may come before a call is made, and after it failed: room to wait for, workers to ask for, another try."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from .deadline import RETURN_GRACE
from .errors import ConnectFailed, ConnectionLost, DeadlineExceeded, NoWorkers, RPCError, Unroutable
from .options import CallOptions
from .protocol.retries import call_delay
from .requests import deadline_of
from .router import ReplyRouter
from .session import Route, Session
from .transports.base import QueueStatus

__all__ = ["attempt"]

T = TypeVar("T")


async def attempt(
    session: Session, options: CallOptions, method: str, perform: Callable[[CallOptions], Awaitable[T]]
) -> T:
    """Make a call by *perform*, and again as often as *options* allow, all within one deadline.

    *perform* gets the options of one plain try: its timeout is what is left, and it does not try again itself. It is
    started as soon as there is room, where the session waits for that, and registers its call before it first awaits.
    """
    router = session.router()
    route = session.route(method)
    deadline = deadline_of(options, router.now())
    until = None if deadline is None else deadline - RETURN_GRACE
    made = 0
    executed = False  # maybe, by one of the tries; only an idempotent method is tried again then
    while True:
        try:
            if options.require_workers:
                await _check_workers(session, router, route, until)
            if session.waits:
                await router.waitlist.enter(session, session.max_pending, until)
            remaining = None if until is None else max(0.0, until - router.now())
            try:
                if session.is_closed:
                    raise ConnectionLost("the client was closed")
                value = await perform(replace(options, timeout=remaining, retries=0, require_workers=False))
            finally:
                router.waitlist.admit()  # it may have failed before it registered its call, whose end would do this
        except RPCError as error:
            executed = error.maybe_executed = executed or error.maybe_executed
            if session.is_closed:
                raise
            remaining = None if until is None else until - router.now()
            idempotent = options.idempotent or route.idempotent
            budget, rng = session.retry_budget, session.rng
            delay = call_delay(error, options.retries, made, remaining, budget, rng, idempotent)
            if delay is None:
                raise
        else:
            if options.retries:
                session.retry_budget.put()
            return value
        made += 1
        router.retried += 1
        if await session.wait(timeout=delay):
            raise ConnectionLost("the client was closed", maybe_executed=executed)


async def _check_workers(session: Session, router: ReplyRouter, route: Route, until: float | None) -> None:
    """Raise where nothing consumes from the service's queue.

    A broker that does not let this user ask is taken at its best.
    """
    queue = session.service_queue(route.service)
    asking = asyncio.ensure_future(_inspect(router, queue))
    try:
        timeout = None if until is None else max(0.0, until - router.now())
        if await session.wait(asking, timeout=timeout):
            raise ConnectionLost("the client was closed")
        if not asking.done():
            raise DeadlineExceeded("the broker did not say whether there are workers", maybe_executed=False)
        status = asking.result()
    except ConnectFailed:
        return
    finally:
        if not asking.done():
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    if status is None:
        raise Unroutable(f"no worker of service {route.service!r} has run on this broker: there is no queue {queue!r}")
    if status.consumers == 0:
        raise NoWorkers(f"nothing consumes from the queue {queue!r}")


async def _inspect(router: ReplyRouter, queue: str) -> QueueStatus | None:
    """Ask about *queue* on this link, or the next where it is lost meanwhile."""
    while True:
        link = await router.wait_link()
        if not link.writable:
            await link.wait_writable()  # a broker that has blocked us does not answer
        try:
            return await link.inspect(queue)
        except ConnectionLost:
            if not link.lost.done():
                raise
            await asyncio.sleep(0)  # until its loss is noticed, it is still the link that there is
