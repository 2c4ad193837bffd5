"""Deadlines: every call is settled in time, and says what is known of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from aiorpcq import (
    Client,
    Context,
    DeadlineExceeded,
    Overloaded,
    Rejected,
    RemoteError,
    RPCError,
    Service,
)

from .parties import (
    PATIENCE,
    BystanderFactory,
    ClientFactory,
    Gate,
    WorkerFactory,
    body_of,
    calculator,
    eventually,
    request_for,
)


async def test_a_call_without_an_answer_ends_at_its_deadline(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).serve("silent")
    caller = await client(timeout=0.2)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await caller.call("silent.method")
    assert 0.3 <= time.monotonic() - began < 2  # 0.1 s for the request to come back, as the guarantees say
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.maybe_executed
    assert caught.value.task_id is not None
    assert caller.statistics().pending == 0


async def test_a_task_without_an_answer_ends_at_its_deadline(
    client: ClientFactory, bystander: BystanderFactory, jump: Callable[[float], None]
) -> None:
    await (await bystander()).serve("silent")
    task = await (await client(timeout=10)).submit("silent.method")
    jump(11)
    with pytest.raises(DeadlineExceeded):
        await task
    assert task.done


async def test_a_stream_without_an_end_ends_at_the_tasks_deadline(
    client: ClientFactory, bystander: BystanderFactory, jump: Callable[[float], None]
) -> None:
    await (await bystander()).serve("silent")
    task = await (await client(timeout=10)).submit("silent.method")
    jump(11)
    with pytest.raises(DeadlineExceeded):
        [state async for state in task.stream()]


@pytest.mark.usefixtures("patient_returns")
async def test_a_request_that_expires_in_its_queue_is_known_not_to_have_run(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("idle")
    caller = await client(timeout=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await caller.call("idle.method")
    assert not caught.value.maybe_executed
    assert caller.statistics().returned == 1


async def test_a_request_that_comes_back_after_a_worker_said_to_have_it_may_have_run(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    """The worker has lost it, and it has expired or was rejected since."""
    stranger = await bystander()
    service = await stranger.serve("odd")
    task = await (await client()).submit("odd.method")
    delivery = await service.next()
    assert delivery.properties.reply_to is not None
    await stranger.state(delivery.properties.reply_to, task.id, "STARTED", sequence=1)
    await eventually(lambda: task.state == "STARTED")
    delivery.nack(requeue=False)
    with pytest.raises(Rejected) as caught:
        await task
    assert caught.value.maybe_executed


@pytest.mark.usefixtures("patient_returns")
async def test_an_expired_request_is_not_run_by_a_worker_that_comes_later(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("default")
    caller = await client()
    with pytest.raises(DeadlineExceeded):
        await caller.with_options(timeout=0.05).call("add", 1, 2)
    assert caller.statistics().returned == 1
    serving = await worker(calculator())
    assert await caller.call("add", 3, 4) == 7
    assert serving.statistics().started == 1


async def test_a_request_whose_deadline_is_long_past_is_not_run(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, ran = Service(), False

    @service.method
    async def run() -> None:
        nonlocal ran
        ran = True

    serving = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    an_hour_ago = time.time() - 3_600
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name, deadline=an_hour_ago, expiration=30))
    answer = await replies.next()
    assert answer.properties.type == "FAILURE"
    assert (body_of(answer)["error"], body_of(answer)["maybe_executed"]) == ("DeadlineExceeded", False)
    assert not ran
    assert serving.statistics().started == 0


async def test_a_run_past_its_deadline_is_cancelled(client: ClientFactory, worker: WorkerFactory) -> None:
    service, cancelled = Service(), asyncio.Event()

    @service.method
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    serving = await worker(service)
    with pytest.raises(DeadlineExceeded) as caught:
        await (await client(timeout=0.1)).call("forever")
    assert caught.value.maybe_executed
    async with asyncio.timeout(PATIENCE):
        await cancelled.wait()
    assert serving.statistics().expired == 1


@pytest.mark.usefixtures("patient_returns")
async def test_a_method_that_ignores_its_cancellation_answers_nothing_more(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service, gate = calculator(), Gate()

    @service.method
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await gate.wait()
        return "late"

    serving = await worker(service)
    caller = await client()
    with pytest.raises(DeadlineExceeded):
        await caller.with_options(timeout=0.1).call("stubborn")
    await gate.entered()
    gate.open()
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().publisher.succeeded == 1
    assert caller.statistics().duplicates == 0


async def test_a_methods_own_timeout_bounds_its_run(client: ClientFactory, worker: WorkerFactory) -> None:
    service, cancelled = Service(), asyncio.Event()

    @service.method(timeout=0.05)
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await worker(service)
    with pytest.raises(DeadlineExceeded) as caught:
        await (await client()).call("forever")
    assert caught.value.maybe_executed
    assert cancelled.is_set()


async def test_a_services_timeout_is_its_methods_default(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service(timeout=7)

    @service.method
    async def by_default(ctx: Context) -> float | None:
        return ctx.remaining

    @service.method(timeout=3)
    async def own(ctx: Context) -> float | None:
        return ctx.remaining

    await worker(service)
    caller = (await client()).with_options(timeout=None)
    assert 6 < await caller.call("by_default") <= 7
    assert 2 < await caller.call("own") <= 3


async def test_the_callers_deadline_wins_over_a_longer_timeout_of_the_method(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service(timeout=60)

    @service.method
    async def remaining(ctx: Context) -> float | None:
        return ctx.remaining

    await worker(service)
    assert 20 < await (await client(timeout=25)).call("remaining") <= 25


async def test_the_default_is_thirty_seconds(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def remaining(ctx: Context) -> float | None:
        return ctx.remaining

    await worker(service)
    assert 25 < await (await client()).call("remaining") <= 30


async def test_no_timeout_is_no_deadline(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service = Service()

    @service.method
    async def remaining(ctx: Context) -> float | None:
        return ctx.remaining

    await worker(service)
    caller = (await client()).with_options(timeout=None)
    assert await caller.call("remaining") is None
    seen = await (await bystander()).serve("seen")
    await caller.submit("seen.it")
    properties = (await seen.next()).properties
    assert properties.expiration is None
    assert "deadline" not in (properties.headers or {})


async def test_no_time_at_all_is_exceeded_at_once(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def forever() -> None:
        await asyncio.Event().wait()

    await worker(service)
    caller = (await client()).with_options(timeout=0)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await caller.call("forever")
    assert time.monotonic() - began < 2
    assert caller.statistics().pending == 0


async def test_the_deadline_travels_in_two_ways(client: ClientFactory, bystander: BystanderFactory) -> None:
    seen = await (await bystander()).serve("seen")
    await (await client(timeout=20)).submit("seen.it")
    properties = (await seen.next()).properties
    assert properties.expiration is not None
    assert 15_000 < properties.expiration <= 20_000
    deadline = (properties.headers or {})["deadline"] / 1000
    assert 15 < deadline - time.time() <= 20.001


async def test_a_cast_has_no_deadline(client: ClientFactory, bystander: BystanderFactory) -> None:
    seen = await (await bystander()).serve("seen")
    await (await client(timeout=20)).cast("seen.it")
    properties = (await seen.next()).properties
    assert (properties.expiration, properties.reply_to) == (None, None)


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_a_nested_call_inherits_time_and_ids(client: ClientFactory, worker: WorkerFactory, way: str) -> None:
    service, inner = Service(), await client(timeout=60)

    @service.method
    async def innermost(ctx: Context) -> list[Any]:
        return [[ctx.task_id, ctx.parent_id, ctx.root_id, ctx.remaining]]

    @service.method(name="async")
    async def in_the_loop(ctx: Context, deeper: int) -> list[Any]:
        own = [ctx.task_id, ctx.parent_id, ctx.root_id, ctx.remaining]
        below = await (inner.call("async", deeper - 1) if deeper else inner.call("innermost"))
        return [own, *below]

    @service.method(name="thread")
    def in_a_thread(ctx: Context, deeper: int) -> list[Any]:
        own = [ctx.task_id, ctx.parent_id, ctx.root_id, None]
        bridge = inner.from_thread
        return [own, *(bridge.call("thread", deeper - 1) if deeper else bridge.call("innermost"))]

    await worker(service)
    chain = await (await client(timeout=5)).call(way, 2)
    assert len(chain) == 4
    root = chain[0][0]
    assert [link[2] for link in chain] == [root] * 4
    assert [link[1] for link in chain] == [None, *(link[0] for link in chain[:-1])]
    left = [link[3] for link in chain if link[3] is not None]
    assert left == sorted(left, reverse=True)
    assert 3 < left[-1] <= 5


async def test_a_nested_call_may_have_less_time_than_is_left(client: ClientFactory, worker: WorkerFactory) -> None:
    service, inner = Service(), await client(timeout=20)

    @service.method
    async def remaining(ctx: Context) -> float | None:
        return ctx.remaining

    @service.method
    async def outer() -> float | None:
        left: float | None = await inner.call("remaining")
        return left

    await worker(service)
    assert 15 < await (await client()).call("outer") <= 20


async def test_a_nested_call_without_timeout_has_what_is_left(client: ClientFactory, worker: WorkerFactory) -> None:
    service, inner = Service(), await client(timeout=None)

    @service.method
    async def remaining(ctx: Context) -> float | None:
        return ctx.remaining

    @service.method
    async def outer() -> float | None:
        left: float | None = await inner.call("remaining")
        return left

    await worker(service)
    assert 20 < await (await client(timeout=25)).call("outer") <= 25


async def test_a_nested_call_after_the_deadline_is_not_sent(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    seen = await (await bystander()).serve("seen")
    service, inner = Service(), await client(timeout=None)
    nested: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    @service.method
    async def outer() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for way in (inner.call, inner.submit, inner.cast):
                try:
                    await way("seen.too_late")
                except RPCError as error:
                    last: BaseException | None = error
            nested.set_result(last)
            raise

    await worker(service)
    with pytest.raises(DeadlineExceeded):
        await (await client(timeout=0.1)).call("outer")
    error = await nested
    assert isinstance(error, DeadlineExceeded)
    assert not error.maybe_executed
    await inner.cast("seen.in_time")
    assert (await seen.next()).properties.type == "in_time"


async def test_a_nested_call_that_times_out_is_a_remote_error_for_the_outer_caller(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("idle")
    service, inner = Service(), await client(timeout=0.05)

    @service.method
    async def outer() -> None:
        await inner.call("idle.method")

    await worker(service)
    with pytest.raises(RemoteError) as caught:
        await (await client()).call("outer")
    assert caught.value.type == "DeadlineExceeded"


# --- back to the sender


async def test_a_rejected_request_comes_back_as_rejected(client: ClientFactory, bystander: BystanderFactory) -> None:
    await (await bystander()).serve("picky", lambda delivery: delivery.nack(requeue=False))
    caller = await client()
    with pytest.raises(Rejected) as caught:
        await caller.call("picky.method")
    assert not caught.value.maybe_executed
    assert caught.value.task_id is not None
    assert caller.statistics().returned == 1


async def test_a_rejected_task_comes_back_as_rejected(client: ClientFactory, bystander: BystanderFactory) -> None:
    await (await bystander()).serve("picky", lambda delivery: delivery.nack(requeue=False))
    task = await (await client()).submit("picky.method")
    with pytest.raises(Rejected):
        await task


async def test_a_full_queue_that_refuses_is_overloaded(client: ClientFactory, bystander: BystanderFactory) -> None:
    await (await bystander()).declare("full", {"x-max-length": 1, "x-overflow": "reject-publish"})
    caller = await client()
    await caller.cast("full.method")
    for way in (caller.call, caller.submit, caller.cast):
        with pytest.raises(Overloaded) as caught:
            await way("full.method")
        assert caught.value.retryable
    assert caller.statistics().pending == 0


async def test_a_request_pushed_out_of_a_full_queue_is_overloaded(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("full", {"x-max-length": 1})
    caller = await client()
    task = await caller.submit("full.method")
    await caller.cast("full.method")
    with pytest.raises(Overloaded):
        await task


# --- options that travel


async def test_requests_are_transient_unless_asked(client: ClientFactory, bystander: BystanderFactory) -> None:
    seen = await (await bystander()).serve("seen")
    caller = await client()
    await caller.cast("seen.it")
    assert (await seen.next()).properties.delivery_mode in (None, 1)
    for way in (caller.with_options(persistent=True).cast, caller.with_options(persistent=True).submit):
        await way("seen.it")
        assert (await seen.next()).properties.delivery_mode == 2


async def test_higher_priorities_are_served_first(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, served = Service("jobs", max_priority=10), []

    @service.method
    async def job(name: str) -> None:
        served.append(name)

    await (await bystander()).declare("jobs", service.queue_arguments)
    caller = await client()
    tasks = []
    for name, priority in (("none", None), ("low", 1), ("high", 9), ("middle", 5), ("high too", 9)):
        tasks.append(await caller.with_options(priority=priority).submit("jobs.job", name))
    await worker(service, concurrency=1)
    await asyncio.gather(*tasks)
    assert served == ["high", "high too", "middle", "low", "none"]


async def test_options_of_one_client_do_not_change_another(client: ClientFactory, bystander: BystanderFactory) -> None:
    seen = await (await bystander()).serve("seen")
    caller = await client(timeout=20)
    hurried = caller.with_options(timeout=2, priority=3)
    more = hurried.with_options(metadata={"a": 1})
    for each in (caller, hurried, more):
        await each.submit("seen.it")
    first, second, third = [(await seen.next()).properties for _ in range(3)]
    assert (first.priority, second.priority, third.priority) == (None, 3, 3)
    assert first.expiration is not None
    assert first.expiration > 2_000
    assert third.expiration is not None
    assert third.expiration <= 2_000
    assert "metadata" not in (second.headers or {})
    assert (third.headers or {})["metadata"] == {"a": 1}


async def test_unknown_options_are_named(url: str) -> None:
    with pytest.raises(ValueError, match="patience"):
        Client(url).with_options(patience=3)
