"""Task: a submitted call. State: one state of it. And how both are read from what the router holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from .deadline import check_timeout
from .errors import (
    BacklogLimitExceeded,
    ConnectionLost,
    DeadlineExceeded,
    RPCError,
    TaskRevoked,
    UnknownTask,
    UsageError,
)
from .protocol.calls import Call, Phase
from .protocol.control import CancelMode
from .protocol.failures import rebuild_error
from .protocol.messages import StateMessage
from .router import ReplyRouter
from .session import Session
from .states import FAILURE, REVOKED, SUCCESS, is_terminal

__all__ = [
    "Overflow",
    "State",
    "StateStream",
    "Task",
    "cancel_call",
    "check_cancel",
    "follow",
    "next_change",
    "unfollow",
    "value_of",
]

Overflow = Literal["fast_forward", "error"]
"""What a reader gets that fell behind by more states than are kept: the oldest kept, or `BacklogLimitExceeded`."""


@dataclass(frozen=True, slots=True)
class State:
    """One state of a task, as `Client.stream` gives it.

    Attributes:
        name: PENDING, RECEIVED, STARTED, PROGRESS, a custom name, RETRY, SUCCESS, FAILURE or REVOKED.
        value: what came with it; for FAILURE and REVOKED the error that `Task.result` would raise.
        task_id: id of the task.
        attempt: which run of the request it belongs to.
        sequence: number of the state within its attempt, from 1; 0 for a terminal state that no other preceded.
        worker_id: the worker that sent it, where it said so.
    """

    name: str
    value: Any
    task_id: str
    attempt: int = 1
    sequence: int = 0
    worker_id: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether no state follows."""
        return is_terminal(self.name)


