"""The codecs: what is carried arrives equal, and whatever else comes is refused with an error that names no value."""

from __future__ import annotations

import contextlib
import enum
import gzip
import hashlib
import math
import subprocess
import sys
import threading
import tracemalloc
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import TZPATH, ZoneInfo

import msgpack  # type: ignore[import-untyped]  # it ships no annotations
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aiorpcq.codec import Codec, Codecs, JsonCodec, MsgpackCodec
from aiorpcq.errors import CodecError, ContentDisallowed, PayloadTooLarge

MSGPACK = "application/msgpack"
JSON = "application/json"
SECRET = "s3cret-value"


def canon(value: Any) -> Any:
    """Return a form of *value* that is equal only for equal types and values, NaN, -0.0, fold and zone among them."""
    kind = type(value).__name__
    match value:
        case float():
            return kind, "nan" if math.isnan(value) else value.hex()
        case complex():
            return kind, canon(value.real), canon(value.imag)
        case Decimal():
            return kind, str(value)
        case list() | tuple():
            return kind, [canon(item) for item in value]
        case set() | frozenset():
            return kind, sorted((canon(item) for item in value), key=repr)
        case dict():
            return kind, [(canon(key), canon(item)) for key, item in value.items()]
        case datetime():
            return kind, value.replace(tzinfo=None, fold=0), value.fold, repr(value.tzinfo)
        case time():
            return kind, value.replace(tzinfo=None, fold=0), value.fold, repr(value.tzinfo)
    return kind, value


def nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def extension(code: int, payload: bytes) -> bytes:
    body: bytes = msgpack.packb(msgpack.ExtType(code, payload))
    return body


def refused(codec: Codec, body: bytes) -> str:
    with pytest.raises(CodecError) as caught:
        codec.decode(body)
    return str(caught.value)


def unencodable(codec: Codec, value: Any) -> str:
    with pytest.raises(CodecError) as caught:
        codec.encode(value)
    return str(caught.value)


offsets = st.builds(
    timezone,
    st.timedeltas(min_value=timedelta(hours=-24, microseconds=1), max_value=timedelta(hours=24, microseconds=-1)),
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Etc/GMT+5", "Asia/Kathmandu"]).map(ZoneInfo)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**400), max_value=2**400),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**71 - 1, 2**71, -(2**71)]),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.sampled_from([Decimal("-0"), Decimal("1E+999999"), Decimal("NaN123"), Decimal("-Infinity"), Decimal("0E-400")]),
    st.complex_numbers(),
    st.datetimes(timezones=st.none() | offsets | zones),
    st.datetimes(timezones=st.none() | offsets | zones).map(lambda moment: moment.replace(fold=1)),
    st.times(timezones=st.none() | offsets),
    st.times(timezones=st.none() | offsets).map(lambda moment: moment.replace(fold=1)),
)


def is_hashable(value: Any) -> bool:
    try:  # a signalling NaN has no hash, nor has a moment of year 1 or 9999 whose UTC is outside of the calendar
        hash(value)
    except (TypeError, OverflowError):
        return False
    return True


