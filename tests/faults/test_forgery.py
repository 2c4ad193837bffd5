"""Messages that say what they are not: requests named like states, and guessed cancels and claims."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq import DeadlineExceeded, Service
from aiorpcq.protocol.messages import Properties, Publication
from aiorpcq.protocol.topology import TO_ALL, Names
from aiorpcq.states import FAILURE, PROGRESS, REVOKED, STARTED, SUCCESS
from tests.contract.parties import BystanderFactory, ClientFactory, WorkerFactory, calculator, eventually, request_for
from tests.contract.workbench import cancel, claim

from .breaking import Breaker, until_queued
from .ledger import Ledger
from .waiting import Waiting

STATES = pytest.mark.parametrize("state", [SUCCESS, FAILURE, REVOKED, STARTED, PROGRESS])

_CALLS = 20
_GUESSES = ["rpc.reply.guess", "rpc.reply.", "rpc.default", "amq.rabbitmq.reply-to"]


def named(state: str) -> Service:
    """A service with a method that is named like a state."""
    service = calculator()

    @service.method(name=state)
    async def method(value: Any) -> Any:
        return value

    return service


# --- requests that look like states


@STATES
async def test_row_33_a_method_named_like_a_state_is_a_method(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, state: str
) -> None:
    serving = await worker(named(state))
    caller = await client()
    calls = [ledger.call(caller, state, number) for number in range(_CALLS)]
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    task = await caller.submit(state, "value")
    assert [seen.name async for seen in task.stream()][-1] == SUCCESS
    assert await task == "value"
    assert serving.statistics().started == _CALLS + 1
    assert (caller.statistics().returned, caller.statistics().parked) == (0, 0)


@STATES
@pytest.mark.usefixtures("patient_returns")
async def test_row_33_a_returned_request_for_such_a_method_is_no_state_of_its_call(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, state: str
) -> None:
    await (await worker(named(state))).aclose()
    caller = await client(timeout=0.3)
    for outcome in await ledger.outcomes([ledger.call(caller, state, number) for number in range(_CALLS)]):
        assert isinstance(outcome, DeadlineExceeded)
        assert not outcome.maybe_executed
    await eventually(lambda: caller.statistics().returned == _CALLS)
    assert (caller.statistics().out_of_band, caller.statistics().parked) == (0, 0)


@STATES
async def test_row_33_a_returned_request_of_somebody_else_settles_nothing(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, ledger: Ledger, state: str
) -> None:
    waiting = Waiting()
    await worker(waiting.service)
    caller, stranger = await client(), await bystander()
    replies = await stranger.reply_queue_of(caller)
    call = ledger.call(caller.with_options(task_id="t"), "wait", 1)
    await waiting.gate.entered()
    await stranger.declare("empty")
    for number in range(_CALLS):
        # CC has it dead-lettered into the reply queue of a caller that never sent it.
        request = request_for(state, task_id=f"foreign-{number}", reply_to=replies, expiration=0.001)
        await stranger.request(request, service="empty")
        await stranger.message(replies, Properties(type=state, correlation_id=f"forged-{number}", reply_to="anywhere"))
    await eventually(lambda: caller.statistics().returned == 2 * _CALLS)
    statistics = caller.statistics()
    assert (statistics.pending, statistics.out_of_band, statistics.parked) == (1, 0, 0)
    assert not call.done()
    waiting.gate.open()
    assert await call == 1


# --- guesses


async def test_row_33_a_guessed_cancel_stops_nothing_that_runs_or_waits(
    client: ClientFactory,
    worker: WorkerFactory,
    bystander: BystanderFactory,
    breaker: Breaker,
    ledger: Ledger,
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, concurrency=_CALLS)
    caller, stranger = await client(), await bystander()
    calls = [ledger.call(caller.with_options(task_id=f"t{number}"), "wait", number) for number in range(2 * _CALLS)]
    await waiting.gate.entered(_CALLS)
    await until_queued(breaker, 2 * _CALLS)
    for number in range(2 * _CALLS):
        for guess in _GUESSES:
            await cancel(stranger, f"t{number}", guess, "kill")
    await eventually(lambda: serving.statistics().cancels == 2 * _CALLS * len(_GUESSES))
    waiting.gate.open()
    assert await ledger.outcomes(calls) == list(range(2 * _CALLS))
    assert (serving.statistics().revoked, waiting.stopped) == (0, [])


async def test_row_33_a_guessed_claim_moves_no_answer_and_shows_no_cached_one(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, concurrency=2 * _CALLS)
    caller, stranger = await client(), await bystander()
    thief = await stranger.reply_queue()
    ended = [ledger.call(caller.with_options(task_id=f"e{number}"), "echo", number) for number in range(_CALLS)]
    assert await ledger.outcomes(ended) == list(range(_CALLS))
    running = [ledger.call(caller.with_options(task_id=f"t{number}"), "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    names = [f"{kind}{number}" for kind in "et" for number in range(_CALLS)]
    for guess in _GUESSES:
        await claim(stranger, guess, thief.name, *names)
    await eventually(lambda: serving.statistics().claims == len(_GUESSES))
    waiting.gate.open()
    assert await ledger.outcomes(running) == list(range(_CALLS))
    await stranger.state(thief.name, "last", SUCCESS)
    assert (await thief.next()).properties.correlation_id == "last"  # and nothing came before it
    assert serving.statistics().publisher.resent == 0


async def test_row_33_malformed_control_messages_are_counted_and_change_nothing(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service)
    caller, stranger = await client(), await bystander()
    call = ledger.call(caller.with_options(task_id="t"), "wait", 1)
    await waiting.gate.entered()
    forgeries = [
        Properties(type="cancel", correlation_id="t"),
        Properties(type="cancel", correlation_id="t", headers={"origin": 7, "mode": "kill", "expires": 1000}),
        Properties(type="cancel", correlation_id="t", headers={"origin": "x", "mode": "murder", "expires": 1000}),
        Properties(type="cancel", correlation_id="t", headers={"wire-version": 2}),
        Properties(type="resume", reply_to="x", headers={"origin": "y", "expires": -1}),
        Properties(type="resume", reply_to="x", headers={"origin": "y", "expires": 1000}),  # its body is no list
        Properties(type=SUCCESS, correlation_id="t"),
        Properties(),
    ]
    for properties in forgeries:
        await stranger.publish(Publication(Names().control.name, TO_ALL, properties, b"{"))
    await eventually(lambda: serving.statistics().control_ignored == len(forgeries))
    assert (serving.statistics().cancels, serving.statistics().claims) == (0, 0)
    assert not call.done()
    waiting.gate.open()
    assert await call == 1
