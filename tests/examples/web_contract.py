"""What both web applications do, tested over HTTP with RabbitMQ behind them; each of the two test modules runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from aiorpcq import Service, Worker
from examples import task_events
from examples.worker import service as example_service
from tests.node import Node
from tests.node.ports import Ports

__all__ = ["RunningServer", "WebContract"]

_ROOT = Path(__file__).parents[2]
_PROMPT = 5.0
"""Seconds that stand for "promptly": far above what it takes, far below every timeout of servers and applications."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """An application that serves at *url*. *stop* shuts it down, and returns when it is down."""

    url: str
    stop: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    data: Any


class Gate:
    """A service with the names of the example's methods, whose runs wait until the gate is opened."""

    def __init__(self, service: Service | None = None) -> None:
        self.service = Service() if service is None else service
        self.opened = asyncio.Event()
        self.reached = asyncio.Event()
        self.service.method(self.add)
        self.service.method(self.resize)

    async def add(self, a: int, b: int) -> int:
        self.reached.set()
        await self.opened.wait()
        return a + b

    async def resize(self, picture: str, widths: list[int]) -> str:
        self.reached.set()
        await self.opened.wait()
        return picture


class WebContract:
    """Tests of one application: the *module* of it is named by the subclass, beside which is the fixture `server`."""

    module: str

    @pytest.fixture
    async def http(self, server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=20) as http:
            yield http

    @pytest.fixture
    async def worker(self, broker_url: str) -> AsyncIterator[Worker]:
        async with Worker(broker_url, [example_service], grace=0) as worker:
            yield worker

    @pytest.fixture
    async def gate(self, broker_url: str) -> AsyncIterator[Gate]:
        gate = Gate()
        async with Worker(broker_url, [gate.service], grace=0):
            yield gate

    @pytest.fixture(autouse=True)
    def no_error_is_logged(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        yield
        errors = [record for record in caplog.get_records("call") if record.levelname in ("ERROR", "CRITICAL")]
        # aiormq makes an error of a connection that the broker closes.
        assert [record.getMessage() for record in errors if not record.name.startswith("aiormq")] == []

    async def test_a_call_is_answered(self, http: httpx.AsyncClient, worker: Worker) -> None:
        answer = await http.post("/add", json={"a": 2, "b": 3})
        assert answer.status_code == HTTPStatus.OK
        assert answer.json() == {"value": 5}

    async def test_a_task_is_submitted_and_streamed_to_its_end(self, http: httpx.AsyncClient, worker: Worker) -> None:
        answer = await http.post("/resize", json={"picture": "cat", "widths": [64, 128]})
        assert answer.status_code == HTTPStatus.ACCEPTED
        assert answer.json()["events"] == f"/tasks/{answer.json()['task_id']}/events"

        async with http.stream("GET", answer.json()["events"]) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = await read_all(response)
        assert [event.name for event in events] == ["RECEIVED", "STARTED", "PROGRESS", "PROGRESS", "SUCCESS"]
        assert events[2].data == {"done": 1, "total": 2}
        assert events[-1].data == ["cat-64.png", "cat-128.png"]

    async def test_a_settled_task_is_streamed_again(self, http: httpx.AsyncClient, worker: Worker) -> None:
        path = await submit(http, [64])
        first = await stream(http, path)
        assert await stream(http, path) == first
        assert first[-1].name == "SUCCESS"

    async def test_a_task_that_fails_ends_its_stream_without_the_traceback(
        self, http: httpx.AsyncClient, worker: Worker
    ) -> None:
        events = await stream(http, await submit(http, [0]))
        assert events[-1].name == "FAILURE"
        assert events[-1].data.pop("task_id")
        assert events[-1].data == {
            "error": "RemoteError",
            "type": "ValueError",
            "message": "a picture cannot be 0 pixels wide",
            "maybe_executed": True,
        }

    async def test_a_reader_that_goes_away_leaves_nothing_and_the_task_goes_on(
        self, http: httpx.AsyncClient, worker: Worker
    ) -> None:
        path = await submit(http, [1, 2, 3, 4, 5])
        before = asyncio.all_tasks()
        async with http.stream("GET", path) as response, aclosing(read(response)) as events:
            async for event in events:
                if event.name == "PROGRESS":
                    break
            assert asyncio.all_tasks() - before
        await until(lambda: not asyncio.all_tasks() - before)

        names = [event.name for event in await stream(http, path)]
        assert names == ["RECEIVED", "STARTED", *["PROGRESS"] * 5, "SUCCESS"]

    async def test_a_reader_that_goes_away_is_noticed_although_no_state_comes(
        self, http: httpx.AsyncClient, gate: Gate
    ) -> None:
        path = await submit(http, [64])
        await gate.reached.wait()
        before = asyncio.all_tasks()
        async with http.stream("GET", path) as response, aclosing(read(response)) as events:
            assert [(await anext(events)).name, (await anext(events)).name] == ["RECEIVED", "STARTED"]
        await until(lambda: not asyncio.all_tasks() - before)
        gate.opened.set()
        assert (await stream(http, path))[-1].name == "SUCCESS"

    async def test_two_readers_see_every_state(self, http: httpx.AsyncClient, worker: Worker) -> None:
        path = await submit(http, [1, 2, 3])
        first, second = await asyncio.gather(stream(http, path), stream(http, path))
        assert first == second
        assert len(first) == 6

    async def test_a_quiet_stream_is_kept_alive(
        self, http: httpx.AsyncClient, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_events, "KEEP_ALIVE", 0.02)
        comments = 0
        async with http.stream("GET", await submit(http, [64])) as response:
            async for line in response.aiter_lines():
                comments += line == ": keep-alive"
                if comments == 3:
                    gate.opened.set()
        assert line == ""
        assert comments >= 3

    async def test_a_deadline_is_504(self, http: httpx.AsyncClient, gate: Gate) -> None:
        answer = await http.post("/add", params={"timeout": 0.2}, json={"a": 2, "b": 3})
        check_error(answer, HTTPStatus.GATEWAY_TIMEOUT, "DeadlineExceeded")

    async def test_a_timeout_that_is_none_is_422(self, http: httpx.AsyncClient) -> None:
        for timeout in ("-1", "soon"):
            answer = await http.post("/add", params={"timeout": timeout}, json={"a": 2, "b": 3})
            assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY

    async def test_a_service_that_is_not_there_is_503(self, http: httpx.AsyncClient) -> None:
        check_error(await http.post("/add", json={"a": 2, "b": 3}), HTTPStatus.SERVICE_UNAVAILABLE, "Unroutable")
        answer = await http.post("/resize", json={"picture": "cat", "widths": []})
        check_error(answer, HTTPStatus.SERVICE_UNAVAILABLE, "Unroutable")

    async def test_a_full_queue_is_503(self, http: httpx.AsyncClient, broker_url: str) -> None:
        gate = Gate(Service(max_length=1, overflow="reject-publish"))
        async with Worker(broker_url, [gate.service], concurrency=1, grace=0):
            running = asyncio.create_task(http.post("/add", json={"a": 1, "b": 1}))
            await gate.reached.wait()
            await submit(http, [64])  # returns when the queue has it
            check_error(await http.post("/add", json={"a": 2, "b": 2}), HTTPStatus.SERVICE_UNAVAILABLE, "Overloaded")
            gate.opened.set()
            assert (await running).json() == {"value": 2}

    async def test_a_lost_connection_is_survived_by_calls_and_streams(
        self, http: httpx.AsyncClient, gate: Gate, node: Node, vhost: str
    ) -> None:
        call = asyncio.create_task(http.post("/add", json={"a": 1, "b": 1}))
        await gate.reached.wait()
        async with http.stream("GET", await submit(http, [64])) as response, aclosing(read(response)) as events:
            assert (await anext(events)).name == "RECEIVED"
            node.close_connections(vhost=vhost)
            gate.opened.set()
            last = [event async for event in events][-1]
        assert (await call).json() == {"value": 2}
        assert last.name == "SUCCESS"
        assert (await http.post("/add", json={"a": 2, "b": 3})).json() == {"value": 5}

    async def test_a_method_that_raises_is_502_with_type_and_message(
        self, http: httpx.AsyncClient, broker_url: str
    ) -> None:
        service = Service()

        @service.method
        async def add(a: int, b: int) -> int:
            raise ArithmeticError(f"{a} and {b} do not add up")

        async with Worker(broker_url, [service]):
            answer = await http.post("/add", json={"a": 1, "b": 1})
        check_error(answer, HTTPStatus.BAD_GATEWAY, "RemoteError")
        assert answer.json()["type"] == "ArithmeticError"
        assert answer.json()["message"] == "1 and 1 do not add up"
        assert "Traceback" not in answer.text

    async def test_arguments_that_do_not_fit_are_422(self, http: httpx.AsyncClient, worker: Worker) -> None:
        answer = await http.post("/add", json={"a": 1, "c": 1})
        check_error(answer, HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidArguments")

    @pytest.mark.parametrize("body", ["", "{", "[1, 2]"])
    async def test_a_body_that_is_no_object_is_422(self, http: httpx.AsyncClient, body: str) -> None:
        answer = await http.post("/add", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY

    async def test_a_task_of_which_nothing_is_kept_is_404(self, http: httpx.AsyncClient, worker: Worker) -> None:
        failed = await http.post("/add", json={"a": 1})  # a call's states are never kept; its error tells the id
        answer = await http.get(f"/tasks/{failed.json()['task_id']}/events")
        check_error(answer, HTTPStatus.NOT_FOUND, "UnknownTask")

    async def test_what_is_no_task_id_is_404(self, http: httpx.AsyncClient) -> None:
        answer = await http.get(f"/tasks/{'x' * 256}/events")
        assert answer.status_code == HTTPStatus.NOT_FOUND

    async def test_a_shutdown_ends_an_open_stream_promptly(
        self, http: httpx.AsyncClient, server: RunningServer, gate: Gate
    ) -> None:
        async with http.stream("GET", await submit(http, [64])) as response, aclosing(read(response)) as events:
            assert (await anext(events)).name == "RECEIVED"
            async with asyncio.timeout(_PROMPT):
                await server.stop()
                rest = [event.name async for event in events]
        assert set(rest) <= {"STARTED"}

    async def test_it_runs_as_its_readme_says_and_stops_on_sigterm_with_a_stream_open(self, broker_url: str) -> None:
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(program("examples.worker", broker_url))
            (port,) = stack.enter_context(closing(Ports(1))).numbers
            application = await stack.enter_async_context(program(self.module, broker_url, port))
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)
            )
            await until_answered(http, application)
            path = await submit(http, [1] * 20)
            async with http.stream("GET", path) as response, aclosing(read(response)) as events:
                assert (await anext(events)).name == "RECEIVED"
                application.send_signal(signal.SIGTERM)
                assert "SUCCESS" not in [event.name async for event in events]
            async with asyncio.timeout(_PROMPT):
                assert await application.wait() in (0, -signal.SIGTERM)  # uvicorn raises the signal again at its end
                worker.send_signal(signal.SIGTERM)
                assert await worker.wait() == 0


async def submit(http: httpx.AsyncClient, widths: list[int]) -> str:
    """Submit a task and return the path of its events."""
    answer = await http.post("/resize", json={"picture": "cat", "widths": widths})
    assert answer.status_code == HTTPStatus.ACCEPTED, answer.text
    path: str = answer.json()["events"]
    return path


async def stream(http: httpx.AsyncClient, path: str) -> list[Event]:
    async with http.stream("GET", path) as response:
        return await read_all(response)


async def read_all(response: httpx.Response) -> list[Event]:
    return [event async for event in read(response)]


async def read(response: httpx.Response) -> AsyncGenerator[Event, None]:
    """Yield a stream's events; its comments are skipped."""
    assert response.status_code == HTTPStatus.OK
    name = data = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and name:
            yield Event(name, json.loads(data))
            name = data = ""


def check_error(answer: httpx.Response, status: HTTPStatus, name: str) -> None:
    assert answer.status_code == status
    assert answer.json()["error"] == name
    assert set(answer.json()) - {"type"} == {"error", "message", "task_id", "maybe_executed"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PROMPT):
        while not condition():  # noqa: ASYNC110  # what it waits for tells nobody
            await asyncio.sleep(0.005)


@asynccontextmanager
async def program(module: str, broker_url: str, port: int = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m module` as long as the block runs."""
    environment = {**os.environ, "BROKER_URL": broker_url, "PORT": str(port), "PYTHONWARNINGS": "error"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, cwd=_ROOT, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_answered(http: httpx.AsyncClient, application: asyncio.subprocess.Process) -> None:
    """Wait until application and worker are up."""
    async with asyncio.timeout(30):
        while True:
            assert application.returncode is None
            with suppress(httpx.TransportError):
                if (await http.post("/add", json={"a": 2, "b": 3})).status_code == HTTPStatus.OK:
                    return
            await asyncio.sleep(0.05)
