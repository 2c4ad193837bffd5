"""More than there is room for, nobody to take it, and a broker that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aiorpcq import Client, CodecError, ConnectionLost, DeadlineExceeded, NoWorkers, Overloaded, Service, Unroutable

from .breaking import Breaking, kept_apart, next_generation
from .parties import PATIENCE, BystanderFactory, ClientFactory, Gate, WorkerFactory, calculator, eventually
from .understudy import Understudy


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


def waiting(gate: Gate) -> Service:
    service = calculator()

    @service.method
    async def wait(value: int = 0) -> int:
        await gate.wait()
        return value

    return service


# --- room


async def test_calls_wait_for_room_in_the_order_they_came(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    service = await stranger.serve("odd")
    caller = await client(max_pending=1, when_full="wait")
    calls = [asyncio.ensure_future(caller.with_options(task_id=f"t{number}").call("odd.one")) for number in range(5)]
    for number in range(5):
        properties = (await service.next()).properties
        assert properties.correlation_id == f"t{number}"
        assert properties.reply_to is not None
        assert (caller.statistics().pending, caller.statistics().waiting) == (1, 4 - number)
        await stranger.state(properties.reply_to, f"t{number}", "SUCCESS", number)
    assert await asyncio.gather(*calls) == list(range(5))


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_whoever_waits_for_room_gets_it_or_is_overloaded_at_the_deadline(
    client: ClientFactory, worker: WorkerFactory, way: str
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(max_pending=1, when_full="wait")
    first = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    with pytest.raises(Overloaded, match="max_pending") as caught:
        await getattr(caller.with_options(timeout=0.05), way)("add", 1, 2)
    assert not caught.value.maybe_executed
    assert caller.statistics().waiting == 0
    second = asyncio.ensure_future(getattr(caller, way)("add", 1, 2))
    await eventually(lambda: caller.statistics().waiting == 1)
    gate.open()
    await asyncio.gather(first, second)


@pytest.mark.parametrize("ending", ["cancel", "deadline", "forget", "returned"])
async def test_every_end_of_a_call_makes_room(
    client: ClientFactory,
    worker: WorkerFactory,
    bystander: BystanderFactory,
    jump: Callable[[float], None],
    ending: str,
) -> None:
    await worker(calculator())
    service = await (await bystander()).serve("silent")
    caller = await client(max_pending=1, when_full="wait")
    first = asyncio.ensure_future(caller.with_options(task_id="first", timeout=10).call("silent.one"))
    delivery = await service.next()
    second = asyncio.ensure_future(caller.call("add", 1, 2))
    await eventually(lambda: caller.statistics().waiting == 1)
    if ending == "cancel":
        first.cancel()
    elif ending == "deadline":
        jump(11)
    elif ending == "forget":
        caller.forget("first")
    elif ending == "returned":
        delivery.nack(requeue=False)
    assert await second == 3
    await asyncio.gather(first, return_exceptions=True)


async def test_a_waiter_that_goes_away_leaves_its_turn_to_another(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(max_pending=1, when_full="wait")
    calls = [asyncio.ensure_future(caller.call("wait", number)) for number in range(4)]
    await gate.entered()
    await eventually(lambda: caller.statistics().waiting == 3)
    calls[1].cancel()
    gate.open()
    # The second may have been let in already when it is cancelled: whoever is, the others go on.
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [outcomes[0], *outcomes[2:]] == [0, 2, 3]
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert (caller.statistics().pending, caller.statistics().waiting) == (0, 0)


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_a_waiter_whose_call_cannot_be_made_leaves_its_turn_to_another(
    client: ClientFactory, worker: WorkerFactory, way: str
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(max_pending=1, when_full="wait")
    first = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    second = asyncio.ensure_future(getattr(caller, way)("wait", object()))
    third = asyncio.ensure_future(caller.call("add", 1, 2))
    await eventually(lambda: caller.statistics().waiting == 2)
    gate.open()
    with pytest.raises(CodecError):
        await second
    assert (await first, await third) == (0, 3)
    assert (caller.statistics().pending, caller.statistics().waiting) == (0, 0)


async def test_closing_sends_away_who_waits_for_room(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller, staying = await client(max_pending=1, when_full="wait"), await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(3)]
    await gate.entered()
    await eventually(lambda: staying.statistics().waiting == 2)
    await caller.aclose()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
    assert [outcome.maybe_executed for outcome in outcomes] == [True, False, False]  # type: ignore[union-attr]
    gate.open()


async def test_nobody_takes_the_place_of_a_call_that_was_let_in(client: ClientFactory, worker: WorkerFactory) -> None:
    """The next call of whoever made room comes first: it is made before the one that waited goes on."""
    gate = Gate()
    await worker(waiting(gate))
    waits, fails = await client(max_pending=1, when_full="wait"), await client(max_pending=1)

    async def calls() -> None:
        await fails.call("wait")
        with pytest.raises(Overloaded, match="max_pending"):
            await fails.call("wait")

    others = asyncio.ensure_future(calls())
    await gate.entered()
    waited = asyncio.ensure_future(waits.call("add", 1, 2))
    await eventually(lambda: waits.statistics().waiting == 1)
    gate.open()
    await others
    assert await waited == 3


async def test_a_call_that_was_let_in_as_its_client_closes_leaves_its_turn_to_another(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    closing, staying = [await client(max_pending=1, when_full="wait", timeout=None) for _ in range(2)]
    first = asyncio.ensure_future(staying.call("wait"))
    await gate.entered()
    calls = [asyncio.ensure_future(caller.call("add", 1, 2)) for caller in (closing, staying)]
    await eventually(lambda: len(staying._session.router().waitlist) == 2)
    first.cancel()
    await asyncio.sleep(0)
    assert staying._session.router().waitlist.admitted == 1
    await closing.aclose()
    with pytest.raises(ConnectionLost, match="the client was closed"):
        await calls[0]
    async with asyncio.timeout(PATIENCE):
        assert await calls[1] == 3


async def test_a_call_that_fails_before_it_is_made_leaves_no_room_behind(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(max_pending=1, when_full="wait")
    with pytest.raises(CodecError):
        await caller.call("add", object())
    held = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    with pytest.raises(Overloaded):
        await anext(caller.stream("unknown"))
    gate.open()
    assert await held == 0


# --- workers


async def test_a_service_without_a_queue_is_unroutable_before_anything_is_sent(client: ClientFactory) -> None:
    caller = (await client()).with_options(require_workers=True)
    for way in (caller.call, caller.submit, caller.cast):
        with pytest.raises(Unroutable, match="nowhere"):
            await way("nowhere.method")
    assert caller.statistics().pending == 0


async def test_a_queue_without_consumers_has_no_workers(
    client: ClientFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    await (await bystander()).declare("math")
    caller = await client()
    for way in (caller.call, caller.submit):
        with pytest.raises(NoWorkers, match="math") as caught:
            await getattr(caller.with_options(require_workers=True), way.__name__)("math.add", 1, 2)
        assert caught.value.retryable
        assert not caught.value.maybe_executed
    with pytest.raises(DeadlineExceeded):
        await caller.with_options(timeout=0.05).call("math.add", 1, 2)


async def test_with_workers_the_call_is_made(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = (await client()).with_options(require_workers=True)
    assert await caller.call("add", 1, 2) == 3
    assert not caller._session._waiting


@pytest.mark.parametrize("turns", range(1, 10))
async def test_a_call_whose_client_is_closed_between_two_of_its_steps_says_so(
    client: ClientFactory, worker: WorkerFactory, url: str, turns: int
) -> None:
    await worker(calculator())
    caller = Client(url, max_pending=1, when_full="wait")
    async with caller:
        call = asyncio.ensure_future(caller.with_options(require_workers=True).call("add", 1, 2))
        for _ in range(turns):
            await asyncio.sleep(0)
    try:
        assert await call == 3
    except ConnectionLost as error:
        assert "the client was closed" in str(error)  # noqa: PT017 - it may as well have been in time


async def test_workers_that_come_are_found_by_trying_again(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await (await bystander()).declare("math")
    caller = await client()
    call = asyncio.ensure_future(caller.with_options(require_workers=True, retries=1_000).call("math.add", 1, 2))
    await eventually(lambda: caller.statistics().retried > 0)
    await worker(calculator("math"))
    assert await call == 3


async def test_the_question_for_workers_survives_the_connection(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    await worker(calculator())
    caller = (await client()).with_options(require_workers=True, idempotent=True)
    await breaking.cut("client")
    assert await caller.call("add", 1, 2) == 3


async def test_closing_ends_the_question_for_workers(client: ClientFactory, breaking: Breaking) -> None:
    if breaking.broker is None:
        pytest.skip("an alarm is for the whole of the suite's broker")
    caller, staying = await client(timeout=None), await client(timeout=None)
    breaking.broker.block()
    call = asyncio.ensure_future(caller.with_options(require_workers=True).call("add", 1, 2))
    await asyncio.sleep(0)
    await caller.aclose()
    with pytest.raises(ConnectionLost, match="closed"):
        await asyncio.wait_for(call, 10)
    breaking.broker.unblock()
    assert staying.health()


# --- a broker that is blocked


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_what_could_not_be_sent_by_its_deadline_was_not_run(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking, way: str
) -> None:
    if breaking.broker is None:
        pytest.skip("an alarm is for the whole of the suite's broker; see tests/faults")
    serving = await worker(calculator())
    caller = await client()
    breaking.broker.block()
    health = caller.health()
    assert not health
    assert "blocked" in str(health.reason)
    with pytest.raises(DeadlineExceeded) as caught:
        await getattr(caller.with_options(timeout=0.05), way)("add", 1, 2)
    assert not caught.value.maybe_executed
    waiting_call = asyncio.ensure_future(caller.call("add", 1, 2))
    await eventually(lambda: caller.statistics().pending == 1)
    breaking.broker.unblock()
    assert await waiting_call == 3
    assert caller.health().ready
    assert serving.statistics().started == 1


# --- health, and what workers say


def answers(caller: Client) -> int:
    """Return how many answers there are to what *caller* asks."""
    return sum(map(len, caller._session.router()._inquiries._open.values()))


async def test_health_says_why_a_client_is_not_ready(
    client: ClientFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    caller = await client()
    assert caller.health().ready
    assert caller.health().reason is None
    async with kept_apart(caller):
        await breaking.cut("client")
        await eventually(lambda: not caller.health().ready)
        assert "not connected" in str(caller.health().reason)
    await next_generation(caller)
    await caller.aclose()
    assert "not open" in str(caller.health().reason)


@pytest.mark.parametrize("reply_queue", ["exclusive", "direct"])
async def test_workers_say_what_they_are(
    url: str, client: ClientFactory, jump: Callable[[float], None], reply_queue: str
) -> None:
    caller = await client(reply_queue=reply_queue)
    async with Understudy.connected(url) as understudy:
        assert isinstance(understudy, Understudy)
        await understudy.listen()
        asking = asyncio.ensure_future(caller.workers(10))
        inquiry = await understudy.inquiry()
        assert inquiry.question == "info"
        await understudy.answer(inquiry, "one", {"services": ["math"], "started": 7})
        await understudy.answer(inquiry, "one", {"services": []})
        await understudy.answer(inquiry, "two", "nonsense")
        await eventually(lambda: answers(caller) == 2)
        jump(11)
        workers = {worker.worker_id: worker for worker in await asking}
        assert workers.keys() == {"one", "two"}
        assert (workers["one"].services, workers["one"].value["started"]) == (("math",), 7)
        assert workers["two"].services == ()
        await understudy.answer(inquiry, "late", {})
        await eventually(lambda: caller.statistics().orphaned == 1)


@pytest.mark.parametrize("timeout", [None, -1, "1"])
async def test_workers_are_asked_for_a_time(client: ClientFactory, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        await (await client()).workers(timeout)


async def test_a_worker_is_among_those_that_answer(
    client: ClientFactory, worker: WorkerFactory, jump: Callable[[float], None]
) -> None:
    serving = await worker(calculator(), calculator("math"))
    caller = await client()
    asking = asyncio.ensure_future(caller.workers(10))
    await eventually(lambda: answers(caller) == 1)
    jump(11)
    workers = await asking
    assert [info.worker_id for info in workers] == [serving.id]
    assert set(workers[0].services) == {"default", "math"}


async def test_a_client_without_room_does_not_hold_up_another_of_its_connection(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    gate, service = Gate(), Service()

    @service.method
    async def hold() -> str:
        await gate.wait()
        return "held"

    await worker(service)
    small, large = await client(max_pending=1, when_full="wait"), await client(max_pending=1_000, when_full="wait")
    calls = [asyncio.ensure_future(small.call("hold")) for _ in range(2)]
    await gate.entered()
    await eventually(lambda: small.statistics().waiting == 1)
    calls.append(asyncio.ensure_future(large.call("hold")))
    await gate.entered()
    gate.open()
    assert await asyncio.gather(*calls) == ["held"] * 3
