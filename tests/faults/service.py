"""A worker in a process of its own, for tests that kill, freeze and stop it: `tests.faults.processes` starts it.

Lines of JSON go both ways over the inherited socket `--socket`: what happens here goes out as {"event": name, ...},
written before anything else is done, so it arrives even where the process is killed in the next step; orders come in as
{"order": name, ...}. The process ends when the socket does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiorpcq import Context, Service, Worker

__all__ = ["main"]

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)


class _Line:
    """The socket to the test, and the journal: what both are told happened in this process."""

    def __init__(self, name: str, endpoint: socket.socket, journal: Path) -> None:
        self.name = name
        self._endpoint = endpoint
        self._lines = endpoint.makefile("rb")
        self._lock = threading.Lock()
        # One write each, to the end of the file: lines of several processes do not mix (open(2), O_APPEND).
        self._path = journal
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(self, event: str, **details: Any) -> None:
        """Send an event to the test."""
        line = json.dumps({"event": event, "name": self.name, "pid": os.getpid(), **details}) + "\n"
        with self._lock:
            self._endpoint.sendall(line.encode())

    def record(self, phase: str, ctx: Context) -> None:
        """Write a line of the journal, then tell it."""
        entry = {"phase": phase, "task_id": ctx.task_id, "attempt": ctx.attempt, "pid": os.getpid()}
        os.write(self._journal, (json.dumps({**entry, "name": self.name}) + "\n").encode())
        self.tell(phase, task_id=ctx.task_id, attempt=ctx.attempt, redelivered=ctx.redelivered)

    def runs(self, task_id: str) -> int:
        """How often a task was begun, in all processes that share the journal."""
        entries = [json.loads(text) for text in self._path.read_text().splitlines()]
        return sum(entry["phase"] == "start" and entry["task_id"] == task_id for entry in entries)

    def order(self) -> dict[str, Any] | None:
        """Wait for the next order; None is the end of the test."""
        line = self._lines.readline()
        return json.loads(line) if line else None


class _Gates:
    """What holds methods until the test says: gates by task id, and one for all."""

    def __init__(self) -> None:
        self._all = False
        self._open: set[str] = set()
        self._changed = threading.Condition()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def open(self, task_id: str | None) -> None:
        """Let a task go on, now or when it comes; None is all tasks."""
        with self._changed:
            if task_id is None:
                self._all = True
            else:
                self._open.add(task_id)
            self._changed.notify_all()
        names = list(self._waiting) if task_id is None else [task_id]
        for waiter in [waiter for name in names for waiter in self._waiting.pop(name, [])]:
            if not waiter.done():
                waiter.set_result(None)

    def is_open(self, task_id: str) -> bool:
        return self._all or task_id in self._open

    async def wait(self, task_id: str) -> None:
        """Wait in the event loop."""
        if not self.is_open(task_id):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(task_id, []).append(waiter)
            await waiter

    def wait_in_thread(self, task_id: str) -> None:
        """Wait in a thread."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_open(task_id))


def _methods(service: Service, line: _Line, gates: _Gates) -> None:
    """Register what tests call; those that take a `Context` tell "start" and "end", in the journal too."""

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    @service.method
    async def echo(value: Any = None) -> Any:
        return value

    @service.method
    async def fail(text: str) -> None:
        raise ValueError(text)

    @service.method
    async def note(ctx: Context, value: Any = None) -> Any:
        line.record("start", ctx)
        line.record("end", ctx)
        return value

    @service.method
    async def wait(ctx: Context, value: Any = None) -> Any:
        line.record("start", ctx)
        try:
            await gates.wait(ctx.task_id)
        except asyncio.CancelledError:
            line.record("cancelled", ctx)
            raise
        line.record("end", ctx)
        return value

    @service.method
    async def where(ctx: Context) -> str:
        line.record("start", ctx)
        await gates.wait(ctx.task_id)
        await ctx.progress(line.name)
        line.record("end", ctx)
        return line.name

    @service.method
    def wait_in_thread(ctx: Context, value: Any = None) -> Any:
        line.record("start", ctx)
        gates.wait_in_thread(ctx.task_id)
        line.record("end", ctx)
        return value

    @service.method
    async def kill(ctx: Context) -> None:
        line.record("start", ctx)
        os.kill(os.getpid(), signal.SIGKILL)

    @service.method
    async def kill_first(ctx: Context, runs: int, value: Any = None) -> Any:
        line.record("start", ctx)
        if line.runs(ctx.task_id) <= runs:
            os.kill(os.getpid(), signal.SIGKILL)
        line.record("end", ctx)
        return value

    @service.method
    async def exit(ctx: Context, status: int) -> None:
        line.record("start", ctx)
        os._exit(status)

    @service.method
    async def freeze(ctx: Context, value: Any = None) -> Any:
        line.record("start", ctx)
        os.kill(os.getpid(), signal.SIGSTOP)
        line.record("end", ctx)
        return value


class _Reporting(Worker):
    """A worker that says when it serves."""

    def __init__(self, url: str, service: Service, on_ready: Callable[[], None], **options: Any) -> None:
        super().__init__(url, [service], **options)
        self._on_ready = on_ready

    async def start(self) -> None:
        await super().start()
        # In the next iteration: `run` listens for signals by then.
        asyncio.get_running_loop().call_soon(self._on_ready)


async def _serve(arguments: argparse.Namespace, line: _Line) -> None:
    gates = _Gates()
    service = Service(arguments.service, **json.loads(arguments.service_options))
    _methods(service, line, gates)
    options = json.loads(arguments.options)
    worker = _Reporting(arguments.url, service, lambda: line.tell("ready", worker_id=worker.id), **options)

    def statistics() -> None:
        counted, ready = worker.statistics(), worker.health().ready
        line.tell("statistics", started=counted.started, running=counted.running, adopted=counted.adopted, ready=ready)

    orders: dict[str, Callable[..., None]] = {"open": gates.open, "statistics": statistics}
    loop = asyncio.get_running_loop()

    def read() -> None:
        while (order := line.order()) is not None:
            action = partial(orders[order.pop("order")], **order)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(action)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    await worker.run()
    line.tell("stopped")


def _shifted(clock: Callable[[], float], offset: float) -> float:
    """The wall clock of another machine."""
    return clock() + offset


def main() -> None:
    """Serve until SIGTERM, or what the test does to the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--clock-offset", type=float, default=0.0, help="seconds that the wall clock is ahead")
    parser.add_argument("--service", default="default")
    parser.add_argument("--service-options", default="{}", help="of Service, as JSON")
    parser.add_argument("--options", default="{}", help="of Worker, as JSON")
    arguments = parser.parse_args()
    if arguments.clock_offset:
        time.time = partial(_shifted, time.time, arguments.clock_offset)
    if sys.platform == "linux":
        # The end of the socket does not end a process that is frozen.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    line = _Line(arguments.name, socket.socket(fileno=arguments.socket), arguments.journal)
    asyncio.run(_serve(arguments, line))


if __name__ == "__main__":
    main()
