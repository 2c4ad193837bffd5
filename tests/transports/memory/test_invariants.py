"""No message is lost or doubled, whatever happens."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.errors import ConnectionLost
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryBroker, MemoryLink, MemoryTransport, memory_broker

from .traffic import CONFIRMED, DEAD, bodies, connected, dead_lettering, idle, publish_all

# A step is what happens to the system between two looks at it; numbers pick among what is there.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["ack", "requeue", "reject"]), st.integers(0, 50)),
        st.tuples(st.sampled_from(["drop publisher", "drop consumer", "run", "block", "unblock"]), st.just(0)),
    ),
    max_size=60,
)


class System:
    """A publisher and a consumer with a prefetch on one queue, and what became of every message."""

    def __init__(self, broker: MemoryBroker, prefetch: int) -> None:
        self.broker = broker
        self.prefetch = prefetch
        self.count = 0
        self.outcomes: dict[bytes, list[Outcome]] = {}
        self.held: list[Delivery] = []
        self.seen: list[tuple[bytes, bool]] = []
        self.acked: list[bytes] = []
        self.rejected: list[bytes] = []

    async def start(self) -> None:
        self.publisher = await self._connect()
        await self.publisher.declare(dead_lettering(), DEAD)
        await self._consume()

    async def step(self, action: str, number: int) -> None:
        match action:
            case "publish":
                for _ in range(number):
                    self._publish()
            case "ack" | "requeue" | "reject" if self.held:
                self._settle(action, self.held.pop(number % len(self.held)))
            case "drop publisher":
                self.publisher.lose(ConnectionLost("dropped"))
                self.publisher = await self._connect()
            case "drop consumer":
                self.consumer.lose(ConnectionLost("dropped"))
                self.held.clear()
                await self._consume()
            case "run":
                await idle()
            case "block":
                self.broker.block()
            case "unblock":
                self.broker.unblock()

    async def finish(self) -> tuple[list[bytes], list[bytes]]:
        """Return what is left in the queue, and its dead letters."""
        self.broker.unblock()
        await idle()
        self.broker.drop_links()
        await idle()
        async with connected(self.broker) as link:
            return await bodies(link, "work"), await bodies(link, "dead")

    async def _connect(self) -> MemoryLink:
        return await MemoryTransport(f"memory://{self.broker.name}").connect(1)

    async def _consume(self) -> None:
        self.consumer = await self._connect()
        await self.consumer.consume("work", self._receive, prefetch=self.prefetch)

    def _publish(self) -> None:
        self.count += 1
        body = b"%06d" % self.count
        outcomes = self.outcomes[body] = []
        settled = Publication("", "work", Properties(), body, True, lambda _p, outcome: outcomes.append(outcome))
        self.publisher.publish(settled)

    def _receive(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self.seen.append((delivery.body, delivery.redelivered))
        assert not self.prefetch or len(self.held) <= self.prefetch

    def _settle(self, action: str, delivery: Delivery) -> None:
        if action == "ack":
            self.acked.append(delivery.body)
            delivery.ack()
        elif action == "reject":
            self.rejected.append(delivery.body)
            delivery.nack(requeue=False)
        else:
            delivery.nack(requeue=True)


@given(steps=STEPS, prefetch=st.integers(0, 4))
def test_no_message_is_lost_or_doubled_whatever_happens(steps: list[tuple[str, int]], prefetch: int) -> None:
    async def play() -> None:
        system = System(memory_broker("invariant"), prefetch)
        await system.start()
        for action, number in steps:
            await system.step(action, number)
        left, dead = await system.finish()
        assert all(len(outcomes) == 1 for outcomes in system.outcomes.values())
        confirmed = [body for body, [outcome] in system.outcomes.items() if outcome is CONFIRMED]
        assert sorted(system.acked + dead + left) == confirmed
        assert sorted(dead) == sorted(system.rejected)
        assert left == sorted(left)
        first_time = [body for body, redelivered in system.seen if not redelivered]
        assert first_time == sorted(set(first_time))
        assert system.broker.statistics().dropped == 0

    asyncio.run(play())


@given(
    publishers=st.lists(st.lists(st.integers(0, 1), max_size=20), min_size=1, max_size=3),
    limit=st.integers(1, 5),
    refuse=st.booleans(),
)
def test_a_queue_never_holds_more_than_its_limit_and_accounts_for_the_rest(
    publishers: list[list[int]], limit: int, refuse: bool
) -> None:
    async def play() -> None:
        overflow = "reject-publish" if refuse else "drop-head"
        async with connected(memory_broker("invariant")) as link:
            await link.declare(DEAD, dead_lettering(x_max_length=limit, x_overflow=overflow))
            outcomes: list[Outcome] = []
            for burst in publishers:
                outcomes += await publish_all(link, "work", *[b"x"] * len(burst))
                await idle()
                assert memory_broker("invariant").queue_depth("work") <= limit
            taken = outcomes.count(CONFIRMED)
            assert refuse or taken == len(outcomes)
            assert len(await bodies(link, "work")) + len(await bodies(link, "dead")) == taken

    asyncio.run(play())
