"""aiorpcq in a FastAPI application. A worker has to run beside it, see `worker.py`.

Run it with `BROKER_URL=amqp://localhost PORT=8000 python -m examples.fastapi_app`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.background import BackgroundTask

from aiorpcq import Client, RPCError

from .http_errors import describe, status_of
from .task_events import HEADERS, task_events

__all__ = ["Server", "app"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client open as long as the application lives; every request uses it."""
    app.state.closing = asyncio.Event()
    async with Client(os.environ.get("BROKER_URL", "amqp://localhost")) as client:
        app.state.client = client
        yield


app = FastAPI(title="aiorpcq in FastAPI", lifespan=lifespan)


def get_client(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


RPC = Annotated[Client, Depends(get_client)]


@app.exception_handler(RPCError)
async def answer_error(_: Request, error: RPCError) -> JSONResponse:
    return JSONResponse(describe(error), status_of(error))


@app.post("/add")
async def add(
    arguments: dict[str, int], rpc: RPC, timeout: Annotated[float, Query(gt=0, le=30)] = 5.0
) -> dict[str, int]:
    """Await a call. The worker checks the arguments against its method's signature."""
    return {"value": await rpc.with_options(timeout=timeout).call("add", **arguments)}


class Picture(BaseModel):
    picture: str
    widths: list[int]


@app.post("/resize", status_code=202)
async def resize(body: Picture, rpc: RPC) -> dict[str, str]:
    """Submit a task: it has ten minutes, and goes on whether or not anybody streams it."""
    task = await rpc.with_options(timeout=600).submit("resize", body.picture, body.widths)
    return {"task_id": task.id, "events": app.url_path_for("events", task_id=task.id)}


@app.get("/tasks/{task_id}/events")
async def events(task_id: str, request: Request, rpc: RPC) -> StreamingResponse:
    """Stream a task's states, those that are past included."""
    try:
        states = rpc.stream(task_id)
    except ValueError as error:  # nothing that could be a task id
        raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
    texts = task_events(states, request.app.state.closing)
    await anext(texts)  # an unknown task raises here, while the status can still be 404
    return StreamingResponse(texts, headers=HEADERS, background=BackgroundTask(close, texts))


async def close(texts: AsyncGenerator[str, None]) -> None:
    """End a stream with its response; the generator's own `aclose` Starlette would call in a thread, and not await."""
    await texts.aclose()


class Server(uvicorn.Server):
    """Ends the open streams when it stops: uvicorn waits for every response before it lets the lifespan end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app.state.closing.set()
        await super().shutdown(sockets)


if __name__ == "__main__":
    Server(uvicorn.Config(app, port=int(os.environ.get("PORT", "8000")))).run()
