"""What queues let go of: length limits, expiry, and dead letters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from aiorpcq.protocol.topology import Binding, Exchange, Names, Queue
from aiorpcq.transports.memory import MemoryBroker, MemoryLink, memory_broker

from .traffic import (
    CONFIRMED,
    DEAD,
    REFUSED,
    Clock,
    Inbox,
    bodies,
    connected,
    dead_lettering,
    headers_of,
    idle,
    publish,
    publish_all,
    read,
)


class TestLimits:
    async def test_a_full_queue_drops_its_head(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 2}))
        assert await publish_all(link, "q", b"1", b"2", b"3") == [CONFIRMED] * 3
        assert await bodies(link, "q") == [b"2", b"3"]

    async def test_what_a_full_queue_drops_is_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering("q", x_max_length=1))
        await publish_all(link, "q", b"1", b"2")
        await idle()
        [letter] = await read(link, "dead")
        assert (letter.body, headers_of(letter)["x-death"][0]["reason"]) == (b"1", "maxlen")

    async def test_a_full_queue_that_refuses_refuses(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 2, "x-overflow": "reject-publish"}))
        assert await publish_all(link, "q", b"1", b"2", b"3") == [CONFIRMED, CONFIRMED, REFUSED]
        assert await bodies(link, "q") == [b"1", b"2"]

    async def test_what_a_full_queue_refuses_can_be_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering("q", x_max_length=1, x_overflow="reject-publish-dlx"))
        assert await publish_all(link, "q", b"1", b"2") == [CONFIRMED, REFUSED]
        await idle()
        assert await bodies(link, "dead") == [b"2"]

    @pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
    async def test_the_limit_counts_only_what_no_consumer_takes(self, link: MemoryLink, overflow: str) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 1, "x-overflow": overflow}))
        inbox = Inbox()
        await link.consume("q", inbox)
        assert await publish_all(link, "q", *[b"x"] * 10) == [CONFIRMED] * 10
        await inbox.wait(10)

    async def test_what_is_given_back_to_a_full_queue_pushes_its_head_out(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-max-length": 1}))
        inbox = Inbox()
        subscription = await link.consume("q", inbox, prefetch=1)
        await publish_all(link, "q", b"1", b"2")
        await idle()
        await subscription.cancel()
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert await bodies(link, "q") == [b"2"]


class TestExpiry:
    async def test_a_message_expires_by_its_own_expiration(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"1", expiration=1_000)
        clock.now += 0.9
        broker.expire()
        assert broker.queue_depth("q") == 1
        clock.now += 0.1
        broker.expire()
        assert broker.queue_depth("q") == 0

    @pytest.mark.parametrize(("ttl", "expiration"), [(500, 1_000), (1_000, 500)])
    async def test_the_shorter_of_both_times_counts(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock, ttl: int, expiration: int
    ) -> None:
        await link.declare(Queue("q", arguments={"x-message-ttl": ttl}))
        await publish(link, "q", expiration=expiration)
        clock.now += 0.5
        broker.expire()
        assert broker.queue_depth("q") == 0

    async def test_messages_expire_only_at_the_head(self, broker: MemoryBroker, link: MemoryLink, clock: Clock) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"long", expiration=2_000)
        await publish(link, "q", b"short", expiration=1_000)
        clock.now += 1.5
        broker.expire()
        assert broker.queue_depth("q") == 2
        clock.now += 0.5
        broker.expire()
        assert broker.queue_depth("q") == 0

    async def test_an_expired_message_is_not_delivered(self, link: MemoryLink, clock: Clock) -> None:
        await link.declare(Queue("q"))
        await publish(link, "q", b"old", expiration=1_000)
        await publish(link, "q", b"new")
        clock.now += 2
        assert await bodies(link, "q") == [b"new"]

    async def test_with_no_time_at_all_a_message_goes_to_a_waiting_consumer(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q", b"1", expiration=0)
        await inbox.one()
        await subscription.cancel()
        await publish(link, "q", b"2", expiration=0)
        await idle()
        assert broker.queue_depth("q") == 0

    async def test_a_message_given_back_keeps_its_time(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        await link.declare(Queue("q"))
        inbox = Inbox()
        subscription = await link.consume("q", inbox)
        await publish(link, "q", expiration=1_000)
        await inbox.one()
        await subscription.cancel()
        clock.now += 1
        inbox.deliveries[0].nack(requeue=True)
        await idle()
        assert broker.queue_depth("q") == 0

    async def test_by_the_loops_clock_a_timer_expires_messages_one_after_the_other(self) -> None:
        async with connected(memory_broker("real")) as link:
            await link.declare(dead_lettering(), DEAD)
            inbox = Inbox()
            await link.consume("dead", inbox)
            await publish(link, "work", b"1", expiration=5)
            await publish(link, "work", b"2", expiration=15)
            await inbox.wait(2)
            assert inbox.bodies == [b"1", b"2"]

    async def test_by_the_loops_clock_a_timer_deletes_an_unused_queue(self) -> None:
        async with connected(memory_broker("real")) as link:
            await link.declare(Queue("q", arguments={"x-expires": 5}))
            async with asyncio.timeout(2):
                while await publish(link, "q") is CONFIRMED:
                    pass


class TestDeadLetters:
    async def test_a_rejected_message_says_where_it_has_been(self, link: MemoryLink) -> None:
        await link.declare(DEAD, dead_lettering(), Exchange("e"), Binding("work", "e", "k"))
        await link.consume("work", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "k", b"1", "e", expiration=5_000, headers={"CC": ["copy"], "mine": 1})
        await idle()
        [letter] = await read(link, "dead")
        death = headers_of(letter)["x-death"][0]
        assert isinstance(death["time"], datetime)
        assert death["time"].tzinfo is UTC
        assert list(death) == [
            "count",
            "reason",
            "queue",
            "time",
            "exchange",
            "routing-keys",
            "original-expiration",
        ]
        assert headers_of(letter) == {
            "mine": 1,
            "x-first-death-reason": "rejected",
            "x-first-death-queue": "work",
            "x-first-death-exchange": "e",
            "x-death": [
                {
                    "count": 1,
                    "reason": "rejected",
                    "queue": "work",
                    "time": death["time"],
                    "exchange": "e",
                    "routing-keys": ["k", "copy"],
                    "original-expiration": "5000",
                }
            ],
        }
        assert letter.properties.expiration is None
        assert (letter.exchange, letter.routing_key) == ("", "dead")

    async def test_the_same_death_again_counts_and_comes_first(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work", "x-message-ttl": 100}
        forth = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "delay"}
        await link.declare(Queue("work", arguments=forth), Queue("delay", arguments=back))
        rejecting = await link.consume("work", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "work")
        await idle()
        clock.now += 1
        broker.expire()
        await idle()
        await rejecting.cancel()
        clock.now += 1
        broker.expire()
        await idle()
        [delivery] = await read(link, "work")
        deaths = headers_of(delivery)["x-death"]
        assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == [
            ("delay", "expired", 2),
            ("work", "rejected", 2),
        ]
        assert headers_of(delivery)["x-first-death-reason"] == "rejected"

    async def test_a_cycle_without_a_rejection_is_dropped(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        arguments = {"x-dead-letter-exchange": "", "x-message-ttl": 100}
        await link.declare(Queue("q", arguments=arguments))
        await publish(link, "q")
        clock.now += 1
        broker.expire()
        await idle()
        assert broker.queue_depth("q") == 0
        assert broker.statistics().dropped == 1

    @pytest.mark.parametrize("exchange", ["amq.direct", "nowhere"])
    async def test_a_message_that_dead_letters_nowhere_is_dropped(
        self, broker: MemoryBroker, link: MemoryLink, exchange: str
    ) -> None:
        await link.declare(Queue("q", arguments={"x-dead-letter-exchange": exchange}))
        await link.consume("q", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "q")
        await idle()
        assert broker.statistics().dropped == 1

    async def test_an_expired_request_returns_to_its_sender(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        names = Names()
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        headers = {"CC": ["reply"]}
        await publish(link, "rpc:math", b"request", "rpc", headers=headers, expiration=50, reply_to="reply")
        clock.now += 1
        broker.expire()
        await idle()
        assert headers == {"CC": ["reply"]}
        [returned] = await read(link, "reply")
        assert (returned.exchange, returned.routing_key) == ("", "rpc:math")
        assert headers_of(returned)["CC"] == ["reply"]
        assert headers_of(returned)["x-death"][0]["reason"] == "expired"
        assert headers_of(returned)["x-death"][0]["routing-keys"] == ["rpc:math", "reply"]
        assert returned.properties.reply_to == "reply"

    async def test_a_bcc_key_still_counts_when_dead_lettered(self, link: MemoryLink) -> None:
        await link.declare(Queue("q", arguments={"x-dead-letter-exchange": "e"}), Exchange("e"))
        await link.declare(Queue("hidden"), Binding("hidden", "e", "secret"))
        await link.consume("q", Inbox(lambda delivery: delivery.nack(requeue=False)))
        await publish(link, "q", headers={"BCC": ["secret"]})
        await idle()
        [letter] = await read(link, "hidden")
        assert headers_of(letter)["x-death"][0]["routing-keys"] == ["q"]

    async def test_what_waits_in_a_delay_queue_comes_back_to_the_service_and_to_no_one_else(
        self, broker: MemoryBroker, link: MemoryLink, clock: Clock
    ) -> None:
        names = Names()
        delay = Queue("rpc.retry.1", arguments={"x-dead-letter-exchange": "rpc", "x-message-ttl": 100})
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        await link.declare(Exchange("rpc.retry"), delay, Binding("rpc.retry.1", "rpc.retry", "rpc:math"))
        await publish(link, "rpc:math", b"again", "rpc.retry", headers={"CC": ["reply"]})
        clock.now += 1
        broker.expire()
        await idle()
        assert await bodies(link, "rpc.math") == [b"again"]
        assert await bodies(link, "reply") == []
