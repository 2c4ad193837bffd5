"""Outbound frames, and the arguments of inbound ones, with pamqp as the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, header, heartbeat
from pamqp.commands import Basic

from aiorpcq.protocol.messages import Properties, Publication
from aiorpcq.transports.amqp.frames import (
    FRAME_OVERHEAD,
    HEARTBEAT,
    FrameError,
    PublishEncoder,
    delivery_route,
    encode_ack,
    encode_cancel,
    encode_nack,
    return_route,
    split_delivery,
)
from aiorpcq.transports.amqp.properties import PropertyError

from . import BODIES, FRAME_MAX, ROUTES, SMALL_FRAME, TAGS, UNHURRIED, marshal, read_frames
from .test_properties import PROPERTIES, theirs


@given(PROPERTIES, ROUTES, ROUTES, st.booleans(), BODIES, st.integers(1, 65_535))
@UNHURRIED
def test_a_publication_reads_the_same_in_pamqp(
    properties: Properties, exchange: str, routing_key: str, mandatory: bool, payload: bytes, channel: int
) -> None:
    publication = Publication(exchange, routing_key, properties, payload, mandatory)
    try:
        data = PublishEncoder(channel, SMALL_FRAME).encode(publication)
    except PropertyError as error:
        assert "headers" in str(error)  # noqa: PT017 - only such a table may be refused here
        return
    frames = read_frames(data)
    assert {number for number, _ in frames} == {channel}
    (_, method), (_, head), *bodies = frames
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key) == (exchange, routing_key)
    assert (method.mandatory, method.immediate) == (mandatory, False)
    assert isinstance(head, header.ContentHeader)
    assert (head.body_size, head.properties) == (len(payload), theirs(properties))
    chunks = [frame.value for _, frame in bodies if isinstance(frame, body.ContentBody)]
    assert len(chunks) == len(bodies) == -(-len(payload) // (SMALL_FRAME - FRAME_OVERHEAD))
    assert all(len(chunk) + FRAME_OVERHEAD <= SMALL_FRAME for chunk in chunks)
    assert b"".join(chunks) == payload


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_body_is_split_exactly_at_the_frame_size(frames: int, over: int) -> None:
    step = SMALL_FRAME - FRAME_OVERHEAD
    payload = bytes(frames * step + over)
    _, _, *bodies = read_frames(PublishEncoder(1, SMALL_FRAME).encode(Publication("", "q", Properties(), payload)))
    sizes = [len(frame.value) for _, frame in bodies if isinstance(frame, body.ContentBody)]
    assert sizes == [step] * (frames - 1) + ([step + over] if over <= 0 else [step, over])


def test_headers_that_do_not_fit_a_frame_are_refused() -> None:
    encoder = PublishEncoder(1, SMALL_FRAME)
    room = SMALL_FRAME - FRAME_OVERHEAD - 14 - len(b"\x00\x00\x00\x00\x01hS\x00\x00\x00\x00")
    for payload in (b"", b"x", bytes(SMALL_FRAME)):
        _, (_, head), *_ = read_frames(
            encoder.encode(Publication("", "q", Properties(headers={"h": "x" * room}), payload))
        )
        assert isinstance(head, header.ContentHeader)
        with pytest.raises(PropertyError, match="headers"):
            encoder.encode(Publication("", "q", Properties(headers={"h": "x" * (room + 1)}), payload))


def test_routes_are_encoded_anew_after_many_others() -> None:
    encoder = PublishEncoder(1, FRAME_MAX)
    for _ in range(2):
        for number in range(1_100):
            (_, method), *_ = read_frames(encoder.encode(Publication("x", f"key{number}", Properties(), b"")))
            assert isinstance(method, Basic.Publish)
            assert method.routing_key == f"key{number}"


@pytest.mark.parametrize(
    ("exchange", "routing_key", "name"), [("x" * 256, "", "exchange"), ("", "x" * 256, "routing key")]
)
def test_a_route_above_255_bytes_is_refused_by_name(exchange: str, routing_key: str, name: str) -> None:
    with pytest.raises(PropertyError, match=f"^{name} has 256 bytes, the limit is 255$"):
        PublishEncoder(1, FRAME_MAX).encode(Publication(exchange, routing_key, Properties(), b""))


@given(st.integers(1, 65_535), TAGS, st.booleans())
@UNHURRIED
def test_settling_frames_read_the_same_in_pamqp(channel: int, tag: int, flag: bool) -> None:
    data = encode_ack(channel, tag, flag) + encode_nack(channel, tag, requeue=flag)
    (at, ack), (nack_at, nack) = read_frames(data)
    assert isinstance(ack, Basic.Ack)
    assert isinstance(nack, Basic.Nack)
    assert (at, ack.delivery_tag, ack.multiple) == (channel, tag, flag)
    assert (nack_at, nack.delivery_tag, nack.multiple, nack.requeue) == (channel, tag, False, flag)


def test_a_cancel_reads_the_same_in_pamqp() -> None:
    ((channel, cancel),) = read_frames(encode_cancel(7, "aiorpcq.1"))
    assert isinstance(cancel, Basic.Cancel)
    assert (channel, cancel.consumer_tag, cancel.nowait) == (7, "aiorpcq.1", False)


def test_the_heartbeat_is_pamqps() -> None:
    assert marshal(heartbeat.Heartbeat(), 0) == HEARTBEAT


# --- arguments cut short


@pytest.mark.parametrize("size", [*range(4, 17)])
def test_a_delivery_method_cut_short_is_refused(size: int) -> None:
    method = marshal(Basic.Deliver("t", 1, False, "", "q"))[7:-1][:size]
    with pytest.raises(FrameError, match=f"method frame of {size} bytes"):
        split_delivery(method) and delivery_route(method)


@pytest.mark.parametrize("size", [*range(4, 10)])
def test_a_return_method_cut_short_is_refused(size: int) -> None:
    method = marshal(Basic.Return(312, "x", "", "q"))[7:-1][:size]
    with pytest.raises(FrameError, match=f"method frame of {size} bytes"):
        return_route(method)
