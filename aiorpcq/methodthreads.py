"""MethodThreads: runs plain `def` methods in threads, no more at once than the worker's limit."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

__all__ = ["MethodThreads"]


class MethodThreads:
    """The threads of one worker, *limit* of them at the most."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._limiter = anyio.CapacityLimiter(limit)
        self._unbounded = anyio.CapacityLimiter(math.inf)
        self._loop = loop
        self._places: dict[object, _Place] = {}

    @property
    def running(self) -> int:
        """How many threads run, those included whose run was answered already."""
        return self._limiter.borrowed_tokens

    async def run(
        self,
        run: object,
        function: Callable[..., Any],
        arguments: list[Any],
        named: dict[str, Any],
        on_start: Callable[[], None],
    ) -> tuple[Any, BaseException | None]:
        """Run *function* in a thread, as soon as the limit allows; return its value, or what it raised.

        *on_start* is called in the event loop when it begins; *run* is what `withdraw` knows it by.

        A thread cannot be stopped: where the wait is cancelled the thread keeps its place until it ends. So the place
        is not the limiter's of `run_sync`, which gives it back as soon as the wait is cancelled.
        """
        limiter, place = self._limiter, _Place()

        def call() -> tuple[Any, BaseException | None]:
            if not place.claim.acquire(blocking=False):
                return None, None  # it was cancelled before the thread came to it
            try:
                self._loop.call_soon_threadsafe(on_start)
                return function(*arguments, **named), None
            except BaseException as error:  # StopIteration and SystemExit cannot pass through a future
                return None, error
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(limiter.release_on_behalf_of, place)

        self._places[run] = place
        try:
            await limiter.acquire_on_behalf_of(place)
            try:
                return await anyio.to_thread.run_sync(call, limiter=self._unbounded)
            except BaseException:
                if place.is_withdrawn or place.claim.acquire(blocking=False):
                    limiter.release_on_behalf_of(place)
                raise
        finally:
            del self._places[run]

    def withdraw(self, run: object) -> bool:
        """Keep what waits for a thread from beginning; tell whether it did wait. Its task is to be cancelled then."""
        place = self._places.get(run)
        if place is None or not place.claim.acquire(blocking=False):
            return False
        place.is_withdrawn = True
        return True


class _Place:
    """A place among the threads; whoever has the *claim* begins, or keeps it from that."""

    __slots__ = ("claim", "is_withdrawn")

    def __init__(self) -> None:
        self.claim = threading.Lock()
        self.is_withdrawn = False
