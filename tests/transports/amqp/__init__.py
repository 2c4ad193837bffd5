"""The AMQP transport. pamqp, which shares no code with ours, makes and reads the frames these tests compare with."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pamqp import base, body, commands, frame, header, heartbeat

__all__ = [
    "BODIES",
    "FRAME_MAX",
    "MAX_BODY",
    "ROUTES",
    "SMALL_FRAME",
    "TAGS",
    "UNHURRIED",
    "Frame",
    "content",
    "framed",
    "marshal",
    "read_frames",
]

# A machine that is busy with brokers takes its time over an example; none of these tests is about speed.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FRAME_MAX = 131_072
Frame = base.Frame | body.ContentBody | header.ContentHeader | header.ProtocolHeader | heartbeat.Heartbeat
SMALL_FRAME = 4_096  # the least that may be negotiated (section 4.2.3)
MAX_BODY = 5_000

TAGS = st.integers(1, 2**63 - 1)
ROUTES = st.text(max_size=40).filter(lambda text: len(text.encode()) <= 255)
BODIES = st.one_of(
    st.binary(max_size=40),
    st.integers(0, MAX_BODY).map(lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256)),
)


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
