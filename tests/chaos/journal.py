"""The files of a run: one JSON array a line, each written to the file before anything else happens.

A line is one `write` to a file opened with O_APPEND, so what a process has written is there after it was killed, and
lines of several processes do not mix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .records import Call, Disturbance, History, Leftover, MemorySample, Result, Run, Settlement

__all__ = ["Journal", "read_history"]

_CALL, _SETTLED, _RUN, _RAN, _FAULT, _MEMORY, _LEFT, _END, _COUNTED = [
    "call",
    "settled",
    "run",
    "ran",
    "fault",
    "memory",
    "left",
    "end",
    "counted",
]


class Journal:
    """Where a process writes what it saw."""

    def __init__(self, path: Path) -> None:
        self._file: Final = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        os.close(self._file)

    def call(self, call: Call) -> None:
        self._write(_CALL, call.token, call.verb, call.method, call.mode, call.idempotent, call.started, call.timeout)

    def settled(self, end: Settlement) -> None:
        self._write(_SETTLED, end.token, end.at, end.result.value, end.value, end.error, end.maybe_executed)

    def run(self, run: Run) -> None:
        """A run begins."""
        self._write(_RUN, run.token, run.task_id, run.attempt, run.worker, run.started)

    def ran(self, run: Run, at: float) -> None:
        """A run has ended; *run* is what `run` was told."""
        self._write(_RAN, run.task_id, run.attempt, run.worker, at)

    def disturbance(self, fault: Disturbance) -> None:
        self._write(_FAULT, fault.kind, fault.started, fault.ended, fault.worker)

    def memory(self, sample: MemorySample) -> None:
        self._write(_MEMORY, sample.share, sample.size)

    def leftover(self, left: Leftover) -> None:
        self._write(_LEFT, left.owner, left.what, left.count)

    def counted(self, name: str, count: int) -> None:
        """Something that a client or worker counted, for the report."""
        self._write(_COUNTED, name, count)

    def end(self) -> None:
        """The callers have come to their end."""
        self._write(_END)

    def _write(self, *record: Any) -> None:
        os.write(self._file, json.dumps(record, separators=(",", ":")).encode() + b"\n")


def read_history(folder: Path, *, max_attempts: int) -> tuple[History, dict[str, int]]:
    """Read all journals of a folder; return what happened, and the sums of what was counted.

    The last line of a file may be cut where its process was killed while it wrote; it is left out.
    """
    reader = _Reader(History(max_attempts=max_attempts, finished=False))
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            reader.read(lines)
    return reader.history, reader.counted


class _Reader:
    def __init__(self, history: History) -> None:
        self.history = history
        self.counted: dict[str, int] = {}
        self._runs: dict[tuple[str, int, str], int] = {}
        self._readers: dict[str, Callable[..., None]] = {
            _CALL: lambda *fields: history.calls.append(Call(*fields)),
            _SETTLED: self._settled,
            _RUN: self._run,
            _RAN: self._ran,
            _FAULT: lambda *fields: history.disturbances.append(Disturbance(*fields)),
            _MEMORY: lambda *fields: history.memory.append(MemorySample(*fields)),
            _LEFT: lambda *fields: history.leftovers.append(Leftover(*fields)),
            _COUNTED: self._count,
            _END: self._end,
        }

    def read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if line.endswith(b"\n"):
                kind, *fields = json.loads(line)
                self._readers[kind](*fields)

    def _settled(self, token: str, at: float, result: str, value: str, error: str, maybe_executed: bool) -> None:
        self.history.settlements.append(Settlement(token, at, Result(result), value, error, maybe_executed))

    def _run(self, token: str, task_id: str, attempt: int, worker: str, started: float) -> None:
        self._runs[task_id, attempt, worker] = len(self.history.runs)
        self.history.runs.append(Run(token, task_id, attempt, worker, started))

    def _ran(self, task_id: str, attempt: int, worker: str, at: float) -> None:
        number = self._runs.get((task_id, attempt, worker))
        if number is not None:
            self.history.runs[number] = replace(self.history.runs[number], ended=at)

    def _count(self, name: str, count: int) -> None:
        self.counted[name] = self.counted.get(name, 0) + count

    def _end(self) -> None:
        self.history.finished = True
