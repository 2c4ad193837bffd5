"""Many at once: what is promised of one call and one task holds for all of them."""

from __future__ import annotations

import asyncio

from aiorpcq import Context, Service

from .parties import ClientFactory, WorkerFactory, calculator

_CALLS = 100_000
_CONCURRENCY = 512
_TASKS = 10_000
_STEPS = 3


async def test_a_hundred_thousand_calls_get_their_own_answer_each(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client(timeout=120)
    numbers = iter(range(_CALLS))

    async def call() -> int:
        right = 0
        for number in numbers:
            right += await caller.call("add", number, 1) == number + 1
        return right

    assert sum(await asyncio.gather(*(call() for _ in range(_CONCURRENCY)))) == _CALLS
    statistics = caller.statistics()
    assert (statistics.pending, statistics.duplicates, statistics.parked) == (0, 0, 0)


async def test_ten_thousand_streams_show_every_state_of_their_task_once_and_in_order(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def steps(ctx: Context, number: int) -> int:
        for step in range(_STEPS):
            await ctx.progress([number, step])
        return number

    await worker(service)
    caller = await client(timeout=120)
    expected = ["RECEIVED", "STARTED", *["PROGRESS"] * _STEPS, "SUCCESS"]

    async def submit_and_stream(number: int) -> bool:
        task = await caller.submit("steps", number)
        states = [state async for state in caller.stream(task.id)]
        return (
            [state.name for state in states] == expected
            and [state.value for state in states[2:-1]] == [[number, step] for step in range(_STEPS)]
            and states[-1].value == number
        )

    async with asyncio.timeout(120):
        assert all(await asyncio.gather(*(submit_and_stream(number) for number in range(_TASKS))))
