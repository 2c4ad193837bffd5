"""Compression: what travels smaller arrives, and a damaged or exploding body is refused."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aiorpcq.codec import Codecs, MsgpackCodec
from aiorpcq.errors import CodecError, ContentDisallowed, PayloadTooLarge

MSGPACK = "application/msgpack"
ZEROS = bytes(100_000)
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def unsized(body: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(body) + stream.flush()


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_long_body_is_compressed_and_arrives(name: str) -> None:
    codecs = Codecs(compression=name)
    body, content_type, encoding = codecs.encode(ZEROS)
    assert (len(body) < 1000, encoding) == (True, name)
    assert Codecs().decode(body, content_type, encoding) == ZEROS


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_short_body_is_not_compressed(name: str) -> None:
    codecs = Codecs(compression=name, compress_above=103)
    assert codecs.encode(bytes(100))[2] is None
    assert codecs.encode(bytes(102))[2] == name


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_body_that_does_not_get_smaller_stays_as_it_is(name: str) -> None:
    value = b"".join(hashlib.sha256(bytes([index])).digest() for index in range(200))
    assert Codecs(compression=name, compress_above=0).encode(value)[2] is None


def test_the_limit_counts_what_travels() -> None:
    assert len(Codecs(compression="gzip", max_size=1024).encode(ZEROS)[0]) < 1024


def test_a_body_that_stays_too_large_when_compressed_is_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 1024"):
        Codecs(compression="gzip", max_size=1024).encode(bytes(10_000_000))


def test_a_body_below_the_compression_threshold_is_held_to_the_limit() -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 1024"):
        Codecs(compression="gzip", max_size=1024).encode(bytes(2000))


def test_nothing_is_sent_that_decompresses_past_the_limit() -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 99999"):
        Codecs(compression="gzip", max_decompressed=99_999).encode(ZEROS)


@pytest.mark.parametrize("compress", [*COMPRESSORS.values(), unsized], ids=["gzip", "zstd", "zstd unsized"])
def test_decompression_stops_at_the_limit(compress: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if compress is gzip.compress else "zstd"
    plain = MsgpackCodec().encode(ZEROS)
    body = compress(plain)
    assert Codecs(max_decompressed=len(plain)).decode(body, MSGPACK, encoding) == ZEROS
    with pytest.raises(PayloadTooLarge, match=f"more than the limit of {len(plain) - 1} bytes"):
        Codecs(max_decompressed=len(plain) - 1).decode(body, MSGPACK, encoding)


@pytest.mark.parametrize("compress", [*COMPRESSORS.values(), unsized], ids=["gzip", "zstd", "zstd unsized"])
def test_a_bomb_takes_no_more_memory_than_the_limit(compress: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if compress is gzip.compress else "zstd"
    bomb = compress(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            Codecs(max_decompressed=1_000_000).decode(bomb, MSGPACK, encoding)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b + b, lambda b: b"", lambda b: b"?" * 50]
)
def test_a_damaged_stream_is_a_codec_error(name: str, damage: Callable[[bytes], bytes]) -> None:
    body = damage(COMPRESSORS[name](MsgpackCodec().encode(ZEROS)))
    with pytest.raises(CodecError, match="cannot decompress"):
        Codecs().decode(body, MSGPACK, name)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b + b])
def test_a_damaged_stream_without_a_size_is_a_codec_error(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CodecError, match="cannot decompress"):
        Codecs().decode(damage(unsized(MsgpackCodec().encode(ZEROS))), MSGPACK, "zstd")


@pytest.mark.parametrize("tail", [b"", b"x"])
def test_an_empty_frame_is_a_codec_error(tail: bytes) -> None:
    with pytest.raises(CodecError, match="cannot decompress"):
        Codecs().decode(zstandard.ZstdCompressor().compress(b"") + tail, MSGPACK, "zstd")


@given(st.sampled_from(["gzip", "zstd"]), st.binary(max_size=300), st.data())
@settings(max_examples=500, deadline=None)
def test_a_mutated_stream_is_read_or_refused(name: str, value: bytes, data: st.DataObject) -> None:
    body = bytearray(COMPRESSORS[name](MsgpackCodec().encode(value)))
    position = data.draw(st.integers(0, len(body)))
    body[position : position + 2] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(CodecError, PayloadTooLarge):
        Codecs(max_decompressed=1000).decode(bytes(body), MSGPACK, name)


@pytest.mark.parametrize("encoding", ["", "br", "GZIP", "identity", "x" * 1000])
def test_another_content_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(ContentDisallowed, match="content encoding") as caught:
        Codecs().decode(b"\x01", MSGPACK, encoding)
    assert len(str(caught.value)) < 200


WITHOUT_ZSTD = """
import sys
sys.modules["zstandard"] = sys.modules["compression.zstd"] = None
from aiorpcq.codec import Codecs
from aiorpcq.errors import ContentDisallowed
try:
    Codecs(compression="zstd")
except ValueError as error:
    print(error)
try:
    Codecs().decode(b"", "application/msgpack", "zstd")
except ContentDisallowed as error:
    print(error)
"""


def test_without_the_package_zstd_is_refused_both_ways() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ZSTD], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "compression 'zstd' needs the zstandard package: install aiorpcq[zstd]",
        "content encoding 'zstd' is not accepted",
    ]
