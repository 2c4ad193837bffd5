"""A chaos run from its first call to its last: starts everything, follows the schedule, collects what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.node import Node
from tests.proxy import Proxy

from .caller import CallerOptions
from .history import Verdict, check
from .injector import CONSUMER_TIMEOUT, Injector
from .journal import Journal, read_history
from .mix import SERVICE
from .processes import CallerProcess, WorkerSlot
from .records import History, Leftover
from .schedule import Fault, Kind
from .worker import WorkerOptions

__all__ = ["ChaosError", "Outcome", "Plan", "run_chaos"]

MAX_ATTEMPTS = 4
CONCURRENCY = 100
GRACE = 5.0
HEARTBEAT = 2

_AT_ONCE = 6
"""Faults that may be under way at once."""

_START = 30.0
_SETTLE = 60.0
"""Seconds after the last call may be made until all must have ended."""

_DRAIN = 25.0
"""Seconds that the workers have to empty the queue at the end."""


class ChaosError(Exception):
    """The run itself failed, whatever the library did; the text says how."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        schedule: the faults.
        seed: what the calls are drawn from.
        calls: how many; None where *seconds* says when to stop.
        seconds: how long; None where *calls* says when to stop.
        workers, callers: how many of them.
        rate: calls a second the callers aim at.
        config: further lines of the broker's configuration.
    """

    schedule: tuple[Fault, ...]
    seed: int
    calls: int | None
    seconds: float | None
    workers: int
    callers: int
    rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        verdict: what the judge says.
        history: what it was told.
        faults: the faults that were made, by kind.
        counted: what clients and workers have counted, by name.
        seconds: how long it took.
        broker: version of the broker.
        log: the end of what callers and workers printed.
    """

    verdict: Verdict
    history: History
    faults: Counter[Kind]
    counted: dict[str, int]
    seconds: float
    broker: str
    log: str


async def run_chaos(plan: Plan, tell: Callable[[str], None]) -> Outcome:
    """Run, and judge. *tell* is given a line of progress about once a second.

    Raises:
        ChaosError: the run cannot be made.
        NodeError: the broker does not start.
    """
    node = Node(config={"consumer_timeout": str(round(CONSUMER_TIMEOUT * 1000))})
    folder = Path(tempfile.mkdtemp(prefix="aiorpcq-chaos-"))
    try:
        await asyncio.to_thread(node.start)
        version = ".".join(map(str, node.version))
        run = _ChaosRun(plan, node, folder, tell)
        await run.run()
        history, counted = await asyncio.to_thread(read_history, folder, max_attempts=MAX_ATTEMPTS)
        verdict = await asyncio.to_thread(check, history)
        return Outcome(verdict, history, run.done, counted, run.seconds, version, _tail(folder))
    finally:
        await asyncio.to_thread(node.close)
        shutil.rmtree(folder)


class _ChaosRun:
    def __init__(self, plan: Plan, node: Node, folder: Path, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._node = node
        self._folder = folder
        self._tell = tell
        self._journal = Journal(folder / "director.jsonl")
        self._numbers = itertools.count()
        self._url = f"{node.url()}?heartbeat={HEARTBEAT}"
        self._stopped_at = float("inf")
        self._started = 0.0
        self.done: Counter[Kind] = Counter()
        self.seconds = 0.0

    async def run(self) -> None:
        """Make all calls and all faults, and write down what is left."""
        plan = self._plan
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._journal.close)
            workers = [await stack.enter_async_context(self._worker()) for _ in range(plan.workers)]
            await self._wait_workers()
            proxy = await stack.enter_async_context(Proxy(self._node.port))
            options = CallerOptions(
                proxy.url(self._url), str(self._folder), plan.seed, plan.calls, plan.callers, plan.rate
            )
            callers = await stack.enter_async_context(CallerProcess(options))
            injector = Injector(self._node, callers, proxy, workers, self._worker, self._journal)
            self.done = injector.done
            self._started = time.monotonic()
            await self._follow(callers, injector)
            self.seconds = time.monotonic() - self._started
            await self._look_for_leftovers()

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[WorkerSlot]:
        async with Proxy(self._node.port) as proxy:
            options = WorkerOptions(proxy.url(self._url), "", str(self._folder), CONCURRENCY, MAX_ATTEMPTS, GRACE)
            async with WorkerSlot(next(self._numbers), options, proxy, self._journal) as slot:
                yield slot

    async def _wait_workers(self) -> None:
        """Wait until every worker consumes: a call before that is unroutable, and rightly so."""
        deadline = time.monotonic() + _START
        while True:
            queue = (await asyncio.to_thread(self._node.queues)).get(f"rpc.{SERVICE}")
            if queue is not None and queue.consumers >= self._plan.workers:
                return
            if time.monotonic() > deadline:
                raise ChaosError(f"the workers did not start\n{_tail(self._folder)}")
            await asyncio.sleep(0.05)

    async def _follow(self, callers: CallerProcess, injector: Injector) -> None:
        """Inject each fault when its share of the calls is made, until all calls have ended."""
        schedule = list(self._plan.schedule)
        under_way: set[asyncio.Task[None]] = set()
        told = 0.0
        stopping = False
        try:
            while not callers.ended:
                await callers.moved()
                if callers.gone and not callers.ended:
                    raise ChaosError(f"the callers' process ended\n{_tail(self._folder)}")
                now, share = time.monotonic(), self._share(callers.made)
                if share >= 1 and not stopping:
                    stopping = True
                    self._stopped_at = now
                    await callers.tell(do="stop")
                if now > self._stopped_at + _SETTLE:
                    return  # the journal lacks the callers' end, and the judge says so
                if self._plan.calls is None:
                    await callers.tell(do="share", share=share)
                if now - told >= 1.0:
                    told = now
                    self._tell(self._progress(callers.made, now))
                for task in [task for task in under_way if task.done()]:
                    under_way.discard(task)
                    task.result()
                while schedule and schedule[0].at <= share and len(under_way) < _AT_ONCE:
                    under_way.add(asyncio.create_task(injector.inject(schedule.pop(0))))
            await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _share(self, made: int) -> float:
        if self._plan.calls is not None:
            return made / self._plan.calls
        assert self._plan.seconds is not None
        return (time.monotonic() - self._started) / self._plan.seconds

    def _progress(self, made: int, now: float) -> str:
        seconds = now - self._started
        total = f" of {self._plan.calls:,}" if self._plan.calls is not None else ""
        faults = f"{self.done.total()} of {len(self._plan.schedule)} faults"
        return f"{made:,}{total} calls, {faults}, {made / max(seconds, 0.1):,.0f} calls/s, {seconds:.0f} s"

    async def _look_for_leftovers(self) -> None:
        """Look for what callers that are gone, and workers that stand by, have left at the broker."""
        deadline = time.monotonic() + _DRAIN
        while True:
            queues = await asyncio.to_thread(self._node.queues)
            service = queues.get(f"rpc.{SERVICE}")
            replies = [name for name in queues if name.startswith("rpc.reply.")]
            waiting = 0 if service is None else service.messages
            if (not replies and not waiting) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        consumers = 0 if service is None else service.consumers
        missing = max(0, self._plan.workers - consumers)
        self._journal.leftover(Leftover("the broker", "reply queues", len(replies)))
        self._journal.leftover(Leftover("the broker", "requests that no worker took", waiting))
        self._journal.leftover(Leftover("the broker", "consumers that are missing", missing))


def _tail(folder: Path, lines: int = 30) -> str:
    return "\n".join(
        f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
        for path in sorted(folder.glob("*.log"))
    )
