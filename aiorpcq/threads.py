"""A client's calls for threads other than its event loop's."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from .errors import ConnectionLost, UsageError
from .protocol.control import CancelMode
from .session import Session
from .task import Task

__all__ = ["ThreadBridge"]

_LOOK_INTERVAL: Final = 1.0
"""Seconds after which a thread that waits looks whether the event loop still runs."""

T = TypeVar("T")


class _Calls(Protocol):
    """What the bridge needs of a client."""

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any: ...

    async def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task: ...

    async def cast(self, method: str, /, *args: Any, **kwargs: Any) -> None: ...


class ThreadBridge:
    """A client's calls for threads other than its event loop's; each blocks until it is done."""

    __slots__ = ("_client", "_loop", "_session")

    def __init__(self, client: _Calls, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._session = session
        self._loop = loop

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """See `Client.call`."""
        return self._run(self._client.call(method, *args, **kwargs))

    def submit(self, method: str, /, *args: Any, **kwargs: Any) -> Task:
        """See `Client.submit`; wait for the task with `result`."""
        return self._run(self._client.submit(method, *args, **kwargs))

    def cast(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """See `Client.cast`."""
        self._run(self._client.cast(method, *args, **kwargs))

    def result(self, task: Task, timeout: float | None = None) -> Any:
        """See `Task.result`."""
        return self._run(task.result(timeout))

    def cancel(self, task: Task, mode: CancelMode = "kill", *, timeout: float | None = None) -> None:
        """See `Task.cancel`."""
        self._run(task.cancel(mode, timeout=timeout))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            self._session.check_process()  # in a fork the loop looks as if it ran, and would never answer
        except UsageError:
            coroutine.close()
            raise
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop or not self._loop.is_running():
            coroutine.close()
            raise UsageError(
                "from_thread is for other threads; await the client's own methods here"
                if running is self._loop
                else "the client's event loop is not running"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        while True:
            # Not `future.result`, whose own timeout cannot be told from what a call raises that ends just then.
            concurrent.futures.wait((future,), _LOOK_INTERVAL)
            if future.done():
                return future.result()
            if not self._loop.is_running():
                future.cancel()
                raise ConnectionLost("the client's event loop has stopped", maybe_executed=True)
