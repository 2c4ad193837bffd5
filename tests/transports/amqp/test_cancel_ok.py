"""The answer to a consumer's end that the broker decided: what it looks like, and when it goes out."""

from __future__ import annotations

from pamqp.commands import Basic

from aiorpcq.errors import ConnectionLost
from aiorpcq.transports.amqp.frames import encode_cancel_ok

from . import marshal, read_frames
from .test_lane import Wire


def test_it_reads_the_same_in_pamqp() -> None:
    ((channel, answer),) = read_frames(encode_cancel_ok(7, b"aiorpcq.1"))
    assert isinstance(answer, Basic.CancelOk)
    assert (channel, answer.consumer_tag) == (7, "aiorpcq.1")


def test_it_goes_out_when_asked_for_and_not_on_a_closed_channel() -> None:
    wire = Wire()
    wire.consume(on_cancelled=lambda _: wire.lane.answer_cancel("c"))
    wire.receive(marshal(Basic.Cancel("c", True)))
    wire.loop.run()
    assert [type(frame) for frame in wire.sent()] == [Basic.CancelOk]
    wire.lane.close(ConnectionLost("closed"))
    wire.lane.answer_cancel("c")
    wire.loop.run()
    assert wire.sent() == []
