"""The executor by itself: runs that are stopped before their first step, which no broker can time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits, Codecs, Context, Retry, Service, quarantine
from aiorpcq.executor import Executor
from aiorpcq.intake import Intake
from aiorpcq.places import Places, RunOptions
from aiorpcq.protocol.control import Cancel, CancelMode
from aiorpcq.protocol.deliveries import DeliveryMode
from aiorpcq.protocol.executions import ExecutionPhase, ExecutionTable
from aiorpcq.protocol.messages import History, Properties, Request
from aiorpcq.protocol.topology import Binding, Exchange, Names, Queue
from aiorpcq.protocol.wire import encode_request
from aiorpcq.publisher import ResultPublisher
from aiorpcq.republisher import Republisher
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryBroker, MemoryTransport

_NAMES = Names()
_MAX_SIZE = 1 << 20
_CONCURRENCY = 3
_REPLIES = "rpc.reply.1"


def entities_of(service: str) -> tuple[Exchange, Queue, Binding]:
    return _NAMES.requests, _NAMES.service_queue(service), _NAMES.binding(service)


class HandMade:
    """A delivery that notes how it was settled."""

    exchange = "rpc"
    routing_key = "rpc:default"
    redelivered = requeued = is_void = False
    oversize = 0

    def __init__(self, properties: Properties, body: bytes) -> None:
        self.properties = properties
        self.body = body
        self.settled: list[str] = []

    def ack(self) -> None:
        self.settled.append("ack")

    def nack(self, *, requeue: bool) -> None:
        self.settled.append("requeue" if requeue else "reject")


class Bench:
    """An executor on a broker in the process, and what it gives back to that."""

    def __init__(self, service: Service, mode: DeliveryMode, broker: MemoryBroker) -> None:
        loop, codecs = asyncio.get_running_loop(), Codecs()
        options = RunOptions("worker", mode, 5, _CONCURRENCY, 1, _MAX_SIZE, 60.0)
        self.broker = broker
        self.idle = asyncio.Event()
        self.table = ExecutionTable(CacheLimits())
        self.publisher = ResultPublisher(self.table, codecs, _MAX_SIZE, "worker", loop, self.idle.set)
        self.republisher = Republisher(_NAMES, "worker", loop, self.idle.set, entities_of)
        self.executor = Executor(self.table, self.publisher, self.republisher, codecs, loop, options)
        self.intake = Intake(self.table, self.publisher, self.republisher, self.executor, loop, options)
        self.places = Places("default", service.methods, _CONCURRENCY)
        self.back: asyncio.Queue[Delivery] = asyncio.Queue()
        self.replies: asyncio.Queue[Delivery] = asyncio.Queue()

    def deliver(
        self,
        task_id: str,
        *arguments: Any,
        method: str = "run",
        redelivered: bool = False,
        counted: int = 0,
        oversize: int = 0,
        **fields: Any,
    ) -> HandMade:
        """Have a request come, *counted* times delivered before by a quorum queue."""
        request = Request(task_id, method, *Codecs().encode([list(arguments), {}]), reply_to=_REPLIES, **fields)
        publication = encode_request(request, "rpc", "rpc:default")
        delivery = HandMade(publication.properties, b"" if oversize else publication.body)
        delivery.redelivered, delivery.oversize = redelivered, oversize
        if counted:
            delivery.properties.headers = {**(delivery.properties.headers or {}), "x-delivery-count": counted}
        self.intake.on_delivery(self.places, delivery)
        return delivery

    async def stop(self) -> None:
        """Drain without any grace."""
        tasks = set(self.executor.tasks)
        self.executor.drain([self.places])
        self.executor.cancel_runs()
        await asyncio.gather(*tasks)
        await self.settle()

    async def settle(self) -> None:
        """Wait for every confirm."""
        while self.republisher.pending or self.publisher.unconfirmed:
            self.idle.clear()
            await self.idle.wait()

    async def histories(self, count: int) -> list[tuple[int, int]]:
        """Return attempt and lost runs of the next requests that were given back."""
        headers = [(await self.back.get()).properties.headers or {} for _ in range(count)]
        return [(header.get("attempt", 1), header.get("losses", 0)) for header in headers]

    async def failure(self) -> dict[str, Any]:
        """Return what the next answer says that went wrong."""
        answer = await self.replies.get()
        assert answer.properties.type == "FAILURE"
        said: dict[str, Any] = Codecs().decode(answer.body, answer.properties.content_type, None)
        return said


@asynccontextmanager
async def bench(service: Service, mode: DeliveryMode = "at_least_once") -> AsyncIterator[Bench]:
    transport = MemoryTransport(f"memory://{uuid4().hex}")
    link = await transport.connect(10)
    made = Bench(service, mode, transport.broker)
    await link.declare(*entities_of("default"))
    await link.declare(Queue(_REPLIES))
    await link.consume(_REPLIES, made.replies.put_nowait, no_ack=True)
    await link.consume(_NAMES.service_queue("default").name, made.back.put_nowait, no_ack=True)
    made.publisher.link = made.republisher.link = made.executor.callers.link = link
    try:
        yield made
    finally:
        made.executor.close()
        await made.republisher.close()
        await link.close()


async def test_a_run_that_is_stopped_before_its_first_step_goes_back_and_leaves_its_place() -> None:
    service, ran = Service(), []

    @service.method
    async def run(value: int) -> None:
        ran.append(value)

    async with bench(service) as made:
        deliveries = [made.deliver(str(number), number) for number in range(_CONCURRENCY + 1)]
        assert (len(made.executor.tasks), made.places.free, len(made.places.waiting)) == (_CONCURRENCY, 0, 1)
        await made.stop()
        assert [delivery.settled for delivery in deliveries] == [["ack"]] * (_CONCURRENCY + 1)
        assert await made.histories(_CONCURRENCY + 1) == [(1, 0)] * (_CONCURRENCY + 1)
        assert (ran, made.executor.tasks, made.places.free) == ([], set(), _CONCURRENCY)


async def test_a_run_that_had_begun_goes_back_as_its_next_attempt() -> None:
    service, begun = Service(), asyncio.Event()

    @service.method
    async def run() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with bench(service) as made:
        delivery = made.deliver("t")
        await begun.wait()
        await made.stop()
        assert (delivery.settled, await made.histories(1)) == (["ack"], [(2, 0)])
        assert made.executor._quarantine.running == 0


async def test_a_run_that_waited_for_a_thread_goes_back_as_one_that_was_not_begun() -> None:
    service, ran, begun, go_on = Service(), [], threading.Event(), threading.Event()

    @service.method
    def run(ctx: Context, value: int) -> None:
        ran.append(value)
        begun.set()
        go_on.wait()

    async with bench(service) as made:
        deliveries = [made.deliver(str(number), number) for number in range(2)]
        await asyncio.to_thread(begun.wait)
        await made.stop()
        go_on.set()
        assert [delivery.settled for delivery in deliveries] == [["ack"], ["ack"]]
        assert sorted(await made.histories(2)) == [(1, 0), (2, 0)]
        assert ran == [0]


async def test_a_run_that_waited_for_a_thread_is_not_lost_where_it_must_not_run_again() -> None:
    service, begun, go_on = Service(), threading.Event(), threading.Event()

    @service.method
    def run(value: int) -> None:
        begun.set()
        go_on.wait()

    async with bench(service, "no_rerun") as made:
        for number in range(2):
            made.deliver(str(number), number)
        await asyncio.to_thread(begun.wait)
        await made.stop()
        go_on.set()
        assert await made.histories(1) == [(1, 0)]
        assert made.publisher.statistics().failed == 1  # the one that had begun


@pytest.mark.parametrize("mode", ["skip", "kill"])
async def test_a_run_that_waits_for_a_thread_is_kept_from_that_by_any_cancel(mode: CancelMode) -> None:
    service, ran, begun, go_on = Service(), [], threading.Event(), threading.Event()

    @service.method
    def run(value: int) -> None:
        ran.append(value)
        begun.set()
        go_on.wait()

    async with bench(service) as made:
        deliveries = [made.deliver(str(number), number) for number in range(_CONCURRENCY)]
        await asyncio.to_thread(begun.wait)
        tasks = set(made.executor.tasks)
        made.executor.revoke(Cancel("1", _REPLIES, mode, 60.0))
        go_on.set()
        await asyncio.gather(*tasks)
        await made.settle()
        assert (ran, made.executor.revoked) == ([0, 2], 1)
        assert [delivery.settled for delivery in deliveries] == [["ack"]] * _CONCURRENCY


async def test_a_drain_gives_back_what_waits_for_a_thread_and_lets_the_others_end() -> None:
    service, ran, begun, go_on = Service(), [], threading.Event(), threading.Event()

    @service.method
    def run(value: int) -> None:
        ran.append(value)
        begun.set()
        go_on.wait()

    async with bench(service, "no_rerun") as made:
        for number in range(_CONCURRENCY):
            made.deliver(str(number), number)
        await asyncio.to_thread(begun.wait)
        tasks = set(made.executor.tasks)
        made.executor.drain([made.places])
        assert await made.histories(_CONCURRENCY - 1) == [(1, 0)] * (_CONCURRENCY - 1)
        go_on.set()
        await asyncio.gather(*tasks)
        await made.settle()
        assert (ran, made.publisher.statistics().succeeded) == ([0], 1)
        made.executor.draining = False
        made.deliver("again", 7)  # the only thread is free again
        await asyncio.gather(*made.executor.tasks)
        assert ran == [0, 7]


@pytest.mark.parametrize(("counted", "history"), [(0, (2, 1)), (1, (2, 1)), (3, (4, 3))])
async def test_what_is_delivered_again_to_a_worker_that_drains_goes_back_with_its_lost_runs(
    counted: int, history: tuple[int, int]
) -> None:
    """The copy is not flagged, so they would be forgotten otherwise."""
    service = Service()

    @service.method
    async def run() -> None:
        raise AssertionError

    async with bench(service) as made:
        made.executor.drain([made.places])
        delivery = made.deliver("t", redelivered=True, counted=counted)
        assert await made.histories(1) == [history]
        await made.settle()
        assert (delivery.settled, made.table.running) == (["ack"], {})


@pytest.mark.parametrize("counted", [0, 1])
async def test_what_must_not_run_again_is_not_given_back_as_if_it_never_had(counted: int) -> None:
    service = Service()

    @service.method
    async def run() -> None:
        raise AssertionError

    async with bench(service, "no_rerun") as made:
        made.executor.drain([made.places])
        delivery = made.deliver("t", redelivered=True, counted=counted)
        assert (await made.replies.get()).properties.type == "FAILURE"
        await made.settle()
        assert (delivery.settled, made.intake.lost, made.back.empty()) == (["ack"], 1, True)


async def test_a_method_that_this_worker_does_not_have_is_left_to_others_when_it_drains() -> None:
    async with bench(Service()) as made:
        made.executor.drain([made.places])
        fresh = made.deliver("t", method="newer")
        again = made.deliver("u", method="newer", redelivered=True)
        assert await made.histories(1) == [(1, 0)]
        await made.settle()
        assert (fresh.settled, again.settled, made.table.running) == (["ack"], ["requeue"], {})


async def test_a_run_that_expires_while_it_waits_for_a_thread_is_known_not_to_have_run() -> None:
    service, begun, go_on = Service(), threading.Event(), threading.Event()

    @service.method(timeout=0.05)
    def run(value: int) -> None:
        begun.set()
        go_on.wait()

    async with bench(service) as made:
        for number in range(2):
            made.deliver(str(number), number)
        await asyncio.to_thread(begun.wait)
        tasks = set(made.executor.tasks)
        await asyncio.gather(*tasks)
        go_on.set()
        answers = [await made.replies.get() for _ in range(2)]
        executed = {
            answer.properties.correlation_id: Codecs().decode(answer.body, "application/msgpack", None)[
                "maybe_executed"
            ]
            for answer in answers
        }
        assert executed == {"0": True, "1": False}


@pytest.mark.parametrize("sign", ["its delivery is void", "a later attempt has come"])
async def test_a_run_that_expires_before_it_has_begun_may_have_run_elsewhere(sign: str) -> None:
    """The broker has given its request to another worker, or that one has given it back."""
    service, begun, go_on = Service(), threading.Event(), threading.Event()

    @service.method
    def run() -> None:
        begun.set()
        go_on.wait()

    async with bench(service) as made:
        made.deliver("holds the only thread")
        await asyncio.to_thread(begun.wait)
        waiting = made.deliver("t", expiration=0.05)
        if sign == "its delivery is void":
            waiting.is_void = True
        else:
            made.deliver("t", attempt=2)
            assert (await made.replies.get()).properties.type == "STARTED"  # for the caller to repeat a cancel
        said = await made.failure()
        go_on.set()
        assert (said["message"], said["maybe_executed"]) == ("the deadline passed before the run", True)
        await asyncio.gather(*made.executor.tasks)
        await made.settle()


async def test_a_run_that_is_revoked_before_its_first_step_runs_nothing() -> None:
    service, ran = Service(), []

    @service.method
    async def run() -> None:
        ran.append(1)

    async with bench(service) as made:
        made.deliver("t")
        made.executor.revoke(Cancel("t", _REPLIES, "skip", 60.0))
        await asyncio.gather(*made.executor.tasks)
        assert (ran, made.executor.revoked, made.places.free) == ([], 1, _CONCURRENCY)


async def test_requests_that_expire_while_they_wait_do_not_pile_up() -> None:
    service, gate = Service(), asyncio.Event()

    @service.method
    async def run(value: int) -> None:
        await gate.wait()

    async with bench(service, "at_most_once") as made:
        places = made.places
        for number in range(20 * _CONCURRENCY):
            made.deliver(str(number), number)
            if places.waiting:
                places.waiting[-1][0].phase = ExecutionPhase.ENDED  # as its deadline would
            assert len(places.waiting) <= 2 * _CONCURRENCY
        gate.set()
        await asyncio.gather(*made.executor.tasks)
        assert (places.free, len(places.waiting)) == (_CONCURRENCY, 0)


async def test_a_body_that_is_too_large_is_refused_while_the_worker_drains_since_there_is_none_to_give_back() -> None:
    async with bench(Service()) as made:
        made.executor.drain([made.places])
        delivery = made.deliver("t", oversize=_MAX_SIZE + 1)
        assert (await made.failure())["error"] == "PayloadTooLarge"
        await made.settle()
        assert (delivery.settled, made.back.empty()) == (["ack"], True)


@pytest.mark.usefixtures("skipped_time")
async def test_a_deadline_that_passes_while_a_request_is_buried_changes_nothing() -> None:
    """Answered by the deadline it would be acknowledged before its dead letter is kept."""
    service = Service()

    @service.method
    async def run() -> None:
        raise AssertionError

    @service.method
    async def other() -> None: ...

    async with bench(service) as made:
        made.broker.block()
        delivery = made.deliver("t", history=History(losses=5), expiration=0.01)
        made.deliver("other", method="other", expiration=0.2)  # which has the timer set
        await asyncio.sleep(0.3)
        assert delivery.settled == []
        made.broker.unblock()
        answers = [await made.replies.get() for _ in range(2)]
        said = {answer.properties.correlation_id: answer for answer in answers}
        assert Codecs().decode(said["t"].body, "application/msgpack", None)["error"] == "Poisoned"
        await made.settle()
        assert (delivery.settled, made.executor.expired) == (["ack"], 0)
        assert made.broker.queue_depth("rpc.default.dead") == 1


async def test_what_runs_alone_begins_once_its_neighbours_are_on_their_way_back() -> None:
    service, seen = Service(), []

    @service.method
    async def run() -> None:
        seen.append((made.republisher.statistics().handed_back, made.republisher.pending))

    async with bench(service) as made:
        for number in range(_CONCURRENCY):
            made.deliver(str(number), history=History(losses=3, republished=True))
        await asyncio.gather(*made.executor.tasks)
        assert seen == [(_CONCURRENCY - 1, 0)]


@pytest.mark.usefixtures("skipped_time")
async def test_what_runs_alone_waits_until_the_broker_has_its_neighbours() -> None:
    """However long that takes: what is still in this worker's hands when the run kills it has lost a run too."""
    service, settled = Service(), list[list[str]]()

    @service.method
    async def run() -> None:
        settled.extend(neighbour.settled for neighbour in neighbours)

    async with bench(service) as made:
        made.broker.block()
        made.deliver("t", history=History(losses=3, republished=True))
        neighbours = [made.deliver(name, history=History(losses=3, republished=True)) for name in ("a", "b")]
        await asyncio.sleep(1.0)
        assert (settled, made.executor._quarantine.running) == ([], 1)
        late = made.deliver("late", history=History(losses=1, republished=True))
        neighbours.append(late)
        made.broker.unblock()
        await asyncio.gather(*made.executor.tasks)
        assert settled == [["ack"]] * 3


