"""From a broker's URL to the transport that reaches it."""

from __future__ import annotations

from .amqp import AMQPTransport
from .base import Transport
from .memory import MemoryTransport

__all__ = ["make_transport"]


def make_transport(url: str, *, max_size: int, name: str) -> Transport:
    """Return the transport for *url*.

    *max_size* bounds a message's body in bytes; *name* is what the broker's management page calls the connection.

    Raises:
        ValueError: no transport has that scheme, or the URL cannot be read; the text has no password.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "memory":
        return MemoryTransport(url, max_size=max_size)
    if separator and scheme in ("amqp", "amqps"):
        return AMQPTransport(url, max_size=max_size, name=name)
    raise ValueError("url: its scheme is none of memory://, amqp://, amqps://")
