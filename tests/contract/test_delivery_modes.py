"""What becomes of a request whose worker is lost, by mode and kind of queue."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from aiorpcq import Context, Service
from aiorpcq.protocol.deliveries import DeliveryMode
from aiorpcq.protocol.messages import History

from .breaking import Breaking
from .parties import Bystander, BystanderFactory, Gate, ReplyQueue, WorkerFactory, eventually, request_for
from .workbench import answer_to, dead_letter, die, lose_run, ready

Kind = Literal["classic", "quorum"]

KINDS: list[Kind] = ["classic", "quorum"]


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


class Runs:
    """A service that remembers its runs: attempt, and whether it was delivered before."""

    def __init__(self, kind: Kind = "classic", gate: Gate | None = None) -> None:
        self.service = Service(queue_type=kind)
        self.seen: list[tuple[int, bool]] = []
        self.most = self._present = 0

        @self.service.method
        async def run(ctx: Context) -> int:
            self.seen.append((ctx.attempt, ctx.redelivered))
            self._present += 1
            self.most = max(self.most, self._present)
            try:
                if gate is not None:
                    await gate.wait()
            finally:
                self._present -= 1
            return len(self.seen)


def arguments(kind: Kind) -> dict[str, str]:
    return {} if kind == "classic" else {"x-queue-type": kind}


# --- at_least_once


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_whose_worker_died_is_run_again_as_its_second_attempt(
    worker: WorkerFactory, bystander: BystanderFactory, url: str, kind: Kind
) -> None:
    stranger, runs = await bystander(), Runs(kind)
    await stranger.declare("default", arguments(kind))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await lose_run(url)
    serving = await worker(runs.service)
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    assert runs.seen == [(2, True)]
    assert serving.statistics().republisher.counted == (kind == "classic")
    await serving.aclose()
    assert await ready(stranger) == 0


async def test_a_lost_run_is_counted_in_what_is_published_again(
    worker: WorkerFactory, bystander: BystanderFactory, url: str
) -> None:
    """A worker whose only place is taken by another request counts it, and leaves it to whoever is free."""
    gate, stranger = Gate(), await bystander()
    runs = Runs("classic", gate)
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await lose_run(url)
    first = await worker(runs.service, grace=0)
    await gate.entered()
    await die(first)
    taken = await lose_run(url)
    headers = taken.properties.headers or {}
    assert (headers["attempt"], headers["losses"], headers["republished"]) == (2, 1, True)
    assert headers["CC"] == [replies.name]
    assert taken.properties.reply_to == replies.name


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_kills_every_worker_is_run_max_attempts_times_and_buried(
    worker: WorkerFactory, bystander: BystanderFactory, kind: Kind
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    await stranger.declare("default", arguments(kind))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    for _ in range(3):
        doomed = await worker(runs.service, max_attempts=3, grace=0)
        await gate.entered()
        await die(doomed)
    last = await worker(runs.service, max_attempts=3)
    name, value = await answer_to(replies, "t")
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "Poisoned", True)
    assert runs.seen == [(1, False), (2, True), (3, True)]
    letter = await dead_letter(stranger)
    assert (letter.task_id, letter.method, letter.losses, letter.attempts) == ("t", "run", 3, 4)
    assert (letter.reply_to, letter.worker_id) == (replies.name, last.id)
    await last.aclose()
    assert await ready(stranger) == 0


@pytest.mark.parametrize("way", ["method", "service"])
async def test_max_attempts_can_be_said_of_a_method_and_of_a_service(
    worker: WorkerFactory, bystander: BystanderFactory, url: str, way: str
) -> None:
    service, stranger = Service(max_attempts=1 if way == "service" else None), await bystander()

    @service.method(max_attempts=1 if way == "method" else None)
    async def run() -> None:
        raise AssertionError

    await stranger.declare("default")
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await lose_run(url)
    await worker(service)
    assert (await answer_to(replies, "t"))[1]["error"] == "Poisoned"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_the_draining_worker_cancels_is_its_next_attempt_and_not_lost(
    worker: WorkerFactory, bystander: BystanderFactory, kind: Kind
) -> None:
    """However often workers are stopped: nothing is poisoned by that."""
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    await stranger.declare("default", arguments(kind))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    for _ in range(3):
        stopping = await worker(runs.service, max_attempts=1, grace=0)
        await gate.entered()
        await stopping.aclose()
    gate.open()
    await worker(runs.service, max_attempts=1)
    assert await answer_to(replies, "t") == ("SUCCESS", 4)
    assert runs.seen == [(1, False), (2, False), (3, False), (4, False)]


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_runs_are_not_added_to_those_that_were_lost(
    worker: WorkerFactory, bystander: BystanderFactory, url: str, kind: Kind
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    await stranger.declare("default", arguments(kind))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await lose_run(url)
    for _ in range(2):
        stopping = await worker(runs.service, max_attempts=2, grace=0)
        await gate.entered()
        await stopping.aclose()
    doomed = await worker(runs.service, max_attempts=2, grace=0)
    await gate.entered()
    await die(doomed)
    await worker(runs.service, max_attempts=2)
    assert (await answer_to(replies, "t"))[1]["error"] == "Poisoned"
    assert runs.seen == [(2, True), (3, True), (4, True)]
    assert (await dead_letter(stranger)).losses == 2


async def test_a_request_that_a_quorum_queue_has_often_delivered_is_published_again_before_the_queue_drops_it(
    worker: WorkerFactory, bystander: BystanderFactory, url: str
) -> None:
    """From 4.0 on a quorum queue delivers no more than 20 times, whatever `max_attempts` allows."""
    stranger, runs = await bystander(), Runs("quorum")
    await stranger.declare("default", arguments("quorum"))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    for _ in range(10):
        await lose_run(url)
    serving = await worker(runs.service, max_attempts=30)
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    assert (runs.seen, serving.statistics().republisher.counted) == ([(11, True)], 1)


async def test_a_lost_run_whose_queue_is_full_is_answered_and_holds_nobody_up(
    worker: WorkerFactory, bystander: BystanderFactory, url: str
) -> None:
    stranger, runs = await bystander(), Runs()
    runs.service.queue_arguments.update({"x-max-length": 1, "x-overflow": "reject-publish-dlx"})
    await stranger.declare("default", runs.service.queue_arguments)
    replies = await stranger.reply_queue()
    async with Bystander.connected(url) as doomed:
        taken = ReplyQueue("rpc.default")
        await doomed._link.consume(taken.name, taken.inbox.put_nowait, prefetch=1)
        await stranger.request(request_for("run", task_id="lost", reply_to=replies.name))
        await taken.next()
        await stranger.request(request_for("run", task_id="waiting", reply_to=replies.name))
    serving = await worker(runs.service, concurrency=1)
    name, value = await answer_to(replies, "lost")
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "Overloaded", True)
    assert await answer_to(replies, "waiting") == ("SUCCESS", 1)
    statistics = serving.statistics().republisher
    assert (statistics.counted, statistics.failed) == (1, 1)
    await serving.aclose()
    assert await ready(stranger) == 0


async def test_a_dead_letter_queue_that_was_deleted_is_declared_again(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, url: str
) -> None:
    stranger, runs = await bystander(), Runs()
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    serving = await worker(runs.service, max_attempts=1)
    for task_id in "ab":
        request = request_for("run", task_id=task_id, reply_to=replies.name, history=History(losses=1))
        await stranger.request(request)
        assert (await answer_to(replies, task_id))[1]["error"] == "Poisoned"
        assert (await dead_letter(stranger)).task_id == task_id
        await breaking.delete_queue("rpc.default.dead")
    assert serving.statistics().republisher.buried == 2


# --- no_rerun and at_most_once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["no_rerun", "at_most_once"])
async def test_a_request_that_may_have_run_is_answered_worker_lost_and_not_run(
    worker: WorkerFactory, bystander: BystanderFactory, url: str, kind: Kind, mode: DeliveryMode
) -> None:
    stranger, runs = await bystander(), Runs(kind)
    await stranger.declare("default", arguments(kind))
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await lose_run(url)
    serving = await worker(runs.service, delivery=mode)
    name, value = await answer_to(replies, "t")
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "WorkerLost", True)
    assert (runs.seen, serving.statistics().lost) == ([], 1)


async def test_a_run_that_is_lost_at_most_once_is_lost_with_its_request(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs("classic", gate)
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    doomed = await worker(runs.service, delivery="at_most_once", grace=0)
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    await eventually(lambda: doomed.statistics().running == 1)
    await die(doomed)
    gate.open()
    await worker(runs.service, delivery="at_most_once")
    await stranger.request(request_for("run", task_id="u", reply_to=replies.name))
    assert await answer_to(replies, "u") == ("SUCCESS", 2)
    assert runs.seen == [(1, False), (1, False)]


@pytest.mark.parametrize("mode", ["no_rerun", "at_most_once"])
async def test_a_request_that_was_published_again_is_run(
    worker: WorkerFactory, bystander: BystanderFactory, mode: DeliveryMode
) -> None:
    stranger, runs = await bystander(), Runs()
    await worker(runs.service, delivery=mode)
    replies = await stranger.reply_queue()
    for number, history in enumerate((History(republished=True), History("rpc.reply.before"))):
        await stranger.request(
            request_for("run", task_id=str(number), reply_to=replies.name, attempt=2, history=history)
        )
        assert (await answer_to(replies, str(number)))[0] == "SUCCESS"


@pytest.mark.parametrize("mode", ["no_rerun", "at_least_once"])
async def test_a_run_that_the_draining_worker_cancels_is_answered_where_it_must_not_run_again(
    worker: WorkerFactory, bystander: BystanderFactory, mode: DeliveryMode
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs("classic", gate)
    stopping = await worker(runs.service, delivery=mode, grace=0)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    await stopping.aclose()
    if mode == "no_rerun":
        assert (await answer_to(replies, "t"))[1]["error"] == "WorkerLost"
        assert await ready(stranger) == 0
    else:
        assert await ready(stranger) == 1


# --- one worker


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_goes_on_under_the_next_link(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, kind: Kind
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    serving = await worker(runs.service, grace=5)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    for times in (1, 2):
        await breaking.cut("worker")
        await eventually(lambda expected=times: serving.statistics().adopted == expected)  # type: ignore[misc]
    gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    await serving.aclose()
    assert (runs.seen, await ready(stranger)) == ([(1, False)], 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_ends_between_two_links_is_answered_from_the_cache(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, kind: Kind
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    serving = await worker(runs.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    link = serving._started.supervisor.link
    assert link is not None
    await breaking.cut("worker")
    await asyncio.wait((link.lost,))
    gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    statistics = serving.statistics()
    # Adopted where the next link was faster than the run, which nothing keeps it from.
    assert (runs.seen, statistics.answered + statistics.adopted) == ([(1, False)], 1)
    await serving.aclose()
    assert await ready(stranger) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_goes_on_when_the_channel_is_closed(
    worker: WorkerFactory, bystander: BystanderFactory, breaking: Breaking, kind: Kind
) -> None:
    gate, stranger = Gate(), await bystander()
    runs = Runs(kind, gate)
    serving = await worker(runs.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    await breaking.close_channels("worker")
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    await eventually(lambda: serving.statistics().restored == 1)
    assert runs.seen == [(1, False)]
    await serving.aclose()
    assert await ready(stranger) == 0


async def test_a_second_attempt_that_comes_where_the_first_still_runs_is_adopted(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """Another worker took this one for dead, and published its request again."""
    gate, stranger = Gate(), await bystander()
    runs = Runs("classic", gate)
    serving = await worker(runs.service)
    replies = await stranger.reply_queue()
    await stranger.request(request_for("run", task_id="t", reply_to=replies.name))
    await gate.entered()
    again = request_for("run", task_id="t", reply_to=replies.name, attempt=2, history=History(None, 1, None, True))
    await stranger.request(again)
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert await answer_to(replies, "t") == ("SUCCESS", 1)
    assert runs.seen == [(1, False)]


# --- suspects


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_that_were_lost_twice_run_one_after_the_other(
    worker: WorkerFactory, bystander: BystanderFactory, kind: Kind
) -> None:
    stranger, gate = await bystander(), Gate()
    runs = Runs(kind, gate)
    serving = await worker(runs.service, grace=0)
    replies = await stranger.reply_queue()
    for task_id, losses in (("a", 1), ("b", 2), ("c", 3)):
        history = History(losses=losses, republished=True)
        await stranger.request(
            request_for("run", task_id=task_id, reply_to=replies.name, attempt=losses + 1, history=history)
        )
    await stranger.request(request_for("run", task_id="innocent", reply_to=replies.name))
    await gate.entered(2)
    await eventually(lambda: serving.statistics().republisher.handed_back >= 4)  # each came again, and had to wait
    assert sorted(runs.seen) == [(1, False), (2, True)]
    gate.open()
    answers = [await replies.next() for _ in range(4 + 3)]  # and STARTED for those that were published before
    assert sorted(
        answer.properties.correlation_id or "" for answer in answers if answer.properties.type == "SUCCESS"
    ) == [
        "a",
        "b",
        "c",
        "innocent",
    ]
    assert sorted(runs.seen) == [(1, False), (2, True), (3, True), (4, True)]
    assert serving.statistics().republisher.counted == 0
