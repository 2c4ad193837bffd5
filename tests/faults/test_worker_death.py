"""Workers that die: in the middle of a run, and between a run and its acknowledgement."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from aiorpcq import Context, Service, WorkerLost
from aiorpcq.protocol.deliveries import DeliveryMode
from aiorpcq.testing import memory_broker
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, eventually
from tests.contract.workbench import die
from tests.proxy import Proxy

from .breaking import Breaker, until_left
from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only, memory_only
from .processes import Journal

Kind = Literal["classic", "quorum"]

_CALLS = 10


def place(name: str, **options: Any) -> tuple[Service, Gate, list[tuple[int, int]]]:
    """A service whose method waits and says where it was run; and the numbers and attempts of its runs."""
    service, gate, runs = Service(**options), Gate(), list[tuple[int, int]]()

    @service.method
    async def where(ctx: Context, number: int) -> str:
        runs.append((number, ctx.attempt))
        await gate.wait()
        return name

    return service, gate, runs


# --- killed in mid-call


@amqp_only
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_03_what_a_killed_worker_was_running_is_run_again_elsewhere(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    breaker: Breaker,
    kind: Kind,
) -> None:
    options = {"service_options": {"queue_type": kind}}
    doomed = await worker_process("doomed", **options)
    caller = await client()
    names = [f"t{number}" for number in range(_CALLS)]
    calls = [ledger.call(caller.with_options(task_id=name), "where") for name in names]
    await doomed.event("start", count=_CALLS)
    heir = await worker_process("heir", **options)
    await doomed.kill()
    heir.open()
    assert await ledger.outcomes(calls) == ["heir"] * _CALLS
    for name in names:
        assert [(entry.name, entry.phase, entry.attempt) for entry in journal.entries(task_id=name)] == [
            ("doomed", "start", 1),
            ("heir", "start", 2),
            ("heir", "end", 2),
        ]
    assert caller.statistics().duplicates == 0
    await until_left(breaker)


@amqp_only
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_03_what_a_killed_worker_was_running_is_lost_where_it_must_not_run_again(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    breaker: Breaker,
    kind: Kind,
) -> None:
    options = {"service_options": {"queue_type": kind, "delivery": "no_rerun"}}
    doomed = await worker_process("doomed", **options, concurrency=_CALLS)
    caller = await client()
    names = [f"t{number}" for number in range(2 * _CALLS)]
    calls = [ledger.call(caller.with_options(task_id=name), "where") for name in names]
    await doomed.event("start", count=_CALLS)  # the other half waits in the queue
    heir = await worker_process("heir", **options)
    heir.open()
    assert await ledger.outcomes(calls[_CALLS:]) == ["heir"] * _CALLS
    await doomed.kill()
    for outcome in await ledger.outcomes(calls[:_CALLS]):
        assert isinstance(outcome, WorkerLost)
        assert outcome.maybe_executed
    assert [journal.runs(name) for name in names] == [1] * (2 * _CALLS)
    await until_left(breaker)


@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_03_a_worker_that_is_gone_in_mid_call_is_replaced_or_said_to_be_lost(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, mode: DeliveryMode
) -> None:
    lost, lost_gate, lost_runs = place("lost")
    heir, heir_gate, heir_runs = place("heir")
    doomed = await worker(lost, delivery=mode)
    caller = await client()
    calls = [ledger.call(caller, "where", number) for number in range(_CALLS)]
    await lost_gate.entered(_CALLS)
    serving = await worker(heir, delivery=mode)
    await die(doomed)
    heir_gate.open()
    outcomes = await ledger.outcomes(calls)
    assert sorted(lost_runs) == [(number, 1) for number in range(_CALLS)]
    if mode == "at_least_once":
        assert outcomes == ["heir"] * _CALLS
        assert sorted(heir_runs) == [(number, 2) for number in range(_CALLS)]
    else:
        assert all(isinstance(outcome, WorkerLost) and outcome.maybe_executed for outcome in outcomes)
        assert (heir_runs, serving.statistics().lost) == ([], _CALLS)
    lost_gate.open()


# --- killed after the reply, before the acknowledgement


@amqp_only
@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_04_a_worker_killed_after_its_reply_and_before_its_ack_leaves_one_result_and_a_duplicate(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    proxy: Proxy,
    breaker: Breaker,
    url: str,
    mode: DeliveryMode,
) -> None:
    doomed = await worker_process("doomed", url=proxy.url(url), delivery=mode)
    caller = (await client()).with_options(task_id="t")
    call = ledger.call(caller, "where")
    await doomed.event("start", "t")
    proxy.to_client.blackhole()  # the confirm waits until the acknowledgement can be stopped
    doomed.open()
    assert await call == "doomed"
    proxy.to_broker.blackhole()
    proxy.to_client.heal()
    while (await doomed.statistics())["running"]:
        pass  # each look is an exchange with the process; it ends with the confirm
    heir = await worker_process("heir", delivery=mode)
    heir.open()
    await doomed.kill()
    proxy.reset()  # the acknowledgement is lost with the connection
    await eventually(lambda: caller.statistics().duplicates >= 1)
    await until_left(breaker)
    runs = [entry.name for entry in journal.entries("start", "t")]
    assert runs == (["doomed", "heir"] if mode == "at_least_once" else ["doomed"])
    # A run that comes after a redelivery may tell that it started, too, and its progress; whatever it tells settles
    # nothing.
    assert caller.statistics().duplicates <= 3
    assert await caller.with_options(task_id=None).call("add", 1, 2) == 3


@memory_only
async def test_row_04_a_worker_gone_after_its_reply_and_before_its_ack_leaves_one_result_and_a_duplicate(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, url: str
) -> None:
    broker = memory_broker(url.removeprefix("memory://"))
    lost, lost_gate, lost_runs = place("lost")
    heir, heir_gate, heir_runs = place("heir")
    await worker(lost)
    caller = await client()
    call = ledger.call(caller, "where", 0)
    await lost_gate.entered()
    await worker(heir)
    heir_gate.open()
    broker.refuse_connections()  # it does not come back
    broker.lose_confirms(lambda publication: publication.properties.type == "SUCCESS")
    lost_gate.open()
    assert await call == "lost"
    await eventually(lambda: caller.statistics().duplicates >= 1)
    assert (lost_runs, heir_runs) == ([(0, 1)], [(0, 2)])
    broker.accept_connections()
    await eventually(lambda: broker.statistics().queues["rpc.default"].unsettled == 0)
    assert caller.statistics().duplicates == 2  # it told that it had started, too


# --- killed before the reply is confirmed


@amqp_only
async def test_row_05_a_worker_killed_before_its_reply_reaches_the_broker_is_replaced_and_the_caller_gets_one_result(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    proxy: Proxy,
    breaker: Breaker,
    url: str,
) -> None:
    doomed = await worker_process("doomed", url=proxy.url(url))
    caller = (await client()).with_options(task_id="t")
    call = ledger.call(caller, "wait", "value")
    await doomed.event("start", "t")
    proxy.to_broker.blackhole()  # the reply goes nowhere
    doomed.open()
    await doomed.event("end", "t")
    await doomed.kill()
    assert not call.done()
    heir = await worker_process("heir")
    heir.open()
    proxy.reset()  # what the dead one had sent is lost with its connection
    assert await call == "value"
    assert [(entry.name, entry.phase) for entry in journal.entries(task_id="t")] == [
        ("doomed", "start"),
        ("doomed", "end"),
        ("heir", "start"),
        ("heir", "end"),
    ]
    assert caller.statistics().duplicates == 0
    await until_left(breaker)


@amqp_only
async def test_row_05_a_worker_killed_before_its_reply_is_confirmed_is_replaced_and_the_second_reply_is_a_duplicate(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    proxy: Proxy,
    breaker: Breaker,
    url: str,
) -> None:
    doomed = await worker_process("doomed", url=proxy.url(url))
    caller = (await client()).with_options(task_id="t")
    call = ledger.call(caller, "wait", "value")
    await doomed.event("start", "t")
    proxy.to_client.blackhole()  # the confirm does not come, so nothing is acknowledged
    doomed.open()
    assert await call == "value"
    heir = await worker_process("heir")
    heir.open()
    await doomed.kill()
    await heir.event("end", "t")
    # A run that comes after a redelivery may tell that it started, too; whatever it tells settles nothing.
    await eventually(lambda: caller.statistics().duplicates >= 1)
    assert journal.runs("t") == 2
    assert await caller.with_options(task_id=None).call("add", 1, 2) == 3
    await until_left(breaker)
    assert caller.statistics().duplicates <= 2
