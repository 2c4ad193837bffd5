"""aiorpcq in an aiohttp application. A worker has to run beside it, see `worker.py`.

Run it with `BROKER_URL=amqp://localhost PORT=8000 python -m examples.aiohttp_app`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from aiorpcq import Client, RPCError

from .http_errors import describe, status_of
from .task_events import HEADERS, task_events

__all__ = ["make_app"]

CLIENT: Final = web.AppKey("client", Client)
CLOSING: Final = web.AppKey("closing", asyncio.Event)

routes = web.RouteTableDef()


async def client_context(app: web.Application) -> AsyncIterator[None]:
    """Keep one client open as long as the application lives; every request uses it."""
    app[CLOSING] = asyncio.Event()
    async with Client(os.environ.get("BROKER_URL", "amqp://localhost")) as client:
        app[CLIENT] = client
        yield


async def end_streams(app: web.Application) -> None:
    """End the open streams when the application stops: aiohttp waits for every response before it cleans up."""
    app[CLOSING].set()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RPCError as error:
        return web.json_response(describe(error), status=status_of(error))


@routes.post("/add")
async def add(request: web.Request) -> web.Response:
    """Await a call. The worker checks the arguments against its method's signature."""
    try:
        client = request.app[CLIENT].with_options(timeout=float(request.query.get("timeout", "5")))
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    return web.json_response({"value": await client.call("add", **await read_object(request))})


@routes.post("/resize")
async def resize(request: web.Request) -> web.Response:
    """Submit a task: it has ten minutes, and goes on whether or not anybody streams it."""
    task = await request.app[CLIENT].with_options(timeout=600).submit("resize", **await read_object(request))
    path = request.app.router["events"].url_for(task_id=task.id)
    return web.json_response({"task_id": task.id, "events": str(path)}, status=202)


@routes.get("/tasks/{task_id}/events", name="events")
async def events(request: web.Request) -> web.StreamResponse:
    """Stream a task's states, those that are past included."""
    try:
        states = request.app[CLIENT].stream(request.match_info["task_id"])
    except ValueError as error:  # nothing that could be a task id
        raise web.HTTPNotFound(text=str(error)) from error
    async with aclosing(task_events(states, request.app[CLOSING])) as texts:
        await anext(texts)  # an unknown task raises here, while the status can still be 404
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the client went away
            async for text in texts:
                await response.write(text.encode())
    return response


async def read_object(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise web.HTTPUnprocessableEntity(text="the body is not a JSON object")
    return body


def make_app() -> web.Application:
    app = web.Application(middlewares=[answer_errors])
    app.cleanup_ctx.append(client_context)
    app.on_shutdown.append(end_streams)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    # A handler whose client went away is cancelled; otherwise it would only notice with the next event.
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), handler_cancellation=True)
