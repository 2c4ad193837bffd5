"""Session: what a client and the ones made from it by `with_options` have in common, and where it may be used."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from .codec import Codecs
from .errors import ConnectFailed, UsageError
from .protocol.failures import ExceptionRegistry
from .protocol.topology import split_method
from .router import ReplyRouter, RouterOptions

__all__ = ["Session"]

_KEPT_ROUTES: Final = 10_000

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  # asking for the process id would be a system call for every call
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Session:
    """The router of a client, from `open` to `close`, and how its values are encoded and its errors rebuilt.

    *backlog* bounds the states that are kept of a task, *max_pending* the calls that are not settled.
    """

    __slots__ = (
        "_forks",
        "_opening",
        "_options",
        "_releasing",
        "_router",
        "_routes",
        "backlog",
        "codecs",
        "errors",
        "exchange",
        "loop",
        "max_pending",
    )

    def __init__(
        self, options: RouterOptions, codecs: Codecs, errors: ExceptionRegistry, max_pending: int, backlog: int
    ) -> None:
        self._options = options
        self.exchange = options.names.requests.name
        self.codecs = codecs
        self.errors = errors
        self.max_pending = max_pending
        self.backlog = backlog
        self.loop: asyncio.AbstractEventLoop | None = None
        self._router: ReplyRouter | None = None
        self._releasing: asyncio.Task[None] | None = None
        self._routes: dict[str, tuple[str, str]] = {}
        self._forks = 0
        self._opening: object | None = None

    def __repr__(self) -> str:
        return repr(self._router) if self._router is not None else "nothing: it is not open"

    async def open(self) -> None:
        """Connect on the running loop; see `Client.open`."""
        if self._router is not None or self._opening is not None:
            raise UsageError("the client is open already")
        opening = self._opening = object()
        try:
            router = await ReplyRouter.acquire(self._options)
            if self._opening is not opening:
                await router.release()
                raise ConnectFailed("the client was closed while it was opened")
        finally:
            if self._opening is opening:
                self._opening = None
        self._router = router
        self.loop = asyncio.get_running_loop()
        self._forks = _forks

    async def close(self) -> None:
        """Settle what is pending and give the router back, to the end even where the wait is cancelled. Idempotent.

        An opening that is under way ends in `ConnectFailed`.
        """
        self._opening = None
        if self._router is not None and self._forks == _forks:
            router = self.router()
            self._router = None
            router.close_calls(self)
            self._releasing = asyncio.get_running_loop().create_task(router.release(), name="aiorpcq client close")
        self._router = None
        if self._releasing is not None and self._forks == _forks:
            await asyncio.shield(self._releasing)

    def router(self) -> ReplyRouter:
        """Return the router.

        Raises:
            UsageError: the client cannot be used here; the text says why.
        """
        router = self._router
        if router is None:
            raise UsageError("the client is not open" if self.loop is None else "the client is closed")
        if self._forks != _forks:
            self.check_process()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:  # a thread without one
            running = None
        if self.loop is not running:
            raise UsageError("the client belongs to another event loop; other threads use client.from_thread")
        return router

    def check_process(self) -> None:
        """Raise `UsageError` in a process that was forked off after `open`."""
        if self.loop is not None and self._forks != _forks:
            raise UsageError("the client was opened before a fork; open one in this process")

    @property
    def is_closed(self) -> bool:
        """Whether it was opened and closed again."""
        return self._router is None

    def mark_read(self, task_id: str) -> None:
        """Say that somebody has seen how the task ended: what is parked of it is no loss when it is evicted."""
        if self._router is not None:
            self._router.table.out_of_band.read(task_id)

    def route(self, method: str) -> tuple[str, str]:
        """Return routing key and method name for what a caller named; at most 10,000 are remembered.

        Raises:
            ValueError: it cannot be the name of a method.
        """
        route = self._routes.get(method)
        if route is None:
            service, name = split_method(method)
            if len(self._routes) >= _KEPT_ROUTES:
                self._routes.clear()
            route = self._routes[method] = (self._options.names.routing_key(service), name)
        return route
