"""The answer to a consumer's end that the broker decided: which brokers want one, and that it comes first."""

from __future__ import annotations

from typing import Any

import pytest
from pamqp.commands import Basic

from aiorpcq.errors import ConnectionLost
from aiorpcq.transports.amqp.frames import encode_cancel_ok
from aiorpcq.transports.amqp.link import _wants_cancel_ok

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


@pytest.mark.parametrize(
    ("version", "capabilities", "wanted"),
    [
        ("3.10.8", {}, False),
        ("4.2.9", {}, False),
        ("4.3.0", {}, True),
        ("4.3.6+1.gabc", {}, True),
        ("10.0.0", {}, True),
        ("4.3.7", {"accept_consumer_cancel_ok": True}, False),
        ("4.3.6", None, True),
        ("unknown", {}, False),
        (None, {}, False),
    ],
)
def test_it_is_for_rabbitmq_from_4_3_0_on_until_it_says_so_itself(
    version: Any, capabilities: Any, wanted: bool
) -> None:
    properties = {"product": "RabbitMQ", "version": version, "capabilities": capabilities}
    assert _wants_cancel_ok(properties) is wanted
    assert not _wants_cancel_ok({**properties, "product": "LavinMQ"})
    assert not _wants_cancel_ok({})
