"""Keeps a link to the broker alive: one generation after another, with full-jitter backoff between the tries.

Whoever uses it says what a new generation needs (`setup`: declare, consume) and what the loss of one means (`on_lost`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

from ..errors import ConnectFailed, ConnectionLost, RPCError
from .base import Link, Transport

__all__ = ["CONNECT_TIMEOUT", "STABLE_AFTER", "Supervisor"]

CONNECT_TIMEOUT: Final = 10.0
"""Seconds that one try to open a link and set it up may take."""

STABLE_AFTER: Final = 2.0
"""Seconds that a link has to stand for the backoff to begin anew once it is lost."""

_BACKOFF_BASE: Final = 0.1
_BACKOFF_LIMIT: Final = 10.0
_DOUBLINGS: Final = 10  # past the limit; without a bound the power would overflow after a thousand failures


class Supervisor:
    """Owns the current link and the task that replaces it.

    `link` is the current one, None while there is none; `generation` counts them from 1. *setup* is run for each new
    link before `link` is set; *on_lost* is called after `link` was taken away.

    A lost link is replaced in rounds over all *transports*: the one that was lost is tried last, the others in an order
    of chance, so that the clients of a broker that went away spread over those that are left. Before each round it
    waits a random time of at most 0.1 s, doubled with each round up to 10 s ("full jitter"), until a link has stood for
    2 s: one that is lost right after its setup is no better than one that cannot be opened. *random* is where chance
    comes from, *now* the clock, by default the loop's.
    """

    def __init__(
        self,
        transports: Transport | Sequence[Transport],
        setup: Callable[[Link, int], Awaitable[None]],
        on_lost: Callable[[RPCError], None],
        logger: logging.Logger,
        *,
        random: Random | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._transports = tuple(transports) if isinstance(transports, Sequence) else (transports,)
        self._transport = self._transports[0]
        self._random = Random() if random is None else random
        self._setup = setup
        self._on_lost = on_lost
        self._now = now
        self._rounds = 0  # since the last link that was stable
        self._logger = logger
        self.link: Link | None = None
        self.generation = 0
        self._closed = False
        self._last_link: Link | None = None
        self._given_up: asyncio.Future[RPCError] | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}  # in the order they came

    @property
    def address(self) -> str:
        """The address of the current link, or of the last one that there was or was tried; without password."""
        return self._transport.address

    async def start(self) -> None:
        """Open the first link, and watch it from then on. Each address is tried once, in the order they were given.

        Raises:
            ConnectFailed: it cannot be opened or set up. Of several addresses it names each one's reason, and it is of
                a more special class where all of theirs are.
        """
        failures: list[RPCError] = []
        for transport in self._transports:
            try:
                link = await self._connect(transport)
                break
            except RPCError as error:
                if len(self._transports) == 1:
                    raise
                failures.append(error)
        else:
            raise self._all_failed(failures) from failures[-1]
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
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)
        return self.link

    def reset(self, error: RPCError) -> None:
        """Give the current link up because of *error*, as if it were lost; its owner found it to be of no use.

        `link` is None at once. Once the link is closed, which ends all that it has under way, *on_lost* is called and
        the next generation begins. Nothing happens where there is no link.
        """
        if self.link is not None and self._given_up is not None and not self._given_up.done():
            self.link = None
            self._given_up.set_result(error)

    async def close(self) -> None:
        """Close the link and stop. Bounded in time, idempotent."""
        self._closed = True
        self.link = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._last_link is not None:
            await self._last_link.close()
        self._wake()

    async def _connect(self, transport: Transport) -> Link:
        self._transport = transport
        link = self._last_link = await transport.connect(CONNECT_TIMEOUT)
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
                raise ConnectFailed(f"{transport.address} did not answer within {CONNECT_TIMEOUT:g} s") from error
            if isinstance(error, ConnectionLost):
                raise ConnectFailed(f"{transport.address}: {error}") from error
            raise
        self.link = link
        self._given_up = asyncio.get_running_loop().create_future()
        self._wake()
        return link

    async def _run(self, link: Link) -> None:
        now = self._now or asyncio.get_running_loop().time
        while True:
            since = now()
            given_up = self._given_up
            assert given_up is not None
            await asyncio.wait((link.lost, given_up), return_when=asyncio.FIRST_COMPLETED)
            self.link = None
            if link.lost.done():
                error = link.lost.result()
            else:
                error = given_up.result()
                await link.close()  # before its owner hears of it, like the end of a link that was lost
            self._logger.warning("lost the connection to %s: %s", self.address, error)
            try:
                self._on_lost(error)
            except Exception:  # as below: without this task there would never be another link
                self._logger.exception("what the loss of the connection calls for failed")
            await link.close()
            if now() - since >= STABLE_AFTER:
                self._rounds = 0
            link = await self._reconnect()
            self._logger.info("connected to %s again", self.address)

    async def _reconnect(self) -> Link:
        failures, lost = 0, self._transport
        while True:
            longest = min(_BACKOFF_LIMIT, _BACKOFF_BASE * 2 ** min(self._rounds, _DOUBLINGS))
            self._rounds += 1
            await asyncio.sleep(self._random.uniform(0, longest))
            for transport in self._round(lost):
                try:
                    return await self._connect(transport)
                except RPCError as error:
                    self._logger.warning("cannot connect, %d in a row: %s", failures + 1, error)
                except Exception:  # whatever it is, giving up would leave every call of this process waiting
                    self._logger.exception("cannot connect, %d in a row", failures + 1)
            failures += 1

    def _round(self, lost: Transport) -> list[Transport]:
        """Return the transports in the order to try them."""
        others = [transport for transport in self._transports if transport is not lost]
        self._random.shuffle(others)
        return [*others, lost]

    def _all_failed(self, failures: Sequence[RPCError]) -> RPCError:
        reasons = (
            str(error) if transport.address in str(error) else f"{transport.address}: {error}"
            for transport, error in zip(self._transports, failures, strict=True)
        )
        kinds = {type(error) for error in failures}
        kind = (
            kinds.pop() if len(kinds) == 1 and all(issubclass(kind, ConnectFailed) for kind in kinds) else ConnectFailed
        )
        return kind("; ".join(reasons))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
