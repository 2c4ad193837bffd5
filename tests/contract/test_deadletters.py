"""Dead letters on both brokers: they are read without being moved, and leave by replay or discard alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiorpcq import (
    Codecs,
    ConnectFailed,
    ConnectionLost,
    ContentDisallowed,
    Context,
    Overloaded,
    PayloadTooLarge,
    Service,
    UnknownTask,
    Unroutable,
    UsageError,
)
from aiorpcq.deadletters import DeadLetters
from aiorpcq.protocol.deadletters import bury, exhume
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Names, Queue
from aiorpcq.protocol.wire import encode_request
from aiorpcq.testing import memory_broker
from aiorpcq.transports.base import Delivery, Link
from aiorpcq.transports.registry import make_transport
from tests.node import Node

from .parties import BystanderFactory, Gate, WorkerFactory, eventually, request_for

NOON = 1_700_000_000.0
SERVICE = "math"


class Graveyard:
    """Puts letters where a worker would."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.queue = Names().dead_queue(SERVICE).name

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator[Graveyard]:
        link = await make_transport(url, max_size=64 * 1024 * 1024, name="graveyard").connect(10)
        try:
            await link.declare(Names().requests, Names().control, Names().dead_queue(SERVICE))
            yield cls(link)
        finally:
            await link.close()

    async def bury(self, letter_id: str, method: str, *arguments: Any, reply_to: str | None = None) -> None:
        await self.put(letter(letter_id, method, *arguments, reply_to=reply_to))

    async def put(self, publication: Publication) -> None:
        assert await self.publish(publication) is Outcome.CONFIRMED

    async def publish(self, publication: Publication) -> Outcome:
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        publication.settled = lambda _, settled: outcome.set_result(settled)
        self._link.publish(publication)
        async with asyncio.timeout(10):
            return await outcome

    async def declare(self, queue: Queue) -> None:
        await self._link.declare(queue, Names().binding(SERVICE))

    async def read(self, on_delivery: Callable[[Delivery], None]) -> None:
        await self._link.consume(self.queue, on_delivery)


def letter(letter_id: str, method: str, *arguments: Any, reply_to: str | None = None) -> Publication:
    """Return the letter of a request that has died of five lost runs."""
    request = request_for(
        method, *arguments, task_id=f"task-{letter_id}", reply_to=reply_to, deadline=NOON, expiration=1.0, attempt=5
    )
    sent = encode_request(request, "rpc", f"rpc:{SERVICE}")
    return bury(
        sent.properties,
        sent.body,
        Names().dead_queue(SERVICE).name,
        letter_id=letter_id,
        reason="5 runs were lost",
        attempt=5,
        losses=5,
        worker_id="w1",
        now=NOON,
    )


@pytest.fixture
async def graveyard(url: str, opened: AsyncExitStack) -> Graveyard:
    return await opened.enter_async_context(Graveyard.opened(url))


@pytest.fixture
async def letters(url: str, graveyard: Graveyard, opened: AsyncExitStack) -> DeadLetters:
    return await opened.enter_async_context(DeadLetters(url, SERVICE))


async def ids(letters: DeadLetters) -> list[str]:
    return [letter.id for letter in await letters.list()]


# reading


async def test_letters_are_listed_the_oldest_first_and_stay(graveyard: Graveyard, letters: DeadLetters) -> None:
    for name in "abc":
        await graveyard.bury(name, "add", 2, 3)
    for _ in range(3):
        assert await ids(letters) == ["a", "b", "c"]
    assert await letters.count() == 3


async def test_a_letter_says_what_it_is_of(graveyard: Graveyard, letters: DeadLetters) -> None:
    await graveyard.bury("a", "add", 2, 3, reply_to="rpc.reply.1")
    (listed,) = await letters.list()
    assert (listed.task_id, listed.method, listed.reason) == ("task-a", "add", "5 runs were lost")
    assert (listed.attempts, listed.losses, listed.worker_id, listed.buried_at) == (5, 5, "w1", NOON)
    assert listed.reply_to == "rpc.reply.1"
    assert await letters.get("a") == listed


