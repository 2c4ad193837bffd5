"""Dead letters: requests that were given up on, kept in a queue of their service to be looked at and replayed.

A dead letter is the request as it came, body and all, but for what a queue or the default exchange would act upon: the
reply queue, CC, the expiration and the deadline are in a table of their own, the header `dead-letter`, beside what is
known of its end. CC above all: a message with it that goes to the default exchange is copied to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from .messages import History, Outcome, Properties, Publication
from .wire import LEADING_HEADER, VERSION, MalformedMessage, VersionRefused, carried, republish, return_reason

__all__ = ["DeadLetter", "bury", "exhume", "letter_id_of", "read"]

_TABLE: Final = "dead-letter"
_CC: Final = "CC"
_ORIGIN: Final = "origin"
_REMAINING: Final = "remaining"
_DROPPED: Final = frozenset(
    {_TABLE, _CC, "BCC", LEADING_HEADER, _REMAINING, "attempt", "losses", "replay", "republished"}
)
_NO_HEADERS: Final[Mapping[str, Any]] = {}
_PERSISTENT: Final = 2
_ID_BYTES: Final = 8
_REASON_LIMIT: Final = 1_000
_CC_LIMIT: Final = 16
_KEY_LIMIT: Final = 255  # a routing key is a short string (AMQP 0-9-1, section 4.2.5.3)

_SettledCallback = Callable[[Publication, Outcome], None]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that was given up on.

    Attributes:
        id: of the letter; a request that is replayed and dies again leaves another letter.
        task_id: of the request.
        method: as its service names it.
        reason: why it was given up, for a human.
        attempts: how often it was run, or was about to be.
        losses: how many of these runs ended without an answer: their workers died.
        worker_id: who gave it up.
        buried_at: when, in seconds since 1970 by that worker's clock.
        size: bytes of its body, as it travels.
        broker_reason: what the broker had done to it before: reason of its newest `x-death` entry, or None.
        metadata: what its caller sent with it, or None.
        reply_to: the queue its answer goes to, None for a cast.
    """

    id: str
    task_id: str
    method: str
    reason: str
    attempts: int
    losses: int
    worker_id: str
    buried_at: float
    size: int
    broker_reason: str | None
    metadata: Mapping[str, Any] | None
    reply_to: str | None


def bury(
    properties: Properties,
    body: bytes,
    queue: str,
    *,
    letter_id: str,
    reason: str,
    attempt: int,
    losses: int,
    worker_id: str,
    now: float,
    settled: _SettledCallback | None = None,
) -> Publication:
    """Return a delivered request as the dead letter *letter_id*, for the queue *queue* of dead letters.

    It is persistent: whoever looks at it may do so after a restart of the broker. *now* is the wall clock's time in
    seconds; *reason* is cut at 1,000 characters.
    """
    headers = properties.headers or _NO_HEADERS
    table: dict[str, Any] = {
        "id": letter_id,
        "reason": reason[:_REASON_LIMIT].encode("utf-8", "backslashreplace").decode(),
        "attempt": attempt,
        "losses": losses,
        "worker-id": worker_id,
        "buried-at": int(now * 1000),
    }
    copies = _routing_keys(headers.get(_CC))
    died = return_reason(headers).value if "x-death" in headers else None
    remaining = headers.get(_REMAINING)  # of a request that was held back, in place of the property
    optional = {
        "reply-to": properties.reply_to,
        "cc": copies or None,
        "expiration": properties.expiration if remaining is None else remaining,
        "deadline": headers.get(LEADING_HEADER),
        "delivery-mode": properties.delivery_mode,
        "x-death": died,
    }
    table.update((name, value) for name, value in optional.items() if value is not None)
    kept = {name: value for name, value in headers.items() if not name.startswith("x-") and name not in _DROPPED}
    kept[_TABLE] = table
    # A message with a reply queue is answered by whoever consumes it as a request; the queue's own time to live holds.
    return Publication("", queue, carried(properties, kept, _PERSISTENT, None, None), body, True, settled)