class Task:
    """A submitted call. Awaiting it is awaiting `result()`."""

    __slots__ = ("_call", "_session")

    def __init__(self, session: Session, call: Call) -> None:
        self._session = session
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
        call = self._call
        if call.phase is Phase.PENDING:
            self._session.router()  # raises where the client cannot be used here
            try:
                async with asyncio.timeout(timeout):
                    while call.phase is Phase.PENDING:
                        await next_change(call)
                        self._check_open()
            except TimeoutError:
                raise DeadlineExceeded(f"no terminal state within {timeout:g} s", task_id=call.task_id) from None
        self._session.mark_read(call.task_id)
        return value_of(self._session, call)

    async def cancel(self, mode: CancelMode = "kill", *, timeout: float | None = None) -> None:
        """Revoke the task. One that has ended is not touched.

        With "skip" a method that has begun goes on, and this returns once the cancel is sent. "kill" stops the method
        too and waits for the end, which is `REVOKED` unless another came first; `result` tells. "killnowait" stops it
        as well and settles the task here at once with `TaskRevoked`. A plain `def` method is not stopped, but told. A
        cancel that finds no connection is sent on the next one.

        Raises:
            ValueError: *mode* is unknown.
            DeadlineExceeded: with "kill", the task has not ended within *timeout* seconds.
            ConnectionLost: with "kill", the client was closed meanwhile.
        """
        check_cancel(mode, timeout)
        await cancel_call(self._session, self._call, mode, timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def stream(self, *, overflow: Overflow = "fast_forward") -> StateStream:
        """Return every state of the task, those that came before included; see `Client.stream`."""
        return StateStream(self._session, lambda: self._call, overflow)

    def _check_open(self) -> None:
        """Raise where the client was closed, and the task is not settled since another one's stream follows it."""
        if self._session.is_closed and not self.done:
            raise _closed_error(self.id)

    def forget(self) -> None:
        """See `Client.forget`."""
        self._session.router().forget(self.id)


def check_cancel(mode: CancelMode, timeout: float | None) -> None:
    """Raise `ValueError` where a cancel cannot be so."""
    if mode not in get_args(CancelMode):
        raise ValueError(f"mode: {mode!r} is none of {', '.join(get_args(CancelMode))}")
    check_timeout(timeout)


async def cancel_call(session: Session, call: Call, mode: CancelMode, timeout: float | None) -> None:
    """Revoke the task of *call*; see `Task.cancel`."""
    if call.phase is not Phase.PENDING:
        return
    session.router().cancel(call, mode)
    if mode != "kill":
        return
    try:
        async with asyncio.timeout(timeout):
            while call.phase is Phase.PENDING:
                await next_change(call)
                if session.is_closed and call.phase is Phase.PENDING:
                    raise _closed_error(call.task_id)
    except TimeoutError:
        raise DeadlineExceeded(f"the task has not ended within {timeout:g} s", task_id=call.task_id) from None


def value_of(session: Session, call: Call) -> Any:
    """Return the value of a settled call, or raise its error."""
    terminal = call.terminal
    if terminal is None:
        if call.error is not None:
            raise call.error.with_traceback(None)  # it may be raised for many waiters
        raise UnknownTask("the task was forgotten", task_id=call.task_id)
    value = _value_in(session, terminal)
    if terminal.name == SUCCESS:
        return value
    raise _error_of(session, terminal, value)


class StateStream:
    """The states of one task, in order; what `Client.stream` and `Task.stream` return.

    Cancelling the wait for the next state, as `asyncio.wait_for` does, loses nothing: the iteration can go on. `aclose`
    lets go of the task, at once; so does dropping the stream, with the event loop's next step.
    """

    __slots__ = ("_call", "_find", "_loop", "_overflow", "_position", "_router", "_session")

    def __init__(self, session: Session, find: Callable[[], Call], overflow: Overflow) -> None:
        self._call: Call | None = None
        self._find = find
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow: {overflow!r} is none of {', '.join(get_args(Overflow))}")
        self._session = session
        self._router = session.router()
        self._loop = asyncio.get_running_loop()
        self._overflow = overflow
        self._position = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> State:
        """Return the next state.

        Raises:
            StopAsyncIteration: the last state was terminal, or the stream is closed.
            UnknownTask, DeadlineExceeded, ConnectionLost, BacklogLimitExceeded: see `Client.stream`.
        """
        call = self._call
        if call is None:
            call = self._begin()
        while True:
            message = self._take(call)
            if message is not None:
                if is_terminal(message.name):
                    self._session.mark_read(call.task_id)
                    await self.aclose()
                return _state_of(self._session, message)
            if call.phase is not Phase.PENDING:
                self._session.mark_read(call.task_id)
                await self.aclose()
                if call.terminal is None:
                    value_of(self._session, call)
                raise StopAsyncIteration
            if self._session.is_closed:
                await self.aclose()
                raise _closed_error(call.task_id)
            await next_change(call)

    async def aclose(self) -> None:
        """Let go of the task; it is not touched. Idempotent."""
        self._leave()

    def __del__(self) -> None:
        # The garbage collector comes in any thread, and in the loop's own in the midst of anything.
        if self._call is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing is held any more
                self._loop.call_soon_threadsafe(unfollow, self._session, self._router, self._call)

    def _begin(self) -> Call:
        """Find the call at the first step, so that a stream nobody iterates leaves nothing behind."""
        if self._session.router() is not self._router:
            raise UsageError("the client was closed since")
        find, self._find = self._find, _closed
        call = self._call = find()
        follow(self._session, call)
        if call.backlog is not None:
            self._position = call.backlog.dropped
        return call

    def _take(self, call: Call) -> StateMessage | None:
        """Return the next state that is there already."""
        backlog = call.backlog
        if backlog is None or self._position >= backlog.end:
            return None
        if self._position < backlog.dropped:
            if self._overflow == "error":
                self._leave()
                text = f"the reader fell more than {backlog.limit} states behind"
                raise BacklogLimitExceeded(text, task_id=call.task_id)
            self._position = backlog.dropped
        self._position += 1
        return backlog.at(self._position - 1)

    def _leave(self) -> None:
        call, self._call, self._find = self._call, None, _closed
        if call is not None:
            unfollow(self._session, self._router, call)


def follow(session: Session, call: Call) -> None:
    """Count *session* among the readers of *call*."""
    call.readers = [*call.readers, session]


def unfollow(session: Session, router: ReplyRouter, call: Call) -> None:
    """Undo `follow`; with its last reader a task that was submitted elsewhere is no longer awaited."""
    readers = list(call.readers)
    readers.remove(session)
    call.readers = readers
    if not readers:
        router.leave(call)


def _closed_error(task_id: str) -> ConnectionLost:
    return ConnectionLost("the client was closed", task_id=task_id, maybe_executed=True)


def _closed() -> Call:
    raise StopAsyncIteration


async def next_change(call: Call) -> None:
    """Wait until *call* gets a state, is confirmed, or is settled."""
    watcher = asyncio.get_running_loop().create_future()
    if call.watchers is None:
        call.watchers = []
    call.watchers.append(watcher)
    try:
        await watcher
    except BaseException:
        if call.watchers and watcher in call.watchers:
            call.watchers.remove(watcher)
        raise


def _state_of(session: Session, message: StateMessage) -> State:
    value = _value_in(session, message)
    if message.name in (FAILURE, REVOKED):
        value = _error_of(session, message, value)
    return State(message.name, value, message.task_id, message.attempt, message.sequence, message.worker_id)


def _value_in(session: Session, message: StateMessage) -> Any:
    if message.name == REVOKED:
        return None  # the name says it all, and the body may be of a content type that is not accepted here
    try:
        return session.codecs.decode(message.body, message.content_type, message.content_encoding)
    except RPCError as error:
        error.task_id, error.maybe_executed = message.task_id, True
        raise


def _error_of(session: Session, message: StateMessage, value: Any) -> RPCError:
    if message.name == REVOKED:
        return TaskRevoked("the task was revoked", task_id=message.task_id)
    return rebuild_error(value, session.errors, message.task_id)
