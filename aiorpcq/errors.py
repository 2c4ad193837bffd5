"""The exception tree: what went wrong, and what is known about the call it happened to.

`RPCError` is the root. Every error says which task it belongs to (`task_id`), whether the method may have run
(`maybe_executed`) and whether trying again can help (`retryable`).
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BacklogLimitExceeded",
    "CodecError",
    "ConnectFailed",
    "ConnectionLost",
    "ContentDisallowed",
    "DeadlineExceeded",
    "InvalidArguments",
    "MethodNotFound",
    "NoWorkers",
    "Overloaded",
    "PayloadTooLarge",
    "Poisoned",
    "RPCError",
    "Rejected",
    "RemoteError",
    "RemoteTraceback",
    "TaskRevoked",
    "TopologyMismatch",
    "UnknownTask",
    "Unroutable",
    "UnsupportedVersion",
    "UsageError",
    "WorkerLost",
]


class RPCError(Exception):
    """The root of everything this library raises on purpose.

    Attributes:
        task_id: the task the error belongs to, or None where there is none.
        maybe_executed: False where the method is known not to have run, True where it has run or may have.
        retryable: whether the same call may succeed if made again unchanged.
    """

    retryable: ClassVar[bool] = False
    _maybe_executed: ClassVar[bool] = False

    def __init__(self, message: str = "", *, task_id: str | None = None, maybe_executed: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.task_id = task_id
        self.maybe_executed = self._maybe_executed if maybe_executed is None else maybe_executed

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # `args` are not the constructor's; copy and pickle restore the attributes instead.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[RPCError], args: tuple[Any, ...], attributes: dict[str, Any]) -> RPCError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    if isinstance(error, RemoteError) and error.traceback:
        error.__cause__ = RemoteTraceback(error.traceback)
    return error


class RemoteTraceback(Exception):
    """The text of a traceback from another process, shown as the cause of a `RemoteError`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class RemoteError(RPCError):
    """The method raised.

    Where the raised class is registered with the client the error is also an instance of that class.

    Attributes:
        type: qualified name of the raised class.
        module: module of the raised class.
        message: text of the raised exception.
        args: its arguments; one that could not be encoded is there as its `repr`.
        traceback: text of the remote traceback.
        cause: the exception it was raised from, as far as the worker sent the chain, or None.
        notes: what `add_note` added to it.
    """

    _maybe_executed = True

    def __init__(
        self,
        message: str = "",
        *,
        type: str = "Exception",
        module: str = "builtins",
        args: tuple[Any, ...] = (),
        traceback: str = "",
        cause: RemoteError | None = None,
        notes: tuple[str, ...] = (),
        task_id: str | None = None,
    ) -> None:
        RPCError.__init__(self, message, task_id=task_id)
        self.args = args
        self.type = type
        self.module = module
        self.traceback = traceback
        self.cause = cause
        self.notes = notes
        if traceback:
            self.__cause__ = RemoteTraceback(traceback)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A class made for a registered exception exists in this process alone; elsewhere it is a plain RemoteError.
        return _restore, (RemoteError, self.args, self.__dict__)


class MethodNotFound(RPCError):
    """The service is there and has no method of that name."""


class InvalidArguments(RPCError):
    """The arguments do not fit the method's signature; it was not run."""


class UnsupportedVersion(RPCError):
    """The request is of another major version of the wire than the worker speaks."""


class DeadlineExceeded(RPCError, TimeoutError):
    """No terminal state came by the call's deadline."""

    _maybe_executed = True


class Unroutable(RPCError):
    """No queue is bound for the service: its name is wrong, or no worker of it has ever run on this broker."""


class NoWorkers(RPCError):
    """The service's queue exists and nothing consumes from it."""

    retryable = True


class Rejected(RPCError):
    """The request was rejected by its queue or by a worker that would not take it."""


class Poisoned(RPCError):
    """The request was delivered too often without an answer; it is suspected of killing its workers."""

    _maybe_executed = True


class WorkerLost(RPCError):
    """The worker that ran the method is gone, and the method is not to be run again."""

    retryable = True
    _maybe_executed = True


class TaskRevoked(RPCError):
    """The task was revoked before it ended."""

    _maybe_executed = True


class Overloaded(RPCError):
    """A bound was reached: too many pending calls here, a full queue at the broker, or a method that was busy.

    Attributes:
        retry_after: seconds after which the method said it is worth trying again, or None.
    """

    retryable = True

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str | None = None,
        maybe_executed: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, task_id=task_id, maybe_executed=maybe_executed)
        self.retry_after = retry_after


class PayloadTooLarge(RPCError):
    """A body is larger than the size limit, before or after decompression."""


class ContentDisallowed(RPCError):
    """A body's content type or encoding is not on the accept list; it was not decoded."""


class CodecError(RPCError):
    """A value cannot be encoded, or a body cannot be decoded."""


class BacklogLimitExceeded(RPCError):
    """A stream fell further behind its task than its backlog holds."""

    _maybe_executed = True


class UnknownTask(RPCError):
    """The task is settled and nothing of it is held here any more."""

    _maybe_executed = True


class UsageError(RPCError, RuntimeError):
    """A client or worker was used where it cannot be: not open, closed, on another event loop, or after a fork."""


class ConnectionLost(RPCError):
    """The connection to the broker was lost, or the client closed, while the call was under way."""

    retryable = True


class ConnectFailed(RPCError):
    """No connection to the broker could be made; the message says whether address, password, vhost or permission."""

    retryable = True


class TopologyMismatch(ConnectFailed):
    """An exchange or queue of that name exists with other properties; the message names it and the difference."""

    retryable = False
