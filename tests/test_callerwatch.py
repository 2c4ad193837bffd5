"""When a caller counts as gone: not for one state that came back, and not while nobody could have heard of a move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits
from aiorpcq.callerwatch import CallerWatch
from aiorpcq.protocol.executions import Execution, ExecutionTable
from aiorpcq.protocol.messages import Properties, Request
from aiorpcq.protocol.topology import Queue
from aiorpcq.testing import MemoryBroker, memory_broker
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryTransport
from aiorpcq.transports.memory.link import MemoryLink
from tests.contract.parties import eventually

pytestmark = pytest.mark.usefixtures("skipped_time")

GRACE = 0.25
"""A quarter of it, the time between two looks, is a binary fraction: clocks add it up without an error."""
ROUNDING = 1e-6
"""Seconds by which a clock may add up other pauses wrongly."""


class Bench:
    """A watch on a broker in the process."""

    def __init__(self, broker: MemoryBroker, link: MemoryLink, grace: float) -> None:
        self.broker = broker
        self.stopped: list[str] = []
        self.link = link
        self.table = ExecutionTable(CacheLimits())
        self.watch = CallerWatch("worker", asyncio.get_running_loop(), grace, self._stop)
        self.watch.link = link
        link.on_returned = self.watch.on_returned

    def _stop(self, execution: Execution) -> None:
        self.stopped.append(execution.task_id)
        self.table.abandon(execution)

    def run(self, task_id: str, reply_to: str | None) -> Execution:
        _, execution = self.table.begin(Request(task_id, "run", b"", "", None, reply_to), None, None, 0.0)
        self.watch.watch(execution)
        return execution


@asynccontextmanager
async def bench(grace: float = GRACE) -> AsyncIterator[Bench]:
    name = uuid4().hex
    link = await MemoryTransport(f"memory://{name}").connect(10)
    made = Bench(memory_broker(name), link, grace)
    try:
        yield made
    finally:
        made.watch.close()
        await link.close()


async def test_a_run_whose_callers_queue_is_not_there_is_stopped_after_the_grace() -> None:
    async with bench() as made:
        begun = asyncio.get_running_loop().time()
        made.run("t", "nobody")
        await eventually(lambda: made.stopped == ["t"])
        assert asyncio.get_running_loop().time() - begun >= GRACE
        assert made.watch.gone == 1


async def test_a_caller_that_is_there_is_left_alone_and_can_tell_probes_from_states() -> None:
    async with bench() as made:
        probes: asyncio.Queue[Delivery] = asyncio.Queue()
        await made.link.declare(Queue("here"))
        await made.link.consume("here", probes.put_nowait, no_ack=True)
        execution = made.run("t", "here")
        made.run("cast", None)
        for _ in range(6):  # one at the start, and then four for each grace
            properties = (await asyncio.wait_for(probes.get(), 10)).properties
            assert (properties.type, properties.correlation_id) == (None, "t")
        assert made.stopped == []
        made.table.abandon(execution)


async def test_a_caller_that_has_moved_is_looked_for_where_it_is() -> None:
    async with bench() as made:
        await made.link.declare(Queue("here"))
        made.run("t", "nobody")
        await asyncio.sleep(0.01)
        made.table.move("nobody", "here", 60.0, 0.0)
        await asyncio.sleep(2 * GRACE)
        assert made.stopped == []


async def test_a_caller_that_moves_to_where_nobody_is_is_gone_as_well() -> None:
    async with bench() as made:
        made.run("t", "nobody")
        await asyncio.sleep(GRACE / 2)
        made.table.move("nobody", "nowhere", 60.0, 0.0)
        await eventually(lambda: made.stopped == ["t"])


async def test_a_caller_that_makes_its_queue_again_within_the_grace_is_left_alone() -> None:
    """As one with a durable reply queue does, which has the same name then."""
    async with bench() as made:
        made.run("t", "here")
        await asyncio.sleep(GRACE / 2)
        assert "t" in made.watch._missed
        await made.link.declare(Queue("here"))
        await asyncio.sleep(2 * GRACE)
        assert (made.stopped, made.watch._missed) == ([], {})
        made.watch.on_returned("here", Properties(correlation_id="t"))  # a state that came back before
        await asyncio.sleep(2 * GRACE)
        assert made.stopped == []


async def test_a_queue_that_refuses_a_probe_is_there() -> None:
    async with bench() as made:
        await made.link.declare(Queue("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"}))
        made.run("t", "full")
        await asyncio.sleep(2 * GRACE)
        assert (made.stopped, made.watch._missed) == ([], {})
        for _ in range(2):
            made.watch.on_returned("full", Properties(correlation_id="t"))
            await asyncio.sleep(2 * GRACE)
            assert (made.stopped, made.watch._missed) == ([], {})


async def test_a_caller_that_makes_its_queue_again_between_the_last_two_looks_is_left_alone() -> None:
    async with bench() as made:
        made.run("t", "here")
        await asyncio.sleep(0.9 * GRACE)
        await made.link.declare(Queue("here"))
        await asyncio.sleep(2 * GRACE)
        assert made.stopped == []


async def test_nobody_is_looked_for_while_the_broker_takes_nothing() -> None:
    """Every look would leave a probe to be kept."""
    async with bench() as made:
        made.run("t", "here")
        await asyncio.sleep(0.6 * GRACE)
        made.broker.block()
        await eventually(lambda: not made.link.writable)
        await asyncio.sleep(5 * GRACE)
        assert not made.link.outbox
        await made.link.declare(Queue("here"))
        made.broker.unblock()
        await asyncio.sleep(2 * GRACE)
        assert (made.stopped, made.watch._missed) == ([], {})


async def test_the_time_in_which_the_broker_takes_nothing_is_not_of_the_grace() -> None:
    """The caller could not say where it is either: a state may come back before its claim is heard."""
    async with bench() as made:
        made.run("t", "nobody")
        await asyncio.sleep(GRACE / 2)
        made.broker.block()
        await eventually(lambda: not made.link.writable)
        await asyncio.sleep(5 * GRACE)
        made.broker.unblock()
        await eventually(lambda: made.link.writable)
        made.watch.on_returned("nobody", Properties(correlation_id="t"))
        assert made.stopped == []
        await eventually(lambda: made.stopped == ["t"])


async def test_a_worker_without_a_grace_looks_at_its_leisure() -> None:
    async with bench(grace=0.0) as made:
        await made.link.declare(Queue("here"))
        begun = asyncio.get_running_loop().time()
        made.run("t", "here")
        await eventually(lambda: made.broker.queue_depth("here") == 3)
        assert asyncio.get_running_loop().time() - begun >= 0.1 - ROUNDING
        made.run("u", "nobody")
        await eventually(lambda: made.stopped == ["u"])


async def test_what_came_back_on_a_link_that_is_lost_says_nothing() -> None:
    """A caller may have moved while this worker could not hear it."""
    async with bench() as made:
        await made.link.declare(Queue("here"))
        made.run("t", "nobody")
        await asyncio.sleep(0.01)
        made.watch.link = None
        await asyncio.sleep(2 * GRACE)
        assert made.stopped == []
        made.table.move("nobody", "here", 60.0, 0.0)
        made.watch.link = made.link
        await asyncio.sleep(GRACE)
        assert made.stopped == []


async def test_what_came_back_of_others_changes_nothing() -> None:
    async with bench() as made:
        await made.link.declare(Queue("here"))
        made.run("t", "here")
        made.watch.on_returned("nobody", Properties(correlation_id="t"))
        made.watch.on_returned("here", Properties(correlation_id="u"))
        made.watch.on_returned("here", Properties())
        await asyncio.sleep(2 * GRACE)
        assert made.stopped == []


async def test_a_run_that_has_ended_is_forgotten() -> None:
    async with bench() as made:
        made.table.abandon(made.run("t", "nobody"))
        await eventually(lambda: made.watch._timer is None)
        assert (made.stopped, made.watch._watched, made.watch._missed) == ([], {}, {})


async def test_a_run_that_is_unwatched_is_forgotten_at_once_unless_another_has_taken_its_id() -> None:
    async with bench() as made:
        first = made.run("t", "nobody")
        await asyncio.sleep(0.01)
        made.table.abandon(first)
        second = made.run("t", "nobody")
        made.watch.unwatch(first)
        assert made.watch._watched == {"t": second}
        made.watch.unwatch(second)
        made.watch.unwatch(second)
        assert (made.watch._watched, made.watch._missed) == ({}, {})
        made.table.abandon(second)


async def test_a_direct_reply_queue_is_not_watched() -> None:
    async with bench() as made:
        made.run("t", "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAyMDk2N")
        await asyncio.sleep(2 * GRACE)
        assert (made.stopped, made.watch._watched) == ([], {})
