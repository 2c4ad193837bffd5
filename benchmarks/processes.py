"""The processes of a benchmark, as the one sees them that starts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from .contestants import Setup

__all__ = ["BrokerClock", "Peer", "PeerError", "open_peer"]

_START_SECONDS = 60.0
_CLOSE_SECONDS = 10.0


class PeerError(Exception):
    """A process ended, did not answer, or answered with an error; the text says which process, and what."""


class Peer:
    """A process that runs `benchmarks.peer`. It ends with this one, whatever ends it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    @classmethod
    async def start(cls, role: str, contestant: str, setup: Setup, *, uvloop: bool) -> Self:
        """Start it and wait until it is connected.

        Raises:
            PeerError: it is not within a minute.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.peer",
            role,
            contestant,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            process_group=0,  # Ctrl-C is for us; we end it
        )
        peer = cls(f"the {contestant} {role}", process)
        try:
            # Not on the command line: others can read that, and the URL has a password.
            await peer._exchange({**asdict(setup), "uvloop": uvloop}, _START_SECONDS)
        except BaseException:
            await peer._kill()
            raise
        return peer

    async def ask(self, request: str, *, within: float, **arguments: Any) -> dict[str, Any]:
        """Have it do *request*, and return its answer.

        Raises:
            PeerError: it failed, or did not answer within so many seconds.
        """
        return await self._exchange({"request": request, **arguments}, within)

    async def close(self) -> None:
        """End it: in good order within some seconds, or else at once."""
        assert self._process.stdin is not None
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                self._process.stdin.write(b'{"request": "close"}\n')
                await self._process.wait()
        await self._kill()

    async def _exchange(self, message: dict[str, Any], within: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise PeerError(f"{self._name} did not answer within {within:g} s") from None
        if not line:
            raise PeerError(f"{self._name} ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self._name}: {answer['error']}")
        return answer

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def open_peer(role: str, contestant: str, setup: Setup, *, uvloop: bool) -> AsyncIterator[Peer]:
    """`Peer.start`, and `Peer.close` at the end of the block."""
    peer = await Peer.start(role, contestant, setup, uvloop=uvloop)
    try:
        yield peer
    finally:
        await peer.close()


class BrokerClock:
    """The CPU time of a broker on this machine, from /proc; elsewhere, or for *pid* None, it is not known."""

    def __init__(self, pid: int | None) -> None:
        self._stat = None if pid is None else Path(f"/proc/{pid}/stat")

    def read(self) -> float | None:
        """Return the seconds of CPU that the broker has used, None where that is not known."""
        if self._stat is None:
            return None
        try:
            text = self._stat.read_text()
        except OSError:
            return None
        # proc(5): the second field is the name in parentheses and may hold anything; 14 and 15 are utime and stime.
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
