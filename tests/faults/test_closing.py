"""Clients that are closed with calls under way, or used where they cannot be."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings

import pytest

from aiorpcq import Client, ConnectionLost, Service, UsageError
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, eventually

from .ledger import Ledger


def gated() -> tuple[Service, Gate]:
    service, gate = Service(), Gate()

    @service.method
    async def wait(value: int = 0) -> int:
        await gate.wait()
        return value

    return service, gate


async def test_row_27_closing_a_client_settles_everything_that_is_pending(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service, gate = gated()
    await worker(service, concurrency=10)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(100)]  # ten run, the others are in the queue
    await gate.entered(10)
    task = await caller.submit("wait")
    stream = caller.stream(task.id)
    reading = asyncio.ensure_future(anext(stream))
    unsent = ledger.call(caller, "wait")
    closing = asyncio.ensure_future(caller.aclose())
    for outcome in await ledger.outcomes([*calls, unsent]):
        assert isinstance(outcome, ConnectionLost | UsageError)
    with pytest.raises(ConnectionLost):
        await task
    with pytest.raises(ConnectionLost):
        await reading
    await closing
    gate.open()


async def test_row_27_closing_a_client_twice_and_while_it_is_cancelled_settles_once(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service, gate = gated()
    await worker(service)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(50)]
    await gate.entered(50)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(caller.aclose(), caller.aclose())
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        if number % 2:
            assert isinstance(outcome, ConnectionLost)
            assert outcome.maybe_executed
        else:
            assert isinstance(outcome, asyncio.CancelledError)
    gate.open()


def used_in_thread(caller: Client, *, with_loop: bool) -> list[BaseException]:
    """What a call comes to in a thread with or without a loop of its own."""
    found: list[BaseException] = []

    def use() -> None:
        try:
            if with_loop:
                asyncio.run(caller.call("wait"))
            else:
                caller.call("wait").send(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("with_loop", [True, False])
async def test_row_32_another_thread_gets_a_clear_error_and_calls_under_way_go_on(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, with_loop: bool
) -> None:
    service, gate = gated()
    await worker(service)
    caller = await client()
    call = ledger.call(caller, "wait", 1)
    await gate.entered()
    (error,) = await asyncio.to_thread(used_in_thread, caller, with_loop=with_loop)
    assert isinstance(error, UsageError)
    assert "from_thread" in str(error)
    assert caller.statistics().pending == 1
    gate.open()
    assert await call == 1
    assert await caller.call("wait", 2) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_row_32_a_fork_gets_a_clear_error_and_the_connection_stays_its_parents(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service, gate = gated()
    await worker(service)
    caller = await client()
    call = ledger.call(caller, "wait", 1)
    await gate.entered()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
        child = os.fork()
    if child == 0:
        text = "nothing was raised"
        try:
            caller.call("wait").send(None)
        except UsageError as error:
            text = str(error)
        except BaseException as error:
            text = repr(error)
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = await asyncio.to_thread(pipe.read)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert "fork" in said
    gate.open()
    assert await call == 1
    assert await caller.call("wait", 2) == 2
    await eventually(lambda: caller.statistics().pending == 0)
    assert caller.statistics().generation == 1
