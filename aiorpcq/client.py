"""Client: calls methods, submits tasks, streams their states."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

from .attempts import attempt
from .codec import Codecs
from .deadline import check_timeout
from .errors import UnknownTask, UsageError
from .health import Health
from .limits import DEFAULT_MAX_SIZE, check_iterable, check_kind, check_max_size
from .options import CallOptions, DisconnectMode, check_task_id
from .protocol.calls import Backlog, Call
from .protocol.control import CancelMode
from .protocol.failures import ExceptionRegistry
from .protocol.outofband import OutOfBandLimits
from .protocol.topology import Names
from .requests import check_room, deadline_of, new_call, publish
from .retry import RetryBudget
from .router import ReplyQueueMode, ReplyRouter, RouterOptions, RouterStatistics, WorkerInfo
from .sending import send, wait_writable
from .session import Session, WhenFull
from .task import Overflow, StateStream, Task, cancel_call, check_cancel, follow, unfollow, value_of
from .threads import ThreadBridge
from .transports.registry import check_url

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Calls methods of services through the broker at *url*, or at the first of several that answers.

    Use it as an async context manager, or `open` it and `aclose` it. Clients of one event loop with the same URL share
    one connection and one reply queue. A client belongs to the event loop it was opened on; `from_thread` serves other
    threads.

    Args:
        url: `amqp://user:password@host:port/vhost`, `amqps://…`, or `memory://name` for a broker in this process.
            Several are tried in turn when the connection is lost; they lead to one broker or its cluster.
        timeout: default of `CallOptions.timeout`, in seconds.
        on_disconnect: default of `CallOptions.on_disconnect`.
        codecs: how arguments are encoded and values decoded; msgpack, accepting JSON too, by default.
        errors: exception classes of methods that are to be raised as themselves; see `ExceptionRegistry`.
        max_pending: how many calls may be unsettled at once on the connection, those of other clients that share it
            included.
        when_full: what one more gets: "fail" `Overloaded`, "wait" its turn, at most until its own deadline.
        backlog: how many states of one task are kept for its readers.
        max_size: bytes a body may have, encoded.
        out_of_band: bounds of the buffer for states of tasks that nobody awaits.
        reply_queue: "exclusive": a queue that goes with each connection. "durable": one that belongs to *identity* and
            outlives the client, so that a client of the same identity, after a restart, can `stream` the tasks of the
            former; answers in it are transient and do not survive the broker. "direct": RabbitMQ's direct reply-to; a
            call is lost with the connection, is not returned when it expires, and has no states and no cancel.
        identity: whose durable reply queue it is; a second client of it is refused.
        reply_queue_ttl: seconds that a durable reply queue stays without its client.
        idempotent: the methods that may run twice without harm, as `CallOptions.idempotent` says of one call.
        retry_budget: how many calls may be made again, over all that `CallOptions.retries` allows; one budget may be
            given to several clients.
        random: where the pauses between tries get their jitter from.
        prefix: with what the names of exchanges and queues begin; the same for callers and workers.

    Raises:
        ValueError: an option is out of range, or the URL cannot be read; the text names the option.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        on_disconnect: DisconnectMode = "resume",
        codecs: Codecs | None = None,
        errors: Iterable[type[Exception]] = (),
        max_pending: int = 200_000,
        when_full: WhenFull = "fail",
        backlog: int = 1_000,
        max_size: int = DEFAULT_MAX_SIZE,
        out_of_band: OutOfBandLimits | None = None,
        reply_queue: ReplyQueueMode = "exclusive",
        identity: str | None = None,
        reply_queue_ttl: float = 86_400.0,
        idempotent: Iterable[str] = (),
        retry_budget: RetryBudget | None = None,
        random: Random | None = None,
        prefix: str = "rpc",
    ) -> None:
        check_max_size(max_size)
        check_url(url)
        check_kind(codecs, "codecs", Codecs)
        check_kind(out_of_band, "out_of_band", OutOfBandLimits)
        check_iterable(errors, "errors")
        urls = (url,) if isinstance(url, str) else tuple(url)
        self._options = CallOptions(timeout=timeout, on_disconnect=on_disconnect)
        limits = out_of_band or OutOfBandLimits()
        self._session = Session(
            RouterOptions(urls, Names(prefix), max_size, limits, reply_queue, identity, reply_queue_ttl),
            codecs=codecs or Codecs(max_size=max_size),
            errors=ExceptionRegistry(errors),
            max_pending=max_pending,
            when_full=when_full,
            backlog=backlog,
            idempotent=idempotent,
            retry_budget=retry_budget,
            rng=random,
        )
        self._is_plain = not self._session.waits

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
        return self._with(changed, changed.retries == 0 and not changed.require_workers and not self._session.waits)

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call *method* and return its value.

        Cancelling it leaves nothing behind here, and has the worker stop the method, unless `cancel_task` is off.

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
            NoWorkers: none runs now, where `require_workers` asked.
            ConnectionLost: the connection broke and the request was not confirmed, or `on_disconnect` is "fail"; or the
                client was closed.
            TaskRevoked: the task was cancelled.
            Poisoned: every run of it cost its worker; it is not run again.
            WorkerLost: its worker died, and the method is not to be run again.
            Overloaded: `max_pending` calls are unsettled, the service's queue is full, or the method was busy.
            CodecError: an argument cannot be encoded, or the value not be decoded.
            PayloadTooLarge: the arguments are larger than `max_size`.
        """
        if not self._is_plain:
            return await self._attempt(method, lambda client: client.call(method, *args, **kwargs))
        session, options = self._session, self._options
        router = session.router()
        route = session.route(method)
        body = session.codecs.encode([list(args), kwargs])
        call = new_call(session, options, router, None)
        waiter = call.waiter
        try:
            link = router.link
            if link is None or not link.writable:
                link = await wait_writable(router, call)
            if link is not None:
                publish(session, options, router, link, call, route, body, router.reply_to)
            await waiter
        except BaseException as error:
            router.give_up(call, cancel=options.cancel_task and isinstance(error, CancelledError))
            raise
        return value_of(session, call)

    async def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task:
        """Start *method* and return its `Task` once the broker has the request.

        The worker sends every state of the task. Nothing of it is lost when the `Task` is dropped: `stream` takes its
        id. Arguments and errors are those of `call`, as far as they are known when the request is sent.
        """
        session, options = self._session, self._options
        if session.is_direct:
            raise UsageError('reply_queue: states do not come by "direct"; use call')
        if not self._is_plain:
            return await self._attempt(method, lambda client: client.submit(method, *args, **kwargs))
        router = session.router()
        route = session.route(method)
        body = session.codecs.encode([list(args), kwargs])
        call = new_call(session, options, router, Backlog(session.backlog))
        try:
            await send(session, options, router, call, route, body, expects_reply=True)
        except BaseException as error:
            router.give_up(call, cancel=options.cancel_task and isinstance(error, CancelledError))
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
        if not self._is_plain:
            await self.with_options(retries=0)._attempt(method, lambda client: client.cast(method, *args, **kwargs))
            return
        session, options = self._session, self._options
        router = session.router()
        route = session.route(method)
        body = session.codecs.encode([list(args), kwargs])
        call = new_call(session, options, router, None)
        try:
            await send(session, options, router, call, route, body, expects_reply=False)
        finally:
            router.end(call)
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
            ValueError: *task_id* cannot be one.
        """
        check_task_id(task_id)
        if self._session.is_direct:
            raise UsageError('reply_queue: states do not come by "direct"')
        stream = StateStream(self._session, partial(self._find, task_id), overflow)
        self._check_known(self._session.router(), task_id)
        return stream

    async def cancel(self, task_id: str, mode: CancelMode = "kill", *, timeout: float | None = None) -> None:
        """Revoke a task by its id; see `Task.cancel`.

        It may be the task of an earlier client with this one's identity. One that is known to have ended is not
        touched. With "kill" the wait for the end of a task that is not this client's own is bounded by the client's
        `timeout` too.

        Raises:
            ValueError, DeadlineExceeded, ConnectionLost: as `Task.cancel`; *task_id* cannot be one.
            UsageError: the client has direct replies, which know no cancel.
        """
        check_task_id(task_id)
        check_cancel(mode, timeout)
        session = self._session
        router = session.router()
        if session.is_direct:
            raise UsageError('reply_queue: a task cannot be cancelled by "direct"')
        call = router.table.pending.get(task_id)
        if call is None and router.table.is_settled(task_id):
            return
        if call is None and mode != "kill":
            router.cancel_unknown(task_id, mode, deadline_of(self._options, router.now()))
            return
        if call is None:
            call = self._find(task_id)
        follow(session, call)
        try:
            await cancel_call(session, call, mode, timeout)
        finally:
            unfollow(session, router, call)

    def forget(self, task_id: str) -> None:
        """Drop all that is held of a task. Whoever waits for it gets `UnknownTask`; its late states are dropped.

        Raises:
            ValueError: *task_id* cannot be one.
            UsageError: the client cannot be used here.
        """
        check_task_id(task_id)
        self._session.router().forget(task_id)

    def statistics(self) -> RouterStatistics:
        """Return a snapshot of what the connection that this client shares holds and has counted."""
        return self._session.router().statistics()

    def health(self) -> Health:
        """Tell whether calls go out and answers come in, and if not why."""
        session = self._session
        if session.is_closed:
            return Health(False, "the client is not open")
        return session.router().health()

    async def workers(self, timeout: float = 1.0) -> list[WorkerInfo]:
        """Ask all workers on the broker what they are; return what answers within *timeout* seconds.

        Raises:
            ValueError: *timeout* is no number of seconds.
            UsageError: the client cannot be used here.
        """
        if timeout is None:
            raise ValueError("timeout: None is not a number of seconds")
        check_timeout(timeout)
        return await self._session.router().workers(timeout)

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
            check_room(session, router)
            foreign = not router.ids.made(task_id)
            call = Call(task_id, session, deadline_of(self._options, router.now()), Backlog(session.backlog), foreign)
            router.attach(call)
        elif call.backlog is None:
            raise UsageError("the states of this call were not asked for; use submit", task_id=task_id)
        return call

    def _check_known(self, router: ReplyRouter, task_id: str) -> None:
        if router.table.is_gone(task_id):
            raise UnknownTask("the task is settled and its states are no longer kept", task_id=task_id)

    def _with(self, options: CallOptions, is_plain: bool) -> Client:
        client = object.__new__(type(self))
        client._session = self._session
        client._options = options
        client._is_plain = is_plain
        return client

    async def _attempt(self, method: str, perform: Callable[[Client], Awaitable[T]]) -> T:
        """Make a call that may have to wait, ask or try again first; *perform* gets a client for one plain try."""
        return await attempt(self._session, self._options, method, lambda options: perform(self._with(options, True)))
