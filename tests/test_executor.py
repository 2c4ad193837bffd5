"""The executor by itself: runs that are stopped before their first step, which no broker can time."""

from __future__ import annotations

import asyncio
from typing import Any

from aiorpcq import CacheLimits, Codecs, Service
from aiorpcq.executor import Executor, Places
from aiorpcq.protocol.executions import ExecutionPhase, ExecutionTable
from aiorpcq.protocol.messages import Properties, Request
from aiorpcq.protocol.wire import encode_request
from aiorpcq.publisher import ResultPublisher

_MAX_SIZE = 1 << 20
_CONCURRENCY = 3


class HandMade:
    """A delivery that notes how it was settled."""

    exchange = "rpc"
    routing_key = "rpc:default"
    redelivered = False
    oversize = 0

    def __init__(self, properties: Properties, body: bytes) -> None:
        self.properties = properties
        self.body = body
        self.settled: list[str] = []

    def ack(self) -> None:
        self.settled.append("ack")

    def nack(self, *, requeue: bool) -> None:
        self.settled.append("requeue" if requeue else "reject")


def _delivery(task_id: str, *arguments: Any) -> HandMade:
    request = Request(task_id, "run", *Codecs().encode([list(arguments), {}]), reply_to="rpc.reply.1")
    publication = encode_request(request, "rpc", "rpc:default")
    return HandMade(publication.properties, publication.body)


def _executor(service: Service) -> tuple[Executor, Places]:
    table, codecs, loop = ExecutionTable(CacheLimits()), Codecs(), asyncio.get_running_loop()
    publisher = ResultPublisher(table, codecs, _MAX_SIZE, "worker", loop, lambda: None)
    executor = Executor(table, publisher, codecs, loop, delivery="at_least_once", threads=1, max_size=_MAX_SIZE)
    return executor, Places(service.methods, _CONCURRENCY)


async def test_a_run_that_is_stopped_before_its_first_step_goes_back_and_leaves_its_place() -> None:
    service, ran = Service(), []

    @service.method
    async def run(value: int) -> None:
        ran.append(value)

    executor, places = _executor(service)
    deliveries = [_delivery(str(number), number) for number in range(_CONCURRENCY + 1)]
    for delivery in deliveries:
        executor.on_delivery(places, delivery)
    tasks = set(executor.tasks)
    assert (len(tasks), places.free, len(places.waiting)) == (_CONCURRENCY, 0, 1)
    executor.drain()
    executor.cancel_runs()
    await asyncio.gather(*tasks)
    executor.close()
    assert [delivery.settled for delivery in deliveries] == [["requeue"]] * (_CONCURRENCY + 1)
    assert (ran, executor.tasks, places.free) == ([], set(), _CONCURRENCY)


async def test_requests_that_expire_while_they_wait_do_not_pile_up() -> None:
    service, gate = Service(delivery="at_most_once"), asyncio.Event()

    @service.method
    async def run(value: int) -> None:
        await gate.wait()

    executor, places = _executor(service)
    for number in range(20 * _CONCURRENCY):
        executor.on_delivery(places, _delivery(str(number), number))
        if places.waiting:
            places.waiting[-1][0].phase = ExecutionPhase.ENDED  # as its deadline would
        assert len(places.waiting) <= 2 * _CONCURRENCY
    gate.set()
    await asyncio.gather(*executor.tasks)
    executor.close()
    assert (places.free, len(places.waiting)) == (_CONCURRENCY, 0)
