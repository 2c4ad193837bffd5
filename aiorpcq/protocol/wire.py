"""The native wire, version 1: requests and states to and from AMQP properties, headers and bodies.

A request goes to the request exchange: `correlation_id` is the task id, `type` the method, `reply_to` the caller's
reply queue, `expiration` what is left until the deadline; headers hold the rest. A state goes to the default exchange
with the reply queue as its routing key: `correlation_id` is the task id, `type` the state's name. A plain SUCCESS has
no headers. Bodies hold arguments and values alone. Unknown headers are ignored; another major version is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from .messages import History, Outcome, Properties, Publication, Request, StateMessage

__all__ = [
    "LEADING_HEADER",
    "VERSION",
    "MalformedMessage",
    "ReturnReason",
    "VersionRefused",
    "carried",
    "decode_request",
    "decode_state",
    "delivery_count",
    "encode_request",
    "encode_state",
    "republish",
    "return_reason",
]

VERSION: Final = 1

LEADING_HEADER: Final = "deadline"
"""First header of every request that has a deadline, and the only one that differs from one request to the next."""

_ATTEMPT: Final = "attempt"
_CC: Final = "CC"
_DELIVERY_COUNT: Final = "x-delivery-count"
_LOSSES: Final = "losses"
_METADATA: Final = "metadata"
_ORIGIN: Final = "origin"
_PARENT_ID: Final = "parent-id"
_REMAINING: Final = "remaining"
_REPLAY: Final = "replay"
_REPUBLISHED: Final = "republished"
_ROOT_ID: Final = "root-id"
_SEQUENCE: Final = "sequence"
_STATES: Final = "states"
_VERSION: Final = "wire-version"
_WORKER_ID: Final = "worker-id"
_NAME_LIMIT: Final = 255
_NO_HEADERS: Final[Mapping[str, Any]] = {}
_OF_HISTORY: Final = frozenset({_ORIGIN, _LOSSES, _REPLAY, _REPUBLISHED})
_OF_ONE_PUBLICATION: Final = _OF_HISTORY | {_ATTEMPT, _CC, _REMAINING}

_SettledCallback = Callable[[Publication, Outcome], None]


class MalformedMessage(Exception):
    """A message that is not of this wire; the text says which property is missing or of the wrong kind."""


class VersionRefused(MalformedMessage):
    """A message of another major version of the wire."""


class ReturnReason(Enum):
    """Why a request came back to its caller, by the reason of its newest `x-death` entry."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    DELIVERY_LIMIT = "delivery_limit"
    QUEUE_FULL = "maxlen"
    UNKNOWN = "unknown"


def encode_request(
    request: Request,
    exchange: str,
    routing_key: str,
    settled: _SettledCallback | None = None,
    *,
    returns: bool = True,
) -> Publication:
    """Put *request* into its envelope, for *exchange* and *routing_key*.

    Without *returns* it does not come back to its caller when it expires or is rejected: no queue has the name that
    `reply_to` says.
    """
    headers: dict[str, Any] = {}
    if request.deadline is not None:
        headers[LEADING_HEADER] = int(request.deadline * 1000)
    reply_to = request.reply_to
    if reply_to is not None and returns:
        # The service queue dead-letters by this key: what expires or is rejected comes back to the caller.
        headers[_CC] = (reply_to,)
    if request.states:
        headers[_STATES] = True
    if request.attempt != 1:
        headers[_ATTEMPT] = request.attempt
    if request.parent_id is not None:
        headers[_PARENT_ID] = request.parent_id
        headers[_ROOT_ID] = request.root_id
    if request.metadata:
        headers[_METADATA] = request.metadata
    if request.history is not None:
        _set_history(headers, request.history)
    return Publication(
        exchange,
        routing_key,
        Properties(
            content_type=request.content_type,
            content_encoding=request.content_encoding,
            headers=headers or None,
            priority=request.priority,
            correlation_id=request.task_id,
            reply_to=reply_to,
            expiration=None if request.expiration is None else int(request.expiration * 1000),
            type=request.method,
        ),
        request.body,
        True,
        settled,
    )


