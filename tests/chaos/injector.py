"""Injector: does what a schedule says to workers, links and the broker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from tests.node import Node
from tests.proxy import Proxy, Way

from .journal import Journal
from .mix import SERVICE
from .processes import CallerProcess, WorkerSlot
from .records import Disturbance
from .schedule import Fault, Kind

__all__ = ["CONSUMER_TIMEOUT", "Injector"]

CONSUMER_TIMEOUT = 5.0
"""Seconds that the chaos broker gives a consumer, see `Node.enforce_consumer_timeout`."""

_CALLERS = "callers"
_CLIENT, _WORKER = "aiorpcq client", "aiorpcq worker"
_CHANNELS = range(2, 8)
"""Numbers that a lane's channel can have: the first is for declarations."""


class Injector:
    """Makes faults happen. `inject` returns when a fault is over and mended; several may be under way at once.

    Those of one worker, of the callers' link and of the broker follow each other.

    Attributes:
        done: how many of each kind were made.
    """

    def __init__(
        self,
        node: Node,
        callers: CallerProcess,
        callers_proxy: Proxy,
        workers: Sequence[WorkerSlot],
        spare_worker: Callable[[], AbstractAsyncContextManager[WorkerSlot]],
        journal: Journal,
    ) -> None:
        self._node = node
        self._callers = callers
        self._callers_proxy = callers_proxy
        self._workers = workers
        self._spare_worker = spare_worker
        self._journal = journal
        self._broker_lock = asyncio.Lock()
        self._callers_lock = asyncio.Lock()
        self.done: Counter[Kind] = Counter()
        self._ways: dict[Kind, Callable[[Fault], Awaitable[None]]] = {
            Kind.WORKER_KILLED: self._worker_killed,
            Kind.WORKER_FROZEN: self._worker_frozen,
            Kind.WORKER_DRAINED: self._worker_drained,
            Kind.WORKER_LATE: self._worker_late,
            Kind.POISON_REQUEST: self._poison_request,
            Kind.CALLER_RESET: self._callers_link,
            Kind.CALLER_BLACKHOLE: self._callers_link,
            Kind.CALLER_CUT: self._callers_link,
            Kind.WORKER_RESET: self._workers_link,
            Kind.WORKER_BLACKHOLE: self._workers_link,
            Kind.WORKER_CUT: self._workers_link,
            Kind.WORKER_REFUSED: self._workers_link,
            Kind.LATENCY: self._any_link,
            Kind.BANDWIDTH: self._any_link,
            Kind.SLICED: self._any_link,
            Kind.CONNECTIONS_CLOSED: self._at_broker,
            Kind.CHANNELS_CLOSED: self._at_broker,
            Kind.SERVICE_QUEUE_DELETED: self._at_broker,
            Kind.REPLY_QUEUE_DELETED: self._at_broker,
            Kind.CONSUMER_TIMEOUT: self._consumer_timeout,
            Kind.MEMORY_ALARM: self._memory_alarm,
            Kind.CALLS_CANCELLED: self._calls_cancelled,
            Kind.BROKER_FROZEN: self._broker_frozen,
            Kind.BROKER_RESTARTED: self._broker_restarted,
            Kind.BROKER_KILLED: self._broker_restarted,
        }

    async def inject(self, fault: Fault) -> None:
        """Make *fault* happen, and write it down."""
        await self._ways[fault.kind](fault)
        self.done[fault.kind] += 1

    def _note(self, fault: Fault, started: float, who: str | None) -> None:
        self._journal.disturbance(Disturbance(fault.kind.value, started, time.monotonic(), who))

    # --- workers

    async def _worker_killed(self, fault: Fault) -> None:
        worker = self._workers[fault.worker]
        async with worker.lock:
            started, name = time.monotonic(), worker.name
            worker.kill(fault.seconds)
            self._note(fault, started, name)

    async def _worker_frozen(self, fault: Fault) -> None:
        worker = self._workers[fault.worker]
        async with worker.lock:
            started, name = time.monotonic(), worker.name
            worker.freeze()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                worker.thaw()
            self._note(fault, started, name)

    async def _worker_drained(self, fault: Fault) -> None:
        worker = self._workers[fault.worker]
        async with worker.lock:
            started, name = time.monotonic(), worker.name
            await worker.drain(fault.seconds)
            self._note(fault, started, name)

    async def _worker_late(self, fault: Fault) -> None:
        started = time.monotonic()
        async with self._spare_worker() as worker:
            await asyncio.sleep(fault.seconds)
        self._note(fault, started, worker.name)

    async def _poison_request(self, fault: Fault) -> None:
        started = time.monotonic()
        await self._callers.tell(do="call", method="poison", seconds=0.0, timeout=15.0)
        # Whichever worker takes it says so by its end.
        self._note(fault, started, _CALLERS)

    # --- links

    async def _callers_link(self, fault: Fault) -> None:
        async with self._callers_lock:
            await self._break_link(fault, self._callers_proxy, _CALLERS)

    async def _workers_link(self, fault: Fault) -> None:
        worker = self._workers[fault.worker]
        async with worker.lock:
            await self._break_link(fault, worker.proxy, worker.name)

    async def _break_link(self, fault: Fault, proxy: Proxy, who: str) -> None:
        started = time.monotonic()
        match fault.kind:
            case Kind.CALLER_RESET | Kind.WORKER_RESET:
                proxy.reset()
            case Kind.CALLER_CUT | Kind.WORKER_CUT:
                way = proxy.to_client if fault.amount % 2 else proxy.to_broker
                way.cut_after(fault.amount)
            case Kind.WORKER_REFUSED:
                await proxy.refuse()
                proxy.reset()
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    await proxy.accept()
            case _:
                silent = ((proxy.to_broker, proxy.to_client), (proxy.to_broker,), (proxy.to_client,))[fault.amount]
                for way in silent:
                    way.blackhole()
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    proxy.heal()
        self._note(fault, started, who)

    async def _any_link(self, fault: Fault) -> None:
        if fault.worker < 0:
            async with self._callers_lock:
                await self._burden_link(fault, self._callers_proxy, _CALLERS)
        else:
            worker = self._workers[fault.worker]
            async with worker.lock:
                await self._burden_link(fault, worker.proxy, worker.name)

    async def _burden_link(self, fault: Fault, proxy: Proxy, who: str) -> None:
        started = time.monotonic()
        ways: tuple[Way, Way] = (proxy.to_broker, proxy.to_client)
        for way in ways:
            way.latency = fault.amount / 1000 if fault.kind is Kind.LATENCY else 0.0
            way.bandwidth = float(fault.amount) if fault.kind is Kind.BANDWIDTH else None
            way.slice_to = 1 if fault.kind is Kind.SLICED else None
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            for way in ways:
                way.latency, way.bandwidth, way.slice_to = 0.0, None, None
        self._note(fault, started, who)

    # --- the broker

    async def _at_broker(self, fault: Fault) -> None:
        async with self._broker_lock:
            started = time.monotonic()
            await asyncio.to_thread(self._mistreat, fault)
            self._note(fault, started, None)

    def _mistreat(self, fault: Fault) -> None:
        node = self._node
        whose = _CLIENT if fault.amount % 2 else _WORKER
        match fault.kind:
            case Kind.CONNECTIONS_CLOSED:
                node.close_connections(name=whose)
            case Kind.CHANNELS_CLOSED:
                for number in _CHANNELS:
                    node.close_channels(406 if fault.amount & 2 else 404, number=number, name=whose)
            case Kind.SERVICE_QUEUE_DELETED:
                if f"rpc.{SERVICE}" in node.queues():
                    node.delete_queue(f"rpc.{SERVICE}")
            case _:
                for name in node.queues():
                    if name.startswith("rpc.reply."):
                        node.delete_queue(name)

    async def _consumer_timeout(self, fault: Fault) -> None:
        """Have a method run past the broker's patience."""
        started = time.monotonic()
        seconds = CONSUMER_TIMEOUT + 3.0
        await self._callers.tell(do="call", method="answer", seconds=seconds, timeout=seconds + 5.0)
        await asyncio.sleep(CONSUMER_TIMEOUT + 1.0)
        async with self._broker_lock:
            await asyncio.to_thread(self._node.enforce_consumer_timeout)
            self._note(fault, started, None)

    async def _memory_alarm(self, fault: Fault) -> None:
        async with self._broker_lock:
            started = time.monotonic()
            await asyncio.to_thread(self._node.set_memory_alarm, True)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._node.set_memory_alarm, False)
            self._note(fault, started, None)

    async def _broker_frozen(self, fault: Fault) -> None:
        async with self._broker_lock:
            started = time.monotonic()
            await asyncio.to_thread(self._node.pause)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                self._node.resume()
            self._note(fault, started, None)

    async def _broker_restarted(self, fault: Fault) -> None:
        async with self._broker_lock:
            started = time.monotonic()
            end = self._node.kill if fault.kind is Kind.BROKER_KILLED else self._node.stop
            await asyncio.to_thread(end)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self._node.start)
            self._note(fault, started, None)

    # --- callers

    async def _calls_cancelled(self, fault: Fault) -> None:
        started = time.monotonic()
        await self._callers.tell(do="cancel", amount=fault.amount)
        self._note(fault, started, _CALLERS)
