"""Basic properties and header tables, with pamqp as the oracle."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, header

from aiorpcq.protocol.messages import PROPERTY_NAMES, Properties
from aiorpcq.protocol.wire import LEADING_HEADER
from aiorpcq.transports.amqp.properties import (
    PropertyError,
    decode_properties,
    encode_properties,
    encode_short_string,
)

from . import UNHURRIED

# pamqp leaves empty texts out, cuts header names at 128 bytes and reads times after 2106 as milliseconds.
SHORT_TEXT = st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode()) <= 255)
NAMES = st.text(max_size=30).filter(lambda text: len(text.encode()) <= 128)
SECONDS = st.integers(0, 2**32 - 1)
TIMES = SECONDS.map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 127, 128, -129, 32_768, 65_535, 65_536, 2**31, 2**32, 2**63 - 1, -(2**63)]),
)
LEAVES = st.one_of(
    INTEGERS, st.text(max_size=20), st.booleans(), st.none(), st.binary(max_size=20), TIMES, st.floats(allow_nan=False)
)
FIELDS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)
TABLES = st.dictionaries(NAMES, FIELDS, max_size=5)
PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | SHORT_TEXT,
    content_encoding=st.none() | SHORT_TEXT,
    headers=st.none() | TABLES,
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT_TEXT,
    reply_to=st.none() | SHORT_TEXT,
    expiration=st.none() | st.integers(0, 2**32 - 1),
    message_id=st.none() | SHORT_TEXT,
    timestamp=st.none() | SECONDS,
    type=st.none() | SHORT_TEXT,
    user_id=st.none() | SHORT_TEXT,
    app_id=st.none() | SHORT_TEXT,
)


def theirs(properties: Properties) -> commands.Basic.Properties:
    """The same properties for pamqp."""
    values: dict[str, Any] = {name: getattr(properties, name) for name in PROPERTY_NAMES}
    values["message_type"] = values.pop("type")
    if values["expiration"] is not None:
        values["expiration"] = str(values["expiration"])
    if values["timestamp"] is not None:
        values["timestamp"] = datetime.fromtimestamp(values["timestamp"], UTC)
    if values["headers"] is not None:
        values["headers"] = as_theirs(values["headers"])
    return commands.Basic.Properties(**values)


def as_theirs(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, dict):
        return {name: as_theirs(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_theirs(item) for item in value]
    return value


def narrowed(value: Any) -> Any:
    """*value* with no float that needs 64 bits, as pamqp sends 32."""
    if isinstance(value, float):
        return 0.5
    if isinstance(value, dict):
        return {name: narrowed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [narrowed(item) for item in value]
    return value


def our_header(properties: Properties, size: int = 0) -> bytes:
    flags, data = encode_properties(properties)
    return b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + flags.to_bytes(2, "big") + data


def header_of(**values: Any) -> bytes:
    return header.ContentHeader(properties=commands.Basic.Properties(**values)).marshal()


def header_with_table(table: bytes) -> bytes:
    return b"\x00\x3c\x00\x00" + bytes(8) + b"\x20\x00" + len(table).to_bytes(4, "big") + table


@given(PROPERTIES)
@UNHURRIED
def test_what_we_encode_pamqp_reads(properties: Properties) -> None:
    read = header.ContentHeader()
    read.unmarshal(our_header(properties, 77))
    assert read.body_size == 77
    assert read.properties == theirs(properties)


@given(PROPERTIES)
@UNHURRIED
def test_what_pamqp_encodes_we_read(properties: Properties) -> None:
    properties.headers = None if properties.headers is None else narrowed(properties.headers)
    assert decode_properties(header.ContentHeader(properties=theirs(properties)).marshal()) == properties


@given(PROPERTIES)
@UNHURRIED
def test_what_we_encode_we_read(properties: Properties) -> None:
    assert decode_properties(our_header(properties)) == properties


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), TABLES), min_size=1, max_size=4))
@UNHURRIED
def test_headers_behind_a_leading_deadline_are_read_like_any_other(tables: list[tuple[int, dict[str, Any]]]) -> None:
    for deadline, table in tables + tables:
        headers = {LEADING_HEADER: deadline} | {name: item for name, item in table.items() if name != LEADING_HEADER}
        assert decode_properties(our_header(Properties(headers=headers))) == Properties(headers=headers)


def test_changing_one_messages_headers_leaves_the_next_ones_alone() -> None:
    headers = {LEADING_HEADER: 1, "metadata": {"user": 7}, "deaths": [{"reason": "expired"}]}
    data = our_header(Properties(headers=headers))
    first = decode_properties(data).headers
    assert isinstance(first, dict)
    first["metadata"]["user"] = 8
    first["deaths"][0]["reason"] = "rejected"
    first["more"] = True
    assert decode_properties(data).headers == headers


def test_tuples_are_sent_as_arrays() -> None:
    assert decode_properties(our_header(Properties(headers={"CC": ("a", "b")}))).headers == {"CC": ["a", "b"]}


def test_an_empty_text_is_kept() -> None:
    properties = Properties(content_type="", correlation_id="", type="", message_id="", headers={})
    assert decode_properties(our_header(properties)) == properties


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 255))
@UNHURRIED
def test_decimals_are_read(unscaled: int, scale: int) -> None:
    table = b"\x01dD" + bytes([scale]) + unscaled.to_bytes(4, "big", signed=True)
    headers = decode_properties(header_with_table(table)).headers
    assert headers == {"d": Decimal(unscaled).scaleb(-scale)}


@pytest.mark.parametrize(
    ("code", "data", "value"),
    [
        ("b", b"\xff", -1),
        ("B", b"\xff", 255),
        ("s", b"\xff\xfe", -2),
        ("u", b"\xff\xfe", 65_534),
        ("I", b"\xff\xff\xff\xfd", -3),
        ("i", b"\xff\xff\xff\xfd", 2**32 - 3),
        ("l", b"\xff" * 8, -1),
        ("f", b"\x3f\xc0\x00\x00", 1.5),
        ("d", b"\x3f\xf8\x00\x00\x00\x00\x00\x00", 1.5),
        ("t", b"\x01", True),
        ("V", b"", None),
    ],
)
def test_every_field_type_of_rabbitmq_is_read(code: str, data: bytes, value: object) -> None:
    assert decode_properties(header_with_table(b"\x01n" + code.encode() + data)).headers == {"n": value}


def test_text_that_is_not_utf8_is_read_with_replacements() -> None:
    assert decode_properties(header_with_table(b"\x01\xffS\x00\x00\x00\x01\xfe")).headers == {"\ufffd": "\ufffd"}


@pytest.mark.parametrize("text", ["", "-1", "1.5", "soon", "\u0664"])
def test_an_expiration_that_is_no_count_of_milliseconds_is_none(text: str) -> None:
    raw = text.encode()
    data = b"\x00\x3c\x00\x00" + bytes(8) + b"\x01\x00" + bytes([len(raw)]) + raw
    assert decode_properties(data).expiration is None


# --- what is refused


@pytest.mark.parametrize(
    "name",
    ["content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "user_id", "app_id"],
)
def test_a_short_string_above_255_bytes_is_refused_by_name(name: str) -> None:
    encode_properties(Properties(**{name: "x" * 255}))  # type: ignore[arg-type]  # only text properties are named
    with pytest.raises(PropertyError, match=f"^{name} has 256 bytes, the limit is 255$"):
        encode_properties(Properties(**{name: "ü" * 128}))  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize("expiration", [-1, 2**32])
def test_an_expiration_that_rabbitmq_would_close_the_channel_for_is_refused(expiration: int) -> None:
    with pytest.raises(PropertyError, match=f"^expiration: {expiration} ms is not between"):
        encode_properties(Properties(expiration=expiration))


@pytest.mark.parametrize("name", ["priority", "delivery_mode"])
@pytest.mark.parametrize("value", [-1, 256])
def test_a_number_that_is_no_octet_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(PropertyError, match=f"^{name}: {value} is not between 0 and 255$"):
        encode_properties(Properties(**{name: value}))  # type: ignore[arg-type]  # only number properties are named


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**80])
@pytest.mark.parametrize("nest", [lambda value: value, lambda value: [value], lambda value: {"inner": value}])
def test_an_integer_header_beyond_64_bits_is_refused_by_name(value: int, nest: Any) -> None:
    with pytest.raises(PropertyError, match=r"header (big|inner): an integer beyond 64 bits"):
        encode_properties(Properties(headers={"big": nest(value)}))


@pytest.mark.parametrize("timestamp", [2**63, 2**80, -1])
def test_a_timestamp_that_is_no_64_bit_time_is_refused_by_name(timestamp: int) -> None:
    with pytest.raises(PropertyError, match="timestamp"):
        encode_properties(Properties(timestamp=timestamp))


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, Decimal(1)])
def test_a_header_that_has_no_field_type_is_refused_by_name(value: object) -> None:
    with pytest.raises(PropertyError, match=f"header odd: a {type(value).__name__} cannot be sent"):
        encode_properties(Properties(headers={"odd": value}))


@pytest.mark.parametrize("values", [(1, True, 1.0), ("a", "b"), ([1], [2])])
def test_what_a_user_calls_cc_in_a_table_of_his_own_arrives_as_it_is(values: tuple[Any, ...]) -> None:
    for value in values:
        headers = {"metadata": {"CC": (value,)}}
        (read,) = decode_properties(our_header(Properties(headers=headers))).headers["metadata"]["CC"]  # type: ignore[index]
        assert (type(read), read) == (type(value), value)


def test_a_header_name_that_is_no_string_is_refused() -> None:
    bad: Any = {1: 2}
    with pytest.raises(PropertyError, match="a header name is a int"):
        encode_properties(Properties(headers=bad))


def test_a_header_name_above_255_bytes_is_refused() -> None:
    with pytest.raises(PropertyError, match="header name has 256 bytes"):
        encode_properties(Properties(headers={"x" * 256: 1}))


def test_text_with_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(PropertyError, match="correlation_id is not encodable text"):
        encode_properties(Properties(correlation_id="\ud800"))
    with pytest.raises(PropertyError, match="header bad is not encodable text"):
        encode_properties(Properties(headers={"bad": "\ud800"}))


def test_headers_that_contain_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PropertyError, match="header loop is nested more than 32 deep"):
        encode_properties(Properties(headers={"loop": loop}))


def test_headers_nested_too_deep_are_refused_on_the_way_in() -> None:
    field = b"V"
    for _ in range(2_000):
        field = b"A" + len(field).to_bytes(4, "big") + field
    with pytest.raises(PropertyError, match="nested more than 32 deep"):
        decode_properties(header_with_table(b"\x01n" + field))


def test_an_unknown_field_type_is_refused() -> None:
    with pytest.raises(PropertyError, match="field type 0x3f is unknown"):
        decode_properties(header_with_table(b"\x01n?\x00"))


@pytest.mark.parametrize("seconds", [2**63 - 1, -(2**63), 10**12, 10**17])
def test_a_time_that_no_datetime_can_hold_is_refused(seconds: int) -> None:
    with pytest.raises(PropertyError, match="malformed properties"):
        decode_properties(header_with_table(b"\x01tT" + seconds.to_bytes(8, "big", signed=True)))


def test_properties_cut_short_anywhere_are_refused() -> None:
    whole = our_header(
        Properties("a", "b", {"h": [1, "x", {"y": b"z"}, 1.5]}, 1, 2, "c", "d", 60, "e", 1_000, "f", "g", "h")
    )
    for size in range(len(whole)):
        with pytest.raises(PropertyError, match="malformed properties"):
            decode_properties(whole[:size])


@given(PROPERTIES, st.data())
@UNHURRIED
def test_damaged_properties_are_read_or_refused(properties: Properties, data: st.DataObject) -> None:
    damaged = bytearray(our_header(properties))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(12, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode_properties(bytes(damaged)), Properties)
    except PropertyError as error:
        assert str(error).startswith("malformed properties: ")  # noqa: PT017 - either outcome is right


@given(st.binary(max_size=200))
@UNHURRIED
def test_noise_is_read_or_refused(noise: bytes) -> None:
    try:
        decode_properties(noise)
        decode_properties(header_with_table(noise))
    except PropertyError as error:
        assert str(error).startswith("malformed properties: ")  # noqa: PT017 - either outcome is right


@given(st.text(max_size=80).filter(lambda text: len(text.encode()) <= 255))
@UNHURRIED
def test_a_short_string_is_its_size_and_its_bytes(text: str) -> None:
    encoded = encode_short_string(text, "name")
    assert (encoded[0], encoded[1:].decode()) == (len(encoded) - 1, text)
