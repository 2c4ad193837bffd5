"""The callers' process of a chaos run: `python -m tests.chaos.caller`, with its options as JSON on the standard input.

Further lines of the standard input are commands; a line of the standard output says how many calls have been made. It
writes every call and every end of one to its journal, and at the end what it still holds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from aiorpcq import Client, OutOfBandLimits, RPCError, Task
from aiorpcq.router import RouterStatistics

from .journal import Journal
from .mix import MODES, SERVICE, Plan, Verb, plan_call
from .records import Call, Leftover, MemorySample, Result, Settlement

__all__ = ["CallerOptions"]

_GUARD = 15.0
"""Seconds past its deadline after which a call counts as hung, and its caller goes on."""

_PARKED = 3.0
"""Seconds that states are parked which nobody awaits; short, so that the end of a run shows whether they go."""

_END = 20.0
"""Seconds that the client has at the end to let go of everything."""

_TELL = 0.1
_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class CallerOptions:
    """What the callers' process is told.

    Attributes:
        url: of the broker, through the callers' proxy.
        folder: where its journal goes.
        seed: what the calls are drawn from.
        calls: how many to make; None to go on until told to `stop`.
        callers: how many at once.
        rate: calls a second they aim at, all together.
    """

    url: str
    folder: str
    seed: int
    calls: int | None
    callers: int
    rate: float

    def encode(self) -> bytes:
        """For the standard input of the process."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Callers:
    """All the callers, on one client."""

    def __init__(self, client: Client, journal: Journal, options: CallerOptions) -> None:
        self._client = client
        self._journal = journal
        self._options = options
        self._running: dict[str, asyncio.Task[None]] = {}
        self._extra: set[asyncio.Task[None]] = set()
        self._share = 0.0
        self._sampled = 0.0
        self._stopped = False
        self.made = 0

    async def run(self) -> None:
        """Make all calls, and wait for every one."""
        await asyncio.gather(*(self._one_caller(number) for number in range(self._options.callers)))
        while self._extra:
            await asyncio.wait(set(self._extra))

    def command(self, command: dict[str, Any]) -> None:
        """Do what the director of the run wants of the callers."""
        match command:
            case {"do": "cancel", "amount": amount}:
                for task in list(self._running.values())[:amount]:
                    task.cancel()
            case {"do": "call", "method": method, "seconds": seconds, "timeout": timeout}:
                plan = Plan(method, Verb.CALL, False, timeout, seconds, 0.0, "skip")
                task = asyncio.get_running_loop().create_task(self._make(f"x{self._next()}", plan))
                self._extra.add(task)
                task.add_done_callback(self._extra.discard)
            case {"do": "share", "share": share}:
                self._share = share
            case {"do": "stop"}:
                self._stopped = True
            case _:
                raise ValueError(f"unknown command {command}")

    def sample_memory(self, share: float) -> None:
        """Write down how much memory the process has, after a collection; nothing where the system does not tell."""
        gc.collect()
        size = _resident()
        if size is not None:
            self._journal.memory(MemorySample(share, size))

    def _next(self) -> int:
        self.made += 1
        return self.made

    async def _one_caller(self, number: int) -> None:
        random = Random(f"caller {self._options.seed} {number}")
        pause = self._options.callers / self._options.rate
        await asyncio.sleep(random.uniform(0, pause))
        while not self._stopped and (self._options.calls is None or self.made < self._options.calls):
            token = f"c{number}-{self._next()}"
            self._note_progress()
            await self._make(token, plan_call(random))
            await asyncio.sleep(random.uniform(0, 2 * pause))

    def _note_progress(self) -> None:
        share = self._share if self._options.calls is None else self.made / self._options.calls
        if share >= self._sampled:
            self._sampled = share + 1 / _SAMPLES
            self.sample_memory(min(share, 0.999))

    async def _make(self, token: str, plan: Plan) -> None:
        """Make one call and see it settled; give it up some time after that had to be."""
        started = time.monotonic()
        mode = MODES[plan.method]
        self._journal.call(Call(token, plan.verb.value, plan.method, mode, plan.idempotent, started, plan.timeout))
        task = asyncio.get_running_loop().create_task(self._settle(token, plan))
        self._running[token] = task
        done, _ = await asyncio.wait({task}, timeout=plan.timeout + _GUARD)
        del self._running[token]
        if not done:
            self._journal.settled(Settlement(token, time.monotonic(), Result.HUNG))
            task.cancel()

    async def _settle(self, token: str, plan: Plan) -> None:
        """Make one call and write down every end that it has; nothing it raises passes."""
        ends: list[tuple[Result, str]] = []
        error = ""
        maybe_executed = False
        try:
            ends = await self._perform(token, plan)
        except RPCError as raised:
            ends = [(Result.ERROR, raised.message)]
            error, maybe_executed = type(raised).__name__, raised.maybe_executed
        except asyncio.CancelledError:
            ends = [(Result.CANCELLED, "")]
        except Exception as raised:
            ends = [(Result.UNTYPED, f"{raised}\n{traceback.format_exc()}")]
            error = type(raised).__name__
        if token in self._running:  # else it has hung, and that is written down
            for result, value in ends:
                self._journal.settled(Settlement(token, time.monotonic(), result, value, error, maybe_executed))

    async def _perform(self, token: str, plan: Plan) -> list[tuple[Result, str]]:
        """Make one call; return its ends, of which there has to be one."""
        client = self._client.with_options(timeout=plan.timeout, idempotent=plan.idempotent)
        method, arguments = f"{SERVICE}.{plan.method}", (token, plan.seconds)
        match plan.verb:
            case Verb.CALL:
                return [(Result.VALUE, str(await client.call(method, *arguments)))]
            case Verb.CALL_AND_LEAVE:
                return await _leave(client.call(method, *arguments), plan.patience)
            case Verb.CAST:
                await client.cast(method, *arguments)
                return [(Result.CONFIRMED, "")]
            case Verb.SUBMIT:
                return [(Result.VALUE, str(await (await client.submit(method, *arguments))))]
            case Verb.STREAM:
                return await _follow(await client.submit(method, *arguments))
            case Verb.SUBMIT_AND_CANCEL:
                task = await client.submit(method, *arguments)
                await asyncio.sleep(plan.patience)
                await task.cancel(mode=plan.cancel_mode)
                return [(Result.VALUE, str(await task))]