keys = st.recursive(
    scalars.filter(is_hashable),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    scalars | keys,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=20,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
@settings(max_examples=500, deadline=None)
def test_every_carried_value_arrives_with_the_same_type_and_value(value: Any) -> None:
    codec = MsgpackCodec()
    assert canon(codec.decode(codec.encode(value))) == canon(value)


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


def test_a_bytearray_and_a_memoryview_arrive_as_bytes() -> None:
    codec = MsgpackCodec()
    assert canon(codec.decode(codec.encode([bytearray(b"a"), memoryview(b"b")]))) == canon([b"a", b"b"])


def test_a_plain_call_is_plain_messagepack() -> None:
    assert MsgpackCodec().encode([[2, 3], {"a": "b", "c": b"d"}]) == msgpack.packb([[2, 3], {"a": "b", "c": b"d"}])


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


def test_a_messagepack_timestamp_arrives_as_one() -> None:
    codec = MsgpackCodec()
    assert codec.decode(codec.encode(msgpack.Timestamp(7, 9))) == msgpack.Timestamp(7, 9)


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    pass


Point = namedtuple("Point", "x y")


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> str:
        return "zone"


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


@pytest.mark.parametrize("value", [datetime(2024, 1, 1, tzinfo=Zone()), time(1, tzinfo=Zone())])
def test_a_foreign_tzinfo_is_named(value: datetime | time) -> None:
    assert f"with a tzinfo of type {__name__}.Zone; use" in unencodable(MsgpackCodec(), value)


def test_a_zone_without_a_key_is_refused() -> None:
    with open(f"{TZPATH[0]}/UTC", "rb") as file:
        zone = ZoneInfo.from_file(file)
    assert "ZoneInfo with a key" in unencodable(MsgpackCodec(), datetime(2024, 1, 1, tzinfo=zone))


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


class User:
    def __init__(self, name: str) -> None:
        self.name = name


class Admin(User):
    pass


def with_users(encode: Callable[[User], Any] = lambda user: user.name, decode: Callable[[Any], User] = User) -> Codec:
    codec = MsgpackCodec()
    codec.register(User, 64, encode, decode)
    return codec


def test_a_registered_type_arrives() -> None:
    codec = with_users()
    arrived = codec.decode(codec.encode({"who": (User("ann"),)}))["who"][0]
    assert (type(arrived), arrived.name) == (User, "ann")


def test_a_registered_encoder_may_return_other_extensions() -> None:
    codec = with_users(lambda user: (user.name, {1}), lambda plain: User(plain[0]))
    assert codec.decode(codec.encode(User("ann"))).name == "ann"


def test_a_registered_encoder_may_use_the_codec_itself() -> None:
    codec = MsgpackCodec()
    codec.register(User, 64, lambda user: codec.encode((user.name,)), lambda body: User(codec.decode(body)[0]))
    assert [user.name for user in codec.decode(codec.encode([1, User("ann"), User("bob")]))[1:]] == ["ann", "bob"]


def test_a_subclass_of_a_registered_type_goes_as_its_base() -> None:
    codec = with_users()
    assert type(codec.decode(codec.encode(Admin("ann")))) is User


def test_the_exact_type_comes_before_its_base() -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    codec.register(Admin, 65, lambda admin: admin.name, Admin)
    assert type(codec.decode(codec.encode(Admin("ann")))) is Admin


def test_a_subclass_of_a_carried_type_can_be_registered() -> None:
    codec = MsgpackCodec()
    codec.register(Level, 70, int, Level)
    assert codec.decode(codec.encode([Level.LOW]))[0] is Level.LOW


def test_an_encoder_that_raises_is_a_codec_error_from_it() -> None:
    codec = with_users(encode=lambda user: 1 / 0)
    with pytest.raises(CodecError, match=r"encoder registered for .*User raised ZeroDivisionError") as caught:
        codec.encode([User(SECRET)])
    assert type(caught.value.__cause__) is ZeroDivisionError


def test_a_decoder_that_raises_is_a_codec_error_from_it() -> None:
    def fail(plain: Any) -> User:
        raise KeyError(plain)

    codec = with_users(decode=fail)
    with pytest.raises(CodecError, match=r"decoder registered for .*User raised KeyError") as caught:
        codec.decode(codec.encode([User(SECRET)]))
    assert type(caught.value.__cause__) is KeyError
    assert SECRET not in str(caught.value)


def test_an_encoder_that_returns_its_own_value_is_refused() -> None:
    unencodable(with_users(encode=lambda user: user), User("ann"))


@pytest.mark.parametrize("code", [-1, 0, 63, 128, True, "64"])
def test_a_code_outside_the_users_range_is_refused(code: Any) -> None:
    with pytest.raises(ValueError, match="code must be an int from 64 to 127"):
        MsgpackCodec().register(User, code, str, User)


def test_a_taken_code_is_refused() -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    with pytest.raises(ValueError, match=r"code 64 is taken by .*User"):
        codec.register(Admin, 64, str, Admin)


@pytest.mark.parametrize("cls", [User, int, list, datetime, type(None)])
def test_a_type_that_is_carried_already_is_refused(cls: type) -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    with pytest.raises(ValueError, match="carried or registered already"):
        codec.register(cls, 65, str, str)


@given(st.binary(max_size=200))
@settings(max_examples=2000, deadline=None)
def test_random_bytes_decode_or_are_a_codec_error(body: bytes) -> None:
    with contextlib.suppress(CodecError):
        MsgpackCodec().decode(body)


@given(st.integers(0, 15), st.binary(max_size=60))
@settings(max_examples=2000, deadline=None)
def test_a_random_extension_payload_decodes_or_is_a_codec_error(code: int, payload: bytes) -> None:
    with contextlib.suppress(CodecError):
        MsgpackCodec().decode(extension(code, payload))


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


def test_a_bad_decimal_is_refused_whatever_the_context() -> None:
    with localcontext(Context(traps=[])):
        refused(MsgpackCodec(), extension(9, b"nothing"))


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


def nested_lists(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def test_a_value_past_every_depth_is_an_error_and_no_crash() -> None:
    value: Any = 1
    for _ in range(60):
        value = (nested_lists(value, 1000),)

    def encode() -> None:
        MsgpackCodec().encode(value)

    raised = run_with_stack(2048, encode)
    assert [type(error) for error in raised] == [CodecError]


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


ZEROS = bytes(100_000)
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def unsized(body: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(body) + stream.flush()


def test_a_body_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(PayloadTooLarge, match="1003 bytes is larger than the limit of 1000"):
        Codecs(max_size=1000).encode(bytes(1000))


def test_a_body_at_the_limit_passes_both_ways() -> None:
    codecs = Codecs(max_size=1003)
    assert codecs.decode(*codecs.encode(bytes(1000))) == bytes(1000)


def test_a_body_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(PayloadTooLarge, match="1003 bytes is larger than the limit of 1000"):
        Codecs(max_size=1000).decode(MsgpackCodec().encode(bytes(1000)), MSGPACK, None)


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
    assert len(Codecs(compression="gzip", max_size=1000).encode(ZEROS)[0]) < 1000


def test_a_body_that_stays_too_large_when_compressed_is_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 50"):
        Codecs(compression="gzip", max_size=50).encode(ZEROS)


def test_a_body_below_the_compression_threshold_is_held_to_the_limit() -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 10"):
        Codecs(compression="gzip", max_size=10).encode(bytes(100))


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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compression", "br"),
        ("compression", ""),
        ("compress_above", -1),
        ("compress_above", 1.5),
        ("max_size", 0),
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
    with pytest.raises(ValueError, match=f"^{option} "):
        Codecs(**{option: value})


def test_a_codec_with_a_content_type_in_upper_case_is_refused() -> None:
    codec = Upper()
    codec.content_type = "Text/Upper"
    with pytest.raises(ValueError, match=r"^codec .*'Text/Upper'"):
        Codecs().register(codec)
