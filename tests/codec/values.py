"""What is sent in these tests, and the two ways to look at it: is it equal, or is it refused."""

from __future__ import annotations

import enum
import math
from collections import namedtuple
from collections.abc import Callable
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]  # it ships no annotations
import pytest
from hypothesis import strategies as st

from aiorpcq.codec import Codec, MsgpackCodec
from aiorpcq.errors import CodecError

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


def nested_lists(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


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


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    pass


Point = namedtuple("Point", "x y")


class User:
    def __init__(self, name: str) -> None:
        self.name = name


class Admin(User):
    pass


def with_users(encode: Callable[[User], Any] = lambda user: user.name, decode: Callable[[Any], User] = User) -> Codec:
    codec = MsgpackCodec()
    codec.register(User, 64, encode, decode)
    return codec
