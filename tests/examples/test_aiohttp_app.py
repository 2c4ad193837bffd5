"""The aiohttp application on its own server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from examples.aiohttp_app import make_app

from .web_contract import RunningServer, WebContract


@pytest.fixture
async def server(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningServer]:
    monkeypatch.setenv("BROKER_URL", broker_url)
    runner = web.AppRunner(make_app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield RunningServer(f"http://127.0.0.1:{runner.addresses[0][1]}", runner.cleanup)
    finally:
        await runner.cleanup()


class TestAiohttpApp(WebContract):
    module = "examples.aiohttp_app"
