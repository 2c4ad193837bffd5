"""Client: calls methods, submits tasks, streams their states."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from .codec import Codecs
from .deadline import RETURN_GRACE, current_lineage
from .errors import DeadlineExceeded, Overloaded, UnknownTask, UsageError
from .limits import DEFAULT_MAX_SIZE, check_integer, check_max_size
from .options import CallOptions
from .protocol.calls import Backlog, Call, Phase, Sending
from .protocol.failures import ExceptionRegistry
from .protocol.messages import Request
from .protocol.outofband import OutOfBandLimits
from .protocol.topology import Names
from .protocol.wire import encode_request
from .router import ReplyRouter, RouterOptions, RouterStatistics
from .session import Session
from .task import Overflow, StateStream, Task, next_change, value_of
from .threads import ThreadBridge
from .transports.base import Link
from .transports.registry import check_url

__all__ = ["Client"]

_MOST: Final = 2**31

_SENT: Final = Sending.SENT  # a global: in Python 3.11 a member costs four times as much to look up on its class


class Client:
    """Calls methods of services through the broker at *url*.

    Use it as an async context manager, or `open` it and `aclose` it. Clients of one event loop with the same URL share
    one connection and one reply queue. A client belongs to the event loop it was opened on; `from_thread` serves other
    threads.

    Args:
        url: `amqp://user:password@host:port/vhost`, `amqps://…`, or `memory://name` for a broker in this process.
        timeout: default of `CallOptions.timeout`, in seconds.
        codecs: how arguments are encoded and values decoded; msgpack, accepting JSON too, by default.
        errors: exception classes of methods that are to be raised as themselves; see `ExceptionRegistry`.
        max_pending: how many calls may be unsettled at once on the connection, those of other clients that share it
            included; one more is `Overloaded`.
        backlog: how many states of one task are kept for its readers.
        max_size: bytes a body may have, encoded.
        out_of_band: bounds of the buffer for states of tasks that nobody awaits.
        prefix: with what the names of exchanges and queues begin; the same for callers and workers.

    Raises:
        ValueError: an option is out of range, or the URL cannot be read; the text names the option.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = 30.0,
        codecs: Codecs | None = None,
        errors: Iterable[type[Exception]] = (),
        max_pending: int = 200_000,
        backlog: int = 1_000,
        max_size: int = DEFAULT_MAX_SIZE,
        out_of_band: OutOfBandLimits | None = None,
        prefix: str = "rpc",
    ) -> None:
        check_integer(max_pending, "max_pending", 1, _MOST)
        check_integer(backlog, "backlog", 1, _MOST)
        check_max_size(max_size)
        check_url(url)
        self._options = CallOptions(timeout=timeout)
        self._session = Session(
            RouterOptions(url, Names(prefix), max_size, out_of_band or OutOfBandLimits()),
            codecs or Codecs(max_size=max_size),
            ExceptionRegistry(errors),
            max_pending,
            backlog,
        )

    def __repr__(self) -> str:
        return f"<Client of {self._session!r}>"

    async def open(self) -> None:
        """Connect. Where a client of this loop is connected already, its connection is shared.

        Raises:
            ConnectFailed: the broker cannot be reached, or refuses what a client needs; the text says which.
            UsageError: the client is open.
            ValueError: the URL cannot be read.
        """
        await self._session.open()

    async def aclose(self) -> None:
        """Settle every pending call with `ConnectionLost` and give the connection back. Idempotent."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def with_options(self, **options: Any) -> Client:
        """Return a client that makes its calls with other options; connection and all else are shared.

        Args:
            **options: fields of `CallOptions`.

        Raises:
            ValueError: an option is unknown or out of range.
        """
        try:
            changed = replace(self._options, **options)
        except TypeError:
            unknown = sorted(set(options) - set(CallOptions.__dataclass_fields__))
            raise ValueError(f"unknown call options: {', '.join(unknown)}") from None
        client = object.__new__(type(self))
        client._session = self._session
        client._options = changed
        return client

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call *method* and return its value.

        Cancelling it leaves nothing behind here; what the method does then is not stopped.

        Args:
            method: "add", or "math.add" for the method of a named service.
            *args: positional arguments of the method.
            **kwargs: keyword arguments of the method.

        Raises:
            RemoteError: the method raised.
            DeadlineExceeded: no answer within `timeout`.
            MethodNotFound: the service has no such method.
            InvalidArguments: the arguments do not fit it.
            Unroutable: no worker of the service has ever run on this broker.
            ConnectionLost: the connection broke, or the client was closed.
            Overloaded: `max_pending` calls are unsettled, or the service's queue is full.
            CodecError: an argument cannot be encoded, or the value not be decoded.
            PayloadTooLarge: the arguments are larger than `max_size`.
        """
        session = self._session
        router = session.router()
        route = session.route(method)
        body = session.codecs.encode([list(args), kwargs])
        call = self._new_call(router, None)
        waiter = call.waiter
        try:
            link = router.link
            if link is None or not link.writable:
                link = await router.wait_writable(call)
            if link is not None:
                self._publish(router, link, call, route, body, router.reply_to)
            await waiter
        except BaseException:
            router.table.abandon(call)
            raise
        return value_of(session, call)

    async def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task:
        """Start *method* and return its `Task` once the broker has the request.

        The worker sends every state of the task. Nothing of it is lost when the `Task` is dropped: `stream` takes its
        id. Arguments and errors are those of `call`, as far as they are known when the request is sent.
        """
        session = self._session
        router = session.router()
        route = session.route(method)
        body = session.codecs.encode([list(args), kwargs])
        call = self._new_call(router, Backlog(session.backlog))
        try:
            await self._send(router, call, route, body, expects_reply=True)
        except BaseException:
            router.table.abandon(call)
            raise
        if call.error is not None:
            router.forget(call.task_id)  # nobody got its id
            raise call.error
        return Task(session, call)

    async def cast(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """Have *method* run and do not ask what came of it; return once the broker has the request.

        `timeout` bounds the wait for the broker. The request itself has no deadline.

        Raises:
            Unroutable: no worker of the service has ever run on this broker.
            DeadlineExceeded: the broker did not confirm the request in time.
            ConnectionLost: the connection broke before it did.
            Overloaded: the service's queue is full.
            CodecError: an argument cannot be encoded.
            PayloadTooLarge: the arguments are larger than `max_size`.
        """
        router = self._session.router()
        route = self._session.route(method)
        body = self._session.codecs.encode([list(args), kwargs])
        call = self._new_call(router, None)
        try:
            await self._send(router, call, route, body, expects_reply=False)
        finally:
            router.table.abandon(call)
        if call.error is not None:
            raise call.error

    def stream(self, task_id: str, *, overflow: Overflow = "fast_forward") -> StateStream:
        """Return every state of a task in order, to be iterated; the last one is terminal.

        The task need not be one of this client's, or known yet: states that come early are kept for a while. They come
        to the reply queue of the client that submitted the task, so that client, or one that shares its connection, has
        to be the one that streams it. Several readers of one task each see all states. A reader that falls more than
        `backlog` states behind goes on with the oldest that is kept, or gets `BacklogLimitExceeded` where *overflow* is
        "error". Leaving the iteration does not touch the task.

        Raises, here or in the iteration:
            UnknownTask: the task is settled and its states are no longer kept.
            UsageError: the client cannot be used here.
            DeadlineExceeded: the task's deadline passed; `timeout` seconds, for a task submitted elsewhere.
            ConnectionLost: the connection broke, or the client was closed.
            BacklogLimitExceeded: as said above.
        """
        stream = StateStream(self._session, partial(self._find, task_id), overflow)
        self._check_known(self._session.router(), task_id)
        return stream

    def forget(self, task_id: str) -> None:
        """Drop all that is held of a task. Whoever waits for it gets `UnknownTask`; its late states are dropped."""
        self._session.router().forget(task_id)

    def statistics(self) -> RouterStatistics:
        """Return a snapshot of what the connection that this client shares holds and has counted."""
        return self._session.router().statistics()

    @property
    def from_thread(self) -> ThreadBridge:
        """The same calls for other threads, blocking."""
        if self._session.loop is None:
            raise UsageError("the client is not open")
        return ThreadBridge(self, self._session, self._session.loop)

    def _find(self, task_id: str) -> Call:
        """Return the call of a task, registering one for a task that is not this connection's or not known yet."""
        session = self._session
        router = session.router()
        call = router.table.pending.get(task_id)
        if call is None:
            self._check_known(router, task_id)
            self._check_room(router)
            foreign = not router.ids.made(task_id)
            call = Call(task_id, session, self._deadline(router.now()), Backlog(session.backlog), foreign)
            router.attach(call)
        elif call.backlog is None:
            raise UsageError("the states of this call were not asked for; use submit", task_id=task_id)
        return call

    def _check_room(self, router: ReplyRouter) -> None:
        limit = self._session.max_pending
        if len(router.table.pending) >= limit:
            raise Overloaded(
                f"{len(router.table.pending)} calls are pending on this connection, max_pending is {limit}"
            )

    def _check_known(self, router: ReplyRouter, task_id: str) -> None:
        if router.table.is_gone(task_id):
            raise UnknownTask("the task is settled and its states are no longer kept", task_id=task_id)

    def _deadline(self, now: float) -> float | None:
        """Return the deadline of a call made now, with the grace for a request that is returned."""
        timeout, lineage = self._options.timeout, current_lineage.get()
        if lineage is None or lineage.deadline is None:
            return None if timeout is None else now + timeout + RETURN_GRACE
        inherited = lineage.deadline + RETURN_GRACE
        return inherited if timeout is None else min(inherited, now + timeout + RETURN_GRACE)

    def _new_call(self, router: ReplyRouter, backlog: Backlog | None) -> Call:
        """Register a call; from here on it is settled at its deadline at the latest."""
        session = self._session
        self._check_room(router)
        now = router.now()
        deadline = self._deadline(now)
        task_id = self._options.task_id
        if deadline is not None and deadline - RETURN_GRACE < now:
            raise DeadlineExceeded("the deadline it inherits is past", task_id=task_id, maybe_executed=False)
        if task_id is None:
            call = Call(router.ids.new(), session, deadline, backlog)
        else:
            call = Call(task_id, session, deadline, backlog, not router.ids.made(task_id))
        router.add(call)
        return call

    async def _send(
        self,
        router: ReplyRouter,
        call: Call,
        route: tuple[str, str],
        body: tuple[bytes, str, str | None],
        *,
        expects_reply: bool,
    ) -> None:
        """Publish the request of *call* and wait until the broker has it, or *call* is settled."""
        link = router.link
        if link is None or not link.writable:
            link = await router.wait_writable(call)
        if link is not None:
            self._publish(router, link, call, route, body, router.reply_to if expects_reply else None)
        while call.phase is Phase.PENDING and call.sending is not Sending.CONFIRMED:
            await next_change(call)

    def _publish(
        self,
        router: ReplyRouter,
        link: Link,
        call: Call,
        route: tuple[str, str],
        body: tuple[bytes, str, str | None],
        reply_to: str | None,
    ) -> None:
        """Publish the request of *call* on *link*."""
        options, session = self._options, self._session
        routing_key, name = route
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
        publication = encode_request(request, session.exchange, routing_key, router.request_settled)
        if options.persistent:
            publication.properties.delivery_mode = 2
        link.publish(publication)
        call.sending = _SENT
