"""The handler of a worker's control queue, with messages as they may come."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import CacheLimits, Codecs
from aiorpcq.controller import Controller
from aiorpcq.executor import Executor
from aiorpcq.places import RunOptions
from aiorpcq.protocol.control import Cancel, Claim, Command, Inquiry, encode_command
from aiorpcq.protocol.executions import ExecutionTable
from aiorpcq.protocol.messages import Properties, Request, StateMessage
from aiorpcq.protocol.topology import Names, Queue
from aiorpcq.publisher import ResultPublisher
from aiorpcq.republisher import Republisher
from aiorpcq.transports.base import Delivery
from aiorpcq.transports.memory import MemoryTransport

MAX_SIZE = 1 << 20


class Message:
    """A delivery of the control queue."""

    exchange = "rpc.control"
    routing_key = "all"
    redelivered = requeued = is_void = False

    def __init__(self, properties: Properties, body: bytes = b"", oversize: int = 0) -> None:
        self.properties = properties
        self.body = body
        self.oversize = oversize

    def ack(self) -> None:
        raise AssertionError

    def nack(self, *, requeue: bool) -> None:
        raise AssertionError


class Bench:
    """A controller without a link."""

    def __init__(self) -> None:
        loop, codecs = asyncio.get_running_loop(), Codecs()
        options = RunOptions("worker", "at_least_once", 5, 1, 1, MAX_SIZE, 60.0)
        self.table = ExecutionTable(CacheLimits())
        self.publisher = ResultPublisher(self.table, codecs, MAX_SIZE, "worker", loop, lambda: None)
        republisher = Republisher(Names(), "worker", loop, lambda: None, lambda _: ())
        executor = Executor(self.table, self.publisher, republisher, codecs, loop, options)
        self.controller = Controller(self.table, executor, self.publisher, "worker", loop, self._describe)

    def _describe(self, question: Any) -> Any:
        return {"asked": question}

    def hear(self, command: Command) -> None:
        publication = encode_command(command, "rpc.control", "all")
        self.controller.on_delivery(Message(publication.properties, publication.body))


async def test_a_message_that_is_too_large_is_ignored() -> None:
    made = Bench()
    made.controller.on_delivery(
        Message(Properties(type="ping", correlation_id="i", reply_to="q"), oversize=MAX_SIZE + 1)
    )
    assert (made.controller.ignored, made.controller.inquiries) == (1, 0)


async def test_only_the_first_message_that_cannot_be_read_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = Bench()
    for _ in range(3):
        made.controller.on_delivery(Message(Properties(type="reboot")))
    assert (made.controller.ignored, len(caplog.records)) == (3, 1)


async def test_without_a_link_nothing_is_answered_and_all_is_remembered() -> None:
    made = Bench()
    request = Request("t", "run", b"", "", None, "old")
    _, execution = made.table.begin(request, None, None, 0.0)
    made.hear(Claim("old", "new", ("t",), 60.0, "i"))
    made.hear(Cancel("u", "old", "kill", 60.0))
    made.hear(Inquiry("ping", "i", "new"))
    assert execution.reply_to == "new"
    assert made.table.revocations.covers("u", "old", asyncio.get_running_loop().time())
    assert (made.controller.claims, made.controller.cancels, made.controller.inquiries) == (1, 1, 1)


async def test_a_claim_names_what_runs_and_gets_what_has_ended() -> None:
    made = Bench()
    link = await MemoryTransport(f"memory://{uuid4().hex}").connect(10)
    made.publisher.link = link
    replies: asyncio.Queue[Delivery] = asyncio.Queue()
    await link.declare(Queue("new"))
    await link.consume("new", replies.put_nowait, no_ack=True)
    for task_id in ("running", "foreign", "ended"):
        origin = "other" if task_id == "foreign" else "old"
        _, execution = made.table.begin(Request(task_id, "run", b"", "", None, origin), None, None, 0.0)
        if task_id == "ended":
            made.table.answer(execution, StateMessage("ended", "SUCCESS", b"value", "text/plain"), 0.0)
            made.table.end(execution)
    made.hear(Claim("old", "new", ("running", "foreign", "ended", "unknown"), 60.0, "i"))
    state, held = await replies.get(), await replies.get()
    assert (state.properties.correlation_id, state.body) == ("ended", b"value")
    assert (held.properties.correlation_id, json.loads(held.body)) == ("i", ["running"])
    made.hear(Inquiry("info", "j", "new"))
    answer = await replies.get()
    assert (answer.properties.headers, json.loads(answer.body)) == (
        {"control": "info", "worker-id": "worker"},
        {"asked": "info"},
    )
    await link.close()
