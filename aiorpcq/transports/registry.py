"""From a broker's URL to the transport that reaches it."""

from __future__ import annotations

from typing import Final

from .amqp import AMQPTransport
from .base import Transport
from .memory import MemoryTransport

__all__ = ["check_max_size", "check_url", "make_transport"]

_LEAST_SIZE: Final = 1024
_MOST_SIZE: Final = 2**31


def check_max_size(max_size: int) -> None:
    """Raise `ValueError` where *max_size* cannot bound a message: an error reply must fit into 1 KiB."""
    if isinstance(max_size, bool) or not isinstance(max_size, int) or not _LEAST_SIZE <= max_size <= _MOST_SIZE:
        raise ValueError(f"max_size: {max_size!r} is not an integer between {_LEAST_SIZE} and {_MOST_SIZE}")


def check_url(url: str) -> None:
    """Raise `ValueError` where `make_transport` would."""
    make_transport(url, max_size=_LEAST_SIZE, name="")


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
        return MemoryTransport(url, max_size=max_size)
    if separator and scheme in ("amqp", "amqps"):
        return AMQPTransport(url, max_size=max_size, name=name)
    raise ValueError("url: its scheme is none of memory://, amqp://, amqps://")
