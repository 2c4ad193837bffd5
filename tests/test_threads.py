"""The bridge for other threads, where the event loop is not what it was."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from uuid import uuid4

import pytest

from aiorpcq import Client, ConnectionLost, Service, Worker, threads


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


async def test_a_call_that_ends_as_a_thread_stops_looking_has_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LOOK_INTERVAL", 0.01)
    gate = asyncio.Event()
    result = concurrent.futures.Future.result

    def look(self: concurrent.futures.Future[object], timeout: float | None = None) -> object:
        try:
            return result(self, timeout)
        except concurrent.futures.TimeoutError:
            loop.call_soon_threadsafe(gate.set)
            concurrent.futures.wait((self,))  # the call ends just here
            raise

    monkeypatch.setattr(concurrent.futures.Future, "result", look)
    loop, service, url = asyncio.get_running_loop(), Service(), f"memory://{uuid4().hex}"

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "done"

    async with Worker(url, [service]), Client(url) as client:
        loop.call_later(0.05, gate.set)
        assert await asyncio.to_thread(client.from_thread.call, "wait") == "done"
