"""What callers tell workers beside their requests: cancels, claims and questions, and forgeries of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from aiorpcq import Context, Service
from aiorpcq.protocol.control import CancelMode, Claim, Inquiry, decode_answer, encode_command
from aiorpcq.protocol.messages import History, Properties, Publication
from aiorpcq.protocol.topology import TO_ALL, Exchange, Names
from aiorpcq.transports.base import Delivery

from .breaking import Breaking
from .parties import (
    Bystander,
    BystanderFactory,
    Gate,
    ReplyQueue,
    WorkerFactory,
    calculator,
    eventually,
    request_for,
)
from .workbench import answer_to, ask, cancel, claim, command, lose_run, ready


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


class Waiting:
    """A service whose method waits, and which remembers what became of that."""

    def __init__(self, **options: Any) -> None:
        self.service = calculator()
        self.gate = Gate()
        self.begun: list[str] = []
        self.stopped: list[str] = []

        @self.service.method(**options)
        async def wait(ctx: Context) -> str:
            self.begun.append(ctx.task_id)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.append(ctx.task_id)
                raise
            return "done"


async def waiting_request(stranger: Bystander, replies: ReplyQueue, task_id: str = "t", **fields: Any) -> None:
    await stranger.request(request_for("wait", task_id=task_id, reply_to=replies.name, **fields))


# --- cancel


@pytest.mark.parametrize("mode", ["kill", "killnowait"])
async def test_a_running_task_is_stopped(worker: WorkerFactory, bystander: BystanderFactory, mode: CancelMode) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    await cancel(stranger, "t", replies.name, mode)
    assert await answer_to(replies, "t") == ("REVOKED", None)
    await eventually(lambda: serving.statistics().running == 0)
    statistics = serving.statistics()
    assert (waiting.stopped, statistics.revoked, statistics.cancels) == (["t"], 1, 1)
    assert await ready(stranger) == 0


async def test_a_running_task_is_not_stopped_by_a_cancel_that_only_skips(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    await cancel(stranger, "t", replies.name, "skip")
    await eventually(lambda: serving.statistics().cancels == 1)
    waiting.gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert serving.statistics().revoked == 0


async def test_a_plain_method_sees_that_it_is_to_stop(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    service, begun, seen, stranger = Service(), threading.Event(), threading.Event(), await bystander()

    @service.method
    def work(ctx: Context) -> None:
        assert not ctx.is_cancelled
        begun.set()
        while not ctx.is_cancelled:
            time.sleep(0.001)
        seen.set()

    await worker(service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    await asyncio.to_thread(begun.wait)
    await cancel(stranger, "t", replies.name)
    assert await answer_to(replies, "t") == ("REVOKED", None)
    assert await asyncio.to_thread(seen.wait, 10)


@pytest.mark.parametrize("mode", ["skip", "kill"])
async def test_a_task_that_waits_in_the_worker_is_not_begun(
    worker: WorkerFactory, bystander: BystanderFactory, mode: CancelMode
) -> None:
    """At most once a request is acknowledged at its start, so another waits here for the place."""
    waiting, stranger = Waiting(delivery="at_most_once"), await bystander()
    serving = await worker(waiting.service, concurrency=1)
    replies = await stranger.reply_queue()
    for task_id in "tu":
        await waiting_request(stranger, replies, task_id)
    await waiting.gate.entered()
    await eventually(lambda: serving.statistics().running == 2)
    await cancel(stranger, "u", replies.name, mode)
    assert await answer_to(replies, "u") == ("REVOKED", None)
    waiting.gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    await eventually(lambda: serving.statistics().running == 0)
    assert waiting.begun == ["t"]


@pytest.mark.parametrize("mode", ["skip", "kill", "killnowait"])
async def test_a_task_that_is_still_in_the_queue_is_not_begun(
    worker: WorkerFactory, bystander: BystanderFactory, mode: CancelMode
) -> None:
    waiting, stranger = Waiting(), await bystander()
    first = await worker(waiting.service, concurrency=1)
    replies = await stranger.reply_queue()
    for task_id in "tu":
        await waiting_request(stranger, replies, task_id)
    await waiting.gate.entered()
    await cancel(stranger, "u", replies.name, mode)
    await eventually(lambda: first.statistics().cancels == 1)
    waiting.gate.open()
    assert await answer_to(replies, "u") == ("REVOKED", None)
    assert (waiting.begun, first.statistics().revoked) == (["t"], 1)


async def test_a_task_that_has_ended_stays_as_it_is(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    replies = await stranger.reply_queue()
    request = request_for("add", 1, 2, task_id="t", reply_to=replies.name)
    await stranger.request(request)
    assert await answer_to(replies, "t") == ("SUCCESS", 3)
    await cancel(stranger, "t", replies.name)
    await eventually(lambda: serving.statistics().cancels == 1)
    await stranger.request(request)
    assert await answer_to(replies, "t") == ("SUCCESS", 3)
    assert serving.statistics().revoked == 0


async def test_a_cancel_that_cannot_name_the_reply_queue_changes_nothing(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    for task_id in "tu":  # one that runs, one that is still to come
        await cancel(stranger, task_id, "rpc.reply.guess")
    await eventually(lambda: serving.statistics().cancels == 2)
    waiting.gate.open()
    await waiting_request(stranger, replies, "u")
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert await answer_to(replies, "u") == ("SUCCESS", "done")
    assert serving.statistics().revoked == 0


async def test_a_cast_cannot_be_cancelled(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    await stranger.request(request_for("wait", task_id="t", reply_to=None))
    await waiting.gate.entered()
    await cancel(stranger, "t", "rpc.reply.guess")
    await eventually(lambda: serving.statistics().cancels == 1)
    assert serving.statistics().revoked == 0
    waiting.gate.open()
    await eventually(lambda: serving.statistics().publisher.succeeded == 1)


@pytest.mark.parametrize(
    ("properties", "body"),
    [
        (Properties(type="cancel", correlation_id="t", headers={"origin": "q", "mode": "maybe", "expires": 1}), b""),
        (Properties(type="cancel", headers={"origin": "q", "mode": "kill", "expires": 1}), b""),
        (Properties(type="cancel", correlation_id="t", headers={"origin": "q", "mode": "kill"}), b""),
        (
            Properties(
                type="cancel",
                correlation_id="t",
                headers={"origin": "q", "mode": "kill", "expires": 1, "wire-version": 2},
            ),
            b"",
        ),
        (Properties(type="resume", reply_to="q", headers={"origin": "p", "expires": 1}), b"{"),
        (Properties(type="resume", reply_to="q", headers={"origin": "p", "expires": 1}), b'"t"'),
        (Properties(type="reboot"), b""),
        (Properties(), b"\xff"),
    ],
)
async def test_a_control_message_that_cannot_be_read_is_counted_and_ignored(
    worker: WorkerFactory, bystander: BystanderFactory, properties: Properties, body: bytes
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    await stranger.publish(Publication(Names().control.name, TO_ALL, properties, body, False))
    await eventually(lambda: serving.statistics().control_ignored == 1)
    statistics = serving.statistics()
    assert (statistics.cancels, statistics.claims, statistics.inquiries) == (0, 0, 0)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", 3)


async def test_a_cancel_reaches_a_worker_whose_control_queue_was_deleted(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    queue = Names().control_queue(serving.id, 1).name
    await breaking.delete_queue(queue)
    # What was said meanwhile is lost; so that it is said again, the worker tells of its runs once it listens.
    again = (await replies.next()).properties
    assert (again.type, again.correlation_id) == ("STARTED", "t")
    await cancel(stranger, "t", replies.name)
    assert await answer_to(replies, "t") == ("REVOKED", None)
    # What is younger may have been cancelled as well while nobody listened.
    await stranger.request(request_for("add", 1, 2, task_id="u", reply_to=replies.name))
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]


async def test_a_worker_hears_again_once_what_keeps_it_from_that_is_gone_on_the_same_connection(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has deleted the control exchange, and made another of its name."""
    waiting, stranger, control = Waiting(), await bystander(), Names().control
    serving = await worker(waiting.service)
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    await delete_exchange(breaking, control.name)
    await stranger._link.declare(Exchange(control.name, "fanout"))
    await breaking.delete_queue(Names().control_queue(serving.id, 1).name)
    await eventually(lambda: caplog.text.count("cannot listen for control messages") >= 2)
    await delete_exchange(breaking, control.name)
    await stranger._link.declare(control)
    while not serving.statistics().inquiries:
        await command(stranger, Inquiry("ping", "i", "rpc.reply.nobody"))
        await asyncio.sleep(0.001)
    await cancel(stranger, "t", replies.name)
    assert await answer_to(replies, "t") == ("REVOKED", None)
    assert (serving._started.supervisor.generation, serving.statistics().adopted) == (1, 0)


