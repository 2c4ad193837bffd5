"""Workers whose link goes silent or is reset, while what they run goes on."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from aiorpcq import Context, Service
from aiorpcq.protocol.deliveries import DeliveryMode
from aiorpcq.testing import memory_broker
from tests.contract.breaking import kept_apart
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, eventually
from tests.proxy import Proxy

from .breaking import Breaker, until_left
from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only, memory_only
from .processes import Journal, WorkerProcess

Kind = Literal["classic", "quorum"]

_CALLS = 20
_FIRST = ["RECEIVED", "STARTED"]


def place(name: str, **options: Any) -> tuple[Service, Gate, list[tuple[int, int]]]:
    """A service whose method waits, says that it goes on, and where; and the numbers and attempts of its runs."""
    service, gate, runs = Service(**options), Gate(), list[tuple[int, int]]()

    @service.method
    async def where(ctx: Context, number: int = 0) -> str:
        runs.append((number, ctx.attempt))
        await gate.wait()
        await ctx.progress(name)
        return name

    return service, gate, runs


async def until_back(process: WorkerProcess, proxy: Proxy) -> None:
    """Wait until a process whose connection was lost serves again."""
    await proxy.wait_connections(2)
    while not (await process.statistics())["ready"]:
        pass  # each look is an exchange with the process


# --- frozen and thawed


@amqp_only
async def test_row_06_a_worker_frozen_past_its_heartbeat_is_replaced_and_changes_nothing_when_it_thaws(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    proxy: Proxy,
    breaker: Breaker,
    url: str,
) -> None:
    zombie = await worker_process("zombie", url=f"{proxy.url(url)}?heartbeat=1")
    caller = await client()
    task = await caller.with_options(task_id="t").submit("where")
    await zombie.event("start", "t")
    await zombie.stop()
    heir = await worker_process("heir")
    await heir.event("start", "t")  # the broker has missed two heartbeats
    heir.open()
    assert await task == "heir"
    zombie.thaw()
    await until_back(zombie, proxy)
    before = caller.statistics().duplicates
    zombie.open("t")
    await zombie.event("end", "t")
    await eventually(lambda: caller.statistics().duplicates >= before + 2)  # its progress and its end
    assert await task == "heir"
    states = [(state.name, state.value) async for state in task.stream() if state.name not in _FIRST]
    assert states == [("PROGRESS", "heir"), ("SUCCESS", "heir")]
    assert [(entry.name, entry.attempt) for entry in journal.entries("start")] == [("zombie", 1), ("heir", 2)]
    await until_left(breaker)
    assert await caller.call("add", 1, 2) == 3


@amqp_only
async def test_row_06_late_states_of_a_thawed_worker_are_dropped_while_another_runs_the_task(
    client: ClientFactory, worker_process: ProcessFactory, proxy: Proxy, url: str
) -> None:
    """What it has to say is of an attempt that is outdated; only its end would count, were it the first one."""
    zombie = await worker_process("zombie", url=f"{proxy.url(url)}?heartbeat=1", delivery="at_least_once")
    caller = await client()
    task = await caller.with_options(task_id="t").submit("where")
    await zombie.event("start", "t")
    await zombie.stop()
    heir = await worker_process("heir")
    await heir.event("start", "t")
    zombie.thaw()
    await until_back(zombie, proxy)
    zombie.open("t")
    await eventually(lambda: caller.statistics().stale >= 1)
    assert await task == "zombie"  # the first end of several
    heir.open("t")
    await heir.event("end", "t")
    await eventually(lambda: caller.statistics().duplicates >= 1)
    states = [(state.name, state.value) async for state in task.stream() if state.name not in _FIRST]
    assert states == [("SUCCESS", "zombie")]


@memory_only
async def test_row_06_a_worker_whose_link_froze_is_replaced_and_changes_nothing_when_it_is_back(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, url: str
) -> None:
    broker = memory_broker(url.removeprefix("memory://"))
    zombie, zombie_gate, zombie_runs = place("zombie")
    heir, heir_gate, heir_runs = place("heir")
    frozen = await worker(zombie)
    caller = await client()
    calls = [ledger.call(caller, "where", number) for number in range(_CALLS)]
    await zombie_gate.entered(_CALLS)
    assert broker.freeze_links(lambda link: link.name.startswith("aiorpcq worker")) == 1
    await worker(heir)
    heir_gate.open()
    assert broker.drop_links(lambda link: link.is_frozen) == 1  # the broker has missed two heartbeats
    assert await ledger.outcomes(calls) == ["heir"] * _CALLS
    await eventually(lambda: frozen.health().ready)
    before = caller.statistics().duplicates
    zombie_gate.open()
    await eventually(lambda: caller.statistics().duplicates == before + _CALLS)
    assert sorted(zombie_runs) == [(number, 1) for number in range(_CALLS)]
    assert sorted(heir_runs) == [(number, 2) for number in range(_CALLS)]
    assert caller.statistics().out_of_band == 0


# --- reset


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_07_what_runs_when_its_link_is_lost_is_redelivered_and_adopted(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, mode: DeliveryMode, kind: Kind
) -> None:
    service, gate, runs = place("here", queue_type=kind)
    serving = await worker(service, delivery=mode, max_attempts=2)
    caller = await client()
    calls = [ledger.call(caller, "where", number) for number in range(_CALLS)]
    await gate.entered(_CALLS)
    for times in (1, 2, 3):
        await breaker.cut_workers()
        await eventually(lambda expected=times: serving.statistics().adopted == expected * _CALLS)  # type: ignore[misc]
    gate.open()
    assert await ledger.outcomes(calls) == ["here"] * _CALLS
    assert sorted(runs) == [(number, 1) for number in range(_CALLS)]
    assert serving.statistics().started == _CALLS
    assert caller.statistics().duplicates == 0


@amqp_only
async def test_row_07_what_runs_when_its_tcp_connection_is_reset_is_adopted(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    proxy: Proxy,
    breaker: Breaker,
    url: str,
) -> None:
    process = await worker_process("one", url=proxy.url(url))
    caller = await client()
    names = [f"t{number}" for number in range(_CALLS)]
    calls = [ledger.call(caller.with_options(task_id=name), "where") for name in names]
    await process.event("start", count=_CALLS)
    assert proxy.reset() == 1
    while (await process.statistics())["adopted"] < _CALLS:
        pass  # each look is an exchange with the process
    process.open()
    assert await ledger.outcomes(calls) == ["one"] * _CALLS
    assert [journal.runs(name) for name in names] == [1] * _CALLS
    await until_left(breaker)


@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_07_what_ends_while_its_link_is_away_is_answered_from_the_cache(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, mode: DeliveryMode
) -> None:
    service, gate, runs = place("here")
    serving = await worker(service, delivery=mode)
    caller = await client()
    calls = [ledger.call(caller, "where", number) for number in range(_CALLS)]
    await gate.entered(_CALLS)
    async with kept_apart(serving):
        await breaker.cut_workers()
        await eventually(lambda: not serving.health())
        gate.open()
        await eventually(lambda: serving.statistics().publisher.succeeded == _CALLS)
    assert await ledger.outcomes(calls) == ["here"] * _CALLS
    assert sorted(runs) == [(number, 1) for number in range(_CALLS)]
    statistics = serving.statistics()
    assert (statistics.started, statistics.answered + statistics.adopted) == (_CALLS, _CALLS)
    assert caller.statistics().duplicates == 0