async def _leave(waiting: Coroutine[Any, Any, Any], patience: float) -> list[tuple[Result, str]]:
    """Cancel the wait for a call after some seconds."""
    try:
        async with asyncio.timeout(patience):
            return [(Result.VALUE, str(await waiting))]
    except RPCError:
        raise  # a DeadlineExceeded is a TimeoutError, too
    except TimeoutError:
        return [(Result.CANCELLED, "")]


async def _follow(task: Task) -> list[tuple[Result, str]]:
    """Read every state of a task, then its result; what disagrees is another end."""
    terminal: list[str] = []
    try:
        async for state in task.stream():
            if state.is_terminal:
                terminal.append(state.value.message if isinstance(state.value, RPCError) else str(state.value))
    except RPCError as error:
        terminal.append(error.message)
    try:
        value = str(await task)
    except RPCError as error:
        value = error.message
        if terminal == [value]:
            raise
    return (
        [(Result.VALUE, value)]
        + [(Result.VALUE, other) for other in terminal if [other] != [value]]
        + [(Result.VALUE, other) for other in terminal[1:]]
    )


async def call_all(options: CallerOptions) -> None:
    """Make all calls, taking commands meanwhile; then say what is left."""
    journal = Journal(Path(options.folder) / "callers.jsonl")
    before = asyncio.all_tasks()
    client = Client(options.url, out_of_band=OutOfBandLimits(age=_PARKED))
    async with client:
        callers = Callers(client, journal, options)
        commands = await _open_stdin()
        listening = asyncio.create_task(_listen(commands, callers.command))
        telling = asyncio.create_task(_tell_progress(callers))
        await callers.run()
        telling.cancel()
        listening.cancel()
        await asyncio.gather(telling, listening, return_exceptions=True)
        await _let_go(client)
        callers.sample_memory(1.0)  # before it is closed, which frees whatever it holds by mistake
        statistics = client.statistics()
        journal.leftover(Leftover("the client", "pending calls", statistics.pending))
        journal.leftover(Leftover("the client", "parked tasks", statistics.out_of_band))
        _count(journal, statistics)
    # A task that was told to end has some turns to do so.
    await asyncio.sleep(0.1)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    for task in left:
        print(f"left running: {task!r}", file=sys.stderr)
    journal.leftover(Leftover("the callers' process", "asyncio tasks", len(left)))
    journal.end()
    print(json.dumps({"made": callers.made, "ended": True}), flush=True)


async def _let_go(client: Client) -> None:
    """Wait until the client holds nothing any more, but not for ever."""
    deadline = time.monotonic() + _END
    while time.monotonic() < deadline:
        statistics = client.statistics()
        if not statistics.pending and not statistics.out_of_band:
            break
        await asyncio.sleep(0.1)


def _count(journal: Journal, statistics: RouterStatistics) -> None:
    for field in fields(statistics):
        if field.name not in ("pending", "out_of_band", "out_of_band_size"):
            journal.counted(f"client: {field.name}", getattr(statistics, field.name))


async def _open_stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    return reader


async def _listen(commands: asyncio.StreamReader, perform: Callable[[dict[str, Any]], None]) -> None:
    async for line in commands:
        perform(json.loads(line))
    os._exit(1)  # whoever started us is gone


async def _tell_progress(callers: Callers) -> None:
    while True:
        print(json.dumps({"made": callers.made}), flush=True)
        await asyncio.sleep(_TELL)


def _resident() -> int | None:
    """Return the bytes this process has in memory, None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Make the calls that the standard input says."""
    # Unbuffered: the lines behind the first are read by the event loop.
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    asyncio.run(call_all(CallerOptions(**json.loads(line))))


if __name__ == "__main__":
    main()
