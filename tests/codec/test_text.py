"""JSON: strict both ways."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiorpcq.codec import JsonCodec
from aiorpcq.errors import CodecError

from .values import SECRET, Level, Name, Point, canon, json_values, nested_lists, refused, unencodable


@given(json_values)
@settings(deadline=None)
def test_every_json_value_arrives_with_the_same_type_and_value(value: Any) -> None:
    codec = JsonCodec()
    assert canon(codec.decode(codec.encode(value))) == canon(value)


def test_a_tuple_arrives_as_a_list_in_json() -> None:
    codec = JsonCodec()
    assert codec.decode(codec.encode({"a": (1, (2,))})) == {"a": [1, [2]]}


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        {1: 2},
        {None: 1},
        {(1,): 2},
        b"a",
        {1},
        Level.LOW,
        Point(1, 2),
        OrderedDict(),
        Name("a"),
        {Name("a"): 1},
        date(2024, 1, 1),
        Decimal(1),
        "\ud800",
        {"\ud800": 1},
        pytest.param(10**5000, id="an int of 5,000 digits"),
        object(),
    ],
)
def test_json_refuses_what_it_cannot_carry(value: Any) -> None:
    unencodable(JsonCodec(), [SECRET, value])


def test_json_names_the_type_it_refuses() -> None:
    assert (
        unencodable(JsonCodec(), {"a": UUID(int=1)}) == "cannot encode a value of type uuid.UUID; JSON cannot carry it"
    )


def test_json_refuses_a_value_nested_too_deeply() -> None:
    assert "nested" in unencodable(JsonCodec(), nested_lists(1, 100_000))


def test_json_refuses_a_value_inside_itself() -> None:
    inner: list[Any] = []
    inner.append(inner)
    assert "nested" in unencodable(JsonCodec(), inner)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nul",
        b"[1",
        b"[1]]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"'a'",
        b"\x93\x01",
        b'"\\ud800"',
        b'{"\\uDC00": 1}',
        "1".encode("utf-16"),
        pytest.param(b"[" * 200_000, id="deep lists"),
        pytest.param(b'{"a":' * 200_000, id="deep dicts"),
        pytest.param(b"9" * 5000, id="an int of 5,000 digits"),
    ],
)
def test_json_refuses_a_bad_body(body: bytes) -> None:
    refused(JsonCodec(), body)


def test_an_escaped_pair_of_surrogates_is_text() -> None:
    assert JsonCodec().decode(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(st.binary(max_size=100) | st.text().map(str.encode))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_json_or_a_codec_error(body: bytes) -> None:
    with contextlib.suppress(CodecError):
        JsonCodec().decode(body)


@given(json_values, st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_json_body_decodes_or_is_a_codec_error(value: Any, data: st.DataObject) -> None:
    body = bytearray(JsonCodec().encode(value))
    position = data.draw(st.integers(0, len(body)))
    body[position : position + 2] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(CodecError):
        JsonCodec().decode(bytes(body))
