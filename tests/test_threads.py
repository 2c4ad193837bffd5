"""The bridge for other threads, where the event loop is not what it was."""

from __future__ import annotations

import asyncio
import threading
from uuid import uuid4

import pytest

from aiorpcq import Client, ConnectionLost, threads


def test_a_thread_does_not_wait_for_an_event_loop_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LOOK_INTERVAL", 0.01)
    loop = asyncio.new_event_loop()
    client = Client(f"memory://{uuid4().hex}")
    loop.run_until_complete(client.open())
    bridge = client.from_thread
    raised: list[bool] = []

    def call() -> None:
        try:
            bridge.cast("never")
        except ConnectionLost as error:
            raised.append(error.maybe_executed)

    async def until_it_is_made() -> None:
        thread.start()
        while not any("cast" in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110  # a thread makes it
            await asyncio.sleep(0)

    thread = threading.Thread(target=call)
    loop.run_until_complete(until_it_is_made())
    thread.join(5)
    assert not thread.is_alive()
    assert raised == [True]
    loop.run_until_complete(client.aclose())
    loop.close()
