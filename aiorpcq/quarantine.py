"""Quarantine: which requests that have lost a run may start, and what a worker still has in its hands then.

Whatever a worker has not settled when it dies counts as one more lost run, begun or not: a classic queue does not tell.
So a request that runs alone starts once what else has lost a run is back at the broker.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from .errors import RPCError
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

    def __init__(self, republisher: Republisher) -> None:
        self._republisher = republisher
        self._suspects = Suspects()
        self._isolated: Execution | None = None
        self._timeout: asyncio.Timeout | None = None

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
        self._isolated = execution
        try:
            async with asyncio.timeout(_PAUSE + _PATIENCE) as self._timeout:
                await asyncio.sleep(_PAUSE)
                await self._republisher.flush(service)
        except (RPCError, TimeoutError) as error:
            if self._isolated is not None:
                logger.warning("a run begins with others in hand that have lost one: %s", str(error) or "no answer")
        finally:
            self._isolated = self._timeout = None

    def release(self, execution: Execution | None = None) -> None:
        """End the wait in `isolate`: of *execution*, or whosever it is."""
        if self._timeout is not None and (execution is None or execution is self._isolated):
            self._isolated = None
            self._timeout.reschedule(0.0)
