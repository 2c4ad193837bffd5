"""The FastAPI application on a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn

from examples.fastapi_app import Server, app

from .web_contract import RunningServer, WebContract, until


@pytest.fixture
async def server(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningServer]:
    monkeypatch.setenv("BROKER_URL", broker_url)
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = Server(uvicorn.Config(app, lifespan="on", log_config=None))
    serving = asyncio.create_task(uvicorn_server.serve([listener]))
    await until(lambda: uvicorn_server.started or serving.done())

    async def stop() -> None:
        uvicorn_server.should_exit = True
        await serving

    try:
        yield RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", stop)
    finally:
        await stop()
        listener.close()


class TestFastAPIApp(WebContract):
    module = "examples.fastapi_app"
