"""The native wire: what is encoded is decoded, and whatever else a peer sends is refused with one kind of error."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.protocol.messages import History, Outcome, Properties, Publication, Request, StateMessage
from aiorpcq.protocol.wire import (
    LEADING_HEADER,
    VERSION,
    MalformedMessage,
    ReturnReason,
    VersionRefused,
    decode_request,
    decode_state,
    delivery_count,
    encode_request,
    encode_state,
    republish,
    return_reason,
)

NOON = 1_700_000_000.0

texts = st.text(max_size=20)
names = st.text(min_size=1, max_size=20)
eighths = st.integers(0, 2**35).map(lambda number: number / 8)  # exact in binary and in milliseconds

fields: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary(max_size=10)
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""What a header can hold (AMQP 0-9-1, section 4.2.5.5, and RabbitMQ's errata)."""


histories = st.builds(History, st.none() | names, st.integers(0, 1_000), st.none() | names, st.booleans()).filter(
    lambda history: history != History()
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    parent_id = draw(st.none() | names)
    return Request(
        draw(names),
        draw(names),
        draw(st.binary()),
        draw(texts),
        draw(st.none() | names),
        draw(st.none() | names),
        draw(st.none() | eighths),
        draw(st.none() | eighths),
        draw(st.booleans()),
        draw(st.integers(1, 1_000)),
        draw(st.none() | st.integers(0, 255)),
        parent_id,
        None if parent_id is None else draw(names),
        draw(st.none() | st.dictionaries(texts, texts, min_size=1, max_size=4)),
        draw(st.none() | histories),
    )


states = st.builds(
    StateMessage,
    names,
    names,
    st.binary(),
    texts,
    st.none() | names,
    attempt=st.integers(1, 1_000),
    sequence=st.integers(0, 1_000),
    worker_id=st.none() | names,
)

hostile_headers = st.none() | st.dictionaries(
    st.sampled_from(
        [
            "CC",
            "attempt",
            "deadline",
            "losses",
            "metadata",
            "origin",
            "parent-id",
            "remaining",
            "replay",
            "republished",
            "root-id",
            "sequence",
            "states",
            "wire-version",
            "worker-id",
            "x-death",
        ]
    )
    | texts,
    fields,
    max_size=5,
)

optional_texts = st.none() | texts

hostile_properties = st.builds(
    Properties,
    content_type=optional_texts,
    content_encoding=optional_texts,
    headers=hostile_headers,
    priority=st.none() | st.integers(0, 255),
    correlation_id=optional_texts,
    reply_to=optional_texts,
    expiration=st.none() | st.integers(0, 10**30),
    type=optional_texts,
)


def request(**options: Any) -> Request:
    return Request("t", "add", b"body", "application/msgpack", **options)


def encoded(message: Request) -> Publication:
    return encode_request(message, "rpc", "rpc:default")


def headers_of(publication: Publication) -> Mapping[str, Any]:
    return publication.properties.headers or {}


def received(headers: Mapping[str, Any]) -> Properties:
    return Properties(headers=headers, correlation_id="t", type="add")


@given(requests())
def test_a_request_arrives_as_it_was_sent(sent: Request) -> None:
    publication = encoded(sent)
    assert decode_request(publication.properties, publication.body) == sent


@given(states)
def test_a_state_arrives_as_it_was_sent(sent: StateMessage) -> None:
    publication = encode_state(sent, "rpc.reply.1")
    assert decode_state(publication.properties, publication.body) == sent


@given(st.floats(0, 10**10), st.floats(0, 4_000_000))
def test_times_arrive_a_millisecond_early_at_the_most_and_never_late(deadline: float, expiration: float) -> None:
    publication = encoded(request(deadline=deadline, expiration=expiration))
    arrived = decode_request(publication.properties, publication.body)
    assert arrived.deadline is not None
    assert arrived.expiration is not None
    assert deadline - 0.00101 <= arrived.deadline <= deadline + 1e-5
    assert expiration - 0.00101 <= arrived.expiration <= expiration + 1e-8


def test_a_request_goes_where_it_is_told_and_has_to_find_a_queue() -> None:
    def settled(publication: Publication, outcome: Outcome) -> None:
        """Do nothing."""

    publication = encode_request(request(), "rpc", "rpc:math", settled)
    assert (publication.exchange, publication.routing_key) == ("rpc", "rpc:math")
    assert publication.mandatory
    assert publication.settled is settled


def test_a_request_reads_as_the_wire_says() -> None:
    publication = encoded(request(reply_to="rpc.reply.1", deadline=NOON + 1.5, expiration=1.5, priority=3))
    assert publication.properties == Properties(
        content_type="application/msgpack",
        headers={"deadline": 1_700_000_001_500, "CC": ("rpc.reply.1",)},
        priority=3,
        correlation_id="t",
        reply_to="rpc.reply.1",
        expiration=1_500,
        type="add",
    )
    assert publication.body == b"body"


def test_the_headers_of_a_request_have_a_fixed_order_that_the_deadline_leads() -> None:
    publication = encoded(
        request(
            metadata={"user": 7},
            root_id="r",
            parent_id="p",
            attempt=2,
            states=True,
            reply_to="rpc.reply.1",
            deadline=NOON,
        )
    )
    assert list(headers_of(publication)) == [
        LEADING_HEADER,
        "CC",
        "states",
        "attempt",
        "parent-id",
        "root-id",
        "metadata",
    ]


@given(requests().filter(lambda sent: sent.deadline is not None))
def test_the_deadline_leads_whatever_else_a_request_has(sent: Request) -> None:
    assert next(iter(headers_of(encoded(sent)))) == LEADING_HEADER


def test_a_cast_without_deadline_has_no_headers() -> None:
    assert encoded(request()).properties.headers is None


def test_a_plain_success_has_no_headers() -> None:
    properties = encode_state(StateMessage("t", "SUCCESS", b"", "application/msgpack"), "rpc.reply.1").properties
    assert properties == Properties(content_type="application/msgpack", correlation_id="t", type="SUCCESS")


def test_a_state_goes_to_the_reply_queue_on_the_default_exchange() -> None:
    publication = encode_state(StateMessage("t", "SUCCESS", b"v", ""), "rpc.reply.1", priority=4)
    assert (publication.exchange, publication.routing_key, publication.mandatory) == ("", "rpc.reply.1", True)
    assert publication.properties.priority == 4


@given(states)
def test_a_state_has_no_reply_to_that_would_make_it_a_returned_request(sent: StateMessage) -> None:
    assert encode_state(sent, "rpc.reply.1").properties.reply_to is None


@given(requests(), st.dictionaries(texts.map(lambda text: "x-" + text), fields))
def test_unknown_headers_of_a_request_are_ignored(sent: Request, unknown: dict[str, Any]) -> None:
    publication = encoded(sent)
    publication.properties.headers = {**unknown, **headers_of(publication)}
    assert decode_request(publication.properties, publication.body) == sent


@given(states, st.dictionaries(texts.map(lambda text: "x-" + text), fields))
def test_unknown_headers_of_a_state_are_ignored(sent: StateMessage, unknown: dict[str, Any]) -> None:
    publication = encode_state(sent, "rpc.reply.1")
    publication.properties.headers = {**unknown, **headers_of(publication)}
    assert decode_state(publication.properties, publication.body) == sent


def test_this_version_may_be_named() -> None:
    properties = received({"wire-version": VERSION})
    assert decode_request(properties, b"").attempt == 1
    assert decode_state(properties, b"").attempt == 1


@pytest.mark.parametrize("version", [0, 2, -1, 2**63, "1", b"1", 1.5, None, [], [1], {}, float("nan")])
def test_another_version_is_refused(version: object) -> None:
    properties = received({"wire-version": version})
    with pytest.raises(VersionRefused, match=r"^wire version .* is not 1$"):
        decode_request(properties, b"")
    with pytest.raises(VersionRefused, match=r"^wire version .* is not 1$"):
        decode_state(properties, b"")


def test_the_refusal_of_a_version_is_short() -> None:
    with pytest.raises(VersionRefused) as caught:
        decode_request(received({"wire-version": "2" * 10_000}), b"")
    assert len(str(caught.value)) < 100


def test_another_version_is_refused_before_what_it_may_have_changed() -> None:
    with pytest.raises(VersionRefused):
        decode_request(Properties(headers={"wire-version": 2, "attempt": "x"}, correlation_id="t"), b"")


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        (Properties(type="add"), "correlation_id"),
        (Properties(correlation_id="", type="add"), "correlation_id"),
        (Properties(correlation_id="t"), "type"),
        (Properties(correlation_id="t", type=""), "type"),
    ],
)
def test_what_is_missing_is_named(properties: Properties, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        decode_request(properties, b"")
    with pytest.raises(MalformedMessage, match=text):
        decode_state(properties, b"")


NOT_INTEGERS: tuple[Any, ...] = ("1", b"1", 1.0, True, [], {}, float("nan"))
NOT_COUNTS: tuple[Any, ...] = (-1, "3", 1.0, True, None, [])
NOT_TEXTS: tuple[Any, ...] = (1, b"a", 1.0, True, [], {})


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *((header, value) for header in ("deadline", "attempt", "losses", "remaining") for value in NOT_INTEGERS),
        *((header, value) for header in ("parent-id", "root-id", "origin", "replay") for value in NOT_TEXTS),
        *(("metadata", value) for value in ("a", 1, True, [], [["a", 1]])),
    ],
)
def test_a_header_of_a_request_that_is_of_the_wrong_kind_is_named(header: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=f"header {header} is not a"):
        decode_request(received({header: value}), b"")