def decode_request(properties: Properties, body: bytes) -> Request:
    """Read a request.

    Raises:
        VersionRefused: it is of another major version; `correlation_id` and `reply_to` mean what they always do.
        MalformedMessage: it is not a request.
    """
    task_id, method = properties.correlation_id, properties.type
    if not task_id:
        raise MalformedMessage("a request without correlation_id")
    headers = properties.headers or _NO_HEADERS
    if headers.get(_VERSION, VERSION) != VERSION:
        raise VersionRefused(f"wire version {headers[_VERSION]!r:.20} is not {VERSION}")
    if not method:
        raise MalformedMessage("a request without type")
    deadline, expiration = headers.get(LEADING_HEADER), properties.expiration
    request = Request(
        task_id,
        method,
        body,
        properties.content_type or "",
        properties.content_encoding,
        properties.reply_to,
        None if deadline is None else _integer(deadline, LEADING_HEADER) / 1000,
        None if expiration is None else expiration / 1000,
    )
    if len(headers) > (deadline is not None) + (_CC in headers):  # most requests have no other header
        request.states = headers.get(_STATES) is True
        request.attempt = max(1, _integer(headers.get(_ATTEMPT, 1), _ATTEMPT))
        request.parent_id = _optional_text(headers.get(_PARENT_ID), _PARENT_ID)
        request.root_id = _optional_text(headers.get(_ROOT_ID), _ROOT_ID)
        metadata = headers.get(_METADATA)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise MalformedMessage(f"header {_METADATA} is not a table")
        request.metadata = metadata
        remaining = headers.get(_REMAINING)
        if remaining is not None:
            request.expiration = max(0, _integer(remaining, _REMAINING)) / 1000
        request.history = _history(headers)
    request.priority = properties.priority
    return request


def delivery_count(headers: Mapping[str, Any] | None) -> int:
    """Return how often a quorum queue has delivered the message before; 0 on a classic queue, which does not count."""
    count = (headers or _NO_HEADERS).get(_DELIVERY_COUNT, 0)
    return count if type(count) is int and count > 0 else 0


def republish(
    properties: Properties,
    body: bytes,
    exchange: str,
    routing_key: str,
    *,
    attempt: int,
    history: History,
    reply_to: str | None,
    expiration: float | None,
    delayed: bool = False,
    settled: _SettledCallback | None = None,
) -> Publication:
    """Return a delivered request as it is published again: as it came, but for what is said here.

    What the broker wrote into the headers goes: `x-death` would be read as the reason of the next return, and the
    delivery count starts again. *expiration* is what is left, in seconds; for a request that is *delayed* it becomes a
    header, counted from the end of the delay, since dead-lettering strips the property (RabbitMQ, "Dead Letter
    Exchanges").
    """
    received = properties.headers or _NO_HEADERS
    headers = {name: value for name, value in received.items() if _is_kept(name)}
    if reply_to is not None and _CC in received:  # one without is not to come back: its reply queue is a direct one
        headers[_CC] = (reply_to,)
    if attempt != 1:
        headers[_ATTEMPT] = attempt
    _set_history(headers, history)
    milliseconds = None if expiration is None else max(0, int(expiration * 1000))
    if delayed and milliseconds is not None:
        headers[_REMAINING] = milliseconds
    return Publication(
        exchange,
        routing_key,
        carried(properties, headers, properties.delivery_mode, reply_to, None if delayed else milliseconds),
        body,
        True,
        settled,
    )


def carried(
    properties: Properties,
    headers: dict[str, Any],
    delivery_mode: int | None,
    reply_to: str | None,
    expiration: int | None,
) -> Properties:
    """Return the properties of a delivered request as they go on with it, but for what is given; milliseconds."""
    return Properties(
        properties.content_type,
        properties.content_encoding,
        headers,
        delivery_mode,
        properties.priority,
        properties.correlation_id,
        reply_to,
        expiration,
        properties.message_id,
        properties.timestamp,
        properties.type,
        None,  # RabbitMQ refuses a message whose user-id is not the publisher's
        properties.app_id,
    )


