"""Time that passes at once, on the clock of an event loop and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["jumping", "skip_time"]


def jumping(loop: asyncio.AbstractEventLoop) -> Callable[[float], None]:
    """Return what moves the clock of *loop* ahead by some seconds.

    For a deadline that is to pass when all is in position, and not a moment before: give it ten seconds, and jump over
    them. What else waits with a timeout as it jumps, a test's own patience too, may be over; past 20 s that is the
    connection, whose heartbeats are late.
    """
    time, ahead = loop.time, 0.0

    def jump(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    loop.time = lambda: time() + ahead  # type: ignore[method-assign]
    return jump


def skip_time(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have *loop* go to its next timer instead of waiting for it; its clock stands still otherwise.

    For what runs in memory and in one thread: for a socket or a thread deadlines would pass before it could answer.
    """
    assert isinstance(loop, asyncio.SelectorEventLoop)
    now, select = loop.time(), loop._selector.select  # type: ignore[attr-defined]

    def skip(timeout: float | None) -> Any:
        nonlocal now
        if timeout is None:  # nothing is left that could end the wait, or only what comes from outside
            return select(None)
        events = select(0)
        if not events:
            now += timeout
        return events

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(loop._selector, "select", skip)  # type: ignore[attr-defined]
