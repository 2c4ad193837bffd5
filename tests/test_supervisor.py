"""The supervisor of a link: what it does when connecting fails, and when it is closed on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from aiorpcq.errors import ConnectFailed, ConnectionLost, RPCError
from aiorpcq.transports import supervisor as module
from aiorpcq.transports.base import Link
from aiorpcq.transports.memory import MemoryTransport
from aiorpcq.transports.supervisor import Supervisor

_PATIENCE = 10.0

logger = logging.getLogger("aiorpcq.client")


class Failing:
    """Connects to a broker in the process, once it has raised what it was given."""

    def __init__(self) -> None:
        self._transport = MemoryTransport(f"memory://{uuid4().hex}")
        self.address = self._transport.address
        self.broker = self._transport.broker
        self.failures: list[Exception] = []

    async def connect(self, timeout: float) -> Link:
        if self.failures:
            raise self.failures.pop()
        return await self._transport.connect(timeout)


class Chance:
    """Chooses the shortest of the times to wait, and keeps the longest."""

    def __init__(self) -> None:
        self.longest: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        self.longest.append(high)
        return low


class Bench:
    """A supervisor, and what became of its links."""

    def __init__(self) -> None:
        self.transport = Failing()
        self.lost: list[RPCError] = []
        self.generations: list[int] = []
        self.setups: list[Callable[[Link], None]] = []
        self.supervisor = Supervisor(self.transport, self._setup, self.lost.append, logger)

    async def _setup(self, link: Link, generation: int) -> None:
        self.generations.append(generation)
        if self.setups:
            self.setups.pop()(link)

    async def lose(self) -> None:
        """Take the link away, and wait for the next."""
        self.transport.broker.drop_links()
        async with asyncio.timeout(_PATIENCE):
            while not self.lost:  # noqa: ASYNC110 - it takes some turns of the loop, and nothing tells
                await asyncio.sleep(0)
            await self.supervisor.wait_link()

    @property
    def links(self) -> int:
        return self.transport.broker.statistics().links


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> Chance:
    fixed = Chance()
    monkeypatch.setattr(module, "_random", fixed)
    return fixed


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        built = Bench()
        stack.push_async_callback(built.supervisor.close)
        yield built


# --- after a loss


async def test_it_waits_twice_as_long_after_each_failure_up_to_a_limit(bench: Bench, chance: Chance) -> None:
    await bench.supervisor.start()
    bench.transport.failures = [ConnectFailed("refused") for _ in range(9)]
    await bench.lose()
    assert chance.longest == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    assert bench.generations == [1, 2]


async def test_it_goes_on_after_any_number_of_failures(
    bench: Bench, chance: Chance, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.supervisor.start()
    bench.transport.failures = [ConnectFailed("refused") for _ in range(2_000)]
    with caplog.at_level(logging.CRITICAL, logger.name):
        await bench.lose()
    assert len(chance.longest) == 2_001
    assert set(chance.longest[7:]) == {10.0}
    assert bench.links == 1


async def test_it_goes_on_after_an_exception_that_nobody_foresaw(
    bench: Bench, chance: Chance, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.supervisor.start()
    bench.transport.failures = [ZeroDivisionError("of the transport"), ConnectFailed("refused")]
    await bench.lose()
    assert len(chance.longest) == 3
    (unforeseen,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert unforeseen.exc_info is not None
    assert "of the transport" in caplog.text


async def test_it_goes_on_after_an_exception_of_the_setup_and_leaves_no_link_of_it(
    bench: Bench, chance: Chance
) -> None:
    def fail(_link: Link) -> None:
        raise KeyError("of the setup")

    await bench.supervisor.start()
    bench.setups = [fail, fail]
    await bench.lose()
    assert bench.generations == [1, 2, 3, 4]
    assert bench.links == 1


# --- closing


async def test_a_start_that_is_overtaken_by_a_close_fails_and_leaves_no_link(bench: Bench) -> None:
    starting = asyncio.ensure_future(bench.supervisor.start())
    await asyncio.sleep(0)  # it connects
    await bench.supervisor.close()
    with pytest.raises(ConnectFailed, match="closed"):
        await starting
    assert bench.supervisor.link is None
    assert bench.links == 0


async def test_a_close_while_it_connects_again_leaves_no_link(bench: Bench, chance: Chance) -> None:
    setting_up = asyncio.Event()
    await bench.supervisor.start()
    bench.setups = [lambda _link: setting_up.set()]
    bench.transport.broker.drop_links()
    async with asyncio.timeout(_PATIENCE):
        await setting_up.wait()
    await bench.supervisor.close()
    assert bench.links == 0
    with pytest.raises(ConnectionLost, match="closed"):
        await bench.supervisor.wait_link()