async def delete_exchange(breaking: Breaking, name: str) -> None:
    """Delete an exchange behind everybody's back."""
    if breaking.broker is not None:
        del breaking.broker._exchanges[name]
    else:
        await asyncio.to_thread(breaking._node.delete_exchange, name, breaking._vhost)


# --- the STARTED of a bare call


async def test_a_fresh_call_gets_no_started(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    await worker(calculator())
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name))
    assert await replies.until_terminal() == [("SUCCESS", 3)]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_call_that_waited_before_its_worker_came_gets_a_started(
    worker: WorkerFactory, bystander: BystanderFactory, kind: str
) -> None:
    service, stranger = Service(queue_type=kind), await bystander()  # type: ignore[arg-type]  # a parameter of pytest

    @service.method
    async def work() -> None:
        pass

    await stranger.declare("default", {} if kind == "classic" else {"x-queue-type": kind})
    replies = await stranger.reply_queue()
    await stranger.request(request_for("work", task_id="t", reply_to=replies.name))
    serving = await worker(service)
    started = await replies.next()
    assert (started.properties.type, (started.properties.headers or {})["worker-id"]) == ("STARTED", serving.id)
    assert (await replies.next()).properties.type == "SUCCESS"


async def test_a_call_that_is_younger_than_its_worker_gets_no_started(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """Its sender's clock says so, by more than clocks may differ."""
    stranger = await bystander()
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="old", reply_to=replies.name))
    await worker(calculator())
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]
    for age, states in ((-90.0, ["SUCCESS"]), (0.0, ["STARTED", "SUCCESS"])):
        sent_at = time.time() - age
        request = request_for(
            "add", 1, 2, task_id=str(age), reply_to=replies.name, deadline=sent_at + 30, expiration=30.0
        )
        await stranger.request(request)
        assert [name for name, _ in await replies.until_terminal()] == states


