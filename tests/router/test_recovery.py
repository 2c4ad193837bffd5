"""What is sent again, and what keeps one call's trouble from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from random import Random
from uuid import uuid4

import pytest

from aiorpcq.errors import ConnectionLost, RPCError
from aiorpcq.protocol import claims
from aiorpcq.protocol.calls import Call, Sending
from aiorpcq.protocol.control import Answer
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Names, Queue
from aiorpcq.router.recovery import Recovery
from aiorpcq.session import Route
from aiorpcq.transports.base import Link
from aiorpcq.transports.memory import MemoryLink, MemoryTransport

_MAX_SIZE = 100


class Bench:
    """A recovery on a link of its own, and what became of its requests and calls."""

    def __init__(self) -> None:
        self.settled: asyncio.Queue[tuple[str | None, Outcome]] = asyncio.Queue()
        self.failed: list[tuple[Call, RPCError]] = []
        loop = asyncio.get_running_loop()
        self.recovery = Recovery(Names(), "client", {}, self._on_settled, self._on_failed, loop, Random(1))

    def _on_settled(self, publication: Publication, outcome: Outcome) -> None:
        self.settled.put_nowait((publication.properties.correlation_id, outcome))

    def _on_failed(self, call: Call, error: RPCError) -> None:
        self.failed.append((call, error))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    built = Bench()
    yield built
    await built.recovery.close()


@pytest.fixture
async def link() -> AsyncIterator[MemoryLink]:
    made = await MemoryTransport(f"memory://{uuid4().hex}", max_size=_MAX_SIZE).connect(1)
    await made.declare(Queue("q"))
    yield made
    await made.close()


def lost_call(task_id: str, size: int, origin: str | None = "former") -> Call:
    """A call whose request may have been lost; it can be published again, if it is not too large."""
    call = Call(task_id, None, None)
    call.origin, call.sending = origin, Sending.LOST
    call.publication = Publication("", "q", Properties(type="add", correlation_id=task_id), b"x" * size)
    return call


@pytest.mark.parametrize("origin", ["former", None])
async def test_a_request_that_cannot_be_sent_again_does_not_keep_the_others(
    bench: Bench, link: MemoryLink, caplog: pytest.LogCaptureFixture, origin: str | None
) -> None:
    calls = [lost_call("first", _MAX_SIZE + 1, origin), lost_call("second", 1, origin)]
    with caplog.at_level(logging.CRITICAL, "aiorpcq.client"):
        for call in calls:
            bench.recovery.repeat(call)
        bench.recovery.connected(link, "present", "present")
        async with asyncio.timeout(2):
            assert await bench.settled.get() == ("second", Outcome.CONFIRMED)
    assert bench.recovery.republished == 1
    if origin is None:  # nothing else can end it
        ((call, error),) = bench.failed
        assert call is calls[0]
        assert isinstance(error, ConnectionLost)
        assert error.maybe_executed
    else:
        assert bench.failed == []


async def test_an_answer_that_comes_while_the_queues_for_delays_are_looked_at_keeps_its_call(
    bench: Bench, link: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are a dozen of them to be looked at, one after the other."""
    recovery, looks = bench.recovery, asyncio.Queue[None]()
    call = Call("t", None, None)
    call.origin, call.sending = "former", Sending.CONFIRMED
    call.route = Route("rpc:odd", "one", "odd", idempotent=False)

    async def look(_: Link) -> bool:
        looks.put_nowait(None)
        recovery.on_held(Answer("held", "client-held", "worker", ["t"]))
        return False

    monkeypatch.setattr(recovery, "_any_delayed", look)
    monkeypatch.setattr(claims, "_DELAYS", (0.001,))
    recovery.patience = 0.0
    recovery.claim(call)
    recovery.connected(link, "present", "present")
    async with asyncio.timeout(30):
        for _ in range(2):
            await looks.get()
    assert bench.failed == []