@pytest.mark.parametrize("header", ["origin", "replay"])
def test_a_name_that_a_worker_keeps_is_no_longer_than_a_name_can_be(header: str) -> None:
    assert decode_request(received({header: "x" * 255}), b"").history is not None
    with pytest.raises(MalformedMessage, match=f"header {header} is longer than 255"):
        decode_request(received({header: "x" * 256}), b"")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *((header, value) for header in ("sequence", "attempt") for value in (*NOT_INTEGERS, None)),
        *(("worker-id", value) for value in NOT_TEXTS),
    ],
)
def test_a_header_of_a_state_that_is_of_the_wrong_kind_is_named(header: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=f"header {header} is not a"):
        decode_state(received({header: value}), b"")


@pytest.mark.parametrize("attempt", [0, -1, -(2**63)])
def test_an_attempt_is_at_least_the_first(attempt: int) -> None:
    properties = received({"attempt": attempt})
    assert decode_request(properties, b"").attempt == 1
    assert decode_state(properties, b"").attempt == 1


def test_a_sequence_is_not_negative() -> None:
    assert decode_state(received({"sequence": -1}), b"").sequence == 0


@pytest.mark.parametrize("value", [1, "true", "yes", [], None, False])
def test_states_are_wanted_where_the_header_is_true_and_nowhere_else(value: object) -> None:
    assert not decode_request(received({"states": value}), b"").states
    assert decode_request(received({"states": True}), b"").states