async def test_a_call_that_was_delivered_or_published_before_gets_a_started(
    worker: WorkerFactory, bystander: BystanderFactory, url: str
) -> None:
    stranger = await bystander()
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    serving = await worker(calculator())
    again = request_for("add", 1, 2, task_id="t", reply_to=replies.name, history=History(republished=True))
    await stranger.request(again)
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]
    await serving.aclose()
    await stranger.request(request_for("add", 1, 2, task_id="u", reply_to=replies.name))
    await lose_run(url)
    await worker(calculator())
    assert [name for name, _ in await replies.until_terminal()] == ["STARTED", "SUCCESS"]


async def test_a_cancel_that_a_worker_did_not_hear_stops_the_task_when_it_is_said_again(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await cancel(stranger, "t", replies.name)  # nobody is there to hear it
    await worker(waiting.service)
    assert (await replies.next()).properties.type == "STARTED"
    await cancel(stranger, "t", replies.name)
    assert await answer_to(replies, "t") == ("REVOKED", None)


# --- claim


async def test_the_end_of_a_running_task_goes_to_where_its_caller_has_moved(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    old, new = await stranger.reply_queue(), await stranger.reply_queue()
    await waiting_request(stranger, old)
    await waiting.gate.entered()
    await claim(stranger, old.name, new.name, "t")
    await eventually(lambda: serving.statistics().claims == 1)
    waiting.gate.open()
    assert await answer_to(new, "t") == ("SUCCESS", "done")
    assert old.inbox.empty()


async def test_a_task_that_starts_later_answers_to_where_its_caller_has_moved(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    old, new = await stranger.reply_queue(), await stranger.reply_queue()
    await claim(stranger, old.name, new.name, "t")
    await eventually(lambda: serving.statistics().claims == 1)
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=old.name))
    assert await answer_to(new, "t") == ("SUCCESS", 3)
    assert old.inbox.empty()


async def test_the_end_of_a_task_is_sent_again_to_a_caller_that_claims_it(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    old, new = await stranger.reply_queue(), await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=old.name))
    assert await answer_to(old, "t") == ("SUCCESS", 3)
    await eventually(lambda: serving.statistics().running == 0)
    for _ in range(2):
        await claim(stranger, old.name, new.name, "t", "unknown")
        assert await answer_to(new, "t") == ("SUCCESS", 3)
    assert (serving.statistics().publisher.resent, serving.statistics().started) == (2, 1)


