"""Inbound frames, with pamqp as the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import header, heartbeat
from pamqp.commands import Basic, Channel, Confirm, Connection

from aiorpcq.protocol.messages import Properties
from aiorpcq.transports.amqp.frames import (
    FRAME_OVERHEAD,
    HEARTBEAT,
    FrameError,
    close_reason,
    delivery_route,
    return_route,
    split_delivery,
)
from aiorpcq.transports.amqp.parser import Event, EventKind, FrameParser
from aiorpcq.transports.amqp.properties import PropertyError, decode_properties

from . import BODIES, FRAME_MAX, MAX_BODY, ROUTES, SMALL_FRAME, TAGS, UNHURRIED, Frame, content, framed, marshal
from .test_properties import PROPERTIES, SHORT_TEXT, narrowed, theirs

LANES = frozenset({1, 3})
OTHERS = (0, 2, 4)
EXCHANGES = st.from_regex(r"\A[-a-zA-Z0-9_.:@#,/ ]{0,40}\Z")  # what pamqp takes


def parser(frame_max: int = FRAME_MAX, max_body: int = MAX_BODY) -> FrameParser:
    made = FrameParser(set(LANES), max_body)
    made.frame_max = frame_max
    return made


def feed(parser: FrameParser, chunks: Iterable[bytes]) -> tuple[list[Event], list[bytes]]:
    """What the parser makes of *chunks*: events, and what it passes through."""
    events: list[Event] = []
    passed: list[bytes] = []
    for chunk in chunks:
        for event in parser.feed(chunk):
            if event.kind is EventKind.PASS:
                passed.append(event.payload)
            else:
                events.append(event)
    return events, passed


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(places) if start < stop]


# --- in, one frame after the other


@given(PROPERTIES, SHORT_TEXT, TAGS, st.booleans(), EXCHANGES, ROUTES, BODIES)
@UNHURRIED
def test_a_delivery_of_pamqp_is_read(
    properties: Properties, consumer: str, tag: int, redelivered: bool, exchange: str, routing_key: str, payload: bytes
) -> None:
    properties.headers = None if properties.headers is None else narrowed(properties.headers)
    deliver = Basic.Deliver(consumer, tag, redelivered, exchange, routing_key)
    data = b"".join(content(deliver, theirs(properties), payload, 3))
    (event,) = parser().feed(data)
    assert (event.kind, event.channel, event.body) == (EventKind.DELIVER, 3, payload)
    assert split_delivery(event.payload) == (consumer.encode(), tag, redelivered)
    assert delivery_route(event.payload) == (exchange, routing_key)
    assert decode_properties(event.header) == properties


@given(PROPERTIES, SHORT_TEXT, EXCHANGES, ROUTES, BODIES)
@UNHURRIED
def test_a_return_of_pamqp_is_read(
    properties: Properties, text: str, exchange: str, routing_key: str, payload: bytes
) -> None:
    properties.headers = None if properties.headers is None else narrowed(properties.headers)
    data = b"".join(content(Basic.Return(312, text, exchange, routing_key), theirs(properties), payload))
    (event,) = parser().feed(data)
    assert (event.kind, event.channel, event.body) == (EventKind.RETURN, 1, payload)
    assert return_route(event.payload) == (text, exchange, routing_key)
    assert decode_properties(event.header) == properties


@given(TAGS, st.booleans())
@UNHURRIED
def test_confirms_of_pamqp_are_read(tag: int, multiple: bool) -> None:
    events = parser().feed(marshal(Basic.Ack(tag, multiple)) + marshal(Basic.Nack(tag, multiple, True), 3))
    assert [(event.kind, event.channel, event.tag, event.multiple) for event in events] == [
        (EventKind.ACK, 1, tag, multiple),
        (EventKind.NACK, 3, tag, multiple),
    ]


def test_the_brokers_cancel_is_an_event_and_passed_through() -> None:
    cancel = marshal(Basic.Cancel("aiorpcq.1", False))
    assert parser().feed(cancel) == [
        Event(EventKind.CANCEL, 1, b"aiorpcq.1"),
        Event(EventKind.PASS, 0, cancel),
    ]


def test_the_answer_to_a_cancel_is_an_event_alone() -> None:
    assert parser().feed(marshal(Basic.CancelOk("aiorpcq.1"))) == [Event(EventKind.CANCEL_OK, 1, b"aiorpcq.1")]


@pytest.mark.parametrize(
    ("method", "kind", "channel", "reason"),
    [
        (Channel.Close(404, "NOT_FOUND - no queue", 60, 40), EventKind.CHANNEL_CLOSED, 1, "404 NOT_FOUND - no queue"),
        (Channel.CloseOk(), EventKind.CHANNEL_CLOSED, 3, ""),
        (Connection.Close(320, "CONNECTION_FORCED", 0, 0), EventKind.CONNECTION_CLOSED, 0, "320 CONNECTION_FORCED"),
    ],
)
def test_a_closing_is_an_event_and_passed_through(method: Frame, kind: EventKind, channel: int, reason: str) -> None:
    data = marshal(method, channel)
    event, passed = parser().feed(data)
    assert (event.kind, event.channel, close_reason(event.payload)) == (kind, channel, reason)
    assert passed == Event(EventKind.PASS, 0, data)


def test_blocked_and_unblocked_are_events_and_passed_through() -> None:
    blocked, unblocked = marshal(Connection.Blocked("low on memory"), 0), marshal(Connection.Unblocked(), 0)
    events, passed = feed(parser(), [blocked + unblocked])
    assert [event.kind for event in events] == [EventKind.BLOCKED, EventKind.UNBLOCKED]
    assert passed == [blocked + unblocked]


@pytest.mark.parametrize("limit", [4_096, 131_072, 1 << 31])
def test_the_brokers_limit_of_a_frame_is_passed_through(limit: int) -> None:
    data = marshal(Connection.Tune(2_047, limit, 60), 0)
    assert feed(parser(), [data]) == ([], [data])


def test_a_broker_without_a_limit_of_a_frame_is_given_its_usual_one() -> None:
    _, passed = feed(parser(), [marshal(Connection.Tune(2_047, 0, 60), 0)])
    assert passed == [marshal(Connection.Tune(2_047, 131_072, 60), 0)]


@pytest.mark.parametrize("method", [Channel.OpenOk(), Confirm.SelectOk(), Basic.QosOk(), Basic.ConsumeOk("t")])
def test_other_methods_of_a_lane_channel_are_passed_through(method: Frame) -> None:
    data = marshal(method, 1)
    assert parser().feed(data) == [Event(EventKind.PASS, 0, data)]


def test_content_of_other_channels_is_passed_through() -> None:
    data = b"".join(content(Basic.Deliver("t", 1, False, "", "q"), None, b"x", 2)) + marshal(
        Channel.Close(404, "t", 1, 1), 2
    )
    assert parser().feed(data) == [Event(EventKind.PASS, 0, data)]


def test_a_channel_added_between_reads_is_a_lanes() -> None:
    channels: set[int] = set()
    made = FrameParser(channels, MAX_BODY)
    ack = marshal(Basic.Ack(1), 9)
    assert made.feed(ack) == [Event(EventKind.PASS, 0, ack)]
    channels.add(9)
    assert made.feed(ack) == [Event(EventKind.ACK, 9, b"", tag=1)]


def test_the_answer_of_another_protocol_version_is_passed_through() -> None:
    answer = b"AMQP\x00\x01\x00\x00"
    assert feed(parser(), [answer[:1], answer[1:]]) == ([], [answer[:1], answer[1:]])


def test_closing_in_the_midst_of_content_ends_it() -> None:
    channels = {1}
    made = FrameParser(channels, MAX_BODY)
    assert made.feed(b"".join(content(Basic.Deliver("t", 1, False, "", "q"), None, b"never complete")[:2])) == []
    events, _ = feed(made, [marshal(Channel.Close(541, "INTERNAL_ERROR", 0, 0))])
    assert [event.kind for event in events] == [EventKind.CHANNEL_CLOSED]
    channels.add(1)
    events, _ = feed(made, content(Basic.Deliver("t", 1, False, "", "q"), None, b"whole"))
    assert [event.body for event in events] == [b"whole"]


def test_the_number_of_a_closed_channel_is_no_lanes_any_more_even_in_the_same_read() -> None:
    closing, answer = marshal(Channel.Close(404, "x", 0, 0)), marshal(Channel.OpenOk())
    events, passed = feed(parser(), [closing + answer])
    assert [event.kind for event in events] == [EventKind.CHANNEL_CLOSED]
    assert passed == [closing + answer]


# --- in, split and interleaved in any way


class Piece(NamedTuple):
    """One frame of a stream, and what it completes."""

    data: bytes
    completes: tuple[EventKind, int, bytes, bytes] | None = None
    passes: bool = False


def delivered(
    kind: EventKind, method: Basic.Deliver | Basic.Return, payload: bytes, channel: int, frame_max: int
) -> list[Piece]:
    frames = content(method, Basic.Properties(correlation_id="c"), payload, channel, frame_max)
    # A frame without anything in it is lawful, if odd; and it must end nothing.
    if payload:
        frames.insert(2, framed(3, channel, b""))
    head = header.ContentHeader(body_size=len(payload), properties=Basic.Properties(correlation_id="c")).marshal()
    return [Piece(frame) for frame in frames[:-1]] + [Piece(frames[-1], (kind, channel, head, payload))]


@st.composite
def units(draw: st.DrawFn, frame_max: int) -> tuple[int, list[Piece]]:
    """Frames of one channel that belong together, and the channel."""
    channel = draw(st.sampled_from([*LANES, *OTHERS]))
    if channel == 0:
        values: list[tuple[Frame, EventKind | None]] = [
            (heartbeat.Heartbeat(), None),
            (Connection.Blocked("x"), EventKind.BLOCKED),
            (Connection.Unblocked(), EventKind.UNBLOCKED),
            (Connection.Close(320, "x", 0, 0), EventKind.CONNECTION_CLOSED),
        ]
        value, kind = draw(st.sampled_from(values))
        data = marshal(value, 0)
        return 0, [Piece(data, None if kind is None else (kind, 0, b"", b""), True)]
    payload = draw(BODIES)
    if channel not in LANES:
        frames = content(Basic.Deliver("t", 1, False, "", "q"), None, payload, channel, frame_max)
        return channel, [Piece(frame, None, True) for frame in frames]
    choice = draw(st.integers(0, 4))
    if choice == 0:
        return channel, delivered(EventKind.DELIVER, Basic.Deliver("t", 1, False, "", "q"), payload, channel, frame_max)
    if choice == 1:
        return channel, delivered(EventKind.RETURN, Basic.Return(312, "x", "", "q"), payload, channel, frame_max)
    if choice == 2:
        return channel, [Piece(marshal(Basic.Ack(5), channel), (EventKind.ACK, channel, b"", b""))]
    if choice == 3:
        return channel, [
            Piece(marshal(Channel.Close(404, "x", 0, 0), channel), (EventKind.CHANNEL_CLOSED, channel, b"", b""), True)
        ]
    return channel, [Piece(marshal(Basic.QosOk(), channel), None, True)]


@st.composite
def streams(draw: st.DrawFn, frame_max: int = SMALL_FRAME) -> list[Piece]:
    """Units of several channels, interleaved frame by frame as channels may be."""
    waiting: dict[int, list[Piece]] = {}
    for channel, pieces in draw(st.lists(units(frame_max), min_size=1, max_size=8)):
        waiting.setdefault(channel, []).extend(pieces)
    stream = []
    while waiting:
        channel = draw(st.sampled_from(sorted(waiting)))
        stream.append(waiting[channel].pop(0))
        if not waiting[channel]:
            del waiting[channel]
    return stream


def passing_after_close(stream: list[Piece]) -> Iterator[Piece]:
    """What is expected of each piece, with the frames of a closed channel passing through."""
    closed: set[int] = set()
    for piece in stream:
        channel = int.from_bytes(piece.data[1:3], "big")
        yield Piece(piece.data, None, True) if channel in closed else piece
        if piece.completes is not None and piece.completes[0] is EventKind.CHANNEL_CLOSED:
            closed.add(channel)


def check(stream: list[Piece], chunks: list[bytes]) -> None:
    events, passed = feed(parser(SMALL_FRAME), chunks)
    stream = list(passing_after_close(stream))
    assert [(event.kind, event.channel, event.header, event.body) for event in events] == [
        piece.completes for piece in stream if piece.completes
    ]
    frames = [piece.data for piece in stream if piece.passes]
    assert b"".join(passed) == b"".join(frames)
    ends = {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    assert {sum(map(len, passed[:count])) for count in range(len(passed) + 1)} <= ends


@given(streams(), st.data())
@UNHURRIED
def test_any_split_of_any_interleaving_gives_the_same_events(stream: list[Piece], data: st.DataObject) -> None:
    whole = b"".join(piece.data for piece in stream)
    check(stream, split(whole, data.draw(st.lists(st.integers(0, len(whole)), max_size=12))))


@given(streams())
@settings(UNHURRIED, max_examples=30)
def test_one_read_and_reads_of_a_byte_give_the_same_events(stream: list[Piece]) -> None:
    whole = b"".join(piece.data for piece in stream)
    check(stream, [whole])
    check(stream, [whole[at : at + 1] for at in range(len(whole))])


def test_a_cut_at_every_place_of_a_delivery_gives_the_same_event() -> None:
    whole = b"".join(content(Basic.Deliver("t", 1, False, "", "q"), None, b"body")) + HEARTBEAT
    expected = feed(parser(), [whole])
    for cut in range(1, len(whole)):
        assert feed(parser(), [whole[:cut], whole[cut:]]) == expected


# --- what is malformed


DELIVER = marshal(Basic.Deliver("t", 1, False, "", "q"))


def head(size: int, channel: int = 1) -> bytes:
    return marshal(header.ContentHeader(body_size=size), channel)


OVERSIZED = b"x" * (SMALL_FRAME - FRAME_OVERHEAD + 1)
MALFORMED: list[tuple[str, bytes, str]] = [
    ("a frame above frame_max", framed(3, 2, OVERSIZED), "frame of 4097 bytes, negotiated are 4096"),
    ("its head alone", framed(3, 2, OVERSIZED)[:8], "frame of 4097 bytes, negotiated are 4096"),
    ("a body frame above it", DELIVER + head(len(OVERSIZED)) + framed(3, 1, OVERSIZED), "frame of 4097 bytes"),
    (
        "a header frame above it",
        DELIVER + framed(2, 1, head(0)[7:-1] + OVERSIZED),
        "frame of .* bytes, negotiated are 4096",
    ),
    (
        "a wrong end octet",
        framed(1, 2, bytes(4), b"\xcd"),
        "frame of type 1 on channel 2 does not end with the end octet",
    ),
    ("a method's", DELIVER[:-1] + b"\x00" + head(0), "frame of type 1 on channel 1 does not end"),
    ("a header's", DELIVER + head(0)[:-1] + b"\x00", "frame of type 2 on channel 1 does not end"),
    ("a header's before a body", DELIVER + head(1)[:-1] + b"\x00" + framed(3, 1, b"x"), "frame of type 2 on channel 1"),
    ("a body's", DELIVER + head(1) + framed(3, 1, b"x", b"\x00"), "frame of type 3 on channel 1 does not end"),
    ("a longer body", DELIVER + head(3) + framed(3, 1, b"four"), "body on channel 1 is longer than its header says"),
    (
        "in its second frame",
        DELIVER + head(3) + framed(3, 1, b"12") + framed(3, 1, b"34"),
        "longer than its header says",
    ),
    ("a skipped body's", DELIVER + head(MAX_BODY + 1) + framed(3, 1, bytes(9)) * 999, "longer than its header says"),
    (
        "a method in a body",
        DELIVER + head(3) + marshal(Basic.Ack(1)),
        "method frame on channel 1 in the midst of content",
    ),
    ("a delivery in a delivery", DELIVER + DELIVER, "method frame on channel 1 in the midst of content"),
    ("a cancel before the header", DELIVER + marshal(Basic.CancelOk("t")), "method frame on channel 1 in the midst"),
    ("a body before its header", DELIVER + framed(3, 1, b"x"), "frame of type 3 on channel 1 is out of order"),
    ("a second header", DELIVER + head(1) + head(1), "frame of type 2 on channel 1 is out of order"),
    ("a header alone", head(0), "frame of type 2 on channel 1 without a method before it"),
    ("a body alone", framed(3, 3, b"x"), "frame of type 3 on channel 3 without a method before it"),
    ("a heartbeat on a lane", framed(8, 1, b""), "frame of type 8 on channel 1 without a method before it"),
    ("a short method", framed(1, 1, b"\x00\x3c"), "method frame of 2 bytes on channel 1"),
    ("a short method of the connection", framed(1, 0, b""), "method frame of 0 bytes on channel 0"),
    ("a short header", DELIVER + framed(2, 1, bytes(13)), "content header of 13 bytes on channel 1"),
    ("a short confirm", framed(1, 1, b"\x00\x3c\x00\x50" + bytes(8)), "confirm of 12 bytes on channel 1"),
]


@pytest.mark.parametrize(("data", "text"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
@pytest.mark.parametrize("step", [1_000_000, 1])
def test_malformed_frames_are_refused_however_they_are_split(data: bytes, text: str, step: int) -> None:
    with pytest.raises(FrameError, match=text):
        feed(parser(SMALL_FRAME), [data[at : at + step] for at in range(0, len(data), step)])


@pytest.mark.parametrize("step", [1_000_000, 1])
@pytest.mark.parametrize("frame_max", [FRAME_MAX, SMALL_FRAME])
def test_a_body_above_the_limit_is_skipped_and_its_size_told(frame_max: int, step: int) -> None:
    made = parser(frame_max)
    deliver = Basic.Deliver("t", 1, False, "", "q")
    data = b"".join(
        content(deliver, None, bytes(MAX_BODY + 1), 1, frame_max)
        + content(deliver, None, bytes(MAX_BODY), 1, frame_max)
    )
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    events = []
    for chunk in chunks:
        events += made.feed(chunk)
        assert buffered(made) < frame_max + MAX_BODY
    assert [(event.kind, len(event.body), event.tag) for event in events] == [
        (EventKind.DELIVER, 0, MAX_BODY + 1),
        (EventKind.DELIVER, MAX_BODY, 0),
    ]


def test_a_skipped_body_is_not_kept() -> None:
    made = FrameParser(set(LANES), max_body=0)
    made.feed(DELIVER + head(MAX_BODY))
    for _ in range(9):
        made.feed(framed(3, 1, bytes(500)))
    assert kept(made) == 0


def test_empty_body_frames_are_not_kept() -> None:
    made = parser()
    made.feed(DELIVER + head(1))
    for _ in range(100):
        made.feed(framed(3, 1, b""))
    assert kept(made) <= 1
    assert [event.body for event in made.feed(framed(3, 1, b"x"))] == [b"x"]


def kept(made: FrameParser) -> int:
    """How many pieces of bodies the parser holds."""
    return sum(len(assembly.chunks) for assembly in made._assemblies.values())


def buffered(made: FrameParser) -> int:
    """How many bytes the parser holds."""
    parts: list[bytes | bytearray] = [made._partial]
    for assembly in made._assemblies.values():
        parts += [assembly.method, assembly.header or b"", *assembly.chunks]
    return sum(map(len, parts))


def damage(data: bytearray, draw: st.DataObject) -> bytes:
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data)))
        noise = draw.draw(st.binary(max_size=3))
        data[at : at + draw.draw(st.integers(0, 3))] = noise
    return bytes(data)


READERS: dict[EventKind, list[Callable[[bytes], object]]] = {
    EventKind.DELIVER: [split_delivery, delivery_route],
    EventKind.RETURN: [return_route],
    EventKind.CHANNEL_CLOSED: [close_reason],
    EventKind.CONNECTION_CLOSED: [close_reason],
}


@given(streams(), st.data())
@settings(UNHURRIED, max_examples=300)
def test_damaged_bytes_are_read_or_refused_within_the_bounds(stream: list[Piece], data: st.DataObject) -> None:
    damaged = damage(bytearray(b"".join(piece.data for piece in stream)), data)
    made = parser(SMALL_FRAME)
    # One frame that is not whole, and for each lane the method, the header and the body.
    bound = SMALL_FRAME + len(LANES) * (2 * SMALL_FRAME + MAX_BODY)
    fed = 0
    for chunk in split(damaged, data.draw(st.lists(st.integers(0, len(damaged)), max_size=6))):
        fed += len(chunk)
        try:
            events = made.feed(chunk)
        except FrameError as error:
            assert str(error)  # noqa: PT017 - either outcome is right
            return
        assert buffered(made) <= min(bound, fed)
        for event in events:
            try:
                if event.header:
                    decode_properties(event.header)
                for read in READERS.get(event.kind, []):
                    read(event.payload)
            except (FrameError, PropertyError) as error:
                assert str(error)  # noqa: PT017 - either outcome is right


@given(st.binary(max_size=400))
@UNHURRIED
def test_noise_is_refused_or_waits_for_more(noise: bytes) -> None:
    made = parser(SMALL_FRAME)
    try:
        for event in made.feed(noise):
            assert isinstance(event, Event)
    except FrameError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert buffered(made) <= len(noise)


def test_a_large_frame_that_trickles_in_is_passed_through_in_one_piece() -> None:
    made = parser()
    frame = framed(3, 2, bytes(FRAME_MAX - FRAME_OVERHEAD))
    assert sum(len(made.feed(frame[at : at + 1])) for at in range(len(frame) - 1)) == 0
    assert made.feed(frame[-1:]) == [Event(EventKind.PASS, 0, frame)]
