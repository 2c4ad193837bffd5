"""Dead letters: nothing of a request is lost in one, nothing acts while it lies there, and it is replayed as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.protocol.deadletters import DeadLetter, bury, exhume, letter_id_of, read
from aiorpcq.protocol.messages import PROPERTY_NAMES, History, Outcome, Properties, Publication, Request
from aiorpcq.protocol.metadata import check_metadata
from aiorpcq.protocol.wire import (
    LEADING_HEADER,
    MalformedMessage,
    VersionRefused,
    decode_request,
    encode_request,
)

NOON = 1_700_000_000.0

names = st.text(min_size=1, max_size=20)
requests = st.builds(
    Request,
    names,
    names,
    st.binary(max_size=20),
    names,
    st.none() | names,
    st.none() | names,
    st.none() | st.integers(0, 2**35).map(float),
    st.none() | st.integers(0, 2**20).map(float),
    st.booleans(),
    st.integers(1, 1_000),
    st.none() | st.integers(0, 255),
    parent_id=st.none() | names,
    root_id=names,
    metadata=st.none() | st.dictionaries(names, names, min_size=1, max_size=3),
    history=st.none() | st.builds(History, st.none() | names, st.integers(0, 9), st.none() | names, st.booleans()),
)


def buried(
    properties: Properties,
    body: bytes = b"body",
    *,
    letter_id: str = "letter",
    reason: str = "5 runs were lost",
    attempt: int = 5,
    losses: int = 5,
    now: float = NOON,
) -> Publication:
    return bury(
        properties,
        body,
        "rpc.math.dead",
        letter_id=letter_id,
        reason=reason,
        attempt=attempt,
        losses=losses,
        worker_id="worker",
        now=now,
    )


def delivered(**fields: Any) -> Properties:
    """A request as a worker gets it."""
    headers = {"deadline": 1_700_000_001_500, "CC": ["rpc.reply.1"], "states": True, "metadata": {"user": 7}}
    headers |= fields.pop("headers", {})
    return Properties(
        **{
            "content_type": "application/msgpack",
            "content_encoding": "zstd",
            "headers": headers,
            "priority": 3,
            "correlation_id": "t",
            "reply_to": "rpc.reply.1",
            "expiration": 1_500,
            "message_id": "m",
            "timestamp": 7,
            "type": "add",
            "user_id": "guest",
            "app_id": "app",
            **fields,
        }
    )


def letter_of(publication: Publication) -> DeadLetter:
    return read(publication.properties, publication.body)


def headers_of(publication: Publication) -> dict[str, Any]:
    return dict(publication.properties.headers or {})


def replayed(publication: Publication, **options: Any) -> Publication:
    return exhume(publication.properties, publication.body, "rpc", "rpc:math", **options)


def test_a_dead_letter_goes_to_its_queue_on_the_default_exchange_for_good() -> None:
    publication = buried(delivered())
    assert (publication.exchange, publication.routing_key, publication.mandatory) == ("", "rpc.math.dead", True)
    assert publication.properties.delivery_mode == 2


def test_nothing_of_a_dead_letter_acts_while_it_lies_there() -> None:
    properties = buried(delivered(headers={"x-death": [{"reason": "expired"}], "BCC": ["rpc.reply.2"]})).properties
    assert properties.reply_to is None
    assert properties.expiration is None
    assert properties.user_id is None
    assert not {"CC", "BCC", "deadline", "x-death"} & set(properties.headers or {})


def test_what_a_dead_letter_says_is_beside_the_request() -> None:
    publication = buried(delivered(headers={"x-death": [{"reason": "expired"}]}))
    assert headers_of(publication)["dead-letter"] == {
        "id": "letter",
        "reason": "5 runs were lost",
        "attempt": 5,
        "losses": 5,
        "worker-id": "worker",
        "buried-at": 1_700_000_000_000,
        "reply-to": "rpc.reply.1",
        "cc": ("rpc.reply.1",),
        "expiration": 1_500,
        "deadline": 1_700_000_001_500,
        "x-death": "expired",
    }


def test_the_request_itself_stays_as_it_was() -> None:
    publication = buried(delivered())
    assert publication.body == b"body"
    properties = replace_headers(publication.properties, {})
    assert properties == Properties(
        content_type="application/msgpack",
        content_encoding="zstd",
        headers={},
        delivery_mode=2,
        priority=3,
        correlation_id="t",
        message_id="m",
        timestamp=7,
        type="add",
        app_id="app",
    )
    assert headers_of(publication)["states"] is True
    assert headers_of(publication)["metadata"] == {"user": 7}


def replace_headers(properties: Properties, headers: Mapping[str, Any]) -> Properties:
    fields = {name: getattr(properties, name) for name in PROPERTY_NAMES}
    return Properties(**{**fields, "headers": headers})


def test_the_delivered_request_is_not_changed() -> None:
    properties = delivered()
    buried(properties)
    assert properties == delivered()


def test_a_dead_letter_is_read_as_it_was_buried() -> None:
    publication = buried(delivered(headers={"x-death": [{"reason": "rejected"}, {"reason": "expired"}]}))
    assert letter_of(publication) == DeadLetter(
        id="letter",
        task_id="t",
        method="add",
        reason="5 runs were lost",
        attempts=5,
        losses=5,
        worker_id="worker",
        buried_at=NOON,
        size=4,
        broker_reason="rejected",
        metadata={"user": 7},
        reply_to="rpc.reply.1",
    )


def test_the_size_of_a_body_that_is_not_all_there_is_told() -> None:
    publication = buried(delivered())
    assert read(publication.properties, b"", 10**9).size == 10**9


def test_a_cast_is_buried_and_replayed_without_reply_queue() -> None:
    publication = buried(Properties("application/msgpack", correlation_id="t", type="add"))
    assert letter_of(publication).reply_to is None
    again = replayed(publication)
    assert again.properties == Properties(
        "application/msgpack", headers={"replay": "letter"}, correlation_id="t", type="add"
    )


def test_a_replay_is_the_request_from_its_first_attempt() -> None:
    publication = buried(delivered(headers={"attempt": 5, "losses": 4, "republished": True, "replay": "former"}))
    again = replayed(publication)
    assert (again.exchange, again.routing_key, again.mandatory, again.body) == ("rpc", "rpc:math", True, b"body")
    request = decode_request(again.properties, again.body)
    assert request.attempt == 1
    assert request.history == History(replay="letter")
    assert request.reply_to == "rpc.reply.1"
    assert (request.deadline, request.expiration) == (None, None)
    assert (request.states, request.metadata, request.priority) == (True, {"user": 7}, 3)


def test_a_replay_returns_to_its_sender_again() -> None:
    again = replayed(buried(delivered()))
    assert headers_of(again)["CC"] == ("rpc.reply.1",)
    assert "dead-letter" not in headers_of(again)


def test_a_request_without_cc_is_replayed_without() -> None:
    properties = replace_headers(delivered(reply_to="amq.rabbitmq.reply-to.g1"), {"states": True})
    again = replayed(buried(properties))
    assert again.properties.reply_to == "amq.rabbitmq.reply-to.g1"
    assert headers_of(again) == {"states": True, "replay": "letter"}


def test_a_replay_keeps_the_queue_that_proves_who_its_caller_is() -> None:
    again = replayed(buried(delivered(headers={"origin": "rpc.reply.0"})))
    request = decode_request(again.properties, again.body)
    assert request.history == History("rpc.reply.0", replay="letter")


def test_a_replay_with_a_timeout_has_a_deadline_which_leads() -> None:
    again = replayed(buried(delivered()), deadline=NOON + 30, expiration=30.0)
    assert next(iter(headers_of(again))) == LEADING_HEADER
    request = decode_request(again.properties, again.body)
    assert (request.deadline, request.expiration) == (NOON + 30, 30.0)


@pytest.mark.parametrize(("mode", "replayed_mode"), [(None, None), (1, None), (2, 2)])
def test_a_persistent_request_is_persistent_again_and_no_other(mode: int | None, replayed_mode: int | None) -> None:
    assert replayed(buried(delivered(delivery_mode=mode))).properties.delivery_mode == replayed_mode


def test_what_was_left_of_a_request_that_was_held_back_is_known() -> None:
    publication = buried(delivered(expiration=None, headers={"remaining": 900}))
    assert headers_of(publication)["dead-letter"]["expiration"] == 900
    assert "remaining" not in headers_of(publication)
    assert "remaining" not in headers_of(replayed(publication))


def test_a_replay_that_dies_again_is_another_letter() -> None:
    again = replayed(buried(delivered()))
    second = buried(again.properties, again.body, letter_id="second", attempt=3, losses=2)
    letter = letter_of(second)
    assert (letter.id, letter.attempts, letter.losses, letter.reply_to) == ("second", 3, 2, "rpc.reply.1")
    assert "replay" not in headers_of(second)


def test_whoever_waits_for_a_publication_is_told() -> None:
    def settled(publication: Publication, outcome: Outcome) -> None:
        """Do nothing."""

    publication = bury(
        delivered(),
        b"",
        "q",
        letter_id="letter",
        reason="",
        attempt=1,
        losses=0,
        worker_id="",
        now=NOON,
        settled=settled,
    )
    assert publication.settled is settled
    assert replayed(publication, settled=settled).settled is settled


def test_a_long_reason_is_cut() -> None:
    assert len(letter_of(buried(delivered(), reason="x" * 100_000)).reason) == 1_000


def test_a_reason_that_no_header_can_hold_is_escaped() -> None:
    assert letter_of(buried(delivered(), reason="file \udcff")).reason == "file \\udcff"


@given(requests, st.integers(1, 1_000), st.integers(0, 1_000))
def test_a_request_is_replayed_as_it_was_but_for_its_history_and_deadline(
    sent: Request, attempt: int, losses: int
) -> None:
    published = encode_request(sent, "rpc", "rpc:math")
    publication = buried(published.properties, published.body, attempt=attempt, losses=losses)
    letter = letter_of(publication)
    assert (letter.task_id, letter.method, letter.size) == (sent.task_id, sent.method, len(sent.body))
    assert (letter.attempts, letter.losses) == (attempt, losses)
    again = replayed(publication)
    request = decode_request(again.properties, again.body)
    origin = None if sent.history is None else sent.history.origin
    expected = decode_request(published.properties, published.body)
    expected.attempt, expected.deadline, expected.expiration = 1, None, None
    expected.history = History(origin, replay="letter")
    assert request == expected


@given(requests)
def test_a_dead_letter_is_made_of_what_headers_can_hold(sent: Request) -> None:
    published = encode_request(sent, "rpc", "rpc:math")
    check_metadata(headers_of(buried(published.properties, published.body)))


@pytest.mark.parametrize("headers", [None, {}, {"dead-letter": None}, {"dead-letter": "x"}, {"dead-letter": []}])
def test_what_is_no_dead_letter_is_malformed(headers: dict[str, Any] | None) -> None:
    for use in (read, lambda properties, body: exhume(properties, body, "rpc", "rpc:math")):
        with pytest.raises(MalformedMessage, match="header dead-letter"):
            use(Properties(headers=headers, correlation_id="t", type="add"), b"")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("id", value) for value in (None, "", 1, b"a")),
        *(("reason", value) for value in (None, 1)),
        *(("worker-id", value) for value in (None, 1)),
        *(("reply-to", value) for value in (None, "", 1)),
        *(("x-death", value) for value in (None, "", 1)),
        *((name, value) for name in ("attempt", "losses", "buried-at") for value in (None, "1", 1.5, True, -1)),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(field: str, value: object) -> None:
    properties = buried(delivered()).properties
    headers = dict(properties.headers or {})
    headers["dead-letter"] = {**headers["dead-letter"], field: value}
    with pytest.raises(MalformedMessage, match=f"^{field} of header dead-letter is missing or not a"):
        read(replace_headers(properties, headers), b"")


@pytest.mark.parametrize("field", ["correlation_id", "type"])
def test_a_letter_that_names_no_task_or_method_is_malformed(field: str) -> None:
    properties = buried(delivered(**{field: None})).properties
    with pytest.raises(MalformedMessage, match=field):
        read(properties, b"")


def test_a_letter_of_another_version_is_refused() -> None:
    with pytest.raises(VersionRefused, match="wire version 2 is not 1"):
        letter_of(buried(delivered(headers={"wire-version": 2})))


@given(
    st.dictionaries(
        st.sampled_from(["id", "reason", "attempt", "losses", "worker-id", "buried-at", "reply-to", "cc", "x-death"])
        | names,
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=5) | st.integers(), max_size=3),
    )
)
def test_whatever_comes_is_a_dead_letter_or_malformed(table: dict[str, Any]) -> None:
    whole = headers_of(buried(delivered()))["dead-letter"]
    for given_table in (table, {**whole, **table}):
        properties = Properties(headers={"dead-letter": given_table}, correlation_id="t", type="add")
        try:
            letter = read(properties, b"")
        except MalformedMessage:
            continue
        assert replace(letter) == letter
        exhume(properties, b"", "rpc", "rpc:math")


@pytest.mark.parametrize("copies", ["rpc.reply.1", b"x", 5, None, [1, None], {"a": 1}])
def test_a_cc_that_is_no_list_of_queues_is_left_out(copies: object) -> None:
    assert "CC" not in headers_of(replayed(buried(delivered(headers={"CC": copies}))))


def test_the_copies_of_a_request_are_bounded() -> None:
    copies = [f"q{number}" for number in range(1_000)] + ["x" * 256]
    assert len(headers_of(replayed(buried(delivered(headers={"CC": copies}))))["CC"]) == 16


def test_the_id_of_a_letter_tells_requests_apart_and_not_their_deliveries() -> None:
    def identify(task_id: str = "t", body: bytes = b"body", **headers: Any) -> str:
        properties = Properties(headers={"version": 1, **headers}, correlation_id=task_id, reply_to="replies")
        return letter_id_of(properties, body)

    assert re.fullmatch("[0-9a-f]{16}", identify())
    again: dict[str, Any] = {"x-delivery-count": 3, "losses": 5, "attempt": 6, "x-death": []}
    assert identify() == identify(**again)
    assert identify() == identify(origin="replies")  # of a caller that has moved since
    others = [identify("u"), identify(body=b"other"), identify(replay="1"), identify(replay="2"), identify(origin="o")]
    assert len({identify(), *others}) == 6
