"""From a broker's URL to the transport that reaches it."""

from __future__ import annotations

from ..limits import DEFAULT_MAX_SIZE
from .amqp import AMQPTransport
from .base import Transport
from .memory import MemoryTransport

__all__ = ["check_url", "make_transport"]


def check_url(url: str) -> None:
    """Raise `ValueError` where `make_transport` would."""
    make_transport(url, max_size=DEFAULT_MAX_SIZE, name="")


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
