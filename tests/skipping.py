"""Time that passes at once: what a test waits for on the clock of its event loop, and nothing else, is skipped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

__all__ = ["skip_time"]


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
