"""What is done for some versions of RabbitMQ is done for those alone."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq.transports.amqp.versions import recovers_consumers, wants_cancel_ok


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
def test_an_answer_to_a_cancel_is_for_rabbitmq_from_4_3_0_on_until_it_says_so_itself(
    version: Any, capabilities: Any, wanted: bool
) -> None:
    properties = {"product": "RabbitMQ", "version": version, "capabilities": capabilities}
    assert wants_cancel_ok(properties) is wanted
    assert not wants_cancel_ok({**properties, "product": "LavinMQ"})
    assert not wants_cancel_ok({})


@pytest.mark.parametrize(
    ("version", "recovers"),
    [
        ("3.10.8", True),
        ("3.13.7", True),
        ("4.0.0", False),
        ("4.3.6", False),
        ("10.0.0", False),
        ("?", False),
        (None, False),
    ],
)
def test_consumers_that_go_on_by_themselves_are_those_before_4_0(version: Any, recovers: bool) -> None:
    assert recovers_consumers({"product": "RabbitMQ", "version": version}) is recovers
    assert not recovers_consumers({"product": "LavinMQ", "version": version})
    assert not recovers_consumers({})
