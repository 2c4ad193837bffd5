"""The life of a client: where it may be used, what its end does, and what its calls leave behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from aiorpcq import Client, ConnectFailed, ConnectionLost, DeadlineExceeded, Overloaded, Service, UsageError

from .parties import BystanderFactory, ClientFactory, Gate, Overview, WorkerFactory, calculator, eventually, leaving

WAYS = pytest.mark.parametrize("way", ["call", "submit", "cast", "stream", "forget", "statistics", "from_thread"])


async def use(client: Client, way: str) -> None:
    """Use *client* in one of its ways."""
    if way == "statistics":
        client.statistics()
    elif way == "forget":
        client.forget("t")
    elif way == "from_thread":
        await asyncio.to_thread(lambda: client.from_thread.call("add", 1, 2))
    elif way == "stream":
        async with leaving(client.stream("t")) as states:
            await anext(states)
    else:
        await getattr(client, way)("add", 1, 2)


def waiting(gate: Gate) -> Service:
    service = calculator()

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "done"

    return service


# --- where it may be used


@WAYS
async def test_a_client_that_is_not_open_says_so(url: str, way: str) -> None:
    with pytest.raises(UsageError, match="not open"):
        await use(Client(url), way)


@WAYS
async def test_a_closed_client_says_so(client: ClientFactory, way: str) -> None:
    caller = await client()
    await caller.aclose()
    with pytest.raises(UsageError, match="closed"):
        await use(caller, way)


async def test_clients_made_of_a_closed_one_are_closed(client: ClientFactory) -> None:
    caller = await client()
    made = caller.with_options(timeout=1)
    await caller.aclose()
    with pytest.raises(UsageError, match="closed"):
        await made.call("add", 1, 2)


async def test_an_open_client_is_not_opened_again(client: ClientFactory) -> None:
    caller = await client()
    with pytest.raises(UsageError, match="open already"):
        await caller.open()


async def test_a_closed_client_can_be_opened_again(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    await caller.aclose()
    await caller.open()
    assert await caller.call("add", 1, 2) == 3


async def test_closing_twice_is_closing_once(client: ClientFactory) -> None:
    caller = await client()
    await asyncio.gather(caller.aclose(), caller.aclose())
    await caller.aclose()


async def test_closing_a_client_that_was_never_open_does_nothing(url: str) -> None:
    await Client(url).aclose()


@pytest.mark.parametrize("way", ["call", "submit", "cast", "stream", "forget", "statistics"])
async def test_another_event_loop_is_told_to_use_the_bridge(client: ClientFactory, way: str) -> None:
    caller = await client()
    with pytest.raises(UsageError, match="from_thread"):
        await asyncio.to_thread(asyncio.run, use(caller, way))


@pytest.mark.parametrize("way", ["forget", "statistics"])
async def test_a_thread_without_an_event_loop_is_told_to_use_the_bridge(client: ClientFactory, way: str) -> None:
    caller = await client()
    arguments = ("t",) if way == "forget" else ()
    with pytest.raises(UsageError, match="from_thread"):
        await asyncio.to_thread(getattr(caller, way), *arguments)


async def test_the_result_of_a_task_is_not_for_another_event_loop(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    task = await (await client()).submit("wait")
    with pytest.raises(UsageError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, task.result())
    gate.open()
    assert await task == "done"


# --- other threads


async def test_the_bridge_calls_from_another_thread(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()

    def work() -> list[Any]:
        bridge = caller.from_thread
        bridge.cast("add", 1, 1)
        task = bridge.submit("add", 1, b=2)
        return [bridge.call("add", 1, 1), bridge.result(task), bridge.result(task, timeout=1)]

    assert await asyncio.to_thread(work) == [2, 3, 3]


async def test_the_bridge_raises_what_the_call_raises(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = (await client(errors=[ValueError])).with_options(timeout=5)
    with pytest.raises(ValueError, match="boom"):
        await asyncio.to_thread(caller.from_thread.call, "fail", "boom")


async def test_the_bridge_has_the_options_of_its_client(client: ClientFactory, bystander: BystanderFactory) -> None:
    await (await bystander()).serve("silent")
    caller = (await client()).with_options(timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        await asyncio.to_thread(caller.from_thread.call, "silent.method")


async def test_the_bridge_refuses_the_thread_of_the_loop(client: ClientFactory) -> None:
    caller = await client()
    for method in (caller.from_thread.call, caller.from_thread.submit, caller.from_thread.cast):
        with pytest.raises(UsageError, match="other threads"):
            method("add", 1, 2)
    assert caller.statistics().pending == 0


async def test_many_threads_use_one_client(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    results: list[int] = []

    def work(number: int) -> None:
        results.extend(caller.from_thread.call("add", number, step) for step in range(10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(results) == sorted(number + step for number in range(8) for step in range(10))


def test_the_bridge_says_when_the_loop_has_ended() -> None:
    caller = Client("memory://ended")

    async def run() -> None:
        await caller.open()
        await caller.aclose()

    asyncio.run(run())
    with pytest.raises(UsageError, match="not running"):
        caller.from_thread.call("add", 1, 2)


# --- forks

_ROOT = Path(__file__).resolve().parents[2]
_FORKED = """
import asyncio, os, signal, sys, threading, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested

