"""Reply queues that outlive their client, direct replies, and several addresses of one broker."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import Client, ConnectFailed, ConnectionLost, Context, DeadlineExceeded, Service, UsageError

from .breaking import Breaking, next_generation
from .parties import (
    BystanderFactory,
    ClientFactory,
    Gate,
    WorkerFactory,
    calculator,
    eventually,
    leaving,
    request_for,
)
from .understudy import Understudy

DURABLE = {"reply_queue": "durable", "identity": "me"}
QUEUE = "rpc.reply.me.durable"


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


def reporting(gate: Gate) -> Service:
    service = calculator()

    @service.method
    async def report(ctx: Context) -> str:
        await ctx.progress(1)
        await gate.wait()
        await ctx.progress(2)
        return "done"

    return service


# --- durable


async def test_a_durable_client_calls_and_streams(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client(**DURABLE)
    assert await caller.call("add", 1, 2) == 3
    task = await caller.submit("count", 3)
    assert [state.value async for state in task.stream() if state.name == "PROGRESS"] == [1, 2, 3]


async def test_the_queue_of_an_identity_has_its_name_and_outlives_the_client(
    client: ClientFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    stranger = await bystander()
    caller = await client(**DURABLE)
    assert await stranger.reply_queue_of(caller) == QUEUE
    await caller.aclose()
    assert breaking.has_queue(QUEUE)


async def test_a_task_is_streamed_on_after_a_restart_of_its_client(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(reporting(gate))
    former = await client(**DURABLE)
    task = await former.submit("report")
    async with leaving(task.stream()) as states:
        async for state in states:
            if state.value == 1:
                break
    await former.aclose()
    gate.open()
    later = await client(**DURABLE)
    seen = [(state.name, state.value) async for state in later.stream(task.id)]
    assert seen == [("PROGRESS", 2), ("SUCCESS", "done")]


async def test_what_the_queue_no_longer_has_is_claimed_of_the_worker(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    serving = await worker(reporting(gate))
    former = await client(**DURABLE)
    task = await former.submit("report")
    await gate.entered()
    await former.aclose()
    gate.open()
    await eventually(lambda: serving.statistics().publisher.succeeded == 1)
    await eventually(lambda: serving.statistics().publisher.unconfirmed == 0)  # the answer is in the queue
    await breaking.delete_queue(QUEUE)
    later = await client(**DURABLE)
    async with asyncio.timeout(5):
        seen = [(state.name, state.value) async for state in later.stream(task.id)]
    assert seen[-1] == ("SUCCESS", "done")


async def test_a_task_of_a_former_client_is_cancelled(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(reporting(gate))
    former = await client(**DURABLE)
    task = await former.submit("report")
    await gate.entered()
    await former.aclose()
    later = await client(**DURABLE)
    await later.cancel(task.id, timeout=5)
    assert [state.name async for state in later.stream(task.id)][-1] == "REVOKED"


async def test_a_second_client_of_an_identity_is_refused(client: ClientFactory, url: str) -> None:
    caller = await client(**DURABLE)
    with pytest.raises(ConnectFailed, match=r"'me'.*rpc\.reply\.me"):
        await Client(url, max_size=9_999_999, **DURABLE).open()  # type: ignore[arg-type]  # another connection
    await client(reply_queue="durable", identity="you")
    assert caller.health().ready


async def test_clients_of_one_identity_and_loop_share_its_queue(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    first, second = await client(**DURABLE), await client(**DURABLE)
    assert await first.call("add", 1, 2) == await second.call("add", 1, 2)


@pytest.mark.usefixtures("breaking")  # it holds the broker in memory
async def test_another_ttl_than_the_queue_has_is_refused_by_name(client: ClientFactory, url: str) -> None:
    caller = await client(**DURABLE)
    await caller.aclose()
    with pytest.raises(ConnectFailed, match=r"rpc\.reply\.me"):
        await Client(url, reply_queue_ttl=10, **DURABLE).open()  # type: ignore[arg-type]  # they are right


async def test_a_durable_queue_without_client_goes_after_its_time(client: ClientFactory, breaking: Breaking) -> None:
    caller = await client(reply_queue_ttl=0.2, **DURABLE)
    await caller.aclose()
    await eventually(lambda: not breaking.has_queue(QUEUE))


async def test_calls_under_way_get_their_values_through_the_same_queue(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    gate = Gate()
    await worker(reporting(gate))
    caller = await client(**DURABLE)
    call = asyncio.ensure_future(caller.call("report"))
    await gate.entered()
    await breaking.cut("client")
    await next_generation(caller)
    gate.open()
    assert await call == "done"


async def test_after_a_reconnect_the_calls_of_a_durable_queue_are_claimed_too(
    url: str, client: ClientFactory, breaking: Breaking
) -> None:
    async with Understudy.connected(url) as understudy:
        assert isinstance(understudy, Understudy)
        await understudy.listen()
        service = await understudy.serve("odd")
        caller = await client(**DURABLE)
        call = asyncio.ensure_future(caller.call("odd.one"))
        task_id = (await service.next()).properties.correlation_id
        await breaking.cut("client")
        claim = await understudy.claim()
        assert (claim.origin, claim.reply_to, claim.task_ids) == (QUEUE, QUEUE, (task_id,))
        assert task_id is not None
        await understudy.state(QUEUE, task_id, "SUCCESS", "done")
        assert await call == "done"


async def test_a_durable_queue_that_is_deleted_is_made_again(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    await worker(calculator())
    caller = await client(**DURABLE)
    await breaking.delete_queue(QUEUE)
    await next_generation(caller)
    assert await caller.call("add", 1, 2) == 3


# --- direct


async def test_direct_replies_carry_values_and_errors(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client(reply_queue="direct", errors=[ValueError])
    assert await asyncio.gather(*(caller.call("add", number, 1) for number in range(50))) == list(range(1, 51))
    with pytest.raises(ValueError, match="boom"):
        await caller.call("fail", "boom")
    await caller.cast("echo")


async def test_a_request_with_direct_replies_is_not_returned(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    service = await stranger.serve("odd")
    caller = await client(reply_queue="direct", timeout=0.3)
    call = asyncio.ensure_future(caller.call("odd.one"))
    delivery = await service.next()
    assert "CC" not in (delivery.properties.headers or {})
    assert (delivery.properties.reply_to or "").startswith("amq.rabbitmq.reply-to.")
    delivery.nack(requeue=False)
    with pytest.raises(DeadlineExceeded):
        await call
    assert caller.statistics().returned == 0


async def test_direct_replies_know_no_states(client: ClientFactory) -> None:
    caller = await client(reply_queue="direct")
    with pytest.raises(UsageError, match="reply_queue"):
        await caller.submit("add", 1, 2)
    with pytest.raises(UsageError, match="reply_queue"):
        caller.stream("t")


@pytest.mark.parametrize("fault", ["connection", "channel"])
async def test_a_call_with_direct_replies_is_lost_at_once(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking, fault: str
) -> None:
    gate = Gate()
    await worker(reporting(gate))
    caller = await client(reply_queue="direct", timeout=None, idempotent=["report"])
    call = asyncio.ensure_future(caller.call("report"))
    await gate.entered()
    if breaking.broker is not None:  # its links are told apart by the reply queues they consume from
        drop = breaking.broker.drop_links if fault == "connection" else breaking.broker.close_channels
        assert drop(lambda link: not link.queues or link.queues[0].startswith("amq."))
    elif fault == "connection":
        await breaking.cut("client")
    else:
        await breaking.close_channels("client")
    with pytest.raises(ConnectionLost) as caught:
        await call
    assert caught.value.maybe_executed
    await next_generation(caller)
    assert await caller.call("add", 1, 2) == 3
    gate.open()


# --- several addresses


async def test_the_first_address_that_answers_is_used(client: ClientFactory, worker: WorkerFactory, url: str) -> None:
    await worker(calculator())
    urls = [url, url] if url.startswith("memory://") else ["amqp://localhost:1", url]
    async with Client(urls) as caller:
        assert await caller.call("add", 1, 2) == 3


async def test_a_client_of_several_addresses_connects_again(
    worker: WorkerFactory, url: str, breaking: Breaking
) -> None:
    await worker(calculator())
    async with Client([url, url], idempotent=["add"]) as caller, Client((url, url)) as same:
        await breaking.cut("client")
        assert await caller.call("add", 1, 2) == 3
        assert same.statistics() == caller.statistics()


async def test_a_request_that_names_a_durable_queue_is_answered_there(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await worker(calculator())
    caller = await client(**DURABLE)
    stranger = await bystander()
    await stranger.request(request_for("add", 1, 2, task_id="elsewhere", reply_to=QUEUE))
    assert [state.value async for state in caller.stream("elsewhere")] == [3]
