"""The worker processes of the fault tests do what those rely on."""

from __future__ import annotations

import signal

import pytest

from tests.contract.parties import ClientFactory

from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only
from .processes import Journal, ProcessError

pytestmark = amqp_only


async def test_it_serves_and_journals_what_it_runs(
    client: ClientFactory, worker_process: ProcessFactory, journal: Journal
) -> None:
    process = await worker_process("one", service="jobs", concurrency=7)
    caller = (await client()).with_options(task_id="t")
    assert await caller.call("jobs.note", 5) == 5
    assert [(entry.phase, entry.task_id, entry.attempt, entry.name) for entry in journal.entries()] == [
        ("start", "t", 1, "one"),
        ("end", "t", 1, "one"),
    ]
    assert (await process.event("end", "t"))["pid"] == process.pid
    assert (await process.statistics())["started"] == 1
    assert (await process.statistics())["started"] == 1


@pytest.mark.parametrize("method", ["wait", "wait_in_thread"])
async def test_its_methods_wait_until_they_are_told(
    client: ClientFactory, worker_process: ProcessFactory, ledger: Ledger, method: str
) -> None:
    process = await worker_process("one")
    caller = await client()
    calls = [ledger.call(caller.with_options(task_id=name), method, name) for name in ("a", "b", "c")]
    for name in ("a", "b", "c"):
        await process.event("start", name)
    process.open("b")
    assert await calls[1] == "b"
    assert not calls[0].done()
    process.open()
    assert await ledger.outcomes() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "arguments", "status"), [("kill", (), -signal.SIGKILL), ("exit", (7,), 7), ("kill_first", (1,), -9)]
)
async def test_a_method_may_end_its_process(
    client: ClientFactory, worker_process: ProcessFactory, method: str, arguments: tuple[int, ...], status: int
) -> None:
    process = await worker_process("one", delivery="at_most_once")
    await (await client()).cast(method, *arguments)
    assert await process.wait() == status
    await process.event("start")  # told before it died
    with pytest.raises(ProcessError, match="ended before"):
        await process.event("end")


async def test_it_may_be_frozen_from_both_sides_and_thawed(
    client: ClientFactory, worker_process: ProcessFactory, ledger: Ledger
) -> None:
    process = await worker_process("one")
    caller = await client()
    frozen = ledger.call(caller, "freeze", "by itself")
    await process.wait_frozen()
    assert not frozen.done()
    process.thaw()
    assert await frozen == "by itself"
    await process.stop()
    late = ledger.call(caller, "echo", "by the test")
    process.thaw()
    assert await late == "by the test"


async def test_a_signal_drains_it(client: ClientFactory, worker_process: ProcessFactory, ledger: Ledger) -> None:
    process = await worker_process("one", grace=10)
    call = ledger.call(await client(), "wait", 1)
    await process.event("start")
    process.terminate()
    process.open()
    assert await call == 1
    await process.event("stopped")
    assert await process.wait() == 0


async def test_one_that_cannot_start_says_why(worker_process: ProcessFactory, url: str) -> None:
    with pytest.raises(ProcessError, match="ConnectFailed"):
        await worker_process("one", url=url.replace("guest", "nobody"))
