"""Session: what a client and the ones made from it by `with_options` have in common, and where it may be used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any, Final, Literal, NamedTuple, get_args

from .codec import Codecs
from .errors import ConnectFailed, UsageError
from .limits import check_integer, check_kind
from .protocol.failures import ExceptionRegistry
from .protocol.topology import split_method
from .protocol.wire import encode_request
from .retry import RetryBudget
from .router import Lease, ReplyRouter, RouterOptions, acquire

__all__ = ["Route", "Session", "WhenFull"]

WhenFull = Literal["fail", "wait"]
"""What a call gets while too many are pending: `Overloaded`, or its turn."""

_MOST: Final = 2**31

_KEPT_ROUTES: Final = 10_000

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  # asking for the process id would be a system call for every call
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Route(NamedTuple):
    """Where the requests for a method go, and whether it may run twice; a tuple, since every call unpacks it."""

    routing_key: str
    method: str
    service: str
    idempotent: bool


class Session:
    """The router of a client, from `open` to `close`, and how its values are encoded and its errors rebuilt.

    *backlog* bounds the states that are kept of a task, *max_pending* the calls that are not settled; *idempotent* are
    the methods that always are. *rng* jitters the pauses between tries.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    __slots__ = (
        "_forks",
        "_idempotent",
        "_lease",
        "_opening",
        "_options",
        "_releasing",
        "_router",
        "_routes",
        "_waiting",
        "backlog",
        "codecs",
        "encode_request",
        "errors",
        "exchange",
        "loop",
        "max_pending",
        "retry_budget",
        "rng",
        "waits",
    )

    def __init__(
        self,
        options: RouterOptions,
        *,
        codecs: Codecs,
        errors: ExceptionRegistry,
        max_pending: int,
        when_full: WhenFull = "fail",
        backlog: int,
        idempotent: Iterable[str] = (),
        retry_budget: RetryBudget | None = None,
        rng: Random | None = None,
    ) -> None:
        if when_full not in get_args(WhenFull):
            raise ValueError(f"when_full: {when_full!r} is none of {', '.join(get_args(WhenFull))}")
        check_kind(retry_budget, "retry_budget", RetryBudget)
        check_kind(rng, "random", Random)
        self._options = options
        self._idempotent = _method_names(idempotent)
        self.exchange = options.names.requests.name
        self.encode_request = encode_request
        if options.reply_queue == "direct":
            self.encode_request = partial(encode_request, returns=False)
        self.codecs = codecs
        self.errors = errors
        self.max_pending = check_integer(max_pending, "max_pending", 1, _MOST)
        self.waits = when_full == "wait"
        self.backlog = check_integer(backlog, "backlog", 1, _MOST)
        self.retry_budget = RetryBudget() if retry_budget is None else retry_budget
        self.rng = Random() if rng is None else rng
        self.loop: asyncio.AbstractEventLoop | None = None
        self._lease: Lease | None = None
        self._router: ReplyRouter | None = None
        self._releasing: asyncio.Task[None] | None = None
        self._routes: dict[str, Route] = {}
        self._forks = 0
        self._opening: object | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return repr(self._router) if self._router is not None else "nothing: it is not open"

    async def open(self) -> None:
        """Connect on the running loop; see `Client.open`."""
        if self._router is not None or self._opening is not None:
            raise UsageError("the client is open already")
        opening = self._opening = object()
        try:
            lease = await acquire(self._options)
            if self._opening is not opening:
                await lease.release()
                raise ConnectFailed("the client was closed while it was opened")
        finally:
            if self._opening is opening:
                self._opening = None
        self._lease, self._router = lease, lease.router
        self.loop = asyncio.get_running_loop()
        self._forks = _forks

    async def close(self) -> None:
        """Settle what is pending and give the router back, to the end even where the wait is cancelled. Idempotent.

        An opening that is under way ends in `ConnectFailed`.
        """
        self._opening = None
        if self._router is not None and self._forks == _forks:
            router, lease = self.router(), self._lease
            assert lease is not None
            self._router = self._lease = None
            for waiting in self._waiting:
                waiting.set_result(None)
            self._waiting.clear()
            router.close_calls(self)
            self._releasing = asyncio.get_running_loop().create_task(lease.release(), name="aiorpcq client close")
        self._router = self._lease = None
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

    async def wait(self, *work: asyncio.Future[Any], timeout: float | None) -> bool:
        """Wait until one of *work* is done, *timeout* seconds have passed or the client is closed; tell whether it is.

        Cancelling the wait leaves *work* alone.
        """
        if self.is_closed:
            return True
        # One for each wait: to take a callback off a future that all shared would cost as much as there are.
        closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(closing)
        try:
            await asyncio.wait((closing, *work), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.discard(closing)
        return closing.done()

    def mark_read(self, task_id: str) -> None:
        """Say that somebody has seen how the task ended: what is parked of it is no loss when it is evicted."""
        if self._router is not None:
            self._router.table.out_of_band.read(task_id)

    @property
    def is_direct(self) -> bool:
        """Whether answers come by direct reply-to, which has no states and no cancels."""
        return self._options.reply_queue == "direct"

    def service_queue(self, service: str) -> str:
        """Return the name of the queue of a service."""
        return self._options.names.service_queue(service).name

    def route(self, method: str) -> Route:
        """Return where a method's requests go, by what a caller named; at most 10,000 are remembered.

        Raises:
            ValueError: it cannot be the name of a method.
        """
        route = self._routes.get(method)
        if route is None:
            service, name = split_method(method)
            if len(self._routes) >= _KEPT_ROUTES:
                self._routes.clear()
            routing_key = self._options.names.routing_key(service)
            route = self._routes[method] = Route(routing_key, name, service, (service, name) in self._idempotent)
        return route


def _method_names(methods: Iterable[str]) -> frozenset[tuple[str, str]]:
    if isinstance(methods, str):
        raise ValueError(f"idempotent: {methods!r} is a name and not an iterable of names")
    try:
        return frozenset(map(split_method, methods))
    except (TypeError, ValueError) as error:
        raise ValueError(f"idempotent: {error}") from error