@given(hostile_properties, st.binary(max_size=10))
def test_whatever_comes_is_a_request_or_malformed(properties: Properties, body: bytes) -> None:
    try:
        arrived = decode_request(properties, body)
    except MalformedMessage:
        return
    assert arrived.task_id
    assert arrived.method
    assert isinstance(arrived.deadline, float | None)
    assert isinstance(arrived.expiration, float | None)
    assert type(arrived.attempt) is int
    assert arrived.attempt >= 1
    assert type(arrived.states) is bool
    assert isinstance(arrived.parent_id, str | None)
    assert isinstance(arrived.root_id, str | None)
    assert arrived.metadata is None or isinstance(arrived.metadata, Mapping)
    if arrived.history is not None:
        assert isinstance(arrived.history.origin, str | None)
        assert isinstance(arrived.history.replay, str | None)
        assert type(arrived.history.losses) is int
        assert arrived.history.losses >= 0
        assert type(arrived.history.republished) is bool


@given(hostile_properties, st.binary(max_size=10))
def test_whatever_comes_is_a_state_or_malformed(properties: Properties, body: bytes) -> None:
    try:
        arrived = decode_state(properties, body)
    except MalformedMessage:
        return
    assert arrived.task_id
    assert arrived.name
    assert type(arrived.attempt) is int
    assert arrived.attempt >= 1
    assert type(arrived.sequence) is int
    assert arrived.sequence >= 0
    assert isinstance(arrived.worker_id, str | None)


