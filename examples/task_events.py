"""A task's states as server-sent events (HTML standard, section 9.2); both web applications use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from aiorpcq import RPCError, State

from .http_errors import describe

__all__ = ["HEADERS", "task_events"]

HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}

KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment is sent, so that no proxy takes the stream for dead."""


async def task_events(states: AsyncIterator[State], closing: asyncio.Event) -> AsyncGenerator[str, None]:
    """Yield *states* as text, the state's name as the event's and its value as JSON; end after the terminal one.

    An error of the stream itself, such as a lost connection, is a last event named ERROR. When *closing* is set the
    events end without a terminal one, and a browser's `EventSource` comes back by itself.

    The first text is empty. It is yielded once the stream has begun, so a task that cannot be streamed is told by an
    exception then: in time for a status other than 200.

    Raises:
        RPCError: from the first step only: `UnknownTask`, or why the client cannot be used.
    """
    # Not `wait_for(anext(states), KEEP_ALIVE)`: its timeout would cancel the generator and so end the stream.
    upcoming = asyncio.ensure_future(anext(states))
    stop = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.sleep(0)  # one turn of the loop: what is known to be gone fails in it
        if upcoming.done():
            upcoming.result()
        yield ""
        while True:
            await asyncio.wait((upcoming, stop), timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return
            if not upcoming.done():
                yield ": keep-alive\n\n"
                continue
            try:
                state = upcoming.result()
            except RPCError as error:
                yield _event("ERROR", describe(error))
                return
            yield _event(state.name, state.value)
            if state.is_terminal:
                return
            upcoming = asyncio.ensure_future(anext(states))
    finally:
        upcoming.cancel()
        stop.cancel()
        await asyncio.gather(upcoming, stop, return_exceptions=True)


def _event(name: str, value: Any) -> str:
    data = describe(value) if isinstance(value, RPCError) else value
    # JSON escapes newlines, so the data is one line; `default` is for what msgpack carries and JSON does not.
    return f"event: {name}\ndata: {json.dumps(data, default=str)}\n\n"