async def test_the_end_of_a_task_that_was_returned_is_sent_again_to_a_caller_that_claims_it(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    new = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to="rpc.reply.gone"))
    await eventually(lambda: serving.statistics().publisher.returned == 1)
    await claim(stranger, "rpc.reply.gone", new.name, "t")
    assert await answer_to(new, "t") == ("SUCCESS", 3)


@pytest.mark.parametrize("mode", ["at_least_once", "at_most_once"])
async def test_a_claim_that_comes_while_the_end_is_on_its_way_loses_nothing(
    worker: WorkerFactory, bystander: BystanderFactory, mode: CancelMode
) -> None:
    """Answers that are returned just then are sent to where their callers are; callers claim until they have them."""
    waiting, stranger = Waiting(delivery=mode), await bystander()
    serving = await worker(waiting.service)
    new = await stranger.reply_queue()
    tasks = [str(number) for number in range(20)]
    for task_id in tasks:
        await stranger.request(request_for("wait", task_id=task_id, reply_to="rpc.reply.gone"))
    await waiting.gate.entered(len(tasks))
    waiting.gate.open()
    await asyncio.sleep(0)
    await asyncio.gather(*(claim(stranger, "rpc.reply.gone", new.name, task_id) for task_id in tasks))
    await eventually(lambda: serving.statistics().claims == len(tasks))
    await eventually(lambda: serving.statistics().running == 0)
    await claim(stranger, "rpc.reply.gone", new.name, *tasks)
    left = set(tasks)
    while left:
        left.discard((await new.next()).properties.correlation_id or "")


