"""Quarantine: which requests that have lost a run may start, and what a worker still has in its hands then.

Whatever a worker has not settled when it dies counts as one more lost run, begun or not: a classic queue does not tell.
So a request that runs alone starts once what else has lost a run is back at the broker.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from .protocol.deliveries import Suspects
from .protocol.executions import Execution
from .republisher import Republisher

__all__ = ["Quarantine"]

logger = logging.getLogger("aiorpcq.worker")

_PAUSE: Final = 0.1
"""Seconds before a request runs alone: what came back with it from the same delay queue is delivered meanwhile."""

_PATIENCE: Final = 2.0
"""Seconds within which the broker is to have what is given back; then the run starts without."""


class Quarantine:
    """The suspects of one worker; what may not start is given back through *republisher*."""

    def __init__(self, republisher: Republisher, loop: asyncio.AbstractEventLoop) -> None:
        self._republisher = republisher
        self._loop = loop
        self._suspects = Suspects()
        self._isolated: Execution | None = None
        self._released: asyncio.Future[None] | None = None

    @property
    def running(self) -> int:
        """How many requests run that have lost a run before."""
        return self._suspects.running

    def admits(self, losses: int) -> bool:
        """Tell whether a request with so many lost runs may start now."""
        return self._suspects.admits(losses)

    def start(self, losses: int) -> bool:
        """Count one that starts, and tell whether it runs alone; it is to wait for `isolate` then."""
        return self._suspects.start(losses)

    def end(self) -> None:
        """Count one that has ended."""
        self._suspects.end()

    async def isolate(self, execution: Execution, service: str) -> None:
        """Return once the broker has back what was delivered here beside *execution* and has lost a run.

        Where that takes more than two seconds, or the connection is lost, it returns all the same; at once where
        `release` is called.
        """
        released = self._released = self._loop.create_future()
        self._isolated = execution
        flushing = self._loop.create_task(self._flush(service), name="aiorpcq isolation")
        try:
            await asyncio.wait((flushing, released), timeout=_PAUSE + _PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._isolated = self._released = None
            flushing.cancel()
            (failure,) = await asyncio.gather(flushing, return_exceptions=True)
        if failure is not None and not released.done():
            reason = "no answer" if isinstance(failure, asyncio.CancelledError) else failure
            logger.warning("a run begins with others in hand that have lost one: %s", reason)

    async def _flush(self, service: str) -> None:
        await asyncio.sleep(_PAUSE)
        await self._republisher.flush(service)

    def release(self, execution: Execution | None = None) -> None:
        """End the wait in `isolate`: of *execution*, or whosever it is."""
        released = self._released
        if released is not None and not released.done() and (execution is None or execution is self._isolated):
            released.set_result(None)
