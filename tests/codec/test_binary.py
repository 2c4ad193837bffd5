"""MessagePack: what is carried arrives equal, and whatever else comes is refused with an error that names no value."""

from __future__ import annotations

import contextlib
import math
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no annotations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiorpcq.codec import MsgpackCodec
from aiorpcq.errors import CodecError

from .values import SECRET, Level, Name, Point, canon, extension, nested, refused, unencodable, values


@given(values)
@settings(max_examples=500, deadline=None)
def test_every_carried_value_arrives_with_the_same_type_and_value(value: Any) -> None:
    codec = MsgpackCodec()
    assert canon(codec.decode(codec.encode(value))) == canon(value)


def test_a_bytearray_and_a_memoryview_arrive_as_bytes() -> None:
    codec = MsgpackCodec()
    assert canon(codec.decode(codec.encode([bytearray(b"a"), memoryview(b"b")]))) == canon([b"a", b"b"])


def test_a_plain_call_is_plain_messagepack() -> None:
    assert MsgpackCodec().encode([[2, 3], {"a": "b", "c": b"d"}]) == msgpack.packb([[2, 3], {"a": "b", "c": b"d"}])


def test_a_messagepack_timestamp_arrives_as_one() -> None:
    codec = MsgpackCodec()
    assert codec.decode(codec.encode(msgpack.Timestamp(7, 9))) == msgpack.Timestamp(7, 9)


@pytest.mark.parametrize(
    "value", [object(), Level.LOW, Name(SECRET), Point(1, 2), OrderedDict(a=1), len, Exception(SECRET), range(3), ...]
)
def test_a_type_that_is_not_carried_is_named(value: Any) -> None:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    expected = f"cannot encode a value of type {name}; register the type with the codec"
    assert unencodable(MsgpackCodec(), {"deep": [{1: (value,)}]}) == expected


def test_a_str_that_is_no_text_is_refused() -> None:
    assert unencodable(MsgpackCodec(), [SECRET + "\ud800"]) == "cannot encode a str with lone surrogates"


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,), lambda x: frozenset({x})])
def test_a_value_nested_too_deeply_is_refused(wrap: Callable[[Any], Any]) -> None:
    assert SECRET not in unencodable(MsgpackCodec(), nested(wrap, 1100))


def test_a_value_inside_itself_is_refused() -> None:
    inner: list[Any] = []
    inner.append((inner,))
    unencodable(MsgpackCodec(), inner)


def test_a_view_that_is_not_contiguous_is_refused() -> None:
    unencodable(MsgpackCodec(), memoryview(b"abcdef")[::2])


def test_a_refused_value_leaves_the_codec_as_it_was() -> None:
    codec = MsgpackCodec()
    for value in ([1, object()], [1, (2, {3: object()})], ["\ud800"], nested(lambda x: (x,), 100)):
        unencodable(codec, value)
        assert codec.decode(codec.encode([1, (2, (3,))])) == [1, (2, (3,))]


def test_an_interrupt_in_an_encoder_passes_and_leaves_the_codec_as_it_was() -> None:
    codec = MsgpackCodec()

    def interrupt(value: Level) -> int:
        raise KeyboardInterrupt

    codec.register(Level, 64, interrupt, Level)
    with pytest.raises(KeyboardInterrupt):
        codec.encode([1, (2, Level.LOW)])
    assert codec.encode([1, (2,)]) == MsgpackCodec().encode([1, (2,)])


@given(st.binary(max_size=200))
@settings(max_examples=2000, deadline=None)
def test_random_bytes_decode_or_are_a_codec_error(body: bytes) -> None:
    with contextlib.suppress(CodecError):
        MsgpackCodec().decode(body)


@given(values, st.data())
@settings(max_examples=1000, deadline=None)
def test_a_mutated_body_decodes_or_is_a_codec_error(value: Any, data: st.DataObject) -> None:
    codec = MsgpackCodec()
    body = bytearray(codec.encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body)))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(CodecError):
        codec.decode(bytes(body))
    assert canon(codec.decode(codec.encode(value))) == canon(value)


@given(values, st.data())
@settings(deadline=None)
def test_every_cut_body_is_a_codec_error(value: Any, data: st.DataObject) -> None:
    codec = MsgpackCodec()
    body = codec.encode(value)
    refused(codec, body[: data.draw(st.integers(0, len(body) - 1))])


@given(values, st.binary(min_size=1, max_size=5))
@settings(deadline=None)
def test_trailing_bytes_are_a_codec_error(value: Any, tail: bytes) -> None:
    codec = MsgpackCodec()
    assert refused(codec, codec.encode(value) + tail)


def test_trailing_bytes_of_a_large_body_are_named() -> None:
    codec = MsgpackCodec()
    assert "trailing" in refused(codec, codec.encode("x" * 5000) + b"\x01")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (b"\x92\x01", "truncated"),
        (b"\x01\x01", "trailing"),
        (b"\xa2\xff\xfe", "utf-8"),
        (b"\x81\x90\x01", "hashed"),
        (b"\x81\x80\x01", "hashed"),
        (b"\x91" * 2000 + b"\x01", "deep"),
        (extension(11, b""), "extension code 11"),
        (extension(127, b"abc"), "extension code 127"),
        (b"\xc7\x00\xfe", "extension code -2"),
        (b"\xc7\x01\xff\x00", "malformed"),
        (extension(1, b"\x01"), "type tuple"),
        (extension(1, b"\x81\x01\x02"), "type tuple"),
        (extension(2, b"\x91\x90"), "type set"),
        (extension(4, b"2024-13-01T00:00:00"), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00 2"), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00 0 No/Where"), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00 0 ../../etc/passwd"), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00 0 Europe"), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00 0 "), "type datetime.datetime"),
        (extension(4, b"2024-01-01T00:00:00+00:00 0 UTC"), "type datetime.datetime"),
        (extension(5, b"0000-00-00"), "type datetime.date"),
        (extension(5, b"\xff"), "type datetime.date"),
        (extension(6, b"25:00:00"), "type datetime.time"),
        (extension(7, msgpack.packb([10**10, 0, 0])), "type datetime.timedelta"),
        (extension(7, msgpack.packb([math.nan, 0, 0])), "type datetime.timedelta"),
        (extension(7, msgpack.packb([1])), "type datetime.timedelta"),
        (extension(8, b"short"), "type uuid.UUID"),
        (extension(9, b"s3cret-value"), "type decimal.Decimal"),
        (extension(9, b"1E+99999999999999999999"), "type decimal.Decimal"),
        (extension(10, b"\x00"), "type complex"),
    ],
)
def test_a_bad_body_is_refused_with_a_reason(body: bytes, part: str) -> None:
    assert part in refused(MsgpackCodec(), body)


def test_a_body_that_is_no_bytes_is_a_codec_error() -> None:
    refused(MsgpackCodec(), None)  # type: ignore[arg-type]  # what a broken transport might give


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
@pytest.mark.parametrize("size", [100, 511, 100_000])
def test_a_huge_declared_length_allocates_nothing_like_it(head: bytes, size: int) -> None:
    codec = MsgpackCodec()
    body = (head + size.to_bytes(4, "big")) * (size // 5)
    tracemalloc.start()
    try:
        refused(codec, body)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 4 * size
    finally:
        tracemalloc.stop()