async def test_a_claim_that_cannot_name_the_reply_queue_changes_nothing(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    replies, thief = await stranger.reply_queue(), await stranger.reply_queue()
    await waiting_request(stranger, replies)
    await waiting.gate.entered()
    await stranger.request(request_for("add", 1, 2, task_id="ended", reply_to=replies.name))
    assert await answer_to(replies, "ended") == ("SUCCESS", 3)
    await claim(stranger, "rpc.reply.guess", thief.name, "t", "ended", identity="i")
    assert body_of_answer(await thief.next()) == []
    waiting.gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", "done")
    assert (thief.inbox.empty(), serving.statistics().publisher.resent) == (True, 0)


async def test_a_worker_says_which_of_the_claimed_tasks_it_holds(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    old, new = await stranger.reply_queue(), await stranger.reply_queue()
    await waiting_request(stranger, old)
    await waiting.gate.entered()
    await claim(stranger, old.name, new.name, "t", "unknown", identity="i")
    delivery = await new.next()
    answer = decode_answer(delivery.properties, delivery.body)
    assert (answer.question, answer.id, answer.worker_id, answer.value) == ("held", "i", serving.id, ["t"])


async def test_a_request_that_is_sent_again_from_another_queue_is_the_same(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    waiting, stranger = Waiting(), await bystander()
    serving = await worker(waiting.service)
    old, new = await stranger.reply_queue(), await stranger.reply_queue()
    await waiting_request(stranger, old)
    await waiting.gate.entered()
    await waiting_request(stranger, new, history=History(old.name))
    await eventually(lambda: serving.statistics().adopted == 1)
    waiting.gate.open()
    assert await answer_to(new, "t") == ("SUCCESS", "done")
    await eventually(lambda: serving.statistics().running == 0)
    await waiting_request(stranger, new, history=History(old.name))
    assert await answer_to(new, "t") == ("SUCCESS", "done")
    assert (waiting.begun, serving.statistics().answered) == (["t"], 1)


async def test_what_a_caller_may_do_is_proved_by_its_first_reply_queue(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """Also where its request was sent again from another one."""
    waiting, stranger = Waiting(), await bystander()
    await worker(waiting.service)
    new = await stranger.reply_queue()
    await waiting_request(stranger, new, history=History("rpc.reply.first"))
    await waiting.gate.entered()
    await cancel(stranger, "t", new.name)
    await cancel(stranger, "t", "rpc.reply.first")
    assert await answer_to(new, "t") == ("REVOKED", None)


# --- questions


async def test_workers_answer_who_asks(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    stranger, own = await bystander(), Service("own", delivery="at_most_once")
    own.method(name="work")(calculator().methods["add"].function)
    serving = await worker(calculator(), calculator("math"), own, concurrency=7, delivery="no_rerun")
    replies = await stranger.reply_queue()
    ping = await ask(stranger, "ping", replies)
    assert (ping.properties.type, ping.properties.correlation_id) == (None, "i")
    answer = decode_answer(ping.properties, ping.body)
    assert (answer.question, answer.worker_id, answer.value) == ("ping", serving.id, None)
    said = {"delivery": "no_rerun", "idempotent": False}  # what is in force, where the method does not say
    info = body_of_answer(await ask(stranger, "info", replies))
    assert info == {
        "services": {
            **{name: dict.fromkeys(("add", "count", "echo", "fail"), said) for name in ("default", "math")},
            "own": {"work": {"delivery": "at_most_once", "idempotent": False}},
        },
        "concurrency": 7,
        "running": 0,
        "started": 0,
        "draining": False,
    }
    statistics = body_of_answer(await ask(stranger, "stats", replies))
    assert (statistics["inquiries"], statistics["publisher"]["succeeded"]) == (3, 0)


@pytest.mark.parametrize(("key", "answers"), [("service.math", 1), ("service.default", 2), (TO_ALL, 2)])
async def test_commands_reach_the_workers_they_are_addressed_to(
    worker: WorkerFactory, bystander: BystanderFactory, key: str, answers: int
) -> None:
    stranger = await bystander()
    workers = [await worker(calculator(), calculator("math")), await worker(calculator())]
    said = encode_command(Claim("rpc.reply.gone", "rpc.reply.new", (), 1.0), Names().control.name, key)
    await stranger.publish(said)
    to_one = encode_command(
        Claim("rpc.reply.gone", "rpc.reply.new", (), 1.0), Names().control.name, f"worker.{workers[1].id}"
    )
    await stranger.publish(to_one)
    await eventually(lambda: sum(serving.statistics().claims for serving in workers) == answers + 1)
    assert workers[0].statistics().claims == 1


async def test_an_answer_to_a_queue_that_is_gone_harms_nothing(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    serving = await worker(calculator())
    await claim(stranger, "rpc.reply.gone", "rpc.reply.also-gone", "t", identity="i")
    await command(stranger, Claim("a" * 255, "b" * 255, ("t",), 1e9, "i"))
    await eventually(lambda: serving.statistics().claims == 2)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name))
    assert await answer_to(replies, "t") == ("SUCCESS", 3)
    assert serving.health()


def body_of_answer(delivery: Delivery) -> Any:
    return json.loads(delivery.body)
