"""From a call to its request, published on a link."""

from __future__ import annotations

import time
from typing import Final

from .codec import EncodedBody
from .deadline import RETURN_GRACE, current_lineage
from .errors import DeadlineExceeded, Overloaded
from .options import CallOptions
from .protocol.calls import Backlog, Call, Sending
from .protocol.messages import Request
from .router import ReplyRouter
from .session import Route, Session
from .transports.base import Link

__all__ = ["check_room", "deadline_of", "new_call", "publish"]

_SENT: Final = Sending.SENT  # a global: in Python 3.11 a member costs four times as much to look up on its class


def deadline_of(options: CallOptions, now: float) -> float | None:
    """Return the deadline of a call made *now*, with the grace for a request that is returned."""
    timeout, lineage = options.timeout, current_lineage.get()
    if lineage is None or lineage.deadline is None:
        return None if timeout is None else now + timeout + RETURN_GRACE
    inherited = lineage.deadline + RETURN_GRACE
    return inherited if timeout is None else min(inherited, now + timeout + RETURN_GRACE)


def check_room(session: Session, router: ReplyRouter) -> None:
    """Raise `Overloaded` where no call more may be pending; a place that a waiting call was given is taken."""
    waitlist = router.waitlist
    if session.waits and waitlist.take_grant():
        return
    taken = len(router.table.pending) + waitlist.admitted
    if taken >= session.max_pending:
        raise Overloaded(f"{taken} calls are pending on this connection, max_pending is {session.max_pending}")


def new_call(session: Session, options: CallOptions, router: ReplyRouter, backlog: Backlog | None) -> Call:
    """Register a call; from here on it is settled at its deadline at the latest.

    Raises:
        Overloaded: too many are pending.
        DeadlineExceeded: the call that it is made in has no time left.
        UsageError: its task id is pending already.
    """
    check_room(session, router)
    now = router.now()
    deadline = deadline_of(options, now)
    task_id = options.task_id
    if deadline is not None and deadline - RETURN_GRACE < now:
        raise DeadlineExceeded("the deadline it inherits is past", task_id=task_id, maybe_executed=False)
    if task_id is None:
        call = Call(router.ids.new(), session, deadline, backlog)
    else:
        call = Call(task_id, session, deadline, backlog, not router.ids.made(task_id))
    router.add(call)
    return call


def publish(
    session: Session,
    options: CallOptions,
    router: ReplyRouter,
    link: Link,
    call: Call,
    route: Route,
    body: EncodedBody,
    reply_to: str | None,
) -> None:
    """Publish the request of *call* on *link*."""
    routing_key, name, _, idempotent = route
    data, content_type, content_encoding = body
    deadline = expiration = None
    if call.deadline is not None and reply_to is not None:
        expiration = max(0.0, call.deadline - RETURN_GRACE - router.now())
        deadline = time.time() + expiration
    request = Request(
        call.task_id,
        name,
        data,
        content_type,
        content_encoding,
        reply_to,
        deadline,
        expiration,
        call.backlog is not None,
        1,
        options.priority,
    )
    request.metadata = options.metadata
    lineage = current_lineage.get()
    if lineage is not None:
        request.parent_id, request.root_id = lineage.task_id, lineage.root_id
    publication = session.encode_request(request, session.exchange, routing_key, router.request_settled)
    if options.persistent:
        publication.properties.delivery_mode = 2
    call.route = route
    if options.on_disconnect == "resume":
        if reply_to is not None:
            call.origin = router.origin
        if (idempotent or options.idempotent) and call.origin is reply_to:  # in direct mode nothing is sent again
            call.publication = publication
    link.publish(publication)
    call.sending = _SENT
