"""Whatever lands on a reply queue: states, returned requests, and garbage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from aiorpcq import Client, ContentDisallowed, DeadlineExceeded, Overloaded, Poisoned, Rejected, RPCError
from aiorpcq.protocol.messages import Properties

from .parties import Bystander, BystanderFactory, ClientFactory, WorkerFactory, calculator, eventually


async def pending_call(caller: Client, stranger: Bystander) -> tuple[asyncio.Future[Any], str, str]:
    """Return a call that waits for the test's answer, its id and its reply queue."""
    service = await stranger.serve("odd")
    call = asyncio.ensure_future(caller.call("odd.one"))
    properties = (await service.next()).properties
    assert properties.correlation_id is not None
    assert properties.reply_to is not None
    return call, properties.correlation_id, properties.reply_to


def death(*reasons: str) -> list[dict[str, Any]]:
    return [{"reason": reason, "queue": "rpc.odd", "count": 1} for reason in reasons]


async def test_a_message_with_reply_to_is_a_returned_request_whatever_its_type_says(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await pending_call(caller, stranger)
    forged = Properties(content_type="application/msgpack", correlation_id=task_id, reply_to="anywhere", type="SUCCESS")
    await stranger.message(replies, forged, b"\x01")
    with pytest.raises(Rejected) as caught:
        await call
    assert caught.value.task_id == task_id
    assert caller.statistics().returned == 1


@pytest.mark.parametrize(
    ("headers", "error", "maybe_executed"),
    [
        ({"x-death": death("expired")}, DeadlineExceeded, False),
        ({"x-death": death("rejected")}, Rejected, False),
        ({"x-death": death("delivery_limit")}, Poisoned, True),
        ({"x-death": death("maxlen")}, Overloaded, False),
        ({"x-death": death("expired", "rejected")}, DeadlineExceeded, False),
        ({"x-death": death("rejected", "expired")}, Rejected, False),
        ({"x-death": death("expired"), "x-first-death-reason": "rejected"}, DeadlineExceeded, False),
        ({"x-death": death("rejected"), "x-first-death-reason": "expired"}, Rejected, False),
        ({"x-first-death-reason": "expired"}, Rejected, False),
        ({"x-death": []}, Rejected, False),
        ({"x-death": "expired"}, Rejected, False),
        ({"x-death": [{"reason": ["expired"]}]}, Rejected, False),
        ({"x-death": death("of tomorrow")}, Rejected, False),
        (None, Rejected, False),
    ],
)
async def test_the_newest_death_says_why_a_request_came_back(
    client: ClientFactory,
    bystander: BystanderFactory,
    headers: Mapping[str, Any] | None,
    error: type[RPCError],
    maybe_executed: bool,
) -> None:
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await pending_call(caller, stranger)
    returned = Properties(headers=headers, correlation_id=task_id, reply_to=replies, type="one")
    await stranger.message(replies, returned)
    with pytest.raises(error) as caught:
        await call
    assert caught.value.maybe_executed is maybe_executed


async def test_a_returned_request_that_nobody_waits_for_is_counted(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    caller, stranger = await client(), await bystander()
    replies = await stranger.reply_queue_of(caller)
    await stranger.message(replies, Properties(correlation_id="unknown", reply_to=replies, type="one"))
    await stranger.message(replies, Properties(reply_to=replies))
    await eventually(lambda: caller.statistics().returned == 2)
    assert caller.statistics().duplicates == 2
    assert caller.statistics().out_of_band == 0


GARBAGE = [
    Properties(),
    Properties(type="SUCCESS"),
    Properties(correlation_id="t"),
    Properties(correlation_id="t", type="PROGRESS", headers={"sequence": "first"}),
    Properties(correlation_id="t", type="PROGRESS", headers={"attempt": [1]}),
    Properties(correlation_id="t", type="PROGRESS", headers={"worker-id": 7}),
    Properties(correlation_id="t", type="SUCCESS", headers={"wire-version": 2}),
]


async def test_garbage_is_counted_logged_once_and_harmless(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, caplog: pytest.LogCaptureFixture
) -> None:
    await worker(calculator())
    caller, stranger = await client(), await bystander()
    replies = await stranger.reply_queue_of(caller)
    with caplog.at_level(logging.WARNING, "aiorpcq.client"):
        for properties in GARBAGE:
            await stranger.message(replies, properties, b"\xffsecret")
        await eventually(lambda: caller.statistics().malformed == len(GARBAGE))
    assert len([record for record in caplog.records if record.name == "aiorpcq.client"]) == 1
    assert "secret" not in caplog.text
    assert await caller.call("add", 1, 2) == 3
    assert caller.statistics().out_of_band == 0


async def test_garbage_does_not_settle_a_call(client: ClientFactory, bystander: BystanderFactory) -> None:
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await pending_call(caller, stranger)
    await stranger.message(replies, Properties(correlation_id=task_id, headers={"wire-version": 2}, type="SUCCESS"))
    await stranger.message(replies, Properties(correlation_id=task_id))
    await stranger.state(replies, task_id, "SUCCESS", "right")
    assert await call == "right"


async def test_a_reply_of_an_unknown_content_type_is_an_error_of_its_call_alone(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await worker(calculator())
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await pending_call(caller, stranger)
    pickled = Properties(content_type="application/x-python-serialize", correlation_id=task_id, type="SUCCESS")
    await stranger.message(replies, pickled, b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ContentDisallowed) as caught:
        await call
    assert (caught.value.task_id, caught.value.maybe_executed) == (task_id, True)
    assert await caller.call("add", 1, 2) == 3


async def test_a_state_of_a_call_that_did_not_ask_for_it_does_no_harm(
    client: ClientFactory, bystander: BystanderFactory
) -> None:
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await pending_call(caller, stranger)
    await stranger.state(replies, task_id, "STARTED", sequence=1)
    await stranger.state(replies, task_id, "PROGRESS", 50, sequence=2)
    await stranger.state(replies, task_id, "SUCCESS", "right", sequence=3)
    assert await call == "right"


async def test_names_of_reply_queues_cannot_be_guessed(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    first, second = await client(), await client(max_size=9_999_999)
    names = [await stranger.reply_queue_of(caller) for caller in (first, second)]
    assert names[0] != names[1]
    assert all(name.startswith("rpc.reply.") and len(name.rpartition(".")[2]) == 32 for name in names)
