"""Control messages: what callers tell workers beside their requests, and what workers answer.

They go to the topic exchange for control, with `all`, `service.<name>` or `worker.<id>` as the routing key; `type` is
the command. Headers hold the fields, the body of a claim its task ids as JSON. An answer goes to the asker's reply
queue and has no `type`, which tells it from every state; its header `control` says what it is.

A cancel or a claim proves that it is the caller's by naming the reply queue that the request was sent with, which
nobody can guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from .messages import Properties, Publication
from .wire import VERSION, MalformedMessage, VersionRefused

__all__ = [
    "CLAIM_LIMIT",
    "Answer",
    "Cancel",
    "CancelMode",
    "Claim",
    "Command",
    "Inquiry",
    "Question",
    "decode_answer",
    "decode_command",
    "encode_answer",
    "encode_command",
]

CancelMode = Literal["skip", "kill", "killnowait"]
"""How far a cancel goes: "skip" keeps the method from being started, the others stop it too. With "kill" the caller
waits for the end, with "killnowait" it does not."""

Question = Literal["ping", "info", "stats", "held"]
"""What can be asked of workers: whether they are there, what they serve, what they have counted, which of the tasks of
a claim they hold."""

CLAIM_LIMIT: Final = 2_000
"""Task ids that one claim names at the most; a caller with more sends several."""

_BODY_LIMIT: Final = 1024 * 1024
_CANCEL: Final = "cancel"
_CLAIM: Final = "resume"
_JSON: Final = "application/json"
_VERSION: Final = "wire-version"
_NO_HEADERS: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Cancel:
    """Revoke a task. *reply_to* is what its request was sent with; *expires* how many seconds to remember it."""

    task_id: str
    reply_to: str
    mode: CancelMode
    expires: float


@dataclass(frozen=True, slots=True)
class Claim:
    """Say where a caller's answers go to: what was to go to the queue *origin* goes to *reply_to*.

    Of *task_ids* the caller waits for; a terminal state that is cached of one is sent again. *expires* is how many
    seconds to remember the move. With an *id* the workers answer which of the tasks they hold.
    """

    origin: str
    reply_to: str
    task_ids: tuple[str, ...]
    expires: float
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Ask workers for something; they answer to *reply_to* with *id*."""

    question: Question
    id: str
    reply_to: str


Command = Cancel | Claim | Inquiry


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answers to the inquiry or claim *id*; *value* is of JSON's types."""

    question: Question
    id: str
    worker_id: str
    value: Any


def encode_command(command: Command, exchange: str, routing_key: str) -> Publication:
    """Put *command* into its envelope; nobody waits for what becomes of it."""
    body = b""
    if isinstance(command, Cancel):
        properties = Properties(type=_CANCEL, correlation_id=command.task_id)
        fields: dict[str, Any] = {
            "origin": command.reply_to,
            "mode": command.mode,
            "expires": int(command.expires * 1000),
        }
    elif isinstance(command, Claim):
        properties = Properties(_JSON, type=_CLAIM, correlation_id=command.id, reply_to=command.reply_to)
        fields = {"origin": command.origin, "expires": int(command.expires * 1000)}
        body = json.dumps(command.task_ids, ensure_ascii=True).encode()
    else:
        properties = Properties(type=command.question, correlation_id=command.id, reply_to=command.reply_to)
        fields = {}
    properties.headers = fields or None
    return Publication(exchange, routing_key, properties, body, False)


def decode_command(properties: Properties, body: bytes) -> Command:
    """Read a control message.

    Raises:
        VersionRefused: it is of another major version.
        MalformedMessage: it is not a control message.
    """
    headers = properties.headers or _NO_HEADERS
    if headers.get(_VERSION, VERSION) != VERSION:
        raise VersionRefused(f"wire version {headers[_VERSION]!r:.20} is not {VERSION}")
    kind = properties.type
    if kind == _CANCEL:
        mode = headers.get("mode")
        if mode not in get_args(CancelMode):
            raise MalformedMessage(f"cancel mode {mode!r:.20} is unknown")
        task_id = _text(properties.correlation_id, "correlation_id")
        return Cancel(task_id, _text(headers.get("origin"), "origin"), cast(CancelMode, mode), _seconds(headers))
    if kind == _CLAIM:
        origin = _text(headers.get("origin"), "origin")
        reply_to = _text(properties.reply_to, "reply_to")
        return Claim(origin, reply_to, _task_ids(body), _seconds(headers), properties.correlation_id)
    if kind in ("ping", "info", "stats"):
        identity = _text(properties.correlation_id, "correlation_id")
        return Inquiry(cast(Question, kind), identity, _text(properties.reply_to, "reply_to"))
    raise MalformedMessage(f"control message of type {kind!r:.40}")


def encode_answer(answer: Answer, reply_to: str) -> Publication:
    """Put *answer* into its envelope, for the queue *reply_to*."""
    headers = {"control": answer.question, "worker-id": answer.worker_id}
    properties = Properties(_JSON, headers=headers, correlation_id=answer.id)
    return Publication("", reply_to, properties, json.dumps(answer.value, ensure_ascii=True).encode(), False)


def decode_answer(properties: Properties, body: bytes) -> Answer:
    """Read an answer.

    Raises:
        MalformedMessage: it is none, or of another major version.
    """
    headers = properties.headers or _NO_HEADERS
    if properties.type is not None or headers.get(_VERSION, VERSION) != VERSION:
        raise MalformedMessage("not an answer of this version")
    question = headers.get("control")
    if question not in get_args(Question):
        raise MalformedMessage(f"an answer to {question!r:.20}")
    identity = _text(properties.correlation_id, "correlation_id")
    return Answer(cast(Question, question), identity, _text(headers.get("worker-id"), "worker-id"), _json(body))


def _task_ids(body: bytes) -> tuple[str, ...]:
    value = _json(body)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > CLAIM_LIMIT:
        raise MalformedMessage(f"the body is not a list of at most {CLAIM_LIMIT} task ids")
    if not all(isinstance(task_id, str) for task_id in value):
        raise MalformedMessage("a task id is not a string")
    return tuple(value)


def _json(body: bytes) -> Any:
    if len(body) > _BODY_LIMIT:
        raise MalformedMessage(f"a body of {len(body)} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"the body is not JSON: {type(error).__name__}") from error


def _seconds(headers: Mapping[str, Any]) -> float:
    value = headers.get("expires")
    if type(value) is not int or value < 0:
        raise MalformedMessage("header expires is not a number of milliseconds")
    return value / 1000


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"{name} is missing or not a string")
    return value
