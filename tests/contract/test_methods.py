"""How methods run: plain ones in threads, asynchronous ones side by side, both within their bounds."""

from __future__ import annotations

import asyncio
import threading

from aiorpcq import Client, Context, Service

from .parties import PATIENCE, ClientFactory, Gate, WorkerFactory, calculator, leaving


class Gauge:
    """How many are inside, and how many there were at the most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.highest = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.highest = max(self.highest, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


async def test_a_plain_method_runs_in_a_thread(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    def thread() -> int:
        return threading.get_ident()

    await worker(service)
    assert await (await client()).call("thread") != threading.get_ident()


async def test_an_asynchronous_method_runs_in_the_event_loop(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def thread() -> int:
        return threading.get_ident()

    await worker(service)
    assert await (await client()).call("thread") == threading.get_ident()


async def test_an_object_with_an_asynchronous_call_is_a_method(client: ClientFactory, worker: WorkerFactory) -> None:
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    service = Service()
    service.method(name="add")(Adder())
    await worker(service)
    assert await (await client()).call("add", 1, 2) == 3


async def test_as_many_plain_methods_run_at_once_as_there_are_threads(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service, gauge = Service(), Gauge()
    pair = threading.Barrier(2, timeout=PATIENCE)

    @service.method
    def meet() -> None:
        with gauge:
            pair.wait()

    await worker(service, threads=2)
    caller = await client()
    await asyncio.gather(*(caller.call("meet") for _ in range(10)))
    assert gauge.highest == 2


async def test_the_threads_of_all_services_are_counted_together(client: ClientFactory, worker: WorkerFactory) -> None:
    services, gauge = [Service("a"), Service("b")], Gauge()

    def work() -> None:
        with gauge:
            pass

    for service in services:
        service.method(work)
    await worker(*services, threads=1)
    caller = await client()
    await asyncio.gather(*(caller.call(f"{name}.work") for name in "ab" for _ in range(10)))
    assert gauge.highest == 1


async def test_a_thread_past_its_deadline_keeps_its_place_until_it_ends(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service, gauge, held = Service(), Gauge(), threading.Event()

    @service.method
    def hold() -> None:
        with gauge:
            held.wait(PATIENCE)

    @service.method
    def quick() -> str:
        with gauge:
            return "done"

    @service.method
    async def idle() -> None:
        pass

    await worker(service, threads=1)
    caller = await client()
    try:
        overdue = await asyncio.gather(caller.with_options(timeout=0.1).call("hold"), return_exceptions=True)
        assert isinstance(overdue[0], TimeoutError)
        second = asyncio.ensure_future(caller.call("quick"))
        for _ in range(50):  # time enough for a free thread
            await caller.call("idle")
        assert not second.done()
    finally:
        held.set()
    assert await second == "done"
    assert gauge.highest == 1


async def test_asynchronous_methods_run_side_by_side(client: ClientFactory, worker: WorkerFactory) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> None:
        await gate.wait()

    await worker(service)
    caller = await client()
    calls = asyncio.gather(*(caller.call("wait") for _ in range(20)))
    await gate.entered(20)
    gate.open()
    await calls


async def test_concurrency_bounds_what_runs_at_once(client: ClientFactory, worker: WorkerFactory) -> None:
    service, gauge = Service(), Gauge()

    @service.method
    async def work() -> None:
        with gauge:
            for _ in range(5):
                await asyncio.sleep(0)

    await worker(service, concurrency=3)
    caller = await client()
    await asyncio.gather(*(caller.call("work") for _ in range(50)))
    assert gauge.highest == 3


async def test_a_slow_call_holds_up_no_other(client: ClientFactory, worker: WorkerFactory) -> None:
    service, gate = calculator(), Gate()

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "last"

    await worker(service)
    caller = await client()
    slow = asyncio.ensure_future(caller.call("wait"))
    await gate.entered()
    assert await caller.call("add", 1, 2) == 3
    gate.open()
    assert await slow == "last"


async def test_two_workers_of_one_service_share_its_calls(client: ClientFactory, worker: WorkerFactory) -> None:
    gate, served = Gate(), []

    def service(name: str) -> Service:
        offered = Service()

        @offered.method
        async def who() -> str:
            served.append(name)
            await gate.wait()
            return name

        return offered

    await worker(service("first"), concurrency=1)
    await worker(service("second"), concurrency=1)
    caller = await client()
    calls = asyncio.gather(*(caller.call("who") for _ in range(2)))
    await gate.entered(2)
    gate.open()
    assert sorted(await calls) == ["first", "second"]


async def test_a_plain_method_reports_progress_from_its_thread(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    def resize(ctx: Context) -> str:
        ctx.progress_from_thread(1)
        ctx.update_state_from_thread("CROPPED", 2)
        return "done"

    await worker(service)
    caller = await client()
    task = await caller.submit("resize")
    async with leaving(task.stream()) as states:
        seen = [(state.name, state.value) async for state in states if state.name not in ("RECEIVED", "STARTED")]
    assert seen == [("PROGRESS", 1), ("CROPPED", 2), ("SUCCESS", "done")]


async def test_a_plain_method_calls_others_through_the_bridge(
    client: ClientFactory, worker: WorkerFactory, url: str
) -> None:
    service = calculator()
    inner = Client(url)

    @service.method
    def double(value: int) -> int:
        result: int = inner.from_thread.call("add", value, value)
        return result

    async with inner:
        await worker(service)
        assert await (await client()).call("double", 21) == 42


async def test_many_calls_at_once_get_their_own_answers(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    answers = await asyncio.gather(*(caller.call("add", number, number) for number in range(2_000)))
    assert answers == [2 * number for number in range(2_000)]