@pytest.mark.usefixtures("skipped_time")
async def test_what_runs_alone_begins_in_the_end_where_the_broker_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, begun = Service(), asyncio.Event()

    @service.method
    async def run() -> None:
        begun.set()

    async with bench(service) as made:
        made.broker.block()
        made.deliver("t", history=History(losses=3, republished=True))
        made.deliver("neighbour", history=History(losses=3, republished=True))
        await begun.wait()
        assert "a run begins with others in hand that have lost one: no answer" in caplog.text
        made.broker.unblock()
        await made.settle()


@pytest.mark.parametrize("losses", [1, 2])
async def test_what_has_lost_a_run_waits_for_a_place_as_others_do(losses: int) -> None:
    service, gate, order = Service(), asyncio.Event(), list[str]()

    @service.method
    async def run(ctx: Context) -> None:
        order.append(ctx.task_id)
        await gate.wait()

    async with bench(service) as made:
        names = [*map(str, range(_CONCURRENCY)), "suspect", "innocent"]
        for name in names:
            made.deliver(name, history=History(losses=losses) if name == "suspect" else None)
        assert [execution.task_id for execution, _ in made.places.waiting] == ["suspect", "innocent"]
        gate.set()
        while made.executor.tasks:
            await asyncio.gather(*made.executor.tasks)
        await made.settle()
        assert (sorted(order), made.back.empty()) == (sorted(names), True)


