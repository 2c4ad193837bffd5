"""The ledger of a fault test: every call it made through it, and what each came to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aiorpcq import Client, RPCError
from tests.contract.parties import PATIENCE

__all__ = ["Ledger", "Outcome"]

Outcome = Any
"""A value, or the exception that the caller got."""


class Ledger:
    """Makes calls, and knows afterwards whether each was settled, and by what."""

    def __init__(self) -> None:
        self._calls: list[asyncio.Task[Any]] = []
        self._settled: Counter[asyncio.Task[Any]] = Counter()

    def call(self, client: Client, method: str, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Begin a call and go on. Whoever awaits the task gets the call's value or error."""
        task = asyncio.get_running_loop().create_task(client.call(method, *args, **kwargs), name=f"call of {method}")
        self._calls.append(task)
        task.add_done_callback(self._on_settled)
        return task

    async def outcomes(self, calls: Iterable[asyncio.Task[Any]] | None = None) -> list[Outcome]:
        """Wait until the given calls, or all, are settled; return what they came to, in their order.

        Raises:
            TimeoutError: one was not settled within ten seconds.
        """
        chosen = self._calls if calls is None else list(calls)
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*chosen, return_exceptions=True)

    def breaches(self) -> list[str]:
        """Return what is wrong: calls that hang, were settled twice, or ended in an error that says nothing."""
        found: list[str] = []
        for call in self._calls:
            if not call.done():
                found.append(f"{call.get_name()} is not settled")
            elif self._settled[call] != 1:
                found.append(f"{call.get_name()} was settled {self._settled[call]} times")
            elif not call.cancelled() and not isinstance(call.exception(), RPCError | None):
                found.append(f"{call.get_name()} ended in {call.exception()!r}")
        return found

    def _on_settled(self, call: asyncio.Task[Any]) -> None:
        self._settled[call] += 1
