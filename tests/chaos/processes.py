"""The processes of a chaos run, as the one sees them that starts and breaks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from tests.proxy import Proxy

from .caller import CallerOptions
from .journal import Journal
from .records import Disturbance, Leftover
from .worker import WorkerOptions

__all__ = ["CallerProcess", "WorkerSlot"]

_ROOT = Path(__file__).parent.parent.parent
_PAUSE = 0.3
"""Seconds before a worker that ended by itself is started again."""

_END = 30.0
"""Seconds that a process has to end when it is told to."""


async def _start(module: str, first_line: bytes, stderr: Path, *, reads: bool) -> asyncio.subprocess.Process:
    with stderr.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if reads else log,
            stderr=log,
            cwd=_ROOT,
            process_group=0,  # Ctrl-C is for us; we end it
        )
    assert process.stdin is not None
    # Not on the command line: others can read that, and the URL has a password.
    process.stdin.write(first_line)
    return process


class WorkerSlot:
    """The place of a worker: its proxy, and one process after another. A process that ends is replaced.

    Use it as an async context manager; leaving it drains the worker.
    """

    def __init__(self, number: int, options: WorkerOptions, proxy: Proxy, journal: Journal) -> None:
        self.proxy = proxy
        self.lock = asyncio.Lock()
        self._number = number
        self._options = options
        self._journal = journal
        self._incarnation = 0
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._pause = _PAUSE
        self._leaving = False
        self.deaths = 0

    @property
    def name(self) -> str:
        """The name of the present process in the journals."""
        return f"{self._number}.{self._incarnation}"

    def kill(self, pause: float) -> None:
        """End the process with SIGKILL; another follows after *pause* seconds."""
        self._pause = pause
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP) until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a frozen process go on."""
        self._signal(signal.SIGCONT)

    async def drain(self, pause: float) -> None:
        """End the process with SIGTERM and wait for that; another follows after *pause* seconds."""
        self._pause = pause
        process = self._process
        self._signal(signal.SIGTERM)
        if process is not None:
            await self._wait(process)

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep(), name=f"worker {self._number}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        try:
            await self.drain(0.0)
        finally:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.gather(self._keeper, return_exceptions=True)
            self._signal(signal.SIGKILL)

    async def _keep(self) -> None:
        """Start the process, and the next one whenever it has ended."""
        while not self._leaving:
            self._incarnation += 1
            options = replace(self._options, name=self.name)
            stderr = Path(options.folder) / "workers.log"
            process = self._process = await _start("tests.chaos.worker", options.encode(), stderr, reads=False)
            began = time.monotonic()
            try:
                await process.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
            now = time.monotonic()
            self.deaths += 1
            self._journal.disturbance(Disturbance("worker ended", max(began, now - _PAUSE), now, self.name))
            await asyncio.sleep(self._pause)
            self._pause = _PAUSE

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(_END):
                await process.wait()
        except TimeoutError:
            self._journal.leftover(Leftover(f"worker {self.name}", "runs that held up its end", 1))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


class CallerProcess:
    """The process of the callers. *made* says how many calls it has made, *ended* that it has made all of them."""

    def __init__(self, options: CallerOptions) -> None:
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self.made = 0
        self.ended = False

    async def tell(self, **command: Any) -> None:
        """Give the callers a command; see `Callers.command`."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(command).encode() + b"\n")
                await process.stdin.drain()

    async def moved(self) -> None:
        """Wait for the next word of the callers, which comes some times a second; return at once when they are gone."""
        self._moved.clear()
        if self._reading is not None and not self._reading.done():
            await self._moved.wait()

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self._reading is not None and self._reading.done()

    async def __aenter__(self) -> Self:
        stderr = Path(self._options.folder) / "callers.log"
        self._process = await _start("tests.chaos.caller", self._options.encode(), stderr, reads=True)
        self._reading = asyncio.create_task(self._read(self._process), name="callers")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reading is not None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            self.made = said["made"]
            self.ended = said.get("ended", False)
            self._moved.set()
        await process.wait()
        self._moved.set()
