"""The AMQP transport. pamqp, which shares no code with ours, makes and reads the frames these tests compare with."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from pamqp import base, body, commands, frame, header, heartbeat

__all__ = ["FRAME_MAX", "UNHURRIED", "Frame", "content", "framed", "marshal", "read_frames"]

# A machine that is busy with brokers takes its time over an example; none of these tests is about speed.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FRAME_MAX = 131_072
Frame = base.Frame | body.ContentBody | header.ContentHeader | header.ProtocolHeader | heartbeat.Heartbeat


def marshal(value: Frame, channel: int = 1) -> bytes:
    """One frame."""
    return frame.marshal(value, channel)


def content(
    method: base.Frame,
    properties: commands.Basic.Properties | None = None,
    payload: bytes = b"",
    channel: int = 1,
    frame_max: int = FRAME_MAX,
) -> list[bytes]:
    """The frames of a method with its content."""
    step = frame_max - 8
    return [
        marshal(method, channel),
        marshal(header.ContentHeader(body_size=len(payload), properties=properties), channel),
        *(marshal(body.ContentBody(payload[at : at + step]), channel) for at in range(0, len(payload), step)),
    ]


def framed(kind: int, channel: int, payload: bytes, end: bytes = b"\xce") -> bytes:
    """A frame of any payload, for what pamqp would not make."""
    return bytes([kind]) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + end


def read_frames(data: bytes) -> list[tuple[int, Frame]]:
    """Channel and frame of all frames in *data*, which holds nothing else."""
    frames = []
    while data:
        size, channel, value = frame.unmarshal(data)
        frames.append((channel, value))
        data = data[size:]
    return frames