async def test_no_more_letters_are_listed_than_asked_for(graveyard: Graveyard, letters: DeadLetters) -> None:
    for name in "abc":
        await graveyard.bury(name, "add")
    assert [each.id for each in await letters.list(2)] == ["a", "b"]
    assert await ids(letters) == ["a", "b", "c"]


async def test_where_nothing_was_buried_there_are_no_letters(url: str, graveyard: Graveyard) -> None:
    for service in (SERVICE, "other"):  # with a queue, and without
        async with DeadLetters(url, service) as letters:
            assert await letters.list() == []
            assert await letters.count() == 0
            with pytest.raises(UnknownTask, match="has no dead letter 'a'"):
                await letters.get("a")


async def test_a_letter_is_found_behind_many_others(graveyard: Graveyard, letters: DeadLetters) -> None:
    for number in range(500):
        await graveyard.bury(str(number), "add", number)
    assert (await letters.get("499")).task_id == "task-499"
    assert [each.id for each in await letters.list(1_000)] == [str(number) for number in range(500)]


async def test_the_arguments_of_a_letter_can_be_read(graveyard: Graveyard, letters: DeadLetters) -> None:
    await graveyard.bury("a", "add", 2, "x", [3])
    assert await letters.arguments("a") == ([2, "x", [3]], {})
    assert await letters.count() == 1


async def test_arguments_that_cannot_be_decoded_say_so(graveyard: Graveyard, letters: DeadLetters) -> None:
    publication = letter("a", "add")
    publication.properties.content_type = "application/x-unknown"
    await graveyard.put(publication)
    with pytest.raises(ContentDisallowed):
        await letters.arguments("a")
    assert await ids(letters) == ["a"]


async def test_what_is_no_letter_is_left_out_and_left_there(
    graveyard: Graveyard, letters: DeadLetters, caplog: pytest.LogCaptureFixture
) -> None:
    await graveyard.bury("a", "add")
    await graveyard.put(Publication("", graveyard.queue, Properties(type="junk"), b"s3cret"))
    await graveyard.bury("b", "add")
    with caplog.at_level(logging.WARNING, "aiorpcq.client"):
        assert await ids(letters) == ["a", "b"]
    assert "what is no dead letter: header dead-letter is missing" in caplog.text
    assert "s3cret" not in caplog.text
    assert await letters.count() == 3


async def test_two_readers_at_once_both_see_all(url: str, graveyard: Graveyard, letters: DeadLetters) -> None:
    for name in "abc":
        await graveyard.bury(name, "add")
    async with DeadLetters(url, SERVICE) as others:
        seen = await asyncio.gather(*(ids(each) for each in (letters, others) * 3))
    assert seen == [["a", "b", "c"]] * 6


async def test_a_queue_that_somebody_else_reads_is_left_to_them(url: str, graveyard: Graveyard) -> None:
    await graveyard.bury("a", "add")
    await graveyard.read(lambda delivery: None)
    async with DeadLetters(url, SERVICE, timeout=1.0) as letters:
        with pytest.raises(ConnectFailed, match=rf"queue '{graveyard.queue}' is read by somebody else"):
            await letters.list()


async def test_who_may_not_read_is_told_so(broker_url: str, node: Node, vhost: str) -> None:
    node.add_user("stranger", "s3cret")
    node.set_permissions("stranger", vhost, read="^$")
    async with Graveyard.opened(broker_url) as graveyard:
        await graveyard.bury("a", "add")
        async with DeadLetters(node.url("stranger", "s3cret", vhost), SERVICE) as letters:
            with pytest.raises(ConnectFailed, match=r"no permission for queue 'rpc\.math\.dead'"):
                await letters.list()


# replaying


