"""What an HTTP client gets where a call fails; both web applications use it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from aiorpcq import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidArguments,
    NoWorkers,
    Overloaded,
    PayloadTooLarge,
    RemoteError,
    RPCError,
    UnknownTask,
    Unroutable,
)

__all__ = ["describe", "status_of"]

_STATUSES: Final[dict[type[RPCError], HTTPStatus]] = {
    UnknownTask: HTTPStatus.NOT_FOUND,
    PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidArguments: HTTPStatus.UNPROCESSABLE_ENTITY,
    ConnectionLost: HTTPStatus.SERVICE_UNAVAILABLE,
    NoWorkers: HTTPStatus.SERVICE_UNAVAILABLE,
    Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    Unroutable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}


def status_of(error: RPCError) -> HTTPStatus:
    """Return the status for *error*; 502 for what the method or the worker did, a `RemoteError` above all."""
    return next((status for cls, status in _STATUSES.items() if isinstance(error, cls)), HTTPStatus.BAD_GATEWAY)


def describe(error: RPCError) -> dict[str, Any]:
    """Return what a client may know of *error*: never the traceback.

    `maybe_executed` tells it whether the same request made again might do its work twice.
    """
    if isinstance(error, RemoteError):
        known: dict[str, Any] = {"error": "RemoteError", "type": error.type, "message": error.message}
    else:
        known = {"error": type(error).__name__, "message": error.message}
    return known | {"task_id": error.task_id, "maybe_executed": error.maybe_executed}