async def test_what_has_lost_a_run_does_not_wait_for_a_place_while_another_runs_alone() -> None:
    service, gate = Service(), asyncio.Event()

    @service.method
    async def run() -> None:
        await gate.wait()

    async with bench(service) as made:
        made.deliver("alone", history=History(losses=2))
        for number in range(_CONCURRENCY - 1):
            made.deliver(str(number))
        suspect = made.deliver("suspect", history=History(losses=1))
        await made.settle()
        assert (suspect.settled, len(made.places.waiting)) == (["ack"], 0)
        gate.set()
        await asyncio.gather(*made.executor.tasks)


@pytest.mark.usefixtures("skipped_time")
async def test_what_goes_back_for_another_reason_holds_up_no_run_alone() -> None:
    service, begun = Service(), asyncio.Event()

    @service.method
    async def run() -> None:
        begun.set()

    @service.method
    async def again() -> None:
        raise Retry(delay=0)

    async with bench(service) as made:
        made.broker.block()
        made.deliver("retried", method="again")
        made.deliver("alone", history=History(losses=2))
        await asyncio.sleep(0.2)
        assert begun.is_set()
        assert made.republisher.pending == 1
        made.broker.unblock()
        await made.settle()


@pytest.mark.parametrize("end", ["cancel", "drain", "deadline"])
async def test_a_run_alone_that_is_not_to_begin_any_more_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(quarantine, "_PATIENCE", 600.0)
    service = Service()

    @service.method
    async def run() -> None:
        raise AssertionError

    async with bench(service) as made:
        made.broker.block()
        expiration = 0.01 if end == "deadline" else None
        alone = made.deliver("alone", history=History(losses=2, republished=True), expiration=expiration)
        made.deliver("neighbour", history=History(losses=2))
        await asyncio.sleep(0)
        assert made.executor._quarantine._released is not None  # the wait has begun
        if end == "cancel":
            made.executor.revoke(Cancel("alone", _REPLIES, "kill", 60.0))
            made.executor.drain([made.places])
        elif end == "drain":
            made.executor.drain([made.places])
        async with asyncio.timeout(10):
            await asyncio.gather(*made.executor.tasks)
        assert (made.places.free, made.executor._quarantine.running) == (_CONCURRENCY, 0)
        made.broker.unblock()
        await made.settle()
        assert alone.settled == ["ack"]
        if end == "drain":
            back = await made.back.get()
            assert (back.properties.correlation_id, (back.properties.headers or {})["losses"]) == ("alone", 2)
        else:
            answer = await made.replies.get()
            expected = "REVOKED" if end == "cancel" else "FAILURE"
            assert (answer.properties.correlation_id, answer.properties.type) == ("alone", expected)
        assert made.replies.empty()