def letter_id_of(properties: Properties, body: bytes) -> str:
    """Return the id of the letter that a request is to be buried as.

    It is the same however often the request was delivered: it is buried twice where the first confirm is lost. That of
    its replay is another.
    """
    headers = properties.headers or _NO_HEADERS
    origin = headers.get(_ORIGIN) or properties.reply_to  # which stays where a caller has moved to another queue
    request = repr((properties.correlation_id, origin, headers.get("replay"), headers.get(LEADING_HEADER)))
    digest = blake2b(request.encode("utf-8", "backslashreplace"), digest_size=_ID_BYTES)
    digest.update(body)
    return digest.hexdigest()


def read(properties: Properties, body: bytes, size: int | None = None) -> DeadLetter:
    """Read a dead letter; *size* is that of its body where *body* is not all of it.

    Raises:
        VersionRefused: it is of another major version.
        MalformedMessage: it is no dead letter.
    """
    headers = properties.headers or _NO_HEADERS
    table = _table(headers)
    metadata = headers.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise MalformedMessage("header metadata is not a table")
    return DeadLetter(
        _text(table, "id"),
        _present(properties.correlation_id, "correlation_id"),
        _present(properties.type, "type"),
        _text(table, "reason", empty=True),
        _count(table, "attempt"),
        _count(table, "losses"),
        _text(table, "worker-id", empty=True),
        _count(table, "buried-at") / 1000,
        len(body) if size is None else size,
        _text(table, "x-death") if "x-death" in table else None,
        metadata,
        _text(table, "reply-to") if "reply-to" in table else None,
    )


def exhume(
    properties: Properties,
    body: bytes,
    exchange: str,
    routing_key: str,
    *,
    deadline: float | None = None,
    expiration: float | None = None,
    settled: _SettledCallback | None = None,
) -> Publication:
    """Return a dead letter as the request it was, for *exchange* and *routing_key*: its first attempt, once more.

    It names the letter as what it is a replay of, so that workers know two replays of one letter for the same. Its old
    deadline is past; *deadline*, in seconds of the wall clock, and *expiration*, the seconds until then, are another.

    Raises:
        VersionRefused, MalformedMessage: as `read`.
    """
    letter = read(properties, body)
    headers = properties.headers or _NO_HEADERS
    table = _table(headers)
    origin = headers.get(_ORIGIN)
    publication = republish(
        properties,
        body,
        exchange,
        routing_key,
        attempt=1,
        history=History(origin if isinstance(origin, str) else None, replay=letter.id),
        reply_to=letter.reply_to,
        expiration=expiration,
        settled=settled,
    )
    kept = dict(publication.properties.headers or _NO_HEADERS)
    del kept[_TABLE]
    kept.pop(LEADING_HEADER, None)
    kept.pop(_CC, None)
    copies = _routing_keys(table.get("cc"))
    if copies:
        kept = {_CC: copies, **kept}
    if deadline is not None:
        kept = {LEADING_HEADER: int(deadline * 1000), **kept}  # it leads, see wire.py
    publication.properties.headers = kept
    publication.properties.delivery_mode = _PERSISTENT if table.get("delivery-mode") == _PERSISTENT else None
    return publication


def _table(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    if headers.get("wire-version", VERSION) != VERSION:
        raise VersionRefused(f"wire version {headers['wire-version']!r:.20} is not {VERSION}")
    table = headers.get(_TABLE)
    if not isinstance(table, Mapping):
        raise MalformedMessage(f"header {_TABLE} is missing or not a table")
    return table


def _routing_keys(value: object) -> tuple[str, ...]:
    """Return the keys of a CC header; it comes as a list, whatever it was sent as."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return ()
    keys = (key for key in value if isinstance(key, str) and len(key) <= _KEY_LIMIT)
    return tuple(keys)[:_CC_LIMIT]


def _present(value: str | None, name: str) -> str:
    if not value:
        raise MalformedMessage(f"a dead letter without {name}")
    return value


def _text(table: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise MalformedMessage(f"{name} of header {_TABLE} is missing or not a string")
    return value


def _count(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name)
    if type(value) is not int or value < 0:
        raise MalformedMessage(f"{name} of header {_TABLE} is missing or not a count")
    return value
