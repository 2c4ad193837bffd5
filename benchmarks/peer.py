"""One process of a benchmark: `python -m benchmarks.peer ROLE CONTESTANT`, started by `benchmarks.processes`.

Lines of JSON come on standard input: first the setup, then one request at a time, {"request": name, ...arguments}. Each
is answered by one line on standard output, an object, {"error": text} where it failed. The process ends with its input,
so it never outlives the one that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any

from .contestants import CALLERS, WORKERS, Setup
from .load import Sample, run_load
from .pending import open_pending_calls, silent_worker

try:
    import uvloop
except ImportError:  # an extra; without it --no-uvloop is asked for
    uvloop = None  # type: ignore[assignment]  # a module is no Optional

Answer = Callable[..., Awaitable[dict[str, Any]]]


@contextlib.asynccontextmanager
async def _serve_caller(contestant: str, setup: Setup) -> AsyncIterator[dict[str, Answer]]:
    async with CALLERS[contestant](setup) as call:

        async def load(**arguments: Any) -> dict[str, Any]:
            sample: Sample = await run_load(call, **arguments)
            return asdict(sample)

        yield {"load": load}


@contextlib.asynccontextmanager
async def _serve_worker(contestant: str, setup: Setup) -> AsyncIterator[dict[str, Answer]]:
    async def cpu() -> dict[str, Any]:
        return {"cpu": time.process_time()}

    async with WORKERS[contestant](setup):
        yield {"cpu": cpu}


@contextlib.asynccontextmanager
async def _serve_silent_worker(_: str, setup: Setup) -> AsyncIterator[dict[str, Answer]]:
    async with silent_worker(setup):
        yield {}


@contextlib.asynccontextmanager
async def _serve_pending(_: str, setup: Setup) -> AsyncIterator[dict[str, Answer]]:
    async with open_pending_calls(setup) as pending:
        yield {"weigh": pending.weigh, "time_out": pending.time_out}


_ROLES: dict[str, Callable[[str, Setup], AbstractAsyncContextManager[dict[str, Answer]]]] = {
    "caller": _serve_caller,
    "worker": _serve_worker,
    "silent worker": _serve_silent_worker,
    "pending": _serve_pending,
}


async def _serve(role: str, contestant: str, setup: Setup) -> None:
    requests: asyncio.Queue[str] = asyncio.Queue()
    threading.Thread(target=_read_input, args=(asyncio.get_running_loop(), requests), daemon=True).start()
    try:
        async with _ROLES[role](contestant, setup) as answers:
            _print_line({"ready": True})
            while True:
                request = json.loads(await requests.get())
                name = request.pop("request")
                if name == "close":
                    break
                _print_line(await answers[name](**request))
    except Exception as error:  # whatever it is, the other process is to say it
        _print_line({"error": _describe(error)})


def _read_input(loop: asyncio.AbstractEventLoop, requests: asyncio.Queue[str]) -> None:
    """Hand every line of the input over. It is a thread, so that the end of the input ends even a busy event loop."""
    for line in sys.stdin:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            loop.call_soon_threadsafe(requests.put_nowait, line)
    os._exit(0)


def _print_line(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Play the role that the command line names."""
    _, role, contestant = sys.argv
    setup = json.loads(sys.stdin.readline())
    with_uvloop = setup.pop("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if with_uvloop else None) as runner:
        runner.run(_serve(role, contestant, Setup(**setup)))


if __name__ == "__main__":
    main()
