"""The supervisor of a link: what it does when connecting fails, and when it is closed on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from uuid import uuid4

import pytest

from aiorpcq.errors import ConnectFailed, ConnectionLost, RPCError, TopologyMismatch
from aiorpcq.transports.base import Link
from aiorpcq.transports.memory import MemoryTransport
from aiorpcq.transports.supervisor import STABLE_AFTER, Supervisor

_PATIENCE = 10.0

logger = logging.getLogger("aiorpcq.client")


class Failing:
    """Connects to a broker in the process, once it has raised what it was given."""

    def __init__(self, tried: list[str] | None = None) -> None:
        self._transport = MemoryTransport(f"memory://{uuid4().hex}")
        self.address = self._transport.address
        self.broker = self._transport.broker
        self.failures: list[Exception] = []
        self._tried = tried

    async def connect(self, timeout: float) -> Link:
        if self._tried is not None:
            self._tried.append(self.address)
        if self.failures:
            raise self.failures.pop()
        return await self._transport.connect(timeout)


class Chance(Random):
    """Chooses the shortest of the times to wait, and keeps the longest; the same order every time."""

    def __init__(self) -> None:
        super().__init__(7)
        self.longest: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        self.longest.append(high)
        return low


class Bench:
    """A supervisor, and what became of its links."""

    def __init__(self, chance: Chance, addresses: int = 1) -> None:
        self.chance = chance
        self.tried: list[str] = []
        self.transports = [Failing(self.tried) for _ in range(addresses)]
        self.transport = self.transports[0]
        self.lost: list[RPCError] = []
        self.time = 0.0
        self.generations: list[int] = []
        self.setups: list[Callable[[Link], None]] = []
        self.raises: Exception | None = None
        self.supervisor = Supervisor(
            self.transports, self._setup, self._on_lost, logger, random=chance, now=lambda: self.time
        )

    async def _setup(self, link: Link, generation: int) -> None:
        self.generations.append(generation)
        if self.setups:
            self.setups.pop()(link)

    def _on_lost(self, error: RPCError) -> None:
        self.lost.append(error)
        if self.raises is not None:
            raise self.raises

    async def lose(self) -> None:
        """Take the link away, and wait for the next."""
        self.lost.clear()
        for transport in self.transports:
            transport.broker.drop_links()
        await self.next_link()

    async def next_link(self) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not self.lost:  # noqa: ASYNC110 - it takes some turns of the loop, and nothing tells
                await asyncio.sleep(0)
            await self.supervisor.wait_link()

    @property
    def links(self) -> int:
        return sum(transport.broker.statistics().links for transport in self.transports)

    def numbers(self) -> list[int]:
        """Which addresses were tried since it was last asked, in order."""
        tried, self.tried[:] = list(self.tried), []
        addresses = [transport.address for transport in self.transports]
        return [addresses.index(address) for address in tried]


@pytest.fixture
def chance() -> Chance:
    return Chance()


@asynccontextmanager
async def supervised(chance: Chance, addresses: int = 1) -> AsyncIterator[Bench]:
    built = Bench(chance, addresses)
    try:
        yield built
    finally:
        await built.supervisor.close()


@pytest.fixture
async def bench(chance: Chance) -> AsyncIterator[Bench]:
    async with supervised(chance) as built:
        yield built


@pytest.fixture
async def three(chance: Chance) -> AsyncIterator[Bench]:
    async with supervised(chance, 3) as built:
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


async def test_a_link_that_is_lost_soon_after_its_setup_does_not_begin_the_backoff_anew(
    bench: Bench, chance: Chance
) -> None:
    await bench.supervisor.start()
    for _ in range(4):
        bench.time += STABLE_AFTER - 0.5
        await bench.lose()
    assert chance.longest == [0.1, 0.2, 0.4, 0.8]
    bench.time += STABLE_AFTER
    await bench.lose()
    assert chance.longest[4:] == [0.1]


async def test_it_goes_on_after_an_exception_of_what_the_loss_calls_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.supervisor.start()
    bench.raises = KeyError("of the owner")
    await bench.lose()
    assert "of the owner" in caplog.text
    assert bench.generations == [1, 2]
    assert bench.links == 1


# --- several addresses


async def test_it_starts_at_the_first_address_that_answers(three: Bench) -> None:
    three.transports[0].failures = [ConnectFailed("refused")]
    await three.supervisor.start()
    assert three.numbers() == [0, 1]
    assert three.supervisor.address == three.transports[1].address


async def test_a_failed_start_names_every_address_and_its_reason(three: Bench) -> None:
    for number, transport in enumerate(three.transports):
        transport.failures = [ConnectFailed(f"reason {number}")]
    with pytest.raises(ConnectFailed) as caught:
        await three.supervisor.start()
    text = str(caught.value)
    for number, transport in enumerate(three.transports):
        assert f"{transport.address}: reason {number}" in text
    assert three.numbers() == [0, 1, 2]


@pytest.mark.parametrize("addresses", [1, 3])
async def test_a_topology_mismatch_everywhere_is_one_at_start(chance: Chance, addresses: int) -> None:
    def mismatch(_link: Link) -> None:
        raise TopologyMismatch("queue 'q' exists with another x-max-length")

    async with supervised(chance, addresses) as bench:
        bench.setups = [mismatch] * addresses
        with pytest.raises(TopologyMismatch, match="x-max-length"):
            await bench.supervisor.start()
        assert bench.links == 0


async def test_failures_of_different_kinds_are_a_connect_failed(three: Bench) -> None:
    for transport in three.transports:
        transport.failures = [ConnectFailed("refused")]
    three.transports[1].failures = [TopologyMismatch("another")]
    with pytest.raises(ConnectFailed) as caught:
        await three.supervisor.start()
    assert type(caught.value) is ConnectFailed


async def test_the_lost_address_is_tried_last_and_it_waits_between_rounds_only(three: Bench) -> None:
    await three.supervisor.start()
    assert three.numbers() == [0]
    for transport in three.transports:
        transport.failures = [ConnectFailed("refused") for _ in range(2)]
    three.transports[0].failures.pop()
    await three.lose()
    tried = three.numbers()
    assert sorted(tried[:2]) == [1, 2]
    assert tried[2] == 0  # refused once
    assert sorted(tried[3:5]) == [1, 2]
    assert tried[5:] == [0]
    assert three.chance.longest == [0.1, 0.2]
    assert three.supervisor.address == three.transports[0].address


async def test_the_others_are_tried_in_an_order_of_chance(chance: Chance) -> None:
    async with supervised(chance, 5) as bench:
        await bench.supervisor.start()
        bench.numbers()
        for transport in bench.transports:
            transport.failures = [ConnectFailed("refused") for _ in range(20)]
        await bench.lose()
        tried = bench.numbers()
    rounds = [tuple(tried[at : at + 5]) for at in range(0, 100, 5)]
    assert {each[-1] for each in rounds} == {0}
    assert len(set(rounds)) > 5


# --- giving up a link


async def test_a_reset_goes_on_to_the_next_generation_with_its_reason(bench: Bench) -> None:
    await bench.supervisor.start()
    former = bench.supervisor.link
    assert former is not None
    reason = ConnectionLost("of no use")
    bench.supervisor.reset(reason)
    assert bench.supervisor.link is None
    bench.supervisor.reset(ConnectionLost("again"))
    await bench.next_link()
    assert bench.lost == [reason]
    assert former.lost.done()
    assert bench.supervisor.link is not former
    assert bench.generations == [1, 2]
    assert bench.links == 1


async def test_a_reset_without_a_link_does_nothing(bench: Bench) -> None:
    bench.supervisor.reset(ConnectionLost("too early"))
    await bench.supervisor.start()
    assert bench.supervisor.link is not None
    await bench.supervisor.close()
    bench.supervisor.reset(ConnectionLost("too late"))
    assert bench.lost == []


async def test_a_close_right_after_a_reset_closes_the_link(bench: Bench) -> None:
    await bench.supervisor.start()
    bench.supervisor.reset(ConnectionLost("of no use"))
    await bench.supervisor.close()
    assert bench.links == 0


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


async def test_a_link_whose_setup_failed_is_closed_before_the_supervisor_is(bench: Bench) -> None:
    await bench.supervisor.start()
    closing, go_on, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def fail(link: Link) -> None:
        close = link.close

        async def close_slowly() -> None:
            closing.set()
            await go_on.wait()
            await close()
            closed.set()

        slow: list[asyncio.Task[None]] = []

        async def close_once() -> None:
            """Go on where the caller is cancelled, as a link does."""
            if not slow:
                slow.append(asyncio.ensure_future(close_slowly()))
            await asyncio.shield(slow[0])

        link.close = close_once  # type: ignore[method-assign]
        raise ConnectFailed("not like this")

    bench.setups = [fail]
    bench.transport.broker.drop_links()
    await asyncio.wait_for(closing.wait(), _PATIENCE)
    ending = asyncio.ensure_future(bench.supervisor.close())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ending.done()
    go_on.set()
    await asyncio.wait_for(ending, _PATIENCE)
    assert (closed.is_set(), bench.links) == (True, 0)
