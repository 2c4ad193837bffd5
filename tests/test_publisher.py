"""The publisher of a worker's states, on a link of the broker in the process."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from aiorpcq import CacheLimits, Codecs
from aiorpcq.errors import DeadlineExceeded
from aiorpcq.protocol.executions import ExecutionTable
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
    await publisher.update(execution, "PROGRESS", 1)
    transport.broker.block()
    late = asyncio.ensure_future(publisher.update(execution, "PROGRESS", 2))
    await asyncio.sleep(0)
    publisher.refuse(execution, DeadlineExceeded("too late"))
    transport.broker.unblock()
    await late
    await idle.wait()
    assert sent == ["PROGRESS", "FAILURE"]
    assert publisher.statistics().updates == 1
    await link.close()


class _Settled:
    """A delivery that takes any settlement."""

    def ack(self) -> None:
        pass
