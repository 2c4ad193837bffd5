"""Calls that outlive the connection they were sent on: claimed, sent again, or said to be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiorpcq import Client, ConnectionLost, Context, DeadlineExceeded, Service, Unroutable
from aiorpcq.protocol.control import Claim, Inquiry
from aiorpcq.protocol.messages import Properties
from aiorpcq.transports.base import Delivery

from .breaking import Breaking, next_generation
from .parties import PATIENCE, ClientFactory, Gate, ReplyQueue, WorkerFactory, calculator, eventually
from .understudy import Understudy


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


@pytest.fixture
async def understudy(url: str, opened: AsyncExitStack) -> AsyncIterator[Understudy]:
    async with Understudy.connected(url) as party:
        assert isinstance(party, Understudy)
        await party.listen()
        yield party


def waiting(gate: Gate) -> Service:
    service = Service()

    @service.method
    async def wait(value: Any = "done") -> Any:
        await gate.wait()
        return value

    return service


def identity(delivery: Delivery) -> tuple[str, str]:
    """Return task id and reply queue of a request."""
    properties: Properties = delivery.properties
    assert properties.correlation_id is not None
    assert properties.reply_to is not None
    return properties.correlation_id, properties.reply_to


# --- with a worker


async def test_calls_under_way_get_their_values_on_the_next_connection(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait", number)) for number in range(20)]
    await gate.entered(20)
    await breaking.cut("client")
    await next_generation(caller)
    gate.open()
    assert await asyncio.gather(*calls) == list(range(20))
    await eventually(lambda: caller.statistics().resumed == 20)
    assert caller.statistics().claims >= 1
    assert caller.statistics().pending == 0


async def test_an_answer_that_was_sent_into_the_loss_is_sent_again(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    gate.open()
    await breaking.cut("client")
    assert await call == "done"


async def test_a_call_survives_several_connections(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    for generation in (2, 3, 4):
        await breaking.cut("client")
        await next_generation(caller, generation)
    gate.open()
    assert await call == "done"


async def test_a_stream_goes_on_over_the_loss(client: ClientFactory, worker: WorkerFactory, breaking: Breaking) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def work(ctx: Context) -> str:
        await ctx.progress(1)
        await gate.wait()
        await ctx.progress(2)
        return "done"

    await worker(service)
    caller = await client()
    task = await caller.submit("work")
    seen = []
    async for state in task.stream():
        seen.append(state.value)
        if state.name == "PROGRESS" and state.value == 1:
            await gate.entered()
            await breaking.cut("client")
            claims = caller.statistics().claims
            await eventually(lambda claims=claims: caller.statistics().claims > claims)  # type: ignore[misc]
            gate.open()
    assert seen[-1] == "done"
    assert await task == "done"


async def test_what_both_sides_lost_is_answered_when_both_are_back(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    await breaking.cut("worker")
    await breaking.cut("client")
    gate.open()
    assert await call == "done"


# --- what is claimed


async def test_a_claim_names_the_old_queue_the_present_one_and_the_calls(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    task_id, origin = identity(await service.next())
    await breaking.cut("client")
    claim = await understudy.claim()
    assert (claim.origin, claim.task_ids, claim.id) == (origin, (task_id,), None)
    assert claim.reply_to != origin
    assert 25 < claim.expires <= 30.1
    await understudy.state(claim.reply_to, task_id, "SUCCESS", "answered")
    assert await task == "answered"
    await eventually(lambda: caller.statistics().resumed == 1)


async def test_claims_are_repeated_until_the_call_is_settled_and_keep_the_first_queue(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    task_id, origin = identity(await service.next())
    await breaking.cut("client")
    first, again = await understudy.claim(), await understudy.claim()
    assert first == Claim(origin, again.reply_to, (task_id,), first.expires)
    await breaking.cut("client")
    claim = await understudy.claim()
    while claim.reply_to == first.reply_to:
        claim = await understudy.claim()
    assert claim.origin == origin
    await understudy.state(claim.reply_to, task_id, "SUCCESS")
    await task
    await eventually(lambda: caller.statistics().resumed == 1)


async def test_a_call_that_was_settled_before_the_loss_is_not_claimed(
    client: ClientFactory, worker: WorkerFactory, understudy: Understudy, breaking: Breaking
) -> None:
    await worker(calculator())
    caller = await client()
    assert await caller.call("add", 1, 2) == 3
    await breaking.cut("client")
    await next_generation(caller)
    assert await caller.call("add", 1, 2) == 3
    assert caller.statistics().claims == 0
    assert understudy.commands.empty()


async def test_with_fail_a_call_under_way_ends_at_once_and_may_have_run(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(on_disconnect="fail", timeout=None)
    call = asyncio.ensure_future(caller.call("wait"))
    staying = asyncio.ensure_future(caller.with_options(on_disconnect="resume").call("wait"))
    task = await caller.submit("wait")
    await gate.entered(3)
    await breaking.cut("client")
    for failed in (call, task.result()):
        with pytest.raises(ConnectionLost) as caught:
            await failed
        assert caught.value.maybe_executed
    gate.open()
    assert await staying == "done"
    assert caller.statistics().pending == 0


# --- requests that may have been lost


def lose_confirm(breaking: Breaking) -> None:
    """Lose the connection after the next request was routed, and before it is confirmed."""
    if breaking.broker is None:
        pytest.skip("a real broker cannot be stopped between the two; see tests/faults")
    breaking.broker.lose_confirms(lambda publication: publication.exchange == "rpc")


async def test_an_unconfirmed_request_of_an_idempotent_call_is_sent_again(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    lose_confirm(breaking)
    call = asyncio.ensure_future(caller.with_options(idempotent=True, metadata={"x": 1}).call("odd.one", 1))
    first = await service.next()
    again = await service.next()
    task_id, origin = identity(first)
    assert identity(again)[0] == task_id
    assert identity(again)[1] != origin
    headers = dict(again.properties.headers or {})
    assert (headers["origin"], list(headers["CC"]), headers["metadata"]) == (origin, [identity(again)[1]], {"x": 1})
    assert again.body == first.body
    assert again.properties.expiration is not None
    await understudy.state(identity(again)[1], task_id, "SUCCESS", "answered")
    assert await call == "answered"
    assert caller.statistics().republished == 1


async def test_a_method_may_be_named_idempotent_on_the_client(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    await worker(calculator("math"))
    caller = await client(idempotent=["math.add"])
    lose_confirm(breaking)
    assert await caller.call("math.add", 1, 2) == 3
    assert caller.statistics().republished == 1


async def test_an_unconfirmed_cast_that_is_idempotent_is_sent_again(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client()
    lose_confirm(breaking)
    await caller.with_options(idempotent=True).cast("odd.one")
    ids = {(await service.next()).properties.correlation_id for _ in range(2)}
    assert len(ids) == 1


async def test_an_unconfirmed_request_that_is_not_idempotent_is_answered_by_way_of_a_claim(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    serving = await worker(calculator())
    caller = await client()
    lose_confirm(breaking)
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().started == 1
    assert caller.statistics().republished == 0


@pytest.mark.parametrize("way", ["call", "submit"])
async def test_an_unconfirmed_request_that_nobody_answers_is_lost_at_its_deadline(
    client: ClientFactory, understudy: Understudy, breaking: Breaking, way: str
) -> None:
    await understudy.serve("odd")
    caller = await client(timeout=0.5)
    lose_confirm(breaking)
    with pytest.raises(ConnectionLost, match="deadline") as caught:
        await getattr(caller, way)("odd.one")
    assert caught.value.maybe_executed
    assert caller.statistics().pending == 0


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_an_unconfirmed_request_that_a_worker_holds_is_submitted(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking, timeout: float | None
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(timeout=timeout)
    lose_confirm(breaking)
    submitting = asyncio.ensure_future(caller.submit("wait"))
    await gate.entered()
    async with asyncio.timeout(PATIENCE):
        task = await submitting
    gate.open()
    assert await task == "done"


async def test_an_unconfirmed_cast_is_lost_at_once(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    await understudy.serve("odd")
    caller = await client(timeout=None)
    lose_confirm(breaking)
    with pytest.raises(ConnectionLost) as caught:
        await caller.cast("odd.one")
    assert caught.value.maybe_executed


async def test_a_repeated_request_that_is_unroutable_may_have_run(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    name = await understudy.declare("odd")
    caller = await client()
    lose_confirm(breaking)
    assert breaking.broker is not None
    breaking.broker.refuse_connections()
    call = asyncio.ensure_future(caller.with_options(idempotent=True).call("odd.one"))
    await eventually(lambda: not caller.health())
    breaking.broker.delete_queue(name)
    breaking.broker.accept_connections()
    with pytest.raises(Unroutable) as caught:
        await call
    assert caught.value.maybe_executed


# --- the channel and the reply queue


async def test_a_channel_that_the_broker_closes_is_replaced_and_calls_go_on(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await worker(waiting(gate), calculator("math"))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    await breaking.close_channels("client")
    await eventually(lambda: "the reply queue is no longer consumed" in caplog.text)
    await eventually(lambda: caller.health().ready)
    assert caller.statistics().generation == 1
    gate.open()
    assert await call == "done"
    assert await caller.call("math.add", 1, 2) == 3


async def test_a_reply_queue_that_is_deleted_is_replaced_by_a_new_generation(
    client: ClientFactory, worker: WorkerFactory, understudy: Understudy, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(waiting(gate), calculator("math"))
    caller = await client()
    replies = await understudy.reply_queue_of(caller)
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    await breaking.delete_queue(replies)
    await next_generation(caller)
    gate.open()
    assert await call == "done"
    assert await caller.call("math.add", 1, 2) == 3


# --- calls without a deadline


def impatient(caller: Client, patience: float = 0.4) -> None:
    """Have *caller* give up soon what nobody knows."""
    caller._session.router().recovery.patience = patience


async def asked(understudy: Understudy, service: ReplyQueue, breaking: Breaking) -> tuple[str, Claim]:
    """Cut the connection of a call, and return its id and the first claim of it."""
    task_id, _ = identity(await service.next())
    await breaking.cut("client")
    return task_id, await understudy.claim()


async def test_a_call_without_deadline_is_given_up_when_nobody_knows_it(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client(timeout=None)
    impatient(caller)
    call = asyncio.ensure_future(caller.call("odd.one"))
    await asked(understudy, service, breaking)
    with pytest.raises(ConnectionLost, match="no worker and no queue") as caught:
        await call
    assert caught.value.maybe_executed
    assert caller.statistics().pending == 0


async def test_a_call_without_deadline_that_a_worker_holds_is_waited_for(
    client: ClientFactory, understudy: Understudy, breaking: Breaking
) -> None:
    service = await understudy.serve("odd")
    caller = await client(timeout=None)
    impatient(caller)
    call = asyncio.ensure_future(caller.call("odd.one"))
    task_id, claim = await asked(understudy, service, breaking)
    for _ in range(3):  # far beyond the patience
        await understudy.answer(claim, "worker", [task_id])
        claim = await understudy.claim()
    assert not call.done()
    await understudy.state(claim.reply_to, task_id, "SUCCESS", "late")
    assert await call == "late"


async def test_a_call_without_deadline_that_is_queued_is_waited_for(
    client: ClientFactory, worker: WorkerFactory, understudy: Understudy, breaking: Breaking
) -> None:
    await understudy.declare("math")
    caller = await client(timeout=None)
    impatient(caller)
    call = asyncio.ensure_future(caller.call("math.add", 1, 2))
    await eventually(lambda: caller.statistics().pending == 1)
    await caller.with_options(timeout=5).cast("math.echo")  # is confirmed, and so is what went before
    await breaking.cut("client")
    for _ in range(3):
        await understudy.claim()
    assert not call.done()
    await worker(calculator("math"))
    assert await call == 3


@pytest.mark.parametrize("on_disconnect", ["resume", "fail"])
async def test_a_call_without_deadline_whose_queue_is_deleted_is_given_up_though_its_connection_stands(
    client: ClientFactory, understudy: Understudy, breaking: Breaking, on_disconnect: str
) -> None:
    queue = await understudy.declare("odd")
    caller = await client(timeout=None, on_disconnect=on_disconnect)
    impatient(caller, 0.1)
    call = asyncio.ensure_future(caller.call("odd.one"))
    await understudy.claim()
    await understudy.claim()
    assert not call.done()
    await breaking.delete_queue(queue)
    with pytest.raises(ConnectionLost, match="no worker and no queue") as caught:
        await call
    assert caught.value.maybe_executed
    assert (caller.statistics().pending, caller.statistics().claims) == (0, 0)


async def test_a_call_without_deadline_that_a_worker_holds_is_waited_for_while_the_connection_stands(
    client: ClientFactory, worker: WorkerFactory, understudy: Understudy
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(timeout=None)
    impatient(caller, 0.05)
    calls = [asyncio.ensure_future(caller.call("wait", number)) for number in range(2)]
    for _ in range(10):  # far beyond the patience
        await understudy.claim()
    assert not any(call.done() for call in calls)
    gate.open()
    assert await asyncio.gather(*calls) == [0, 1]


async def test_a_call_with_a_deadline_is_not_asked_after_while_the_connection_stands(
    client: ClientFactory, understudy: Understudy
) -> None:
    service = await understudy.serve("odd")
    caller = await client(timeout=0.4)
    impatient(caller, 0.05)
    with pytest.raises(DeadlineExceeded):
        await caller.call("odd.one")
    await service.next()
    assert understudy.commands.empty()


async def test_answers_that_nobody_waits_for_are_counted(client: ClientFactory, understudy: Understudy) -> None:
    caller = await client()
    replies = await understudy.reply_queue_of(caller)
    await understudy.answer(Claim("x", replies, (), 1.0, "unknown"), "worker", [])
    await eventually(lambda: caller.statistics().orphaned == 1)
    assert caller.statistics().malformed == 0


async def test_a_worker_that_looks_for_its_caller_is_not_counted(client: ClientFactory, understudy: Understudy) -> None:
    caller = await client()
    replies = await understudy.reply_queue_of(caller)
    await understudy.answer(Inquiry("ping", "task", replies), "worker", None)
    await understudy.answer(Claim("x", replies, (), 1.0, "unknown"), "worker", [])  # comes behind it
    await eventually(lambda: caller.statistics().orphaned == 1)
    assert caller.statistics().malformed == 0
