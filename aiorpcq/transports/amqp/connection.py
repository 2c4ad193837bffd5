"""The transport of `amqp://` and `amqps://` URLs: makes links, and says what is wrong where it cannot."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiormq.exceptions import (
    AuthenticationError,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from yarl import URL

from ...errors import ConnectFailed, RPCError
from .link import AMQPLink

__all__ = ["AMQPLink", "AMQPTransport"]

# What aiormq has to say about a failed or lost connection we raise or log ourselves; where a program has not configured
# logging, it must not appear on stderr beside that.
logging.getLogger("aiormq").addHandler(logging.NullHandler())

_HEARTBEAT: Final = 10
"""Seconds; a dead link is noticed within two of them."""


class AMQPTransport:
    """See `Transport`. *url* is `amqp://` or `amqps://`, with aiormq's query parameters for TLS and heartbeat.

    Raises:
        ValueError: *url* cannot be read.
    """

    def __init__(self, url: str, *, max_size: int, name: str) -> None:
        try:
            parsed = URL(url)
            port = parsed.port
        except ValueError as error:
            raise ValueError(f"url: {type(error).__name__} in the broker's URL") from None
        if parsed.scheme not in ("amqp", "amqps") or not parsed.host:
            raise ValueError("url: not of the form amqp://user:password@host:port/vhost")
        if "heartbeat" not in parsed.query:
            parsed = parsed.update_query(heartbeat=_HEARTBEAT)
        self._url = parsed
        self._max_size = max_size
        self._name = name
        default = 5671 if parsed.scheme == "amqps" else 5672
        self.address = f"{parsed.scheme}://{parsed.host}:{port or default}/{parsed.path.lstrip('/')}"

    async def connect(self, timeout: float) -> AMQPLink:
        """See `Transport`."""
        link = AMQPLink(self.address, self._max_size)
        try:
            async with asyncio.timeout(timeout):
                await link.open(self._url, self._name)
        except BaseException as error:
            reason = link.lost.result() if link.lost.done() else None
            await link.close()
            if isinstance(error, Exception):
                raise self._explain(error, reason, timeout) from None
            raise
        return link

    def _explain(self, error: Exception, reason: RPCError | None, timeout: float) -> ConnectFailed:
        """Say what is wrong, from an error whose own text may hold the URL.

        *reason* is why the link was lost: aiormq does not tell what the broker said when it refused a vhost.
        """
        where = self.address
        if isinstance(error, ConnectFailed):
            return error
        if isinstance(error, (ProbableAuthenticationError, AuthenticationError)):
            return ConnectFailed(f"{where} refused the user name or password of {self._url.user or 'guest'!r}")
        if isinstance(error, TimeoutError):
            return ConnectFailed(f"{where} did not answer within {timeout:g} s")
        if isinstance(error, IncompatibleProtocolError):
            return ConnectFailed(f"{where} does not speak AMQP 0-9-1")
        if reason is not None:
            return ConnectFailed(f"{where} cannot be opened: {reason}")
        return ConnectFailed(f"{where} cannot be reached: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = " ".join(str(argument) for argument in error.args) or type(error).__name__
    return text.partition("\n")[0][:200]
