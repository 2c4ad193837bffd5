"""The extensions: the types of the standard library, and extensions inside each other."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import TZPATH, ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiorpcq.codec import MsgpackCodec
from aiorpcq.errors import CodecError

from .values import canon, extension, nested, nested_lists, refused, unencodable


@pytest.mark.parametrize("text", ["sNaN", "-sNaN7", "NaN", "-0", "-0E+5", "1.00", "Infinity", "1E-1000000", "9" * 5000])
def test_a_decimal_keeps_sign_digits_and_exponent(text: str) -> None:
    codec = MsgpackCodec()
    arrived = codec.decode(codec.encode(Decimal(text)))
    assert (type(arrived), arrived.as_tuple()) == (Decimal, Decimal(text).as_tuple())


def test_an_int_of_any_size_arrives() -> None:
    codec = MsgpackCodec()
    value = -(3**100_000)
    assert codec.decode(codec.encode(value)) == value


def test_both_times_of_a_fold_stay_apart() -> None:
    codec = MsgpackCodec()
    first = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    second = first.replace(fold=1)
    assert [moment.utcoffset() for moment in codec.decode(codec.encode([first, second]))] == [
        timedelta(hours=2),
        timedelta(hours=1),
    ]


@pytest.mark.parametrize("microseconds", [1, -1, 999_999, 1_000_001, -60_000_001])
def test_an_offset_keeps_its_microseconds(microseconds: int) -> None:
    codec, zone = MsgpackCodec(), timezone(timedelta(microseconds=microseconds))
    value = [datetime(2024, 1, 1, tzinfo=zone), time(1, tzinfo=zone)]
    assert canon(codec.decode(codec.encode(value))) == canon(value)


@pytest.mark.parametrize(
    ("value", "code", "payload"),
    [
        (2**64, 0, b"\x01" + bytes(8)),
        ((1, "a"), 1, b"\x92\x01\xa1a"),
        ({1}, 2, b"\x91\x01"),
        (frozenset({1}), 3, b"\x91\x01"),
        (datetime(2024, 1, 2, 3, 4, 5, 6), 4, b"2024-01-02T03:04:05.000006"),
        (datetime(2024, 1, 2, tzinfo=UTC), 4, b"2024-01-02T00:00:00+00:00"),
        (datetime(2024, 1, 2, fold=1), 4, b"2024-01-02T00:00:00 1"),
        (datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")), 4, b"2024-01-02T00:00:00 0 Europe/Berlin"),
        (date(2024, 1, 2), 5, b"2024-01-02"),
        (time(3, 4), 6, b"03:04:00"),
        (timedelta(1, 2, 3), 7, b"\x93\x01\x02\x03"),
        (UUID(int=7), 8, bytes(15) + b"\x07"),
        (Decimal("1.50"), 9, b"1.50"),
        (1j, 10, bytes(8) + b"\x3f\xf0" + bytes(6)),
    ],
)
def test_an_extension_is_written_as_the_table_says(value: Any, code: int, payload: bytes) -> None:
    assert MsgpackCodec().encode(value) == extension(code, payload)


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> str:
        return "zone"


@pytest.mark.parametrize("value", [datetime(2024, 1, 1, tzinfo=Zone()), time(1, tzinfo=Zone())])
def test_a_foreign_tzinfo_is_named(value: datetime | time) -> None:
    assert f"with a tzinfo of type {__name__}.Zone; use" in unencodable(MsgpackCodec(), value)


def test_a_zone_without_a_key_is_refused() -> None:
    with open(f"{TZPATH[0]}/UTC", "rb") as file:
        zone = ZoneInfo.from_file(file)
    assert "ZoneInfo with a key" in unencodable(MsgpackCodec(), datetime(2024, 1, 1, tzinfo=zone))


@given(st.integers(0, 15), st.binary(max_size=60))
@settings(max_examples=2000, deadline=None)
def test_a_random_extension_payload_decodes_or_is_a_codec_error(code: int, payload: bytes) -> None:
    with contextlib.suppress(CodecError):
        MsgpackCodec().decode(extension(code, payload))


def test_a_bad_decimal_is_refused_whatever_the_context() -> None:
    with localcontext(Context(traps=[])):
        refused(MsgpackCodec(), extension(9, b"nothing"))


def test_extensions_inside_each_other_are_held_within_a_bound() -> None:
    codec, body = MsgpackCodec(), MsgpackCodec().encode(bytes(8_000_000))
    for _ in range(60):
        body = extension(1, b"\x91" + body)
    tracemalloc.start()
    try:
        assert "deep" in refused(codec, body)
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()


def test_sixty_four_extensions_inside_each_other_arrive() -> None:
    codec = MsgpackCodec()
    value = nested(lambda x: ([x],), 64)
    assert codec.decode(codec.encode(value)) == value


def test_sixty_five_extensions_inside_each_other_are_refused_on_both_sides() -> None:
    codec = MsgpackCodec()
    unencodable(codec, nested(lambda x: (x,), 65))
    body = codec.encode(nested(lambda x: (x,), 64))
    refused(codec, extension(1, b"\x91" + body))


def run_with_stack(kilobytes: int, function: Callable[[], None]) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(kilobytes * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return raised


def test_the_deepest_accepted_value_fits_a_stack_of_two_mebibytes() -> None:
    value = (nested_lists(nested(lambda x: (nested_lists(x, 23),), 63), 1000),)

    def round_trip() -> None:
        codec = MsgpackCodec()
        codec.decode(codec.encode(nested_lists(value, 1000)))

    assert run_with_stack(2048, round_trip) == []


def test_a_value_past_every_depth_is_an_error_and_no_crash() -> None:
    value: Any = 1
    for _ in range(60):
        value = (nested_lists(value, 1000),)

    def encode() -> None:
        MsgpackCodec().encode(value)

    raised = run_with_stack(2048, encode)
    assert [type(error) for error in raised] == [CodecError]
