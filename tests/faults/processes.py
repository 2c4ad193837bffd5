"""Worker processes of the tests' own, which may be killed, frozen and stopped, and the journal of what they ran."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.node.programs import is_frozen

__all__ = ["Entry", "Journal", "ProcessError", "WorkerProcess"]

_ROOT = Path(__file__).resolve().parents[2]

_PATIENCE = 20.0
"""Seconds that a wait for what must come may take; nothing is timed by it."""


class ProcessError(Exception):
    """A worker process ended or kept silent; the text says which, and what it wrote to its standard error."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: *phase* is "start", "end" or "cancelled"; *name* and *pid* are the process's."""

    phase: str
    task_id: str
    attempt: int
    pid: int
    name: str


class Journal:
    """What the worker processes of one test ran, in the file at *path*, which they share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, phase: str | None = None, task_id: str | None = None) -> list[Entry]:
        """The lines so far, of one phase or task or of all, in the order they were written."""
        if not self.path.exists():
            return []
        entries = [Entry(**json.loads(line)) for line in self.path.read_text().splitlines()]
        return [entry for entry in entries if phase in (None, entry.phase) and task_id in (None, entry.task_id)]

    def runs(self, task_id: str) -> int:
        """How often a task was begun."""
        return len(self.entries("start", task_id))


class WorkerProcess:
    """A process that serves the methods of `tests.faults.service`. It ends with this one, whatever ends it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, endpoint: socket.socket, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._endpoint = endpoint
        self._log = log
        self._events: list[dict[str, Any]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def start(
        cls,
        url: str,
        journal: Journal,
        *,
        name: str,
        service: str = "default",
        service_options: Mapping[str, Any] | None = None,
        clock_offset: float = 0.0,
        **options: Any,
    ) -> Self:
        """Start it and wait until it serves.

        Args:
            name: what events, journal and errors call it.
            service: name of its service.
            service_options: options of `Service`.
            clock_offset: seconds that its wall clock is ahead of ours.
            **options: options of `Worker`.

        Raises:
            ProcessError: it does not serve within 20 seconds.
        """
        ours, theirs = socket.socketpair()
        log = journal.path.with_name(f"{name}.log")
        with theirs, log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.faults.service",
                f"--url={url}",
                f"--name={name}",
                f"--socket={theirs.fileno()}",
                f"--journal={journal.path}",
                f"--service={service}",
                f"--clock-offset={clock_offset}",
                f"--service-options={json.dumps(service_options or {})}",
                f"--options={json.dumps(options)}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=_ROOT,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C is for us; we end it
            )
        worker = cls(name, process, ours, log)
        try:
            reader, worker._writer = await asyncio.open_connection(sock=ours)
            worker._reading = asyncio.get_running_loop().create_task(worker._read(reader))
            await worker.event("ready")
        except BaseException:
            await worker.close()
            raise
        return worker

    async def event(self, name: str, task_id: str | None = None, *, count: int = 1) -> dict[str, Any]:
        """Wait until the process has told of *name*, of one task or any, *count* times; return the last one's details.

        Events: "ready", "start", "end" and "cancelled" of a method, "statistics", "stopped".

        Raises:
            ProcessError: it ended before, or did not within 20 seconds.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    found = [event for event in self._events if event["event"] == name]
                    found = [event for event in found if task_id in (None, event.get("task_id"))]
                    if len(found) >= count:
                        return found[count - 1]
                    if self._reading is None or self._reading.done():
                        raise ProcessError(f"{self.name} ended before {name!r}\n{self.log}")
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise ProcessError(f"{self.name} did not tell of {name!r}: {self._events}\n{self.log}") from None

    def open(self, task_id: str | None = None) -> None:
        """Let the methods go on that wait, now and later: those of one task, or all."""
        self._order("open", task_id=task_id)

    async def statistics(self) -> dict[str, Any]:
        """Ask the worker for *started*, *running* and *adopted* of its statistics, and whether it is *ready*."""
        told = len([event for event in self._events if event["event"] == "statistics"])
        self._order("statistics")
        return await self.event("statistics", count=told + 1)

    @property
    def log(self) -> str:
        """What it wrote to standard output and error."""
        return self._log.read_text(errors="replace")

    async def kill(self) -> None:
        """Kill it (SIGKILL), and return when it is gone."""
        self._signal(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> None:
        """Freeze it (SIGSTOP): its connections stand and say nothing. On Linux it is frozen when this returns."""
        self._signal(signal.SIGSTOP)
        await self.wait_frozen()

    async def wait_frozen(self) -> None:
        """Wait until it is frozen, by whoever did it.

        Raises:
            ProcessError: it went on for 20 seconds.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not is_frozen(self.pid):  # noqa: ASYNC110 - the kernel tells nobody but its parent's waitpid
                    await asyncio.sleep(0.001)
                return
        raise ProcessError(f"{self.name} did not freeze")

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM): it drains. A second time it cancels what runs."""
        self._signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Wait until it is gone and return its status; negative is the signal that ended it.

        Raises:
            ProcessError: it lives after 20 seconds.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._process.wait()
        except TimeoutError:
            raise ProcessError(f"{self.name} does not end\n{self.log}") from None

    async def close(self) -> None:
        """End it at once, if it lives. Idempotent."""
        self._signal(signal.SIGKILL)
        await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is None:
            self._endpoint.close()
        else:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _order(self, order: str, **details: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps({"order": order, **details}).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    self._events.append(json.loads(line))
                    self._wake()
        finally:
            asyncio.get_running_loop().call_soon(self._wake)  # when this task is done

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