async def test_a_run_alone_whose_connection_is_lost_begins_and_is_adopted() -> None:
    service, begun, gate = Service(), asyncio.Event(), asyncio.Event()

    @service.method
    async def run() -> None:
        begun.set()
        await gate.wait()

    async with bench(service) as made:
        link = made.publisher.link
        made.deliver("alone", history=History(losses=2))
        await asyncio.sleep(0)
        made.publisher.link = made.republisher.link = None
        await begun.wait()
        made.publisher.link = made.republisher.link = link
        again = made.deliver("alone", history=History(losses=2), redelivered=True)
        gate.set()
        await asyncio.gather(*made.executor.tasks)
        await made.settle()
        assert (again.settled, made.table.adopted, made.back.empty()) == (["ack"], 1, True)


async def test_what_ends_a_wait_for_a_run_alone_from_outside_frees_its_place_and_gives_the_request_back() -> None:
    service = Service()

    @service.method
    async def run() -> None:
        raise AssertionError

    async with bench(service) as made:
        alone = made.deliver("alone", history=History(losses=2))
        await asyncio.sleep(0)
        tasks = list(made.executor.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (made.places.free, made.executor._quarantine.running, made.table.running) == (_CONCURRENCY, 0, {})
        assert alone.settled == ["requeue"]


async def test_what_waits_for_a_place_and_has_lost_a_run_goes_back_before_another_runs_alone() -> None:
    service, gate, settled = Service(), asyncio.Event(), list[list[str]]()

    @service.method
    async def run() -> None:
        await gate.wait()

    @service.method
    async def kill() -> None:
        settled.extend(neighbour.settled for neighbour in neighbours)

    async with bench(service) as made:
        for number in range(_CONCURRENCY):
            made.deliver(str(number))
        made.deliver("alone", method="kill", history=History(losses=2))
        neighbours = [made.deliver(f"n{losses}", history=History(losses=losses)) for losses in (1, 2)]
        made.deliver("innocent")
        gate.set()
        while made.executor.tasks:
            await asyncio.gather(*made.executor.tasks)
        assert settled == [["ack"], ["ack"]]
        await made.settle()


async def test_what_waits_for_a_place_and_is_requeued_goes_back_once() -> None:
    """Its channel was closed, and the link stands: published again, there would be two of the request."""
    service, gate = Service(), asyncio.Event()

    @service.method
    async def run() -> None:
        await gate.wait()

    async with bench(service) as made:
        for number in range(_CONCURRENCY):
            made.deliver(str(number))
        made.deliver("alone", history=History(losses=2))
        waiting = made.deliver("waiting", history=History(losses=1))
        waiting.requeued = True
        gate.set()
        while len(made.executor.tasks) > 1:
            await asyncio.wait(made.executor.tasks, return_when=asyncio.FIRST_COMPLETED)
        made.deliver("waiting", history=History(losses=1), redelivered=True)
        while made.executor.tasks:
            await asyncio.gather(*made.executor.tasks)
        await made.settle()
        assert await made.histories(1) == [(2, 2)]
        assert (waiting.settled, made.back.empty(), made.broker.queue_depth("rpc.retry.500")) == ([], True, 0)
