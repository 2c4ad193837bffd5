"""Runs that are to be made again: the broker holds the request meanwhile, and its caller can still be reached."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiorpcq import Context, Overloaded, RemoteError, Service
from aiorpcq.protocol.messages import History
from aiorpcq.protocol.topology import Queue
from aiorpcq.protocol.wire import ReturnReason, return_reason
from aiorpcq.retry import Busy, Retry, RetryPolicy
from aiorpcq.testing import memory_broker

from .breaking import Breaking
from .parties import PATIENCE, BystanderFactory, ClientFactory, Gate, WorkerFactory, eventually, request_for
from .workbench import answer_to, lose_run, ready

DELAY_QUEUE = "rpc.retry.100"


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


class Trying:
    """A service whose method raises what it is given until that is used up; it remembers its attempts."""

    def __init__(self, *failures: Exception, policy: RetryPolicy | None = None, **options: Any) -> None:
        self.service = Service(**options)
        self.attempts: list[int] = []
        self.remaining: list[float | None] = []
        self.redelivered: list[bool] = []
        self.left = list(failures)

        @self.service.method(retry=policy)
        async def work(ctx: Context) -> str:
            self.attempts.append(ctx.attempt)
            self.remaining.append(ctx.remaining)
            self.redelivered.append(ctx.redelivered)
            if self.left:
                raise self.left.pop(0)
            return "done"

        @self.service.method
        async def other() -> str:
            return "other"


async def test_a_method_that_raises_retry_is_run_again_after_its_delay(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Retry("not yet", delay=0.05), Retry("not yet", delay=0.1)), await bystander()
    serving = await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert (trying.attempts, trying.redelivered) == ([1, 2, 3], [False] * 3)
    assert serving.statistics().republisher.retried == 2
    await eventually(lambda: serving.statistics().running == 0)
    assert (await ready(stranger), await ready(stranger, DELAY_QUEUE)) == (0, 0)


async def test_a_caller_that_reads_states_sees_why_and_when_it_is_run_again(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Retry("the table is locked", delay=0.1)), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, states=True))
    states = await replies.until_terminal()
    assert [name for name, _ in states] == ["RECEIVED", "STARTED", "RETRY", "RECEIVED", "STARTED", "SUCCESS"]
    assert states[2][1] == {"reason": "the table is locked", "delay": 0.1, "attempt": 1}


async def test_a_bare_call_sees_no_retry(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    trying, stranger = Trying(Retry(delay=0)), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    states = await replies.until_terminal()
    # Its second run may be on a worker that has not heard of a cancel, hence the STARTED.
    assert [name for name, _ in states] == ["STARTED", "SUCCESS"]


async def test_a_place_is_free_while_the_broker_holds_the_request(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Retry(delay=60)), await bystander()
    serving = await worker(trying.service, concurrency=1)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await stranger.request(request_for("other", task_id="u", reply_to=replies.name))
    assert await answer_to(replies, "u") == ("SUCCESS", "other")
    await eventually(lambda: serving.statistics().republisher.retried == 1)
    assert await ready(stranger, "rpc.retry.60000") == 1


async def test_a_delay_of_nothing_is_none(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    trying, stranger = Trying(Retry()), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert trying.attempts == [1, 2]
    assert await ready(stranger, DELAY_QUEUE) is None


async def test_a_delay_queue_that_was_deleted_is_declared_again(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    """Not at the price of a run that is counted as lost, which `no_rerun` would make a failure."""
    service, stranger = Service(delivery="no_rerun"), await bystander()

    @service.method
    async def work(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry(delay=0.1)
        return ctx.attempt

    serving = await worker(service)
    replies = await stranger.reply_queue()
    for task_id in "tu":
        await stranger.request(request_for("work", task_id=task_id, reply_to=replies.name))
        assert await answer_to(replies, task_id) == ("SUCCESS", 2)
        await breaking.delete_queue(DELAY_QUEUE)
    statistics = serving.statistics().republisher
    assert (statistics.retried, statistics.counted, statistics.failed) == (2, 0, 0)


@pytest.mark.parametrize("jitter", ["none", "full"])
async def test_a_policy_runs_again_what_raised_what_it_names(
    worker: WorkerFactory, bystander: BystanderFactory, jitter: Any
) -> None:
    policy = RetryPolicy(on=(OSError,), attempts=3, backoff=0.02, jitter=jitter)
    trying, stranger = Trying(ConnectionError("down"), TimeoutError("slow"), policy=policy), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert trying.attempts == [1, 2, 3]


@pytest.mark.parametrize(
    ("failures", "runs", "kind"),
    [
        ((OSError("1"), OSError("2"), OSError("3")), 2, "OSError"),
        ((ValueError("1"),), 1, "ValueError"),
        ((Retry("1", attempts=2), Retry("2", attempts=2)), 2, "Retry"),
    ],
    ids=["attempts", "another", "retry"],
)
async def test_what_is_not_run_again_ends_with_the_methods_own_error(
    worker: WorkerFactory, bystander: BystanderFactory, failures: tuple[Exception, ...], runs: int, kind: str
) -> None:
    policy = RetryPolicy(on=(OSError,), attempts=2, backoff=0, jitter="none")
    trying, stranger = Trying(*failures, policy=policy), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    name, value = await answer_to(replies, "t")
    assert (name, value["type"], value["message"]) == ("FAILURE", kind, str(runs))
    assert len(trying.attempts) == runs


async def test_a_services_policy_is_that_of_its_methods(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    policy = RetryPolicy(on=(OSError,), backoff=0, jitter="none")
    trying, stranger = Trying(OSError("down"), retry=policy), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")


async def test_what_would_run_past_the_deadline_is_not_held_back(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Retry("later", delay=30)), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, expiration=20.0))
    name, value = await answer_to(replies, "t")
    assert (name, value["type"], trying.attempts) == ("FAILURE", "Retry", [1])


async def test_the_time_that_is_left_goes_on_while_the_request_is_held(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """Dead-lettering strips the expiration, so what is left of it comes in a header."""
    trying, stranger = Trying(*(Retry(delay=0.1) for _ in range(2))), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, expiration=60.0))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    first, second, third = (left or 0.0 for left in trying.remaining)
    assert 60 >= first > second + 0.1 > third + 0.2 > 59 - 0.2


async def test_a_request_whose_time_is_over_when_it_comes_back_is_not_run(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    request = request_for("work", task_id="t", reply_to=replies.name, attempt=2, history=History(republished=True))
    await stranger.request(request, headers={"remaining": 0})
    name, value = await answer_to(replies, "t")
    assert (name, value["error"], trying.attempts) == ("FAILURE", "DeadlineExceeded", [])


async def test_a_request_that_was_held_still_returns_to_its_sender(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate, service, stranger = Gate(), Service(message_ttl=0.3), await bystander()

    @service.method
    async def work() -> None:
        await gate.wait()
        raise Retry(delay=0.1)

    serving = await worker(service, grace=PATIENCE)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, expiration=30.0))
    await gate.entered()
    closing = asyncio.ensure_future(serving.aclose())
    await eventually(lambda: serving.health().reason == "draining")  # what is held does not come to it any more
    gate.open()
    await closing
    returned = await replies.next()
    assert return_reason(returned.properties.headers) is ReturnReason.EXPIRED
    assert (returned.properties.correlation_id, returned.properties.reply_to) == ("t", replies.name)
    assert replies.inbox.empty()  # CC made no copy where the request was held


async def test_what_the_broker_wrote_while_it_held_the_request_is_not_sent_on(
    worker: WorkerFactory, bystander: BystanderFactory, url: str
) -> None:
    gate = Gate()
    service, stranger = Service(), await bystander()

    @service.method
    async def work(ctx: Context) -> None:
        if ctx.attempt == 2:
            await gate.wait()
        raise Retry(delay=0.1)

    first = await worker(service, grace=PATIENCE)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name, expiration=30.0))
    await gate.entered()
    closing = asyncio.ensure_future(first.aclose())
    await eventually(lambda: first.health().reason == "draining")
    gate.open()
    await closing
    taken = await lose_run(url)
    headers = taken.properties.headers or {}
    assert [(death["queue"], death["count"]) for death in headers["x-death"]] == [(DELAY_QUEUE, 1)]
    assert (headers["attempt"], "losses" in headers) == (3, False)
    assert 0 < headers["remaining"] < 30_000
    assert (headers["CC"], taken.properties.expiration) == ([replies.name], None)


async def test_a_cast_is_run_again_too(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    trying, stranger = Trying(Retry(delay=0.1)), await bystander()
    serving = await worker(trying.service)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await eventually(lambda: serving.statistics().publisher.succeeded == 1)
    assert trying.attempts == [1, 2]


async def test_a_busy_method_is_overloaded_and_says_when_to_try_again(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Busy("the queue is full", retry_after=1.5), Busy()), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    for task_id, message, after in (("t", "the queue is full", 1.5), ("u", "busy", None)):
        await stranger.request(request_for("work", task_id=task_id, reply_to=replies.name))
        name, value = await answer_to(replies, task_id)
        assert (name, value["error"], value["message"]) == ("FAILURE", "Overloaded", message)
        assert (value.get("retry_after"), value["maybe_executed"]) == (after, False)


async def test_a_busy_method_is_run_for_the_next_try_of_one_task(client: ClientFactory, worker: WorkerFactory) -> None:
    trying = Trying(Busy(), Busy())
    await worker(trying.service)
    caller = (await client()).with_options(task_id="mine", retries=2)
    assert await caller.call("work") == "done"


async def test_a_second_call_with_the_id_of_a_task_that_is_to_be_retried_is_run(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    """The worker remembers the retry of the first, to know a copy of its request; this one is not."""
    trying = Trying(Retry(delay=60))
    serving, caller = await worker(trying.service), (await client()).with_options(task_id="mine")
    await caller.with_options(timeout=None).submit("work")
    await eventually(lambda: serving.statistics().republisher.retried == 1)
    caller.forget("mine")
    assert await caller.with_options(timeout=PATIENCE).call("work") == "done"
    assert trying.attempts == [1, 1]


async def test_a_busy_method_that_has_run_before_may_have_been_executed(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying, stranger = Trying(Retry(), Busy()), await bystander()
    await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    state, value = await answer_to(replies, "t")
    assert (state, value["error"], value["maybe_executed"]) == ("FAILURE", "Overloaded", True)


async def test_a_plain_method_can_raise_retry_too(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    service, attempts, stranger = Service(), [], await bystander()

    @service.method
    def work(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise Retry(delay=0.1)
        return "done"

    await worker(service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert attempts == [1, 2]


async def test_a_drain_waits_until_what_is_to_be_held_is_at_the_broker(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate, stranger, service = Gate(), await bystander(), Service()

    @service.method
    async def work() -> None:
        await gate.wait()
        raise Retry(delay=1800)

    serving = await worker(service, grace=5)
    await stranger.request(request_for("work", task_id="t", reply_to=None))
    await gate.entered()
    closing = asyncio.ensure_future(serving.aclose())
    gate.open()
    await closing
    assert (await ready(stranger, "rpc.retry.1800000"), await ready(stranger)) == (1, 0)


async def test_a_delay_queue_that_somebody_declared_otherwise_costs_the_retry_and_no_lost_runs(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    trying = Trying(ValueError("boom"), policy=RetryPolicy(on=(ValueError,), attempts=3, backoff=0.1, jitter="none"))
    stranger = await bystander()
    await stranger._link.declare(Queue(DELAY_QUEUE))
    serving = await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    name, value = await answer_to(replies, "t")
    assert (name, value["type"], value["message"]) == ("FAILURE", "ValueError", "boom")
    statistics = serving.statistics().republisher
    assert (trying.attempts, statistics.failed, statistics.counted) == ([1], 1, 0)
    await serving.aclose()
    assert await ready(stranger) == 0


async def test_what_a_full_queue_does_not_take_again_ends_with_the_methods_own_error(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, gate, stranger = Service(max_length=1, overflow="reject-publish"), Gate(), await bystander()

    @service.method
    async def work() -> None:
        await gate.wait()
        raise Retry("boom", delay=0)

    await worker(service, concurrency=1)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("work", task_id="filler", reply_to=None))
    gate.open()
    name, value = await answer_to(replies, "t")
    assert (name, value["type"], value["message"]) == ("FAILURE", "Retry", "boom")


async def test_what_a_full_queue_does_not_take_after_the_delay_comes_back_to_its_caller(
    worker: WorkerFactory, bystander: BystanderFactory, client: ClientFactory
) -> None:
    service, gate, stranger = Service(max_length=1, overflow="reject-publish"), Gate(), await bystander()

    @service.method
    async def again() -> None:
        raise Retry(delay=0.5)

    @service.method
    async def hold() -> None:
        await gate.wait()

    serving = await worker(service, concurrency=1)
    caller = await client(timeout=None)
    calling = asyncio.ensure_future(caller.call("again"))
    await eventually(lambda: serving.statistics().republisher.retried == 1)
    await stranger.request(request_for("hold", task_id="running", reply_to=None))
    await gate.entered()
    await stranger.request(request_for("hold", task_id="filler", reply_to=None))
    async with asyncio.timeout(10):
        with pytest.raises(Overloaded):
            await calling
    gate.open()


async def test_a_delay_exchange_that_was_deleted_is_declared_again_and_no_neighbour_runs_twice(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    """The broker closes the channel over it, with all that runs; none of that is a lost run."""
    gate, stranger = Gate(), await bystander()
    trying = Trying(Retry(delay=0.1), delivery="no_rerun")

    @trying.service.method
    async def neighbour(ctx: Context) -> int:
        await gate.wait()
        return ctx.attempt

    serving = await worker(trying.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("neighbour", task_id="neighbour", reply_to=replies.name))
    await gate.entered()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    await delete_exchange(breaking, DELAY_QUEUE)
    trying.left.append(Retry(delay=0.1))
    await stranger.request(request_for("work", task_id="u", reply_to=replies.name))
    assert await answer_to(replies, "u") == ("SUCCESS", "done")
    gate.open()
    assert await answer_to(replies, "neighbour") == ("SUCCESS", 1)
    assert serving.statistics().republisher.buried == 0


async def delete_exchange(breaking: Breaking, name: str) -> None:
    """Delete an exchange behind everybody's back."""
    if breaking.broker is not None:
        del breaking.broker._exchanges[name]
    else:
        await asyncio.to_thread(breaking._node.delete_exchange, name, breaking._vhost)


async def test_an_attempt_whose_retry_was_not_confirmed_does_not_run_again(
    client: ClientFactory, worker: WorkerFactory, url: str
) -> None:
    if not url.startswith("memory://"):
        pytest.skip("a real broker cannot be stopped between a publish and its confirm")
    trying = Trying(*(ValueError(str(number)) for number in range(9)), policy=_three_times(ValueError))
    await worker(trying.service)
    memory_broker(url.removeprefix("memory://")).lose_confirms(
        lambda publication: publication.exchange.startswith("rpc.retry")
    )
    caller = await client()
    with pytest.raises(RemoteError):
        await caller.call("work")
    await caller.call("other")
    assert trying.attempts == [1, 2, 3]


def _three_times(error: type[Exception]) -> RetryPolicy:
    return RetryPolicy(on=(error,), attempts=3, backoff=0.05, factor=1, jitter="none")
