"""The publisher of a worker's states, on a link of the broker in the process."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits, Codecs
from aiorpcq.errors import DeadlineExceeded, Overloaded
from aiorpcq.executionstates import ExecutionStates
from aiorpcq.protocol.executions import ExecutionTable, Verdict
from aiorpcq.protocol.messages import Request
from aiorpcq.protocol.topology import Queue
from aiorpcq.publisher import ResultPublisher
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryTransport

_REPLIES = "replies"


async def test_a_state_that_waits_while_the_broker_blocks_is_not_sent_once_the_task_has_ended() -> None:
    transport = MemoryTransport(f"memory://{uuid4().hex}")
    link = await transport.connect(10)
    sent: list[str | None] = []
    idle = asyncio.Event()
    table = ExecutionTable(CacheLimits())
    publisher = ResultPublisher(table, Codecs(), 1 << 20, "worker", asyncio.get_running_loop(), idle.set)
    publisher.link = link
    requests: list[Delivery] = []
    await link.declare(Queue("requests"), Queue(_REPLIES))
    await link.consume("requests", requests.append)
    await link.consume(_REPLIES, lambda delivery: sent.append(delivery.properties.type), no_ack=True)

    request = Request("t", "method", b"", "application/msgpack", None, _REPLIES, states=True)
    _, execution = table.begin(request, _Settled(), None, 0.0)
    states = ExecutionStates(publisher, execution, asyncio.get_running_loop())
    await states.update("PROGRESS", 1)
    transport.broker.block()
    late = asyncio.ensure_future(states.update("PROGRESS", 2))
    await asyncio.sleep(0)
    publisher.refuse(execution, DeadlineExceeded("too late"))
    transport.broker.unblock()
    await late
    await idle.wait()
    assert sent == ["PROGRESS", "FAILURE"]
    assert publisher.statistics().updates == 1
    await link.close()


@pytest.mark.parametrize("moves", [True, False])
async def test_a_state_that_comes_back_is_sent_to_where_its_caller_has_moved_meanwhile(moves: bool) -> None:
    link = await MemoryTransport(f"memory://{uuid4().hex}").connect(10)
    idle, sent, delivery = asyncio.Event(), list[Delivery](), _Settled()
    table = ExecutionTable(CacheLimits())
    publisher = ResultPublisher(table, Codecs(), 1 << 20, "worker", asyncio.get_running_loop(), idle.set)
    publisher.link = link
    await link.declare(Queue(_REPLIES))
    await link.consume(_REPLIES, sent.append, no_ack=True)
    _, execution = table.begin(Request("t", "method", b"", "", None, "gone"), delivery, None, 0.0)
    publisher.succeed(execution, 5)
    if moves:
        table.move("gone", _REPLIES, 60.0, 0.0)
    await idle.wait()
    await asyncio.sleep(0)
    statistics = publisher.statistics()
    assert (statistics.moved, statistics.returned, statistics.succeeded) == ((1, 0, 1) if moves else (0, 1, 1))
    assert ([state.properties.correlation_id for state in sent], delivery.acks) == (["t"] if moves else [], 1)
    assert (table.running, len(table.cache)) == ({}, 1)
    await link.close()


@pytest.mark.parametrize("raised", [True, False])
async def test_a_request_without_part_in_the_table_is_answered_and_then_acknowledged(raised: bool) -> None:
    link = await MemoryTransport(f"memory://{uuid4().hex}").connect(10)
    sent, delivery, codecs = asyncio.Queue[Delivery](), _Settled(), Codecs()
    table = ExecutionTable(CacheLimits())
    idle = asyncio.Event()
    publisher = ResultPublisher(table, codecs, 1 << 20, "worker", asyncio.get_running_loop(), idle.set)
    publisher.link = link
    await link.declare(Queue(_REPLIES))
    await link.consume(_REPLIES, sent.put_nowait, no_ack=True)
    _, execution = table.begin(Request("t", "method", b"", "", None, _REPLIES), delivery, None, 0.0)
    table.abandon(execution)
    publisher.reject(execution, ValueError("boom") if raised else Overloaded("full"), raised=raised)
    assert (delivery.acks, publisher.unconfirmed) == (0, 1)
    answer = await sent.get()
    said = codecs.decode(answer.body, answer.properties.content_type, None)
    assert (said["error"], said.get("type"), said["message"]) == (
        ("RemoteError", "ValueError", "boom") if raised else ("Overloaded", None, "full")
    )
    await idle.wait()
    assert (delivery.acks, publisher.unconfirmed, publisher.statistics().failed) == (1, 0, 1)
    await link.close()


async def test_a_cast_without_part_in_the_table_is_acknowledged_and_its_failure_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = await MemoryTransport(f"memory://{uuid4().hex}").connect(10)
    delivery, table = _Settled(), ExecutionTable(CacheLimits())
    publisher = ResultPublisher(table, Codecs(), 1 << 20, "worker", asyncio.get_running_loop(), lambda: None)
    _, execution = table.begin(Request("t", "method", b"", ""), delivery, None, 0.0)
    publisher.reject(execution, Overloaded("full"))
    assert delivery.acks == 0  # without a link: the broker delivers it again
    publisher.link = link
    publisher.reject(execution, Overloaded("full"))
    assert (delivery.acks, "method method failed in a cast: Overloaded: full" in caplog.text) == (1, True)
    await link.close()


@pytest.mark.parametrize("linked", [True, False])
async def test_a_refusal_that_is_lost_is_not_repeated_as_if_nobody_could_have_run_it(linked: bool) -> None:
    """The broker gives the request to any worker, and a later attempt of it may come back here."""
    transport, codecs, table = MemoryTransport(f"memory://{uuid4().hex}"), Codecs(), ExecutionTable(CacheLimits())
    publisher = ResultPublisher(table, codecs, 1 << 20, "worker", asyncio.get_running_loop(), lambda: None)
    link, replies = await transport.connect(10), await transport.connect(10)
    sent = asyncio.Queue[Delivery]()
    await replies.declare(Queue(_REPLIES))
    await replies.consume(_REPLIES, sent.put_nowait, no_ack=True)
    _, execution = table.begin(Request("t", "method", b"", "", None, _REPLIES), _Settled(), None, 0.0)
    if linked:
        publisher.link = link
    publisher.refuse(execution, DeadlineExceeded("too late", maybe_executed=False))
    await link.close()
    assert (table.running, publisher.statistics().lost) == ({}, 1)

    publisher.link = replies
    later = Request("t", "method", b"", "", None, _REPLIES, attempt=3)
    verdict, again = table.begin(later, _Settled(), None, 1.0)
    assert verdict is Verdict.ANSWERED
    publisher.answer_again(again)
    state = await sent.get()
    said = codecs.decode(state.body, state.properties.content_type, None)
    assert (said["error"], said["message"], said["maybe_executed"]) == ("DeadlineExceeded", "too late", True)
    await replies.close()


class _Settled:
    """A delivery that counts its acknowledgements."""

    redelivered = is_void = False

    def __init__(self) -> None:
        self.acks = 0

    def ack(self) -> None:
        self.acks += 1
