"""Calls that are made again: which, how often, within what time and what budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Protocol

import pytest

from aiorpcq import Client, ConnectionLost, DeadlineExceeded, Overloaded, RemoteError, WorkerLost
from aiorpcq.retry import RetryBudget

from .breaking import Breaking
from .parties import BystanderFactory, ClientFactory, ReplyQueue, WorkerFactory, calculator, eventually

BUSY = {"error": "Overloaded", "message": "busy", "maybe_executed": False}
LOST = {"error": "WorkerLost", "message": "gone", "maybe_executed": True}


class Steady(Random):
    """Chance that always says the least."""

    def random(self) -> float:
        return 0.0


class Serve(Protocol):
    async def __call__(self, *answers: object) -> list[str]: ...


@pytest.fixture
async def serve(bystander: BystanderFactory) -> AsyncIterator[Serve]:
    """Answers the requests to the service "odd", one after the other, the last answer for good; gives their ids."""
    stranger = await bystander()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        async def start(*answers: object) -> list[str]:
            ids: list[str] = []
            service = await stranger.serve("odd")

            async def answer() -> None:
                while True:
                    delivery = await service.inbox.get()
                    delivery.ack()
                    task_id, reply_to = delivery.properties.correlation_id, delivery.properties.reply_to
                    assert task_id is not None
                    assert reply_to is not None
                    ids.append(task_id)
                    value = answers[min(len(ids), len(answers)) - 1]
                    await stranger.state(reply_to, task_id, "FAILURE" if isinstance(value, dict) else "SUCCESS", value)

            tasks.append(group.create_task(answer()))
            return ids

        yield start
        for task in tasks:
            task.cancel()


async def test_a_call_that_was_not_run_is_made_again(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(BUSY, BUSY, "done")
    caller = await client(random=Steady())
    assert await caller.with_options(retries=2).call("odd.one") == "done"
    assert len(set(ids)) == 3
    assert caller.statistics().retried == 2


async def test_it_is_made_again_no_more_often_than_allowed(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(BUSY)
    caller = await client(random=Steady())
    with pytest.raises(Overloaded):
        await caller.with_options(retries=3).call("odd.one")
    assert len(ids) == 4


async def test_by_default_nothing_is_made_again(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(BUSY)
    caller = await client()
    with pytest.raises(Overloaded):
        await caller.call("odd.one")
    assert len(ids) == 1


async def test_what_may_have_run_is_made_again_only_if_it_is_idempotent(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(LOST, LOST, "done")
    caller = (await client(random=Steady())).with_options(retries=5)
    with pytest.raises(WorkerLost):
        await caller.call("odd.one")
    assert len(ids) == 1
    assert await caller.with_options(idempotent=True).call("odd.one") == "done"
    assert len(ids) == 3


async def test_an_error_says_what_an_earlier_try_may_have_run(client: ClientFactory, serve: Serve) -> None:
    await serve(LOST, BUSY)
    caller = (await client(random=Steady())).with_options(retries=1, idempotent=True)
    with pytest.raises(Overloaded) as caught:
        await caller.call("odd.one")
    assert caught.value.maybe_executed


async def test_what_the_method_raised_is_not_made_again(client: ClientFactory, worker: WorkerFactory) -> None:
    serving = await worker(calculator())
    caller = await client()
    with pytest.raises(RemoteError):
        await caller.with_options(retries=5, idempotent=True).call("fail", "boom")
    assert serving.statistics().started == 1


async def test_each_try_has_the_given_id_where_one_is_given(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(BUSY, "done")
    caller = await client(random=Steady())
    assert await caller.with_options(retries=2, task_id="mine").call("odd.one") == "done"
    assert ids == ["mine", "mine"]


async def test_all_tries_have_one_deadline(
    client: ClientFactory, bystander: BystanderFactory, jump: Callable[[float], None]
) -> None:
    stranger = await bystander()
    service: ReplyQueue = await stranger.serve("odd")
    caller = (await client(random=Steady())).with_options(retries=1_000, timeout=10)
    call = asyncio.ensure_future(caller.call("odd.one"))
    expirations = []
    for _ in range(2):
        properties = (await service.next()).properties
        assert properties.reply_to is not None
        assert properties.correlation_id is not None
        expirations.append(properties.expiration or 0)
        if len(expirations) == 1:
            await asyncio.sleep(0.05)  # what is left of the deadline is the subject
            await stranger.state(properties.reply_to, properties.correlation_id, "FAILURE", BUSY)
    jump(11)
    with pytest.raises(DeadlineExceeded):
        await call
    assert expirations[1] <= expirations[0] - 50


async def test_a_pause_that_would_pass_the_deadline_is_not_made(client: ClientFactory, serve: Serve) -> None:
    ids = await serve({**BUSY, "retry_after": 60.0})
    caller = await client()
    with pytest.raises(Overloaded) as caught:
        await caller.with_options(retries=5).call("odd.one")
    assert caught.value.retry_after == 60.0
    assert len(ids) == 1


async def test_retries_are_bounded_by_the_budget(client: ClientFactory, serve: Serve) -> None:
    ids = await serve(BUSY)
    budget = RetryBudget(ratio=0.1, capacity=10)
    caller = (await client(retry_budget=budget, random=Steady())).with_options(retries=100)
    outcomes = await asyncio.gather(*(caller.call("odd.one") for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Overloaded}
    assert len(ids) == 60
    assert caller.statistics().retried == 10


async def test_what_succeeds_fills_the_budget(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    budget = RetryBudget(ratio=0.5, capacity=10)
    while budget.take():
        pass
    caller = (await client(retry_budget=budget)).with_options(retries=1)
    for _ in range(4):
        await caller.call("add", 1, 2)
    assert budget.tokens == 2.0


async def test_a_task_is_submitted_again_as_long_as_the_broker_did_not_take_it(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    await stranger.declare("small", {"x-max-length": 1, "x-overflow": "reject-publish"})
    caller = await client(random=Steady())
    await caller.cast("small.add", 1, 2)
    with pytest.raises(Overloaded):
        await caller.with_options(retries=3).submit("small.add", 1, 2)
    assert caller.statistics().retried == 3
    assert caller.statistics().pending == 0


async def test_a_client_that_is_closed_does_not_try_again(
    client: ClientFactory, bystander: BystanderFactory, url: str, request: pytest.FixtureRequest
) -> None:
    breaking = Breaking(url, request)
    await (await bystander()).serve("odd")
    caller: Client = await client(idempotent=["odd.one"])
    call = asyncio.ensure_future(caller.with_options(retries=10).call("odd.one"))
    await eventually(lambda: caller.statistics().pending == 1)
    await breaking.cut("client")
    await caller.aclose()
    with pytest.raises(ConnectionLost, match="closed"):
        await call


async def test_a_client_that_is_closed_ends_the_pause_before_the_next_try(client: ClientFactory, serve: Serve) -> None:
    ids = await serve({**BUSY, "retry_after": 20})
    caller = await client(timeout=60)
    call = asyncio.ensure_future(caller.with_options(retries=1).call("odd.one"))
    await eventually(lambda: caller.statistics().retried == 1)
    await caller.aclose()
    with pytest.raises(ConnectionLost, match="closed") as caught:
        await asyncio.wait_for(call, 10)
    assert (caught.value.maybe_executed, len(ids)) == (False, 1)