from aiorpcq import Client, Service, UsageError, Worker

service = Service()


@service.method
async def add(a, b):
    return a + b


def in_child(use):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    signal.alarm(10)
    try:
        use()
    except UsageError as error:
        os._exit(0 if "fork" in str(error) else 2)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(3)
    os._exit(1)


def main(url):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    client, worker = Client(url), Worker(url, [service])
    run(worker.start())
    run(client.open())
    ways = {
        "call": lambda: asyncio.run(client.call("add", 1, 2)),
        "submit": lambda: asyncio.run(client.submit("add", 1, 2)),
        "cast": lambda: asyncio.run(client.cast("add", 1, 2)),
        "from_thread": lambda: client.from_thread.call("add", 1, 2),
        "statistics": client.statistics,
    }
    for way, use in ways.items():
        print(way, in_child(use), flush=True)

    def close():
        asyncio.run(client.aclose())
        raise UsageError("closed in the fork")

    print("aclose", in_child(close), flush=True)
    print("parent", run(client.call("add", 1, 2)), flush=True)
    run(client.aclose())
    run(worker.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


main(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_client_opened_before_a_fork_says_so_and_the_parent_goes_on(url: str, tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(_FORKED)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(script), url],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ways = ["call 0", "submit 0", "cast 0", "from_thread 0", "statistics 0", "aclose 0", "parent 3"]
    assert done.stdout.splitlines() == ways, done.stderr
    assert done.returncode == 0, done.stderr


# --- its end


async def test_closing_settles_every_pending_call(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(5)]
    task = await caller.submit("wait")
    await gate.entered(6)
    await caller.aclose()
    for error in await asyncio.gather(*calls, task.result(), return_exceptions=True):
        assert isinstance(error, ConnectionLost)
        assert error.maybe_executed
        assert error.task_id is not None
    gate.open()


async def test_closing_leaves_the_calls_of_other_clients_alone(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    staying, leaving_client = await client(), await client()
    call = asyncio.ensure_future(staying.call("wait"))
    await gate.entered()
    await leaving_client.aclose()
    gate.open()
    assert await call == "done"
    assert await staying.call("add", 1, 2) == 3


async def test_clients_of_one_loop_and_url_share_their_connection(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    first, second = await client(), await client(timeout=5, backlog=7)
    call = asyncio.ensure_future(first.call("wait"))
    await gate.entered()
    assert second.statistics() == first.statistics()
    assert second.statistics().pending == 1
    gate.open()
    await call


async def test_the_last_client_closes_the_connection(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate = Gate()
    serving = await worker(waiting(gate))
    stranger = await bystander()
    first, second = await client(), await client()
    queue = await stranger.reply_queue_of(first)
    assert queue == await stranger.reply_queue_of(second)
    await first.submit("wait")
    await gate.entered()
    await first.aclose()
    await second.aclose()
    await stranger.until_gone(queue)
    gate.open()
    await eventually(lambda: serving.statistics().publisher.returned == 1)  # the reply queue is gone


async def test_a_client_opened_after_the_last_one_has_a_connection_of_its_own(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await worker(calculator())
    stranger = await bystander()
    first = await client()
    before = await stranger.reply_queue_of(first)
    await first.aclose()
    second = await client()
    assert await stranger.reply_queue_of(second) != before


async def test_a_client_may_be_opened_while_the_last_one_closes(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    first = await client()
    second, _ = await asyncio.gather(client(), first.aclose())
    assert await second.call("add", 1, 2) == 3


async def test_an_opening_that_is_cancelled_leaves_nothing_behind(url: str) -> None:
    caller = Client(url)
    opening = asyncio.ensure_future(caller.open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    with pytest.raises(UsageError, match="not open"):
        caller.statistics()


async def test_a_client_that_is_closed_while_it_opens_is_not_open_afterwards(url: str, overview: Overview) -> None:
    caller = Client(url)
    opening = asyncio.ensure_future(caller.open())
    await asyncio.sleep(0)
    await caller.aclose()
    (outcome,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(outcome, ConnectFailed)
    with pytest.raises(UsageError, match="not open"):
        caller.statistics()
    await eventually(lambda: overview.connections() == 0)


async def test_a_client_that_was_closed_while_it_opened_may_be_opened_at_once(
    url: str, worker: WorkerFactory, overview: Overview
) -> None:
    await worker(calculator())
    caller = Client(url)
    opening = asyncio.ensure_future(caller.open())
    await asyncio.sleep(0)
    await caller.aclose()
    async with caller:
        assert await caller.call("add", 1, 2) == 3
        assert [type(error) for error in await asyncio.gather(opening, return_exceptions=True)] == [ConnectFailed]
        assert await caller.call("add", 3, 4) == 7
    await eventually(lambda: overview.connections() == 1)  # the worker's


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_closing_that_is_cancelled_closes_the_connection_all_the_same(
    client: ClientFactory, overview: Overview, turns: int
) -> None:
    caller = await client()
    closing = asyncio.ensure_future(caller.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await caller.aclose()
    await eventually(lambda: overview.connections() == 0)


async def test_a_client_that_is_opened_twice_at_once_is_opened_once(url: str) -> None:
    caller = Client(url)
    outcomes = await asyncio.gather(caller.open(), caller.open(), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "UsageError"]
    await caller.aclose()


# --- what calls leave behind


async def test_a_cancelled_call_leaves_nothing(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert caller.statistics().pending == 0
    gate.open()


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_a_call_cancelled_before_it_is_sent_leaves_nothing(
    client: ClientFactory, worker: WorkerFactory, way: str
) -> None:
    await worker(calculator())
    caller = await client()
    call = asyncio.ensure_future(getattr(caller, way)("add", 1, 2))
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert caller.statistics().pending == 0


async def test_a_thousand_callers_cancelled_at_once_leave_nothing(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate), concurrency=1_000)
    caller = await client()
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(1_000)]
    await gate.entered(1_000)
    for call in calls:
        call.cancel()
    assert {type(error) for error in await asyncio.gather(*calls, return_exceptions=True)} == {asyncio.CancelledError}
    assert caller.statistics().pending == 0
    gate.open()
    await eventually(lambda: caller.statistics().duplicates == 1_000)
    assert (caller.statistics().out_of_band, caller.statistics().parked) == (0, 0)
    assert await caller.call("add", 1, 2) == 3


async def test_a_late_reply_of_a_cancelled_call_is_a_duplicate(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client()
    call = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    gate.open()
    await eventually(lambda: caller.statistics().duplicates == 1)
    assert caller.statistics().out_of_band == 0


async def test_a_late_reply_after_the_deadline_is_a_duplicate(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    service = await stranger.serve("slow")
    caller = await client(timeout=0.05)
    for given in (None, "given"):
        with pytest.raises(DeadlineExceeded):
            await caller.with_options(task_id=given).call("slow.method")
        properties = (await service.next()).properties
        assert properties.reply_to is not None
        assert properties.correlation_id is not None
        await stranger.state(properties.reply_to, properties.correlation_id, "SUCCESS")
    await eventually(lambda: caller.statistics().duplicates == 2)
    assert caller.statistics().out_of_band == 0


async def test_one_call_too_many_is_overloaded(client: ClientFactory, worker: WorkerFactory) -> None:
    gate = Gate()
    await worker(waiting(gate))
    caller = await client(max_pending=2)
    calls = [asyncio.ensure_future(caller.call("wait")) for _ in range(2)]
    await gate.entered(2)
    for way in (caller.call, caller.submit, caller.cast):
        with pytest.raises(Overloaded, match="max_pending") as caught:
            await way("add", 1, 2)
        assert caught.value.retryable
        assert not caught.value.maybe_executed
    gate.open()
    await asyncio.gather(*calls)
    assert await caller.call("add", 1, 2) == 3


async def test_one_stream_of_an_unknown_task_too_many_is_overloaded(client: ClientFactory) -> None:
    caller = await client(max_pending=2)
    readers = [asyncio.ensure_future(anext(caller.stream(f"unknown{number}"))) for number in range(2)]
    await eventually(lambda: caller.statistics().pending == 2)
    with pytest.raises(Overloaded, match="max_pending"):
        await anext(caller.stream("unknown2"))
    assert caller.statistics().pending == 2
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_prefixes_keep_applications_apart(client: ClientFactory, worker: WorkerFactory) -> None:
    for prefix in ("one", "two"):
        service = Service()

        @service.method
        async def name(own: str = prefix) -> str:
            return own

        await worker(service, prefix=prefix)
    for prefix in ("one", "two"):
        assert await (await client(prefix=prefix)).call("name") == prefix
