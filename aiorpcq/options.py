"""How calls are made: what `Client.with_options` takes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from .deadline import check_timeout
from .limits import check_integer
from .protocol.metadata import check_metadata

__all__ = ["CallOptions", "DisconnectMode", "check_task_id"]

DisconnectMode = Literal["resume", "fail"]
"""What the loss of the connection means for a call that is under way: its answer is claimed on the next connection, or
it ends at once."""

_TASK_ID_LIMIT: Final = 255  # `correlation_id` is a short string (AMQP 0-9-1, section 4.2.5.3)
_MOST_RETRIES: Final = 1_000


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
        idempotent: whether the method may run twice without harm. A request that may have been lost with the
            connection is sent again then, and `retries` take in what may have run.
        retries: how often a call is made again, within its timeout, that ended in an error which is `retryable`, and
            not `maybe_executed` unless it is idempotent. Each time it has a new id, unless `task_id` is given. `submit`
            tries again until the broker has the request; a cast is made once.
        on_disconnect: "resume" has the answers to what was sent claimed on the next connection; "fail" ends it with
            `ConnectionLost` at once.
        cancel_task: whether cancelling the wait for a call cancels its task.
        require_workers: whether to ask the broker, before the request is sent, if there is anybody to take it:
            `Unroutable` or `NoWorkers` at once where there is not. It costs a round trip.
    """

    timeout: float | None = 30.0
    priority: int | None = None
    persistent: bool = False
    metadata: Mapping[str, Any] | None = None
    task_id: str | None = None
    idempotent: bool = False
    retries: int = 0
    on_disconnect: DisconnectMode = "resume"
    cancel_task: bool = True
    require_workers: bool = False

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        check_integer(self.retries, "retries", 0, _MOST_RETRIES)
        if self.on_disconnect not in get_args(DisconnectMode):
            raise ValueError(f"on_disconnect: {self.on_disconnect!r} is none of {', '.join(get_args(DisconnectMode))}")
        if self.priority is not None:
            check_integer(self.priority, "priority", 0, 255)
        if self.metadata is not None and not isinstance(self.metadata, Mapping):
            raise ValueError(f"metadata: a {type(self.metadata).__name__} is not a mapping")
        if self.metadata is not None:
            check_metadata(self.metadata)
            # What is changed in it later was not checked, and RabbitMQ closes the connection over some of it.
            object.__setattr__(self, "metadata", deepcopy(dict(self.metadata)))
        for flag in ("persistent", "idempotent", "cancel_task", "require_workers"):
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{flag}: {getattr(self, flag)!r:.100} is neither True nor False")
        if self.task_id is not None:
            check_task_id(self.task_id)


def check_task_id(value: object) -> None:
    """Raise `ValueError` where *value* cannot be the id of a task."""
    if not _is_task_id(value):
        raise ValueError(f"task_id: {value!r:.100} is not text of 1 to {_TASK_ID_LIMIT} bytes")


def _is_task_id(value: object) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= _TASK_ID_LIMIT
    except UnicodeEncodeError:
        return False
