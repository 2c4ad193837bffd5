"""From a broker's URL to the transport that reaches it."""

from __future__ import annotations

from collections.abc import Sequence

from ..limits import DEFAULT_MAX_SIZE
from .amqp import AMQPTransport
from .base import Transport
from .memory import MemoryTransport

__all__ = ["check_url", "make_transport", "make_transports"]


def check_url(url: str | Sequence[str]) -> None:
    """Raise `ValueError` where `make_transports` would."""
    make_transports(url, max_size=DEFAULT_MAX_SIZE, name="")


def make_transports(url: str | Sequence[str], *, max_size: int, name: str) -> list[Transport]:
    """Return the transports for one URL, or for several that lead to the same broker or cluster; see `make_transport`.

    Raises:
        ValueError: there is none, one of them cannot be read, or some are brokers in this process and others are not.
    """
    if isinstance(url, str):
        return [make_transport(url, max_size=max_size, name=name)]
    if not isinstance(url, Sequence):
        raise ValueError(f"url: a {type(url).__name__} is neither a string nor a sequence of strings")
    transports = [make_transport(one, max_size=max_size, name=name) for one in url]
    if not transports:
        raise ValueError("url: an empty sequence names no broker")
    if len({isinstance(transport, MemoryTransport) for transport in transports}) > 1:
        raise ValueError("url: memory:// does not go together with amqp:// or amqps://")
    return transports


def make_transport(url: str, *, max_size: int, name: str) -> Transport:
    """Return the transport for *url*.

    *max_size* bounds a message's body in bytes; *name* is what the broker's management page calls the connection.

    Raises:
        ValueError: no transport has that scheme, or the URL cannot be read; the text has no password.
    """
    if not isinstance(url, str):
        raise ValueError(f"url: a {type(url).__name__} is not a string")
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "memory":
        return MemoryTransport(url, max_size=max_size, name=name)
    if separator and scheme in ("amqp", "amqps"):
        return AMQPTransport(url, max_size=max_size, name=name)
    raise ValueError("url: its scheme is none of memory://, amqp://, amqps://")