def test_a_request_that_was_published_once_has_no_history() -> None:
    assert decode_request(received({"attempt": 2, "states": True}), b"").history is None


@pytest.mark.parametrize(
    ("headers", "history"),
    [
        ({"origin": "rpc.reply.0"}, History(origin="rpc.reply.0")),
        ({"losses": 2}, History(losses=2)),
        ({"losses": -2}, History()),
        ({"replay": "letter"}, History(replay="letter")),
        ({"republished": True}, History(republished=True)),
        ({"republished": 1}, History()),
    ],
)
def test_what_happened_to_a_request_is_read_from_its_headers(headers: dict[str, Any], history: History) -> None:
    assert decode_request(received(headers), b"").history == history


def test_what_is_left_of_a_request_that_was_held_back_is_in_a_header() -> None:
    assert decode_request(received({"remaining": 1_500}), b"").expiration == 1.5
    assert decode_request(received({"remaining": -1}), b"").expiration == 0.0


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        (None, 0),
        ({}, 0),
        ({"x-delivery-count": 3}, 3),
        *(({"x-delivery-count": value}, 0) for value in NOT_COUNTS),
    ],
)
def test_a_quorum_queue_says_how_often_it_has_delivered(headers: dict[str, Any] | None, count: int) -> None:
    assert delivery_count(headers) == count


def published_again(sent: Publication, **options: Any) -> Publication:
    given_options: dict[str, Any] = {
        "attempt": 1,
        "history": History(republished=True),
        "reply_to": sent.properties.reply_to,
        "expiration": None,
    }
    return republish(sent.properties, sent.body, "rpc", "rpc:math", **{**given_options, **options})


@given(requests(), st.integers(1, 1_000), histories, st.none() | names, st.none() | eighths, st.booleans())
def test_a_request_that_is_published_again_is_the_same_but_for_what_is_said(
    sent: Request, attempt: int, history: History, reply_to: str | None, expiration: float | None, delayed: bool
) -> None:
    again = published_again(
        encoded(sent), attempt=attempt, history=history, reply_to=reply_to, expiration=expiration, delayed=delayed
    )
    sent.attempt, sent.history, sent.reply_to, sent.expiration = attempt, history, reply_to, expiration
    assert decode_request(again.properties, again.body) == sent
    assert (again.exchange, again.routing_key, again.mandatory) == ("rpc", "rpc:math", True)


def test_a_request_that_is_published_again_keeps_the_properties_that_rpc_does_not_use() -> None:
    sent = encoded(request())
    properties = sent.properties
    properties.message_id, properties.timestamp, properties.app_id, properties.delivery_mode = "m", 7, "app", 2
    properties.user_id = "guest"
    again = published_again(sent).properties
    assert (again.message_id, again.timestamp, again.app_id, again.delivery_mode) == ("m", 7, "app", 2)
    assert again.user_id is None


def test_what_the_broker_wrote_into_a_request_does_not_stay() -> None:
    sent = encoded(request(metadata={"user": 7}))
    sent.properties.headers = {
        **headers_of(sent),
        "x-death": [{"reason": "expired"}],
        "x-first-death-reason": "expired",
        "x-delivery-count": 3,
        "x-acquired-count": 3,
        "later": 1,
    }
    assert headers_of(published_again(sent)) == {"metadata": {"user": 7}, "later": 1, "republished": True}


def test_a_request_that_is_published_again_returns_to_where_its_caller_is_now() -> None:
    sent = encoded(request(reply_to="rpc.reply.1"))
    again = published_again(sent, reply_to="rpc.reply.2", history=History(origin="rpc.reply.1"))
    assert again.properties.reply_to == "rpc.reply.2"
    assert headers_of(again) == {"CC": ("rpc.reply.2",), "origin": "rpc.reply.1"}


def test_a_request_that_is_not_to_return_is_published_again_without_cc() -> None:
    sent = encode_request(request(reply_to="amq.rabbitmq.reply-to"), "rpc", "rpc:math", returns=False)
    assert sent.properties.headers is None
    again = published_again(sent)
    assert again.properties.reply_to == "amq.rabbitmq.reply-to"
    assert "CC" not in headers_of(again)


def test_a_request_that_is_held_back_does_not_expire_there() -> None:
    again = published_again(encoded(request(expiration=9.0)), expiration=1.5, delayed=True)
    assert again.properties.expiration is None
    assert headers_of(again)["remaining"] == 1_500


