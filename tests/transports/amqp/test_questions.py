"""What a link asks on its control channel while the broker does not answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from aiorpcq.errors import ConnectionLost
from aiorpcq.transports.amqp.link import AMQPLink
from aiorpcq.transports.base import QueueStatus
from tests.contract.parties import eventually

_MAX_SIZE = 1 << 20


class Control:
    """A control channel whose broker answers as soon as `gate` is set."""

    is_closed = False

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = 0

    async def queue_declare(self, queue: str, *, passive: bool) -> SimpleNamespace:
        assert (queue, passive) == ("q", True)
        self.asked += 1
        await self.gate.wait()
        return SimpleNamespace(message_count=2, consumer_count=1)


@pytest.fixture
async def control() -> Control:
    return Control()


@pytest.fixture
async def link(control: Control) -> AMQPLink:
    made = AMQPLink("amqp://localhost:5672/", _MAX_SIZE)
    made._make_protocol(asyncio.StreamReader())
    made._control = control  # type: ignore[assignment]
    return made


def block(link: AMQPLink, *, blocked: bool = True) -> None:
    assert link._protocol is not None
    link._protocol.blocked = blocked


async def test_questions_whose_askers_have_gone_are_not_asked(control: Control, link: AMQPLink) -> None:
    asking = [asyncio.ensure_future(link.inspect("q")) for _ in range(100)]
    await eventually(lambda: control.asked == 1)
    for question in asking:
        question.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(link._operations) == 2  # the first question, and who waits for its answer
    control.gate.set()
    assert await link.inspect("q") == QueueStatus(2, 1)
    await eventually(lambda: not link._operations)
    assert control.asked == 2


async def test_a_broker_that_does_not_answer_loses_the_link_although_who_asked_has_gone(
    control: Control, link: AMQPLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiorpcq.transports.amqp.link._OPERATION_TIMEOUT", 0.01)
    first, second = (asyncio.ensure_future(link.inspect("q")) for _ in range(2))
    await eventually(lambda: control.asked == 1)
    first.cancel()
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(second, 10)
    assert (control.asked, link.lost.done()) == (1, True)


async def test_a_broker_that_has_blocked_the_connection_may_take_its_time(
    control: Control, link: AMQPLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiorpcq.transports.amqp.link._OPERATION_TIMEOUT", 0.01)
    block(link)
    asking = asyncio.ensure_future(link.inspect("q"))
    await asyncio.wait((asking,), timeout=0.05)
    assert not link.lost.done()
    control.gate.set()
    assert await asking == QueueStatus(2, 1)


async def test_a_broker_that_does_not_answer_loses_the_link_and_all_who_wait_their_turn(
    control: Control, link: AMQPLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiorpcq.transports.amqp.link._OPERATION_TIMEOUT", 0.01)
    asking = [asyncio.ensure_future(link.inspect("q")) for _ in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
    assert (control.asked, link.lost.done()) == (1, True)
