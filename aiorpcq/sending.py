"""Sending: how a call waits for a link that takes its request, and until somebody has it."""

from __future__ import annotations

import asyncio
from typing import Any

from .codec import EncodedBody
from .errors import ConnectionLost
from .options import CallOptions
from .protocol.calls import Call, Phase, Sending
from .requests import publish
from .router import ReplyRouter
from .session import Route, Session
from .states import PENDING
from .task import next_change
from .transports.base import Link

__all__ = ["send", "wait_writable"]


async def send(
    session: Session,
    options: CallOptions,
    router: ReplyRouter,
    call: Call,
    route: Route,
    body: EncodedBody,
    *,
    expects_reply: bool,
) -> None:
    """Publish the request of *call* and wait until the broker or a worker has it, or *call* is settled."""
    link = router.link
    if link is None or not link.writable:
        link = await wait_writable(router, call)
    if link is not None:
        publish(session, options, router, link, call, route, body, router.reply_to if expects_reply else None)
    while call.phase is Phase.PENDING and call.sending is not Sending.CONFIRMED and call.name == PENDING:
        await next_change(call)


async def wait_writable(router: ReplyRouter, call: Call) -> Link | None:
    """Return a link that takes a publication, as soon as there is one; None once *call* is settled.

    Cancelling the wait leaves *call* to its caller.
    """
    waiting: asyncio.Task[Any] | None = None
    try:
        while call.phase is Phase.PENDING:
            link = router.link
            if link is not None and link.writable:
                return link
            wait = router.wait_link() if link is None else link.wait_writable()
            waiting = asyncio.get_running_loop().create_task(wait)
            await asyncio.wait((waiting, call.waiter), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done() and waiting.exception() is not None:
                router.fail(call, ConnectionLost("the connection is closed", task_id=call.task_id))
            elif not waiting.done():
                waiting.cancel()
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    return None