def test_a_request_that_was_held_back_expires_again() -> None:
    held = published_again(encoded(request()), expiration=1.5, delayed=True)
    again = published_again(held, expiration=1.0)
    assert again.properties.expiration == 1_000
    assert "remaining" not in headers_of(again)


def test_a_request_that_is_past_its_deadline_expires_at_once() -> None:
    assert published_again(encoded(request()), expiration=-5.0).properties.expiration == 0


def test_the_history_of_a_request_is_what_is_said_and_not_what_it_was() -> None:
    former = History("rpc.reply.0", 3, "letter", True)
    sent = encoded(request(history=former, attempt=4))
    assert published_again(sent, history=History()).properties.headers == {}


@given(requests().filter(lambda sent: sent.deadline is not None), histories, st.booleans())
def test_the_deadline_still_leads_when_a_request_is_published_again(
    sent: Request, history: History, delayed: bool
) -> None:
    again = published_again(encoded(sent), history=history, expiration=1.0, delayed=delayed)
    assert next(iter(headers_of(again))) == LEADING_HEADER


def test_the_delivered_request_stays_as_it_is() -> None:
    sent = encoded(request(reply_to="rpc.reply.1", attempt=2))
    before = dict(headers_of(sent))
    published_again(sent, attempt=3, reply_to="rpc.reply.2")
    assert headers_of(sent) == before


def test_whoever_waits_for_the_second_publication_is_told() -> None:
    def settled(publication: Publication, outcome: Outcome) -> None:
        """Do nothing."""

    assert published_again(encoded(request()), settled=settled).settled is settled


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("expired", ReturnReason.EXPIRED),
        ("rejected", ReturnReason.REJECTED),
        ("delivery_limit", ReturnReason.DELIVERY_LIMIT),
        ("maxlen", ReturnReason.QUEUE_FULL),
    ],
)
def test_the_newest_death_says_why_a_request_came_back(text: str, reason: ReturnReason) -> None:
    deaths = [{"reason": text, "count": 1}, {"reason": "expired"}, {"reason": "rejected"}]
    assert return_reason({"x-death": deaths}) is reason


def test_the_reason_of_the_first_death_is_not_read() -> None:
    headers = {"x-first-death-reason": "expired", "x-death": [{"reason": "rejected"}, {"reason": "expired"}]}
    assert return_reason(headers) is ReturnReason.REJECTED
    assert return_reason({"x-first-death-reason": "expired"}) is ReturnReason.UNKNOWN


@pytest.mark.parametrize(
    "deaths",
    [None, 5, "expired", b"expired", [], {}, [None], ["expired"], [{}], [{"reason": []}], {"reason": "expired"}],
)
def test_a_death_that_makes_no_sense_is_unknown(deaths: object) -> None:
    assert return_reason({"x-death": deaths}) is ReturnReason.UNKNOWN


def test_a_request_that_has_no_headers_came_back_for_unknown_reasons() -> None:
    assert return_reason(None) is ReturnReason.UNKNOWN


@given(hostile_headers | fields.map(lambda deaths: {"x-death": deaths}))
def test_whatever_the_headers_hold_there_is_a_reason(headers: dict[str, Any] | None) -> None:
    assert isinstance(return_reason(headers), ReturnReason)


@given(fields)
def test_whatever_the_death_holds_there_is_a_reason(reason: Any) -> None:
    assert isinstance(return_reason({"x-death": [{"reason": reason}]}), ReturnReason)


def test_messages_that_differ_in_one_field_are_not_equal() -> None:
    assert request() == request()
    assert request() != request(attempt=2)
    assert request() != "request"
    assert Properties(type="a") != Properties(type="b")
    assert StateMessage("t", "A", b"", "") != StateMessage("t", "B", b"", "")


def test_the_text_of_a_message_shows_no_body() -> None:
    sent = Request("t", "add", b"s3cret", "application/msgpack", metadata={"user": 7})
    shown = [repr(sent), repr(encoded(sent)), repr(StateMessage("t", "SUCCESS", b"s3cret", ""))]
    assert all("s3cret" not in text and "6 bytes" in text for text in shown)
