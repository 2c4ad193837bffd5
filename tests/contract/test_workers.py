"""The life of a worker: starting, draining without a loss, and ending."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from typing import Any

import pytest

from aiorpcq import (
    Client,
    ConnectFailed,
    Context,
    RemoteError,
    RPCError,
    Service,
    TopologyMismatch,
    UsageError,
    Worker,
    WorkerLost,
)
from aiorpcq.protocol.deliveries import DeliveryMode

from .parties import (
    PATIENCE,
    BystanderFactory,
    ClientFactory,
    Gate,
    Overview,
    WorkerFactory,
    calculator,
    eventually,
    request_for,
)


def named(name: str, gate: Gate | None = None) -> Service:
    """A service whose method says which worker served it."""
    service = calculator()

    @service.method
    async def who() -> str:
        if gate is not None:
            await gate.wait()
        return name

    return service


# --- starting


async def test_a_worker_is_started_once(worker: WorkerFactory) -> None:
    serving = await worker(calculator())
    with pytest.raises(UsageError, match="once"):
        await serving.start()
    await serving.aclose()
    with pytest.raises(UsageError, match="once"):
        await serving.start()


async def test_a_worker_that_is_not_started_has_no_statistics(url: str) -> None:
    with pytest.raises(UsageError, match="not started"):
        Worker(url, [calculator()]).statistics()


async def test_closing_a_worker_that_was_never_started_does_nothing(url: str) -> None:
    await Worker(url, [calculator()]).aclose()


async def test_workers_have_ids_of_their_own(worker: WorkerFactory) -> None:
    first, second = await worker(calculator()), await worker(calculator())
    assert first.id != second.id


async def test_a_queue_with_other_arguments_is_a_mismatch_that_names_both(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("jobs", {"x-max-priority": 5})
    with pytest.raises(TopologyMismatch, match="x-max-priority") as caught:
        await worker(Service("jobs", max_priority=10))
    assert "'rpc.jobs'" in str(caught.value)
    assert "10" in str(caught.value)
    assert "5" in str(caught.value)
    assert not caught.value.retryable


async def test_a_worker_that_cannot_serve_one_service_has_run_nothing_of_another(
    worker: WorkerFactory, bystander: BystanderFactory, overview: Overview
) -> None:
    ran, first, second = False, Service("first"), Service("second", max_priority=10)

    @first.method
    async def run() -> None:
        nonlocal ran
        ran = True

    stranger = await bystander()
    await stranger.declare("first")
    await stranger.declare("second", {"x-max-priority": 5})
    await stranger.request(request_for("run", task_id="t", reply_to=None), service="first")
    with pytest.raises(TopologyMismatch, match=r"rpc\.second"):
        await worker(first, second)
    request = await (await stranger.serve("first")).next()
    assert not request.redelivered
    assert not ran
    await eventually(lambda: overview.connections() == 1)


@pytest.mark.parametrize("moment", ["connecting", "connected"])
async def test_a_worker_that_is_closed_while_it_starts_leaves_no_connection(
    url: str, overview: Overview, moment: str
) -> None:
    serving = Worker(url, [calculator()])
    starting = asyncio.ensure_future(serving.start())
    await asyncio.sleep(0)
    if moment == "connected":
        await eventually(lambda: overview.connections() == 1)
    await serving.aclose()
    (outcome,) = await asyncio.gather(starting, return_exceptions=True)
    assert outcome is None or isinstance(outcome, ConnectFailed)  # where it was faster than the closing
    await serving.aclose()
    await eventually(lambda: overview.connections() == 0)


async def test_every_option_of_a_queue_can_be_declared_and_used(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service(
        "jobs", max_priority=3, max_length=100, overflow="reject-publish", message_ttl=60, delivery="at_most_once"
    )

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    await worker(service)
    assert await (await client()).call("jobs.add", 1, 2) == 3


async def test_a_quorum_queue_serves_too(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service("jobs", queue_type="quorum")

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    await worker(service)
    assert await (await client()).call("jobs.add", 1, 2) == 3


# --- ending


async def test_requests_in_flight_finish(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    serving = await worker(named("first", gate), grace=30)
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("who")) for _ in range(5)]
    await gate.entered(5)
    closing = asyncio.ensure_future(serving.aclose())
    await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(*calls) == ["first"] * 5
    await closing
    assert serving.statistics().running == 0


async def test_what_waits_in_the_queue_is_served_by_another_worker(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    first = await worker(named("first", gate), concurrency=2, grace=30)
    caller = await client()
    tasks = [await caller.submit("who") for _ in range(20)]
    await gate.entered(2)
    closing = asyncio.ensure_future(first.aclose())
    await worker(named("second"))
    # What the first one had not begun is served while it still runs what it had.
    await eventually(lambda: sum(task.done for task in tasks) == 18)
    gate.open()
    answers = await asyncio.gather(*(task.result() for task in tasks))
    assert sorted(answers) == ["first"] * 2 + ["second"] * 18
    await closing


async def test_requests_sent_while_a_worker_drains_are_not_lost(client: ClientFactory, worker: WorkerFactory) -> None:
    caller = await client()
    serving = await worker(named("0"), concurrency=5, grace=30)
    answers: list[asyncio.Future[Any]] = []
    for generation in range(1, 6):
        answers += [asyncio.ensure_future(caller.call("who")) for _ in range(50)]
        following = await worker(named(str(generation)), concurrency=5, grace=30)
        answers += [asyncio.ensure_future(caller.call("who")) for _ in range(50)]
        await serving.aclose()
        serving = following
    assert len(await asyncio.gather(*answers)) == 500


async def test_a_run_past_the_grace_is_cancelled_and_run_by_another_worker(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    first = await worker(named("first", gate), grace=0.0)
    task = await (await client()).submit("who")
    await gate.entered()
    await first.aclose()
    assert not task.done
    await worker(named("second"))
    assert await task == "second"


def clinging(gate: Gate, name: str) -> Service:
    """A service whose methods, when they are cancelled, end in another way."""
    service = Service()

    async def wait() -> bool:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            return True
        return False

    @service.method
    async def returning() -> str:
        return f"partly by {name}" if await wait() else f"by {name}"

    @service.method
    async def raising() -> str:
        if await wait():
            raise RuntimeError("the cleaning up failed")
        return f"by {name}"

    return service


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_a_run_that_swallows_its_cancellation_is_answered_with_its_value(
    client: ClientFactory, worker: WorkerFactory, delivery: DeliveryMode
) -> None:
    gate = Gate()
    serving = await worker(clinging(gate, "first"), delivery=delivery, grace=0.0)
    task = await (await client()).submit("returning")
    await gate.entered()
    await serving.aclose()
    assert await task == "partly by first"


async def test_a_run_that_fails_over_its_cancellation_is_run_by_another_worker(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    first = await worker(clinging(gate, "first"), grace=0.0)
    task = await (await client()).submit("raising")
    await gate.entered()
    await first.aclose()
    gate.open()
    await worker(clinging(gate, "second"))
    assert await task == "by second"


async def test_a_run_that_fails_over_its_cancellation_is_lost_where_its_request_is_acknowledged(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    serving = await worker(clinging(gate, "first"), delivery="at_most_once", grace=0.0)
    task = await (await client()).submit("raising")
    await gate.entered()
    await serving.aclose()
    with pytest.raises(WorkerLost) as caught:
        await task
    assert caught.value.maybe_executed


async def test_closing_twice_is_closing_once(worker: WorkerFactory) -> None:
    serving = await worker(calculator())
    await asyncio.gather(serving.aclose(), serving.aclose())
    await serving.aclose()


async def test_a_drain_goes_on_when_who_waits_for_it_is_cancelled(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    serving = await worker(named("first", gate), grace=30)
    call = asyncio.ensure_future((await client()).call("who"))
    await gate.entered()
    closing = asyncio.ensure_future(serving.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    gate.open()
    assert await call == "first"
    await serving.aclose()


async def test_a_client_outlives_its_workers(client: ClientFactory, worker: WorkerFactory) -> None:
    caller = await client()
    for name in ("first", "second"):
        serving = await worker(named(name))
        assert await caller.call("who") == name
        await serving.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_a_running_worker(client: ClientFactory, url: str, number: signal.Signals) -> None:
    gate = Gate()
    caller, serving = await client(), Worker(url, [named("first", gate)])
    running = await started(serving, number)
    call = asyncio.ensure_future(caller.call("who"))
    await gate.entered()
    assert not running.done()
    os.kill(os.getpid(), number)
    gate.open()
    assert await call == "first"
    async with asyncio.timeout(PATIENCE):
        await running


async def test_a_second_signal_cancels_what_still_runs(
    client: ClientFactory, worker: WorkerFactory, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    caller, serving = await client(), Worker(url, [named("first", gate)])
    running = await started(serving, signal.SIGTERM)
    task = await caller.submit("who")
    await gate.entered()
    with caplog.at_level("INFO", "aiorpcq.worker"):
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: "draining" in caplog.text)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await running
    await worker(named("second"))
    assert await task == "second"


async def started(serving: Worker, number: signal.Signals) -> asyncio.Task[None]:
    """Run *serving*, and return when it handles *number*: before that, the signal would end the test run."""
    before = signal.getsignal(number)
    running = asyncio.create_task(serving.run())
    await eventually(lambda: signal.getsignal(number) is not before or running.done())
    return running


# --- ways of delivery


@pytest.mark.parametrize("way", ["worker", "service", "method"])
async def test_at_most_once_acknowledges_when_the_run_starts(
    client: ClientFactory, worker: WorkerFactory, way: str
) -> None:
    """With a prefetch of one the second request only comes once the first is acknowledged, and waits for its place."""
    gate = Gate()
    service = Service(delivery="at_most_once" if way == "service" else None)

    @service.method(delivery="at_most_once" if way == "method" else None)
    async def wait() -> str:
        await gate.wait()
        return "done"

    serving = await worker(service, concurrency=1, **({"delivery": "at_most_once"} if way == "worker" else {}))
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(2)]
    await gate.entered()
    await eventually(lambda: serving.statistics().running == 2)
    assert serving.statistics().started == 1
    gate.open()
    assert await asyncio.gather(*calls) == ["done", "done"]


async def test_the_methods_delivery_wins_over_the_services(client: ClientFactory, worker: WorkerFactory) -> None:
    gate, service = Gate(), Service(delivery="at_least_once")

    @service.method(delivery="at_most_once")
    async def wait() -> str:
        await gate.wait()
        return "done"

    serving = await worker(service, concurrency=1)
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(2)]
    await gate.entered()
    await eventually(lambda: serving.statistics().running == 2)
    gate.open()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_no_more_requests_run_at_once_than_the_concurrency(
    client: ClientFactory, worker: WorkerFactory, delivery: str
) -> None:
    service, gate, running, peak = Service(), Gate(), 0, 0

    @service.method
    async def work() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await gate.wait()
        running -= 1

    await worker(service, concurrency=3, delivery=delivery)
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("work")) for _ in range(60)]
    await gate.entered(3)
    gate.open()
    await asyncio.gather(*calls)
    assert peak == 3


async def test_what_waits_for_a_place_goes_back_when_the_worker_drains(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate, service = Gate(), Service(delivery="at_most_once")

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "done"

    first = await worker(service, concurrency=1)
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(2)]
    await gate.entered()
    await eventually(lambda: first.statistics().running == 2)
    closing = asyncio.ensure_future(first.aclose())
    await eventually(lambda: first.statistics().running == 1)
    second = await worker(service, concurrency=1)
    await gate.entered()
    gate.open()
    assert await asyncio.gather(*calls) == ["done", "done"]
    await closing
    assert (first.statistics().started, second.statistics().started) == (1, 1)


async def test_at_most_once_still_answers_errors(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator(), delivery="at_most_once")
    caller = await client()
    with pytest.raises(RemoteError):
        await caller.call("fail", "boom")
    assert await caller.call("add", 1, 2) == 3


async def test_methods_call_methods_of_the_same_worker(client: ClientFactory, worker: WorkerFactory, url: str) -> None:
    service = calculator()
    inner = Client(url)

    @service.method
    async def twice(ctx: Context, value: int) -> int:
        result: int = await inner.call("add", value, value)
        return result

    async with inner:
        await worker(service)
        assert await (await client()).call("twice", 21) == 42


# --- casts


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("subtract", (1, 2), "MethodNotFound"),
        ("add", (1,), "InvalidArguments"),
        ("add", (1, "2"), "TypeError"),
        ("fail", ("boom",), "ValueError: boom"),
        ("stop", (), "SystemExit"),
        ("hang", (), "DeadlineExceeded"),
    ],
)
async def test_a_cast_that_fails_is_logged_since_nobody_is_told(
    client: ClientFactory,
    worker: WorkerFactory,
    caplog: pytest.LogCaptureFixture,
    method: str,
    arguments: tuple[Any, ...],
    says: str,
) -> None:
    service = calculator()

    @service.method
    async def stop() -> None:
        raise SystemExit(1)

    @service.method(timeout=0.01)
    async def hang() -> None:
        await asyncio.Event().wait()

    serving = await worker(service)
    caller = await client()
    with caplog.at_level("WARNING", "aiorpcq.worker"):
        await caller.cast(method, *arguments)
        await eventually(lambda: serving.statistics().publisher.failed == 1)
    (record,) = [record for record in caplog.records if record.name == "aiorpcq.worker"]
    assert f"method {method} failed in a cast" in record.getMessage()
    assert says in record.getMessage()
    with pytest.raises(RPCError):
        await caller.call(method, *arguments)
    assert len([record for record in caplog.records if record.name == "aiorpcq.worker"]) == 1


async def test_statistics_can_be_sent_to_another_process(client: ClientFactory, worker: WorkerFactory) -> None:
    serving, caller = await worker(calculator()), await client()
    await caller.call("add", 1, 2)
    for counted in (serving.statistics(), caller.statistics()):
        assert pickle.loads(pickle.dumps(counted)) == counted
