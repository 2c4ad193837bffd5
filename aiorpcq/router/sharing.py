"""Sharing: one router for all clients of an event loop that have the same options."""

from __future__ import annotations

import asyncio

from .options import RouterOptions
from .router import ReplyRouter

__all__ = ["Lease", "acquire"]


class Lease:
    """A router in use, the task that connects it, and how many users it has.

    Get one with `acquire`; each user releases it once.
    """

    __slots__ = ("_key", "_starting", "router", "users")

    def __init__(self, options: RouterOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._key = loop, options
        self.router = ReplyRouter(options, loop)
        self._starting = loop.create_task(self.router.start(), name="aiorpcq client start")
        self.users = 0

    async def wait_connected(self) -> None:
        """Wait until the router is connected, which the end of one user's wait does not touch."""
        await asyncio.shield(self._starting)

    async def release(self) -> None:
        """Give the router back; the last one to do so closes it."""
        self.users -= 1
        if self.users:
            return
        if _leases.get(self._key) is self:
            del _leases[self._key]
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)
        await self.router.close()


_leases: dict[tuple[asyncio.AbstractEventLoop, RouterOptions], Lease] = {}


async def acquire(options: RouterOptions) -> Lease:
    """Return the lease of the router for *options* on the running loop, connected.

    Raises:
        ConnectFailed: the broker cannot be reached or refuses what is needed.
        ValueError: a URL cannot be read.
    """
    loop = asyncio.get_running_loop()
    for key in [key for key in _leases if key[0].is_closed()]:  # its clients were never closed
        del _leases[key]
    lease = _leases.get((loop, options))
    if lease is None:
        lease = _leases[loop, options] = Lease(options, loop)
    lease.users += 1
    try:
        await lease.wait_connected()
    except BaseException:
        await lease.release()
        raise
    return lease
