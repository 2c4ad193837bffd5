"""Client: calls methods, submits tasks, streams their states. Task: a submitted call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from .codec import Codecs
from .deadline import RETURN_GRACE, check_timeout, current_lineage
from .errors import (
    BacklogLimitExceeded,
    DeadlineExceeded,
    Overloaded,
    RPCError,
    TaskRevoked,
    UnknownTask,
    UsageError,
)
from .protocol.calls import Backlog, Call, Phase, Sending
from .protocol.failures import ExceptionRegistry, rebuild_error
from .protocol.messages import Request, StateMessage
from .protocol.outofband import OutOfBandLimits
from .protocol.topology import Names, split_method
from .protocol.wire import check_metadata, encode_request
from .router import ReplyRouter, RouterOptions, RouterStatistics
from .states import FAILURE, REVOKED, SUCCESS, is_terminal
from .transports.base import Link

__all__ = ["CallOptions", "Client", "State", "Task", "ThreadBridge"]

T = TypeVar("T")

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  # asking for the process id is a system call for every call
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)

_KEPT_ROUTES: Final = 10_000
_TASK_ID_LIMIT: Final = 255
_SENT: Final = Sending.SENT  # a global: in Python 3.11 a member costs four times as much to look up on its class


@dataclass(frozen=True, slots=True)
class State:
    """One state of a task, as `Client.stream` gives it.

    Attributes:
        name: PENDING, RECEIVED, STARTED, PROGRESS, a custom name, RETRY, SUCCESS, FAILURE or REVOKED.
        value: what came with it; for FAILURE and REVOKED the error that `Task.result` would raise.
        task_id: id of the task.
        attempt: which run of the request it belongs to.
        worker_id: the worker that sent it, where it said so.
    """

    name: str
    value: Any
    task_id: str
    attempt: int = 1
    worker_id: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether no state follows."""
        return is_terminal(self.name)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How calls are made; `Client.with_options` takes the same names.

    Attributes:
        timeout: seconds until a call is settled at the latest; None for no deadline. A call made inside a method has
            no more than what is left of that method's own.
        priority: 0 to 255, where the service's queue has priorities.
        persistent: whether the request survives a restart of the broker, on a durable queue.
        metadata: headers for the method's `Context.metadata`, trace context for instance.
        task_id: the id to use instead of a new one, for one call.
    """

    timeout: float | None = 30.0
    priority: int | None = None
    persistent: bool = False
    metadata: Mapping[str, Any] | None = None
    task_id: str | None = None

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        if self.priority is not None and (
            isinstance(self.priority, bool) or not isinstance(self.priority, int) or not 0 <= self.priority <= 255
        ):
            raise ValueError(f"priority: {self.priority!r} is not an integer between 0 and 255")
        if self.metadata is not None and not isinstance(self.metadata, Mapping):
            raise ValueError(f"metadata: a {type(self.metadata).__name__} is not a mapping")
        if self.metadata is not None:
            check_metadata(self.metadata)
        if self.task_id is not None and not (
            isinstance(self.task_id, str) and 0 < len(self.task_id.encode()) <= _TASK_ID_LIMIT
        ):
            raise ValueError(f"task_id: {self.task_id!r:.100} is not text of 1 to {_TASK_ID_LIMIT} bytes")


class _Shared:
    """What a client and the ones made from it by `with_options` have in common."""

    __slots__ = ("backlog", "codecs", "errors", "loop", "max_pending", "names", "options", "process", "router", "routes")

    def __init__(
        self,
        router_options: RouterOptions,
        codecs: Codecs,
        errors: ExceptionRegistry,
        max_pending: int,
        backlog: int,
    ) -> None:
        self.options = router_options
        self.names = router_options.names
        self.codecs = codecs
        self.errors = errors
        self.max_pending = max_pending
        self.backlog = backlog
        self.routes: dict[str, tuple[str, str]] = {}
        self.router: ReplyRouter | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.process = 0


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
        max_pending: how many calls may be unsettled at once; one more is `Overloaded`.
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
        max_size: int = 8 * 1024 * 1024,
        out_of_band: OutOfBandLimits | None = None,
        prefix: str = "rpc",
    ) -> None:
        for option, value in (("max_pending", max_pending), ("backlog", backlog), ("max_size", max_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{option}: {value!r} is not a positive integer")
        self._options = CallOptions(timeout=timeout)
        self._shared = _Shared(
            RouterOptions(url, Names(prefix), max_size, out_of_band or OutOfBandLimits()),
            codecs or Codecs(max_size=max_size),
            ExceptionRegistry(errors),
            max_pending,
            backlog,
        )

    def __repr__(self) -> str:
        return f"<Client of {self._shared.router!r}>" if self._shared.router else "<Client, not open>"

    async def open(self) -> None:
        """Connect. Where a client of this loop is connected already, its connection is shared.

        Raises:
            ConnectFailed: the broker cannot be reached, or refuses what a client needs; the text says which.
            UsageError: the client is open.
            ValueError: the URL cannot be read.
        """
        shared = self._shared
        if shared.router is not None:
            raise UsageError("the client is open already")
        shared.router = await ReplyRouter.acquire(shared.options)
        shared.loop = asyncio.get_running_loop()
        shared.process = _forks

    async def aclose(self) -> None:
        """Settle every pending call with `ConnectionLost` and give the connection back. Idempotent."""
        shared = self._shared
        router, shared.router = shared.router, None
        if router is not None and shared.process == _forks:
            router.close_calls(shared)
            await router.release()

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
        client._shared = self._shared
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
        shared = self._shared
        router = self._router()
        body = shared.codecs.encode([list(args), kwargs])
        call = self._new_call(router, None)
        assert shared.loop is not None
        waiter = call.waiter = shared.loop.create_future()
        router.add(call)
        try:
            link = router.link
            if link is None or not link.writable:
                link = await router.wait_writable(call)
            if link is not None:
                self._publish(router, link, call, method, body, router.reply_to)
            await waiter
        except BaseException:
            router.table.abandon(call)
            raise
        return self._value(call)

    async def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task:
        """Start *method* and return its `Task` once the broker has the request.

        The worker sends every state of the task. Nothing of it is lost when the `Task` is dropped: `stream` takes its
        id. Arguments and errors are those of `call`, as far as they are known when the request is sent.
        """
        router = self._router()
        body = self._shared.codecs.encode([list(args), kwargs])
        call = self._new_call(router, Backlog(self._shared.backlog))
        router.add(call)
        try:
            await self._send(router, call, method, body, expects_reply=True)
        except BaseException:
            router.table.abandon(call)
            raise
        if call.error is not None:
            raise call.error
        return Task(self, call)

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
        router = self._router()
        body = self._shared.codecs.encode([list(args), kwargs])
        call = self._new_call(router, None)
        router.add(call)
        try:
            await self._send(router, call, method, body, expects_reply=False)
        finally:
            router.table.abandon(call)
        if call.error is not None:
            raise call.error

    async def stream(
        self, task_id: str, *, overflow: Literal["fast_forward", "error"] = "fast_forward"
    ) -> AsyncIterator[State]:
        """Yield every state of a task in order; the last one is terminal.

        The task need not be this client's, or known yet: states that came early are kept for a while. A reader that
        falls more than `backlog` states behind goes on with the oldest that is kept, or gets `BacklogLimitExceeded` where
        *overflow* is "error". Several readers of one task each see all states. Leaving the loop does not touch the task.

        Raises:
            UnknownTask: the task is settled and its states are no longer kept.
            DeadlineExceeded: the task's deadline passed; `timeout` seconds, for a task submitted elsewhere.
            ConnectionLost: the connection broke, or the client was closed.
            BacklogLimitExceeded: as said above.
        """
        if overflow not in ("fast_forward", "error"):
            raise ValueError(f"overflow: {overflow!r} is neither fast_forward nor error")
        router = self._router()
        call = router.table.pending.get(task_id)
        if call is None:
            if router.table.is_gone(task_id):
                raise UnknownTask("the task is settled and its states are no longer kept", task_id=task_id)
            deadline = self._deadline(router.now())
            foreign = not router.ids.made(task_id)
            call = Call(task_id, self._shared, deadline, Backlog(self._shared.backlog), foreign)
            router.attach(call)
        elif call.backlog is None:
            raise UsageError("the states of this call were not asked for; use submit", task_id=task_id)
        async for state in self._follow(router, call, overflow):
            yield state

    def forget(self, task_id: str) -> None:
        """Drop all that is held of a task. Whoever waits for it gets `UnknownTask`; its late states are dropped."""
        self._router().forget(task_id)

    def statistics(self) -> RouterStatistics:
        """Return a snapshot of what the connection that this client shares holds and has counted."""
        return self._router().statistics()

    @property
    def from_thread(self) -> ThreadBridge:
        """The same calls for other threads, blocking."""
        if self._shared.loop is None:
            raise UsageError("the client is not open")
        return ThreadBridge(self, self._shared.loop)

    def _router(self) -> ReplyRouter:
        """Return the router, or say why the client cannot be used here."""
        shared = self._shared
        router = shared.router
        if router is None:
            raise UsageError("the client is not open" if shared.loop is None else "the client is closed")
        if shared.process != _forks:
            raise UsageError("the client was opened before a fork; open one in this process")
        if shared.loop is not asyncio.get_running_loop():
            raise UsageError("the client belongs to another event loop; other threads use client.from_thread")
        return router

    def _deadline(self, now: float) -> float | None:
        """Return the deadline of a call made now, with the grace for a request that is returned."""
        timeout, lineage = self._options.timeout, current_lineage.get()
        if lineage is None or lineage.deadline is None:
            return None if timeout is None else now + timeout + RETURN_GRACE
        inherited = lineage.deadline + RETURN_GRACE
        return inherited if timeout is None else min(inherited, now + timeout + RETURN_GRACE)

    def _new_call(self, router: ReplyRouter, backlog: Backlog | None) -> Call:
        shared = self._shared
        if len(router.table.pending) >= shared.max_pending:
            raise Overloaded(f"{shared.max_pending} calls are pending, which is max_pending")
        now = router.now()
        deadline = self._deadline(now)
        task_id = self._options.task_id
        if deadline is not None and deadline - RETURN_GRACE < now:
            raise DeadlineExceeded("the deadline it inherits is past", task_id=task_id, maybe_executed=False)
        if task_id is None:
            return Call(router.ids.new(), shared, deadline, backlog)
        return Call(task_id, shared, deadline, backlog, not router.ids.made(task_id))

    async def _send(
        self, router: ReplyRouter, call: Call, method: str, body: tuple[bytes, str, str | None], *, expects_reply: bool
    ) -> None:
        """Publish the request of *call* and wait until the broker has it, or *call* is settled."""
        loop = self._shared.loop
        assert loop is not None
        call.waiter = loop.create_future()
        link = router.link
        if link is None or not link.writable:
            link = await router.wait_writable(call)
        if link is not None:
            self._publish(router, link, call, method, body, router.reply_to if expects_reply else None)
        while call.phase is Phase.PENDING and call.sending is not Sending.CONFIRMED:
            await _next_change(call, loop)

    def _publish(
        self,
        router: ReplyRouter,
        link: Link,
        call: Call,
        method: str,
        body: tuple[bytes, str, str | None],
        reply_to: str | None,
    ) -> None:
        """Publish the request of *call* on *link*."""
        options, shared = self._options, self._shared
        route = shared.routes.get(method)
        if route is None:
            route = self._route(method)
        data, content_type, content_encoding = body
        deadline = expiration = None
        if call.deadline is not None and reply_to is not None:
            expiration = max(0.0, call.deadline - RETURN_GRACE - router.now())
            deadline = time.time() + expiration
        request = Request(
            call.task_id,
            route[1],
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
        publication = encode_request(request, shared.names.prefix, route[0], router.request_settled)
        if options.persistent:
            publication.properties.delivery_mode = 2
        link.publish(publication)
        call.sending = _SENT

    def _route(self, method: str) -> tuple[str, str]:
        """Return routing key and method name for what a caller named.

        Raises:
            ValueError: it cannot be the name of a method.
        """
        service, name = split_method(method)
        routes = self._shared.routes
        if len(routes) >= _KEPT_ROUTES:
            routes.clear()
        route = routes[method] = (self._shared.names.routing_key(service), name)
        return route

    def _value(self, call: Call) -> Any:
        """Return the value of a settled call, or raise its error."""
        terminal = call.terminal
        if terminal is None:
            if call.error is not None:
                raise call.error
            raise UnknownTask("the task was forgotten", task_id=call.task_id)
        try:
            value = self._shared.codecs.decode(terminal.body, terminal.content_type, terminal.content_encoding)
        except RPCError as error:
            error.task_id, error.maybe_executed = call.task_id, True
            raise
        if terminal.name == SUCCESS:
            return value
        raise self._error(terminal, value)

    def _error(self, message: StateMessage, value: Any) -> RPCError:
        if message.name == REVOKED:
            return TaskRevoked("the task was revoked", task_id=message.task_id)
        return rebuild_error(value, self._shared.errors, message.task_id)

    def _state(self, message: StateMessage) -> State:
        value = self._shared.codecs.decode(message.body, message.content_type, message.content_encoding)
        if message.name in (FAILURE, REVOKED):
            value = self._error(message, value)
        return State(message.name, value, message.task_id, message.attempt, message.worker_id)

    async def _follow(
        self, router: ReplyRouter, call: Call, overflow: Literal["fast_forward", "error"]
    ) -> AsyncIterator[State]:
        """Yield the states of *call* from the oldest that is kept."""
        backlog, loop = call.backlog, self._shared.loop
        assert backlog is not None
        assert loop is not None
        position = backlog.dropped
        call.readers += 1
        try:
            while True:
                while position < backlog.end:
                    message = backlog.at(position)
                    if message is None:
                        if overflow == "error":
                            raise BacklogLimitExceeded(
                                f"the reader fell more than {backlog.limit} states behind", task_id=call.task_id
                            )
                        position = backlog.dropped
                        continue
                    position += 1
                    yield self._state(message)
                if call.phase is not Phase.PENDING:
                    if call.terminal is None:
                        self._value(call)
                    return
                await _next_change(call, loop)
        finally:
            call.readers -= 1
            if not call.readers:
                router.leave(call)


class Task:
    """A submitted call. Awaiting it is awaiting `result()`."""

    __slots__ = ("_call", "_client")

    def __init__(self, client: Client, call: Call) -> None:
        self._client = client
        self._call = call

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """Id of the task: what `Client.stream` takes."""
        return self._call.task_id

    @property
    def state(self) -> str:
        """Name of the last state that arrived; PENDING before the first. Reading it does no I/O."""
        return self._call.name

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._call.phase is not Phase.PENDING

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the task's value.

        Cancelling the wait does not touch the task, and neither does the end of *timeout*. Any number of waiters get
        the same.

        Raises:
            DeadlineExceeded: after *timeout* seconds, or at the task's own deadline if that comes first.
            RemoteError: the method raised; other errors are those of `Client.call`.
        """
        check_timeout(timeout)
        call, client = self._call, self._client
        if call.phase is Phase.PENDING:
            client._router()  # noqa: SLF001  # says it where the client cannot be used here
            try:
                async with asyncio.timeout(timeout):
                    while call.phase is Phase.PENDING:
                        await _next_change(call, asyncio.get_running_loop())
            except TimeoutError:
                raise DeadlineExceeded(
                    f"no terminal state within {timeout:g} s", task_id=call.task_id
                ) from None
        return client._value(call)  # noqa: SLF001  # one class in two: a task is its client's

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def stream(self, *, overflow: Literal["fast_forward", "error"] = "fast_forward") -> AsyncIterator[State]:
        """Yield every state of the task, those that came before included; see `Client.stream`."""
        client = self._client
        return client._follow(client._router(), self._call, overflow)  # noqa: SLF001  # as above

    def forget(self) -> None:
        """See `Client.forget`."""
        self._client.forget(self.id)


class ThreadBridge:
    """A client's calls for threads other than its event loop's; each blocks until it is done."""

    __slots__ = ("_client", "_loop")

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """See `Client.call`."""
        return self._run(self._client.call(method, *args, **kwargs))

    def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task:
        """See `Client.submit`; wait for the task with `result`."""
        return self._run(self._client.submit(method, *args, **kwargs))

    def cast(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """See `Client.cast`."""
        self._run(self._client.cast(method, *args, **kwargs))

    def result(self, task: Task, timeout: float | None = None) -> Any:
        """See `Task.result`."""
        return self._run(task.result(timeout))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop or not self._loop.is_running():
            coroutine.close()
            raise UsageError(
                "from_thread is for other threads; await the client's own methods here"
                if running is self._loop
                else "the client's event loop is not running"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _next_change(call: Call, loop: asyncio.AbstractEventLoop) -> None:
    """Wait until *call* gets a state, is confirmed, or is settled."""
    watcher = loop.create_future()
    if call.watchers is None:
        call.watchers = []
    call.watchers.append(watcher)
    try:
        await watcher
    except BaseException:
        if call.watchers and watcher in call.watchers:
            call.watchers.remove(watcher)
        raise

