"""Keeps a link to the broker alive: one generation after another, with full-jitter backoff between them.

Whoever uses it says what a new generation needs (`setup`: declare, consume) and what the loss of one means (`on_lost`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from ..errors import ConnectFailed, ConnectionLost, RPCError
from .base import Link, Transport

__all__ = ["CONNECT_TIMEOUT", "Supervisor"]

CONNECT_TIMEOUT: Final = 10.0
"""Seconds that one try to open a link and set it up may take."""

_BACKOFF_BASE: Final = 0.1
_BACKOFF_LIMIT: Final = 10.0
_DOUBLINGS: Final = 10  # past the limit; without a bound the power would overflow after a thousand failures

_random = Random()


class Supervisor:
    """Owns the current link and the task that replaces it.

    `link` is the current one, None while there is none; `generation` counts them from 1. *setup* is run for each new
    link before `link` is set; *on_lost* is called after `link` was taken away. Between two tries it waits a random
    time of at most 0.1 s, doubled with each failure up to 10 s ("full jitter").
    """

    def __init__(
        self,
        transport: Transport,
        setup: Callable[[Link, int], Awaitable[None]],
        on_lost: Callable[[RPCError], None],
        logger: logging.Logger,
    ) -> None:
        self._transport = transport
        self._setup = setup
        self._on_lost = on_lost
        self._logger = logger
        self.link: Link | None = None
        self.generation = 0
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Open the first link, and watch it from then on.

        Raises:
            ConnectFailed: it cannot be opened or set up; nothing is retried.
        """
        link = await self._connect()
        self._task = asyncio.get_running_loop().create_task(self._run(link), name="aiorpcq supervisor")

    async def wait_link(self) -> Link:
        """Return the current link, or the next one as soon as it is there.

        Raises:
            ConnectionLost: the supervisor is closed.
        """
        while self.link is None:
            if self._closed:
                raise ConnectionLost("the connection is closed")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.link

    async def close(self) -> None:
        """Close the link and stop. Bounded in time, idempotent."""
        self._closed = True
        link, self.link = self.link, None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if link is not None:
            await link.close()
        self._wake()

    async def _connect(self) -> Link:
        link = await self._transport.connect(CONNECT_TIMEOUT)
        self.generation += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._setup(link, self.generation)
            if link.lost.done():
                raise link.lost.result()
            if self._closed:
                raise ConnectionLost("the connection is closed")
        except BaseException as error:
            await link.close()
            if isinstance(error, TimeoutError) and not isinstance(error, RPCError):
                raise ConnectFailed(f"{self._transport.address} did not answer within {CONNECT_TIMEOUT:g} s") from error
            if isinstance(error, ConnectionLost):
                raise ConnectFailed(f"{self._transport.address}: {error}") from error
            raise
        self.link = link
        self._wake()
        return link

    async def _run(self, link: Link) -> None:
        while True:
            error = await asyncio.shield(link.lost)
            self.link = None
            self._logger.warning("lost the connection to %s: %s", self._transport.address, error)
            self._on_lost(error)
            await link.close()
            link = await self._reconnect()
            self._logger.info("connected to %s again", self._transport.address)

    async def _reconnect(self) -> Link:
        failures = 0
        while True:
            await asyncio.sleep(_random.uniform(0, min(_BACKOFF_LIMIT, _BACKOFF_BASE * 2 ** min(failures, _DOUBLINGS))))
            try:
                return await self._connect()
            except RPCError as error:
                failures += 1
                self._logger.warning("cannot connect, %d in a row: %s", failures, error)
            except Exception:  # whatever it is, giving up would leave every call of this process waiting
                failures += 1
                self._logger.exception("cannot connect, %d in a row", failures)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