def _is_kept(name: str) -> bool:
    return not name.startswith("x-") and name not in _OF_ONE_PUBLICATION


def _set_history(headers: dict[str, Any], history: History) -> None:
    if history.origin is not None:
        headers[_ORIGIN] = history.origin
    if history.losses:
        headers[_LOSSES] = history.losses
    if history.replay is not None:
        headers[_REPLAY] = history.replay
    if history.republished:
        headers[_REPUBLISHED] = True


def _history(headers: Mapping[str, Any]) -> History | None:
    if headers.keys().isdisjoint(_OF_HISTORY):
        return None
    return History(
        _optional_name(headers.get(_ORIGIN), _ORIGIN),
        max(0, _integer(headers.get(_LOSSES, 0), _LOSSES)),
        _optional_name(headers.get(_REPLAY), _REPLAY),
        headers.get(_REPUBLISHED) is True,
    )


def encode_state(
    message: StateMessage, reply_to: str, settled: _SettledCallback | None = None, *, priority: int | None = None
) -> Publication:
    """Put *message* into its envelope, for the queue *reply_to*."""
    headers: dict[str, Any] | None = None
    if message.sequence or message.attempt != 1 or message.worker_id is not None:
        headers = {}
        if message.sequence:
            headers[_SEQUENCE] = message.sequence
        if message.attempt != 1:
            headers[_ATTEMPT] = message.attempt
        if message.worker_id is not None:
            headers[_WORKER_ID] = message.worker_id
    return Publication(
        "",
        reply_to,
        Properties(
            message.content_type,
            message.content_encoding,
            headers,
            None,
            priority,
            message.task_id,
            type=message.name,
        ),
        message.body,
        True,
        settled,
    )


def decode_state(properties: Properties, body: bytes) -> StateMessage:
    """Read a state.

    Raises:
        MalformedMessage: it is not a state, or of another major version.
    """
    task_id, name = properties.correlation_id, properties.type
    if not task_id or not name:
        raise MalformedMessage(f"a state without {'type' if task_id else 'correlation_id'}")
    message = StateMessage(task_id, name, body, properties.content_type or "", properties.content_encoding)
    headers = properties.headers
    if headers:
        if headers.get(_VERSION, VERSION) != VERSION:
            raise VersionRefused(f"wire version {headers[_VERSION]!r:.20} is not {VERSION}")
        message.attempt = max(1, _integer(headers.get(_ATTEMPT, 1), _ATTEMPT))
        message.sequence = max(0, _integer(headers.get(_SEQUENCE, 0), _SEQUENCE))
        message.worker_id = _optional_text(headers.get(_WORKER_ID), _WORKER_ID)
    return message


def return_reason(headers: Mapping[str, Any] | None) -> ReturnReason:
    """Tell why a request came back.

    The newest entry of `x-death` says it; `x-first-death-reason` sticks to a message across retries (RabbitMQ, "Dead
    Letter Exchanges").
    """
    try:
        return ReturnReason((headers or _NO_HEADERS)["x-death"][0]["reason"])
    except (LookupError, TypeError, ValueError):
        return ReturnReason.UNKNOWN


def _integer(value: object, name: str) -> int:
    if type(value) is not int:
        raise MalformedMessage(f"header {name} is not an integer")
    return value


def _optional_text(value: object, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise MalformedMessage(f"header {name} is not a string")
    return value


def _optional_name(value: object, name: str) -> str | None:
    """Read what is the name of a queue or the id of a message, and no longer than those can be: it is kept a while."""
    text = _optional_text(value, name)
    if text is not None and len(text) > _NAME_LIMIT:
        raise MalformedMessage(f"header {name} is longer than {_NAME_LIMIT} characters")
    return text
