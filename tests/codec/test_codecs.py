"""What a client or worker encodes with and accepts, and its limits on bodies."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq.codec import Codecs, MsgpackCodec
from aiorpcq.errors import CodecError, ContentDisallowed, PayloadTooLarge

from .values import User, with_users

MSGPACK = "application/msgpack"
JSON = "application/json"


class Upper:
    content_type = "text/x-upper"

    def encode(self, value: Any) -> bytes:
        return str(value.upper()).encode()

    def decode(self, body: bytes) -> Any:
        return body.decode("ascii").lower()


def test_without_options_messagepack_is_sent_and_json_is_accepted_too() -> None:
    codecs = Codecs()
    assert codecs.encode([1]) == (b"\x91\x01", MSGPACK, None)
    assert codecs.accepts == (MSGPACK, JSON)
    assert codecs.decode(b"[1]", JSON, None) == [1]


def test_the_default_codec_is_the_one_that_decodes() -> None:
    codec = with_users()
    codecs = Codecs(codec, accept=[MSGPACK])
    body, content_type, encoding = codecs.encode(User("ann"))
    assert codecs.default is codec
    assert codecs.decode(body, content_type, encoding).name == "ann"


def test_a_users_codec_is_accepted_beside_the_built_in_ones() -> None:
    codecs = Codecs(Upper())
    assert codecs.accepts == ("text/x-upper", MSGPACK, JSON)
    assert codecs.decode(*codecs.encode("abc")) == "abc"


@pytest.mark.parametrize("kind", [bytearray, memoryview, str])
def test_a_users_codec_that_returns_no_bytes_is_an_error_that_names_it(kind: type) -> None:
    class Careless(Upper):
        def encode(self, value: Any) -> Any:
            return kind() if kind is not memoryview else memoryview(b"")

    with pytest.raises(CodecError, match=f"codec of text/x-upper returned a {kind.__name__}, not bytes"):
        Codecs(Careless()).encode("abc")


def test_a_given_list_is_exact() -> None:
    assert Codecs(accept=[Upper(), JSON]).accepts == ("text/x-upper", JSON)


@pytest.mark.parametrize(
    "content_type", [None, "", "application/x-python-serialize", "application/json; charset=utf-8"]
)
def test_a_content_type_off_the_list_is_refused_undecoded(content_type: str | None) -> None:
    with pytest.raises(ContentDisallowed, match="is not accepted") as caught:
        Codecs().decode(b"\xc1", content_type, None)
    assert repr(content_type) in str(caught.value)


def test_the_case_of_a_content_type_does_not_matter() -> None:
    assert Codecs().decode(b"[1]", "Application/JSON", None) == [1]


def test_a_long_content_type_is_cut_in_the_message() -> None:
    with pytest.raises(ContentDisallowed) as caught:
        Codecs().decode(b"", "x" * 10_000, None)
    assert "x" * 100 in str(caught.value)
    assert "x" * 101 not in str(caught.value)


def test_a_registered_codec_is_accepted() -> None:
    codecs = Codecs()
    codecs.register(Upper())
    assert codecs.decode(b"ABC", "text/x-upper", None) == "abc"


def test_a_registered_codec_takes_the_place_of_the_default_of_its_type() -> None:
    codecs, codec = Codecs(), with_users()
    codecs.register(codec)
    assert codecs.decode(*codecs.encode(User("ann"))).name == "ann"
    assert codecs.accepts == (MSGPACK, JSON)


def test_what_a_users_codec_raises_is_a_codec_error() -> None:
    codecs = Codecs(Upper())
    with pytest.raises(CodecError) as encoding:
        codecs.encode(1)
    with pytest.raises(CodecError) as decoding:
        codecs.decode(b"\xff", "text/x-upper", None)
    assert type(encoding.value.__cause__) is AttributeError
    assert type(decoding.value.__cause__) is UnicodeDecodeError


def test_a_body_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(PayloadTooLarge, match="2003 bytes is larger than the limit of 2000"):
        Codecs(max_size=2000).encode(bytes(2000))


def test_a_body_at_the_limit_passes_both_ways() -> None:
    codecs = Codecs(max_size=2003)
    assert codecs.decode(*codecs.encode(bytes(2000))) == bytes(2000)


def test_a_body_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(PayloadTooLarge, match="2003 bytes is larger than the limit of 2000"):
        Codecs(max_size=2000).decode(MsgpackCodec().encode(bytes(2000)), MSGPACK, None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compression", "br"),
        ("compression", ""),
        ("compress_above", -1),
        ("compress_above", 1.5),
        ("max_size", 0),
        ("max_size", 1023),
        ("max_size", True),
        ("max_decompressed", 0),
        ("max_decompressed", None),
        ("accept", []),
        ("accept", JSON),
        ("accept", ["application/x-unknown"]),
        ("accept", [object()]),
        ("default", object()),
    ],
)
def test_a_bad_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option}[: ]"):
        Codecs(**{option: value})


def test_the_least_limit_is_what_an_error_reply_needs() -> None:
    assert Codecs(max_size=1024).max_size == 1024


def test_a_codec_with_a_content_type_in_upper_case_is_refused() -> None:
    codec = Upper()
    codec.content_type = "Text/Upper"
    with pytest.raises(ValueError, match=r"^codec .*'Text/Upper'"):
        Codecs().register(codec)
