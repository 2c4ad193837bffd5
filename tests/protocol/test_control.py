"""Control messages: what is encoded is decoded, and whatever else comes is refused with one kind of error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.protocol.control import (
    CLAIM_LIMIT,
    Answer,
    Cancel,
    CancelMode,
    Claim,
    Command,
    Inquiry,
    Question,
    decode_answer,
    decode_command,
    encode_answer,
    encode_command,
)
from aiorpcq.protocol.messages import PROPERTY_NAMES, Properties
from aiorpcq.protocol.wire import VERSION, MalformedMessage, VersionRefused, decode_state

names = st.text(min_size=1, max_size=20)
seconds = st.integers(0, 2**40).map(lambda number: number / 8)  # exact in binary and in milliseconds
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Cancel, names, names, st.sampled_from(get_args(CancelMode)), seconds),
    st.builds(Claim, names, names, st.lists(names, max_size=5).map(tuple), seconds, st.none() | names),
    st.builds(Inquiry, st.sampled_from(["ping", "info", "stats"]), names, names),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
answers = st.builds(Answer, st.sampled_from(get_args(Question)), names, names, values)

CANCEL = Cancel("t", "rpc.reply.1", "kill", 30.0)
CLAIM = Claim("rpc.reply.1", "rpc.reply.2", ("a", "b"), 30.0)
INQUIRY = Inquiry("ping", "question", "rpc.reply.1")
NOT_TIMES: tuple[Any, ...] = (None, -1, 1.5, "1", True, [])
ANSWER = Answer("ping", "question", "worker", None)


def changed(properties: Properties, **fields: Any) -> Properties:
    given_fields = {name: getattr(properties, name) for name in PROPERTY_NAMES}
    headers = fields.pop("headers", {})
    return Properties(**{**given_fields, **fields, "headers": {**(properties.headers or {}), **headers}})


def read(command: Command, **fields: Any) -> Command:
    """Return what *command* is read as, with some of its fields replaced."""
    publication = encode_command(command, "rpc.control", "all")
    body = fields.pop("body", publication.body)
    return decode_command(changed(publication.properties, **fields), body)


@given(commands)
def test_a_command_arrives_as_it_was_sent(command: Command) -> None:
    publication = encode_command(command, "rpc.control", "all")
    assert decode_command(publication.properties, publication.body) == command


@given(answers)
def test_an_answer_arrives_as_it_was_sent(answer: Answer) -> None:
    publication = encode_answer(answer, "rpc.reply.1")
    assert decode_answer(publication.properties, publication.body) == answer


def test_a_command_goes_where_it_is_told_and_nobody_waits_for_it() -> None:
    publication = encode_command(CANCEL, "rpc.control", "service.math")
    assert (publication.exchange, publication.routing_key) == ("rpc.control", "service.math")
    assert not publication.mandatory
    assert publication.settled is None


def test_an_answer_goes_to_the_queue_of_who_asked() -> None:
    publication = encode_answer(ANSWER, "rpc.reply.1")
    assert (publication.exchange, publication.routing_key, publication.mandatory) == ("", "rpc.reply.1", False)


def test_a_cancel_reads_as_the_wire_says() -> None:
    assert encode_command(CANCEL, "rpc.control", "all").properties == Properties(
        type="cancel", correlation_id="t", headers={"origin": "rpc.reply.1", "mode": "kill", "expires": 30_000}
    )


def test_a_claim_reads_as_the_wire_says() -> None:
    publication = encode_command(CLAIM, "rpc.control", "all")
    assert publication.properties == Properties(
        "application/json", type="resume", reply_to="rpc.reply.2", headers={"origin": "rpc.reply.1", "expires": 30_000}
    )
    assert json.loads(publication.body) == ["a", "b"]


def test_an_inquiry_reads_as_the_wire_says() -> None:
    assert encode_command(INQUIRY, "rpc.control", "all").properties == Properties(
        type="ping", correlation_id="question", reply_to="rpc.reply.1"
    )


@given(answers)
def test_an_answer_is_no_state(answer: Answer) -> None:
    publication = encode_answer(answer, "rpc.reply.1")
    with pytest.raises(MalformedMessage):
        decode_state(publication.properties, publication.body)


def test_a_state_is_no_answer() -> None:
    with pytest.raises(MalformedMessage, match="not an answer"):
        decode_answer(Properties(type="SUCCESS", correlation_id="t"), b"null")


@pytest.mark.parametrize("command", [CANCEL, CLAIM, INQUIRY])
def test_unknown_fields_of_a_command_are_ignored(command: Command) -> None:
    assert read(command, headers={"later": 1}) == command
    assert read(command, headers={"wire-version": VERSION}) == command


@pytest.mark.parametrize("command", [CANCEL, CLAIM, INQUIRY])
@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_a_command_of_another_version_is_refused(command: Command, version: object) -> None:
    with pytest.raises(VersionRefused, match=r"^wire version .* is not 1$"):
        read(command, headers={"wire-version": version}, type="later")


def test_an_answer_of_another_version_is_refused() -> None:
    publication = encode_answer(ANSWER, "rpc.reply.1")
    with pytest.raises(MalformedMessage):
        decode_answer(changed(publication.properties, headers={"wire-version": 2}), publication.body)


@pytest.mark.parametrize(
    ("command", "fields", "text"),
    [
        (CANCEL, {"type": "stop"}, "type 'stop'"),
        (CANCEL, {"type": None}, "type None"),
        (CANCEL, {"type": "held"}, "type 'held'"),
        (CANCEL, {"correlation_id": None}, "correlation_id"),
        (CANCEL, {"correlation_id": ""}, "correlation_id"),
        (CANCEL, {"headers": {"origin": None}}, "origin"),
        (CANCEL, {"headers": {"origin": 5}}, "origin"),
        (CANCEL, {"headers": {"mode": None}}, "mode"),
        (CANCEL, {"headers": {"mode": "gently"}}, "mode 'gently'"),
        (CANCEL, {"headers": {"mode": []}}, "mode"),
        (CLAIM, {"reply_to": None}, "reply_to"),
        (CLAIM, {"reply_to": ""}, "reply_to"),
        (CLAIM, {"headers": {"origin": ""}}, "origin"),
        (INQUIRY, {"correlation_id": None}, "correlation_id"),
        (INQUIRY, {"reply_to": None}, "reply_to"),
        *(
            (command, {"headers": {"expires": expires}}, "expires")
            for command in (CANCEL, CLAIM)
            for expires in NOT_TIMES
        ),
    ],
)
def test_what_is_wrong_with_a_command_is_named(command: Command, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        read(command, **fields)


@pytest.mark.parametrize("body", [b"", b"{}", b'"ab"', b"5", b"[1]", b'["a", null]', b"\xff", b"[" * 100_000])
def test_a_claim_of_what_are_no_task_ids_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read(CLAIM, body=body)


def test_a_claim_names_no_more_tasks_than_the_limit() -> None:
    ids = [str(number) for number in range(CLAIM_LIMIT)]
    assert read(CLAIM, body=json.dumps(ids).encode()) == Claim(CLAIM.origin, CLAIM.reply_to, tuple(ids), 30.0)
    with pytest.raises(MalformedMessage, match=f"at most {CLAIM_LIMIT} task ids"):
        read(CLAIM, body=json.dumps([*ids, "more"]).encode())


def test_a_body_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(MalformedMessage, match="a body of 1048577 bytes"):
        read(CLAIM, body=b" " * (1024 * 1024 + 1))


def test_the_refusal_of_a_command_is_short() -> None:
    for fields in ({"type": "x" * 10_000}, {"headers": {"mode": "x" * 10_000}}):
        with pytest.raises(MalformedMessage) as caught:
            read(CANCEL, **fields)
        assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"headers": {"control": "joke"}}, b"null"),
        ({"headers": {"control": None}}, b"null"),
        ({"headers": {"control": []}}, b"null"),
        ({"headers": {"worker-id": None}}, b"null"),
        ({"headers": {"worker-id": 5}}, b"null"),
        ({"correlation_id": None}, b"null"),
        ({}, b""),
        ({}, b"{"),
        ({}, b"\xff\xfe"),
    ],
)
def test_what_is_no_answer_is_malformed(fields: dict[str, Any], body: bytes) -> None:
    publication = encode_answer(ANSWER, "rpc.reply.1")
    with pytest.raises(MalformedMessage):
        decode_answer(changed(publication.properties, **fields), body)


hostile = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)


@given(
    st.sampled_from(["cancel", "resume", "ping", "info", "stats", "held"]) | st.none() | st.text(max_size=10),
    st.none() | st.text(max_size=5),
    st.none() | st.text(max_size=5),
    st.dictionaries(st.sampled_from(["origin", "mode", "expires", "control", "worker-id", "wire-version"]), hostile),
    st.binary(max_size=20) | values.map(lambda value: json.dumps(value).encode()),
)
def test_whatever_comes_is_a_control_message_or_malformed(
    kind: str | None, identity: str | None, reply_to: str | None, headers: Mapping[str, Any], body: bytes
) -> None:
    properties = Properties(headers=headers, type=kind, correlation_id=identity, reply_to=reply_to)
    for decode in (decode_command, decode_answer):
        try:
            decode(properties, body)
        except MalformedMessage:
            continue