async def test_a_replayed_letter_is_run_and_answered(
    graveyard: Graveyard, letters: DeadLetters, worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    attempts: list[int] = []
    service = Service(SERVICE)

    @service.method
    async def add(ctx: Context, a: int, b: int) -> int:
        attempts.append(ctx.attempt)
        return a + b

    await worker(service)
    replies = await (await bystander()).reply_queue()
    await graveyard.bury("a", "add", 2, 3, reply_to=replies.name)
    await letters.replay("a")
    assert (await replies.until_terminal())[-1] == ("SUCCESS", 5)
    assert attempts == [1]
    assert await letters.count() == 0


async def test_a_replay_is_the_request_without_its_old_deadline(
    graveyard: Graveyard, letters: DeadLetters, bystander: BystanderFactory
) -> None:
    requests = await (await bystander()).serve(SERVICE)
    await graveyard.bury("a", "add", 2, 3, reply_to="rpc.reply.1")
    await letters.replay("a")
    request = await requests.next()
    assert request.properties.expiration is None
    assert request.properties.reply_to == "rpc.reply.1"
    assert dict(request.properties.headers or {}) == {"CC": ["rpc.reply.1"], "replay": "a"}
    assert (request.exchange, request.routing_key) == ("rpc", f"rpc:{SERVICE}")


async def test_a_replay_with_a_timeout_has_a_deadline(
    graveyard: Graveyard, letters: DeadLetters, bystander: BystanderFactory
) -> None:
    requests = await (await bystander()).serve(SERVICE)
    await graveyard.bury("a", "add")
    await letters.replay("a", timeout=30)
    request = await requests.next()
    assert request.properties.expiration == 30_000
    assert (request.properties.headers or {})["deadline"] > NOON * 1000


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "30", True])
async def test_a_replay_that_would_expire_at_once_is_refused_and_the_letter_stays(
    graveyard: Graveyard, letters: DeadLetters, timeout: Any
) -> None:
    await graveyard.bury("a", "add")
    with pytest.raises(ValueError, match="timeout"):
        await letters.replay("a", timeout=timeout)
    assert [letter.id for letter in await letters.list()] == ["a"]


async def test_a_letter_is_replayed_once(
    graveyard: Graveyard, letters: DeadLetters, bystander: BystanderFactory
) -> None:
    requests = await (await bystander()).serve(SERVICE)
    await graveyard.bury("a", "add")
    await letters.replay("a")
    with pytest.raises(UnknownTask, match="no dead letter 'a': it was replayed or discarded"):
        await letters.replay("a")
    await requests.next()
    assert requests.inbox.empty()


