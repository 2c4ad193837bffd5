"""From a publication to queues, and its settlement."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from aiorpcq.errors import PayloadTooLarge, RPCError
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Binding, Exchange, Names, Queue
from aiorpcq.transports.memory import MemoryBroker, MemoryLink

from .traffic import CONFIRMED, LOST, RETURNED, Inbox, bodies, connected, headers_of, idle, publish, publish_all, read


class TestRouting:
    async def test_the_default_exchange_routes_by_queue_name(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        assert await publish(link, "q", b"1") is CONFIRMED
        [delivery] = await read(link, "q")
        assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", "q", False)

    @pytest.mark.parametrize(
        ("pattern", "matching", "others"),
        [
            ("a.b", ["a.b"], ["a", "a.c", "a.b.c"]),
            ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
            ("a.#", ["a", "a.b", "a.b.c"], ["b", "b.a"]),
            ("#", ["", "a", "a.b"], []),
            ("#.c", ["c", "a.c", "a.b.c"], ["", "c.a"]),
            ("a.#.c", ["a.c", "a.b.c", "a.b.b.c"], ["a", "a.b"]),
            ("*", ["a"], ["", "a.b"]),
            ("*.#.*", ["a.b", "a.b.c"], ["a"]),
        ],
    )
    async def test_a_topic_matches_words(
        self, link: MemoryLink, pattern: str, matching: list[str], others: list[str]
    ) -> None:
        await link.declare(Exchange("e", "topic"), Queue("q"), Binding("q", "e", pattern))
        outcomes = [await publish(link, key, exchange="e") for key in matching + others]
        assert outcomes == [CONFIRMED] * len(matching) + [RETURNED] * len(others)

    async def test_a_topic_exchange_sees_bindings_made_after_it_has_routed(self, link: MemoryLink) -> None:
        await link.declare(Exchange("e", "topic"), Queue("q"))
        assert await publish(link, "a", exchange="e") is RETURNED
        await link.declare(Binding("q", "e", "#"))
        assert await publish(link, "a", exchange="e") is CONFIRMED

    async def test_a_fanout_exchange_gives_every_queue_one_copy(self, link: MemoryLink) -> None:
        await link.declare(Exchange("e", "fanout"), Queue("q1"), Queue("q2"))
        await link.declare(Binding("q1", "e", "a"), Binding("q1", "e", "b"), Binding("q2", "e", ""))
        await publish(link, "anything", b"1", "e")
        assert [await bodies(link, queue) for queue in ("q1", "q2")] == [[b"1"], [b"1"]]

    async def test_cc_keys_route_too_without_a_second_copy_for_a_queue(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"CC": ("q2", "q1")})
        [first], [second] = await read(link, "q1"), await read(link, "q2")
        assert headers_of(first) == headers_of(second) == {"CC": ["q2", "q1"]}
        assert second.routing_key == "q1"

    async def test_bcc_keys_route_too_and_are_not_shown(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"BCC": ["q2"], "kept": 1})
        assert [headers_of(delivery) for delivery in await read(link, "q2")] == [{"kept": 1}]

    async def test_a_request_is_not_copied_to_the_queue_in_its_cc_header(self, link: MemoryLink) -> None:
        names = Names()
        await link.declare(names.requests, names.service_queue("math"), names.binding("math"), Queue("reply"))
        assert await publish(link, "rpc:math", exchange="rpc", headers={"CC": ["reply"]}) is CONFIRMED
        assert await bodies(link, "reply") == []


class TestPublishing:
    async def test_unroutable_and_mandatory_is_returned(self, link: MemoryLink) -> None:
        assert await publish(link, "nowhere") is RETURNED

    async def test_unroutable_and_not_mandatory_is_confirmed(self, link: MemoryLink) -> None:
        assert await publish(link, "nowhere", mandatory=False) is CONFIRMED

    async def test_publications_are_settled_later_and_in_order(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        settled: list[tuple[bytes, Outcome]] = []
        for body, key in ((b"1", "q"), (b"2", "nowhere"), (b"3", "q")):
            link.publish(Publication("", key, Properties(), body, True, lambda p, o: settled.append((p.body, o))))
        assert settled == []
        await idle()
        assert settled == [(b"1", CONFIRMED), (b"2", RETURNED), (b"3", CONFIRMED)]

    async def test_an_unknown_exchange_closes_the_channel(self, link: MemoryLink) -> None:
        ended: list[RPCError] = []
        await link.declare(Queue("q"))
        await link.consume("q", Inbox(), on_cancelled=ended.append)
        outcomes = [publish(link, "q"), publish(link, "k", exchange="nowhere"), publish(link, "q")]
        assert [await outcome for outcome in outcomes] == [CONFIRMED, LOST, LOST]
        await idle()
        assert "no exchange 'nowhere'" in str(ended[0])
        assert await publish(link, "q") is CONFIRMED

    async def test_a_closing_link_settles_what_it_has_published_as_lost(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        outcome = publish(link, "q")
        assert not outcome.done()
        await link.close()
        assert outcome.result() is LOST

    async def test_on_a_lost_link_everything_is_lost(self, link: MemoryLink) -> None:
        await link.close()
        assert await publish_all(link, "q", b"1", b"2") == [LOST, LOST]

    async def test_a_link_that_is_lost_by_a_settlement_loses_what_was_published_after(
        self, broker: MemoryBroker, link: MemoryLink
    ) -> None:
        await link.declare(Queue("q"))

        def drop(_publication: Publication, _outcome: Outcome) -> None:
            broker.drop_links()

        link.publish(Publication("", "q", Properties(), b"", True, drop))
        assert await publish(link, "q") is LOST

    async def test_a_body_above_the_limit_is_refused_at_once(self, broker: MemoryBroker) -> None:
        async with connected(broker, max_size=3) as link:
            await link.declare(Queue("q"))
            assert await publish(link, "q", b"123") is CONFIRMED
            with pytest.raises(PayloadTooLarge, match="4 bytes is larger than the limit of 3"):
                publish(link, "q", b"1234")

    @pytest.mark.parametrize(
        "properties",
        [
            {"expiration": -1},
            {"expiration": 2**32},
            {"priority": 256},
            {"priority": -1},
            {"headers": {"CC": "q"}},
            {"correlation_id": "é" * 200},
        ],
    )
    async def test_a_property_that_does_not_fit_is_refused_at_once(
        self, link: MemoryLink, properties: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"."):
            publish(link, "q", **properties)
        await idle()
        assert not link.is_lost

    async def test_headers_that_the_publisher_changes_later_arrive_as_they_were(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        headers: dict[str, Any] = {"path": ["a"], "table": {"k": 1}}
        outcome = publish(link, "q", headers=headers)
        headers["path"].append("b")
        headers["table"]["k"] = 2
        headers["more"] = 1
        await outcome
        [delivery] = await read(link, "q")
        assert headers_of(delivery) == {"path": ["a"], "table": {"k": 1}}

    async def test_every_queue_has_headers_of_its_own(self, link: MemoryLink) -> None:
        await link.declare(Queue("q1"), Queue("q2"))
        await publish(link, "q1", headers={"CC": ["q2"]})
        [first], [second] = await read(link, "q1"), await read(link, "q2")
        assert first.properties.headers is not second.properties.headers

    async def test_properties_arrive_unchanged(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        properties = Properties("text/plain", None, {"a": 1}, 1, 3, "id", "reply", 5_000, "m", 7, "type", "user", "app")
        link.publish(Publication("", "q", properties, b"body"))
        [delivery] = await read(link, "q")
        assert delivery.properties == properties

    async def test_many_publications_make_the_link_wait_until_they_are_routed(self, link: MemoryLink) -> None:
        await link.declare(Queue("q"))
        for _ in range(4_096):
            assert link.writable
            publish(link, "q")
        assert not link.writable
        await link.wait_writable()
        assert link.writable
        assert await publish(link, "q") is CONFIRMED

    async def test_a_settled_callback_that_raises_is_logged_and_the_next_is_called(
        self, link: MemoryLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_publication: Publication, _outcome: Outcome) -> None:
            raise RuntimeError("mine")

        await link.declare(Queue("q"))
        link.publish(Publication("", "q", Properties(), b"", True, fail))
        assert await publish(link, "q") is CONFIRMED
        assert [(record.name, record.levelno) for record in caplog.records] == [("aiorpcq.memory", logging.ERROR)]
