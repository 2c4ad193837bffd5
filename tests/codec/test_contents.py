"""What a body may hold: a bomb of tiny values is refused before it is built, and a large body of few values is not."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no annotations
import pytest

from aiorpcq.codec import Codecs, JsonCodec, MsgpackCodec
from aiorpcq.errors import CodecError, PayloadTooLarge

from .values import User, extension

MSGPACK = "application/msgpack"
JSON = "application/json"
CONTAINERS = 500_000
VALUES = 4_000_000
MIB = 1024 * 1024
WIDE = b"".join(b"\xa2" + chr(0x100 + offset).encode() for offset in range(19))


def array(count: int, items: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + items


def repeated(item: bytes, size: int) -> bytes:
    count = size // len(item)
    return array(count, item * count)


def texts(item: bytes, size: int) -> bytes:
    return b"[" + (item + b",") * (size // (len(item) + 1)) + b"0]"


def within(limit: int, body: bytes, content_type: str) -> str:
    # Refused, and with no more than *limit* bytes taken beside the unpacked body and two copies of it.
    packed = gzip.compress(body, 6)
    codecs = Codecs()
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge) as caught:
            codecs.decode(packed, content_type, "gzip")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body) + limit
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(repeated(b"\x80", 4 * MIB), id="empty maps"),
        pytest.param(repeated(b"\x90", 4 * MIB), id="empty lists"),
        pytest.param(repeated(b"\x92\x01\x92\x02\x03", 4 * MIB), id="nested pairs"),
        pytest.param(repeated(b"\x81\x00\x00", 4 * MIB), id="maps of one"),
        pytest.param(repeated(b"\xd4\x01\x90", 4 * MIB), id="tuples"),
        pytest.param(repeated(b"\xd5\x02\x91\x00", 4 * MIB), id="sets"),
        pytest.param(repeated(b"\xd4\x09\x31", 4 * MIB), id="decimals"),
        pytest.param(repeated(b"\xde\x00\x00", 4 * MIB), id="empty maps with a long head"),
        pytest.param(extension(1, repeated(b"\x80", 4 * MIB)), id="empty maps in a tuple"),
        pytest.param(extension(64, repeated(b"\x80", 4 * MIB)), id="empty maps in a user's type"),
        pytest.param(
            array(2, b"\xc6" + MIB.to_bytes(4, "big") + bytes(MIB) + repeated(b"\x80", MIB)), id="after bytes"
        ),
    ],
)
def test_a_messagepack_body_of_too_many_containers_is_refused_unbuilt(body: bytes) -> None:
    assert f"the limit of {CONTAINERS} lists, maps and extension values" in within(2 * MIB, body, MSGPACK)


@pytest.mark.parametrize("item", [b"\xcc\x01", b"\xa1a", b"\xc4\x00", b"\xda\x00\x00"])
def test_a_messagepack_body_of_too_many_values_is_refused(item: bytes) -> None:
    with pytest.raises(PayloadTooLarge, match=f"the limit of {VALUES} values"):
        MsgpackCodec().decode(array(VALUES, item * VALUES))


def test_small_ints_are_counted_before_they_are_built() -> None:
    assert f"the limit of {VALUES} values" in within(2 * MIB, array(VALUES, b"\x01" * VALUES), MSGPACK)


@pytest.mark.parametrize("item", [b"{}", b"[]", b"[1,[2,3]]", b'{"":0}'])
def test_a_json_body_of_too_many_containers_is_refused_unbuilt(item: bytes) -> None:
    assert f"the limit of {CONTAINERS} lists and dicts" in within(2 * MIB, texts(item, 10 * MIB), JSON)


@pytest.mark.parametrize("item", [b"1", b'""', b'"":1'])
def test_a_json_body_of_too_many_values_is_refused_unbuilt(item: bytes) -> None:
    assert f"the limit of {VALUES} values" in within(2 * MIB, texts(item, 31 * MIB), JSON)


@pytest.mark.parametrize("tail", [b"", b'"'])
def test_an_open_text_of_escapes_takes_no_time_to_refuse(tail: bytes) -> None:
    body = b"[" * (CONTAINERS + 1) + b'"' + b'\\"' * (8 * MIB // 2) + tail
    assert "lists and dicts" in within(2 * MIB, body, JSON)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(array(CONTAINERS - 1, b"\x80" * (CONTAINERS - 1)), id="empty maps"),
        pytest.param(array(CONTAINERS - 1, b"\x81\x00\x00" * (CONTAINERS - 1)), id="maps of one"),
        pytest.param(
            array(CONTAINERS // 2 - 1, b"\xc7\x06\x02\x95\x00\x01\x02\x03\x04" * (CONTAINERS // 2 - 1)), id="sets"
        ),
        pytest.param(array(VALUES - 5, b"\x01" * (VALUES - 5)), id="ints"),
        pytest.param(repeated(b"\xc7\x3c\x02\xdc\x00\x13" + WIDE, 4 * MIB), id="sets of wide texts"),
    ],
)
def test_a_body_at_the_bound_arrives_within_the_stated_memory(body: bytes) -> None:
    packed = gzip.compress(body, 6)
    codecs = Codecs()
    tracemalloc.start()
    try:
        codecs.decode(packed, MSGPACK, "gzip")
        assert tracemalloc.get_traced_memory()[1] < 100 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("extra", [0, 1])
def test_the_bound_on_containers_is_exact(extra: int) -> None:
    count = CONTAINERS - 1 + extra
    body = array(count, b"\x92\x01\x02" * count)
    if extra:
        with pytest.raises(PayloadTooLarge):
            MsgpackCodec().decode(body)
    else:
        assert len(MsgpackCodec().decode(body)) == count


def all_heads() -> list[Any]:
    lengths = (0, 1, 31, 32, 255, 256, 65_535, 65_536)
    numbers = [2**power + offset for power in (5, 7, 8, 15, 16, 31, 32, 63) for offset in (-1, 0)]
    return [
        *numbers,
        *(-number for number in numbers),
        *("\x80" * (length // 2) + "a" * (length % 2) for length in lengths),
        *(b"\x80" * length for length in lengths),
        *(msgpack.ExtType(5, b"\x80" * length) for length in (0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65_535, 65_536)),
        *([0] * length for length in (0, 15, 16, 65_535, 65_536)),
        *(dict.fromkeys(range(length)) for length in (0, 15, 16, 65_536)),
        *(1.5, True, False, None),
    ]


def test_whatever_stands_before_them_exactly_the_containers_are_counted() -> None:
    heads = all_heads()
    before = b"".join(msgpack.packb(item) for item in heads)
    held = sum(isinstance(item, list | dict | msgpack.ExtType) for item in heads)
    for over in (0, 1):
        count = CONTAINERS - 1 - held + over
        body = array(len(heads) + count, before + b"\xdc\x00\x00" * count)
        # At the bound the body gets as far as the first extension, which is no date.
        with pytest.raises(PayloadTooLarge if over else CodecError):
            MsgpackCodec().decode(body)


def test_a_blob_that_looks_like_containers_arrives() -> None:
    blob = b"\x80" * (9 * MIB)
    codec = MsgpackCodec()
    assert codec.decode(codec.encode([blob, (blob,)])) == [blob, (blob,)]


def test_many_blobs_that_look_like_containers_arrive() -> None:
    blobs = [b"\x80" * 3000] * 3000
    codec = MsgpackCodec()
    assert codec.decode(codec.encode(blobs)) == blobs


def test_more_ints_than_containers_arrive() -> None:
    numbers = random.Random(1).choices(range(2**31), k=600_000)
    codec = MsgpackCodec()
    assert codec.decode(codec.encode(numbers)) == numbers


@pytest.mark.parametrize("text", ["[{,:", '"[', "\\[\\", '\\"{'])
def test_a_json_text_full_of_punctuation_arrives(text: str) -> None:
    codec = JsonCodec()
    value = ["x", text * 3_000_000, {"k": [1]}]
    assert codec.decode(codec.encode(value)) == value


def test_a_value_inside_a_registered_type_counts_once() -> None:
    codec = MsgpackCodec()
    codec.register(User, 64, vars, lambda items: User(str(len(items))))
    body = extension(64, array(CONTAINERS - 2, b"\xdc\x00\x00" * (CONTAINERS - 2)))
    assert codec.decode(body).name == str(CONTAINERS - 2)


def test_a_timedelta_of_more_than_three_ints_is_not_unpacked() -> None:
    body = extension(7, b"\xdd\x00\x00\xf0\x00" * 13_000)  # lists of 61,440 items inside each other, 500 MB of them
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=r"type datetime\.timedelta"):
            MsgpackCodec().decode(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body) + MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "cut", [b"\xc4", b"\xda\x00", b"\xdb\xff\xff\xff\xff", b"\xd4", b"\xc7\x05", b"\xdc\x00", b"\xc9", b"\xd5\x01"]
)
def test_a_large_body_with_a_cut_payload_is_a_codec_error(cut: bytes) -> None:
    body = array(2, b"\xc6" + (9 * MIB).to_bytes(4, "big") + bytes(9 * MIB) + extension(1, cut))
    with pytest.raises(CodecError):
        MsgpackCodec().decode(body)
    body = array(1_100_001, b"\xa1\x80" * 1_100_000 + extension(1, cut))
    with pytest.raises(CodecError):
        MsgpackCodec().decode(body)