async def test_two_replays_at_once_are_one(
    url: str, graveyard: Graveyard, letters: DeadLetters, bystander: BystanderFactory
) -> None:
    requests = await (await bystander()).serve(SERVICE)
    await graveyard.bury("a", "add")
    async with DeadLetters(url, SERVICE) as others:
        outcomes = await asyncio.gather(letters.replay("a"), others.replay("a"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [UnknownTask]
    await requests.next()
    assert requests.inbox.empty()


async def test_a_letter_that_was_replayed_but_not_removed_does_not_run_twice(
    graveyard: Graveyard, letters: DeadLetters, worker: WorkerFactory
) -> None:
    runs: list[int] = []
    service = Service(SERVICE)

    @service.method
    async def add(a: int, b: int) -> None:
        runs.append(a + b)

    started = await worker(service)
    former = letter("a", "add", 2, 3)
    assert await graveyard.publish(exhume(former.properties, former.body, "rpc", f"rpc:{SERVICE}")) is Outcome.CONFIRMED
    await eventually(lambda: bool(runs))
    await graveyard.put(letter("a", "add", 2, 3))
    await letters.replay("a")
    await graveyard.bury("b", "add", 4, 4)
    await letters.replay("b")
    await eventually(lambda: len(runs) >= 2)
    await started.aclose()
    assert runs == [5, 8]


async def test_another_letter_of_the_same_task_is_run(
    graveyard: Graveyard, letters: DeadLetters, worker: WorkerFactory
) -> None:
    runs: list[int] = []
    service = Service(SERVICE)

    @service.method
    async def add(a: int, b: int) -> None:
        runs.append(a + b)

    await worker(service)
    for letter_id in ("a", "b"):
        publication = letter(letter_id, "add", 2, 3)
        publication.properties.correlation_id = "task"
        await graveyard.put(publication)
        await letters.replay(letter_id)
    await eventually(lambda: runs == [5, 5])


async def test_a_letter_whose_service_is_gone_stays(graveyard: Graveyard, letters: DeadLetters) -> None:
    await graveyard.bury("a", "add")
    with pytest.raises(Unroutable, match=f"no queue is bound for service '{SERVICE}'"):
        await letters.replay("a")
    assert await ids(letters) == ["a"]


async def test_a_letter_whose_service_is_full_stays(graveyard: Graveyard, letters: DeadLetters) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await graveyard.declare(Names().service_queue(SERVICE, arguments))
    await graveyard.bury("a", "add")
    await graveyard.bury("b", "add")
    await letters.replay("a")
    with pytest.raises(Overloaded, match=f"the queue of service '{SERVICE}' is full"):
        await letters.replay("b")
    assert await ids(letters) == ["b"]


async def test_the_others_keep_their_order_when_one_leaves(
    graveyard: Graveyard, letters: DeadLetters, bystander: BystanderFactory
) -> None:
    await (await bystander()).serve(SERVICE)
    for name in "abcde":
        await graveyard.bury(name, "add")
    await letters.replay("c")
    assert await ids(letters) == ["a", "b", "d", "e"]
    await letters.discard("a")
    assert await ids(letters) == ["b", "d", "e"]


async def test_a_letter_that_is_too_large_here_is_listed_and_stays(url: str, graveyard: Graveyard) -> None:
    await graveyard.bury("a", "add", "x" * 5_000)
    async with DeadLetters(url, SERVICE, max_size=1_024) as letters:
        assert (await letters.list())[0].size > 5_000
        for use in (letters.replay, letters.arguments):
            with pytest.raises(PayloadTooLarge, match=r"the body has \d+ bytes, more than the limit max_size"):
                await use("a")
        await letters.discard("a")
        assert await letters.count() == 0


# discarding


async def test_a_discarded_letter_is_gone(graveyard: Graveyard, letters: DeadLetters) -> None:
    await graveyard.bury("a", "add")
    await graveyard.bury("b", "add")
    await letters.discard("a")
    assert await ids(letters) == ["b"]
    with pytest.raises(UnknownTask):
        await letters.discard("a")


async def test_what_was_settled_is_settled_when_the_operation_is_over(
    graveyard: Graveyard, letters: DeadLetters
) -> None:
    for number in range(30):
        await graveyard.bury(str(number), "add")
    for number in range(30):
        await letters.discard(str(number))
        assert await letters.count() == 29 - number


# the connection


async def test_a_reader_that_is_cancelled_leaves_the_letters(graveyard: Graveyard, letters: DeadLetters) -> None:
    for name in "abc":
        await graveyard.bury(name, "add")
    for _ in range(20):
        reading = asyncio.ensure_future(letters.list())
        for _ in range(5):
            await asyncio.sleep(0)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    assert await ids(letters) == ["a", "b", "c"]


async def test_letters_are_used_while_they_are_open(url: str) -> None:
    letters = DeadLetters(url)
    with pytest.raises(UsageError, match="not open"):
        await letters.list()
    async with letters:
        pass
    with pytest.raises(UsageError, match="not open"):
        await letters.count()
    for use in (letters.get, letters.replay, letters.discard, letters.arguments):
        with pytest.raises(UsageError, match="not open"):
            await use("a")


async def test_another_prefix_has_other_letters(url: str, graveyard: Graveyard) -> None:
    await graveyard.bury("a", "add")
    async with DeadLetters(url, SERVICE, prefix="jobs") as letters:
        assert await letters.count() == 0


async def test_a_broker_that_is_not_there_is_told_at_once() -> None:
    letters = DeadLetters(["amqp://user:s3cret@localhost:1/", "amqp://localhost:2/"])
    with pytest.raises(ConnectFailed, match=r"localhost:1.*; .*localhost:2") as caught:
        await letters.__aenter__()
    assert "s3cret" not in str(caught.value) + repr(letters)


@pytest.mark.parametrize("url", ["amqp"], indirect=True)
async def test_of_several_brokers_one_that_is_there_does(graveyard: Graveyard, url: str) -> None:
    await graveyard.bury("a", "add")
    async with DeadLetters(["amqp://localhost:1/", url], SERVICE) as letters:
        assert await ids(letters) == ["a"]


@pytest.mark.parametrize("url", ["memory"], indirect=True)
async def test_a_replay_whose_confirm_is_lost_can_be_made_again(worker: WorkerFactory, url: str) -> None:
    runs: list[int] = []
    gate = Gate()
    service = Service(SERVICE)

    @service.method
    async def add(a: int, b: int) -> None:
        runs.append(a + b)
        await gate.wait()

    broker = memory_broker(url.removeprefix("memory://"))
    await worker(service)
    async with Graveyard.opened(url) as graveyard, DeadLetters(url, SERVICE) as letters:
        await graveyard.bury("a", "add", 2, 3)
        broker.lose_confirms(lambda publication: publication.exchange == "rpc")
        with pytest.raises(ConnectionLost, match="the letter is still there") as caught:
            await letters.replay("a")
        assert caught.value.maybe_executed
        await gate.entered()
        await letters.replay("a")
        assert await letters.count() == 0
        gate.open()
        await graveyard.bury("b", "add", 4, 4)
        await letters.replay("b")
        await eventually(lambda: len(runs) >= 2)
    assert runs == [5, 8]


@pytest.mark.parametrize("url", ["memory"], indirect=True)
async def test_a_broker_that_takes_nothing_is_told(url: str) -> None:
    broker = memory_broker(url.removeprefix("memory://"))
    async with Graveyard.opened(url) as graveyard, DeadLetters(url, SERVICE, timeout=0.05) as letters:
        await graveyard.bury("a", "add")
        broker.block()
        with pytest.raises(ConnectionLost, match="did not take the request") as caught:
            await letters.replay("a")
        assert not caught.value.maybe_executed
        assert await ids(letters) == ["a"]


@pytest.mark.parametrize("url", ["memory"], indirect=True)
async def test_a_letter_that_could_not_be_removed_is_told(url: str) -> None:
    broker = memory_broker(url.removeprefix("memory://"))
    async with Graveyard.opened(url) as graveyard, DeadLetters(url, SERVICE) as letters:
        await graveyard.declare(Names().service_queue(SERVICE))
        for use, maybe_executed in ((letters.discard, False), (letters.replay, True)):
            await graveyard.bury("a", "add")
            # The link is lost with the letter in hand; for a replay once the request was confirmed.
            using = asyncio.ensure_future(use("a"))
            expected = broker.statistics().published + maybe_executed

            def in_hand(expected: int = expected) -> bool:
                seen = broker.statistics()
                return seen.published >= expected and seen.queues[graveyard.queue].unsettled > 0

            while not in_hand():  # noqa: ASYNC110 - the moment is one turn of the loop
                await asyncio.sleep(0)
            broker.drop_links(lambda link: graveyard.queue in link.queues)
            with pytest.raises(ConnectionLost) as caught:
                await using
            assert caught.value.maybe_executed is maybe_executed
            assert await ids(letters) == ["a"]
            await letters.discard("a")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"url": "http://localhost"}, "url"),
        ({"url": []}, "url"),
        ({"url": "memory://", "service": "a b"}, "service name"),
        ({"url": "memory://", "prefix": "a.b"}, "prefix"),
        ({"url": "memory://", "max_size": 1}, "max_size"),
        ({"url": "memory://", "codecs": "json"}, "codecs"),
        *(({"url": "memory://", "timeout": value}, "timeout") for value in (0, -1, None, "1", float("nan"))),
    ],
)
def test_an_option_that_is_out_of_range_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        DeadLetters(**options)


@pytest.mark.parametrize("limit", [0, -1, 10_001, 1.5, None, True])
async def test_a_limit_that_is_out_of_range_is_named(letters: DeadLetters, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"^limit"):
        await letters.list(limit)


async def test_the_codecs_of_a_service_can_be_given(url: str, graveyard: Graveyard) -> None:
    await graveyard.bury("a", "add", 1)
    async with DeadLetters(url, SERVICE, codecs=Codecs(accept=["application/json"])) as letters:
        with pytest.raises(ContentDisallowed):
            await letters.arguments("a")
