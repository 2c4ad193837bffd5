"""A worker process of a chaos run: `python -m tests.chaos.worker`, with its options as JSON on the standard input.

It writes each run's begin and end to its journal, and ends when the standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from aiorpcq import ConnectFailed, Context, Service, Worker

from .journal import Journal
from .mix import MODES, SERVICE
from .records import Leftover, Run, answer_to

__all__ = ["WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker process is told.

    Attributes:
        url: of the broker, through the worker's proxy.
        name: its name in the journals; no other process has it.
        folder: where its journal goes.
        concurrency, max_attempts, grace: options of `Worker`.
    """

    url: str
    name: str
    folder: str
    concurrency: int
    max_attempts: int
    grace: float

    def encode(self) -> bytes:
        """For the standard input of the process."""
        return json.dumps(asdict(self)).encode() + b"\n"


_Noted = Callable[[Context, str], AbstractContextManager[None]]


def make_service(journal: Journal, name: str) -> Service:
    """Return the methods that the callers call; each takes a token, and how many seconds it is to take."""

    @contextmanager
    def noted(context: Context, token: str) -> Iterator[None]:
        run = Run(token, context.task_id, context.attempt, name, time.monotonic())
        journal.run(run)
        try:
            yield
        finally:
            journal.ran(run, time.monotonic())

    service = Service(SERVICE)
    for method, mode in MODES.items():
        service.method(name=method, delivery=mode)(_make_method(method, noted))
    return service


def _make_method(name: str, noted: _Noted) -> Callable[..., object]:
    async def answer(context: Context, token: str, seconds: float) -> str:
        with noted(context, token):
            await asyncio.sleep(seconds)
            return answer_to(token)

    def thread(context: Context, token: str, seconds: float) -> str:
        with noted(context, token):
            time.sleep(seconds)
            return answer_to(token)

    async def steps(context: Context, token: str, seconds: float) -> str:
        with noted(context, token):
            for step in range(3):
                await context.progress(step)
                await asyncio.sleep(seconds / 3)
            return answer_to(token)

    async def fail(context: Context, token: str, seconds: float) -> str:
        with noted(context, token):
            await asyncio.sleep(seconds)
            raise ValueError(answer_to(token))

    async def poison(context: Context, token: str, seconds: float) -> str:
        with noted(context, token):
            await asyncio.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("killed")

    own: dict[str, Callable[..., object]] = {"thread": thread, "steps": steps, "fail": fail, "poison": poison}
    return own.get(name, answer)


async def serve(options: WorkerOptions) -> None:
    """Serve until SIGTERM; then say what is left."""
    journal = Journal(Path(options.folder) / f"worker-{options.name}.jsonl")
    worker = Worker(
        options.url,
        services=[make_service(journal, options.name)],
        concurrency=options.concurrency,
        max_attempts=options.max_attempts,
        grace=options.grace,
    )
    await worker.run()
    statistics = worker.statistics()
    journal.leftover(Leftover(f"worker {options.name}", "runs", statistics.running))
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    journal.leftover(Leftover(f"worker {options.name}", "asyncio tasks", len(others)))
    journal.counted("redeliveries adopted by the run they belong to", statistics.adopted)
    journal.counted("redeliveries answered from the cache", statistics.answered)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)  # whoever started us is gone


def main() -> None:
    """Serve, as the standard input says."""
    options = WorkerOptions(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        asyncio.run(serve(options))
    except ConnectFailed as error:
        print(f"worker {options.name}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)
    # The thread that waits for the standard input must not hold up the end.
    os._exit(0)


if __name__ == "__main__":
    main()
