"""From URLs to transports."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq.transports.amqp import AMQPTransport
from aiorpcq.transports.memory import MemoryTransport
from aiorpcq.transports.registry import check_url, make_transports


def addresses(url: Any) -> list[str]:
    return [transport.address for transport in make_transports(url, max_size=1, name="tests")]


def test_one_url_is_one_transport() -> None:
    (transport,) = make_transports("memory://one", max_size=1, name="tests")
    assert isinstance(transport, MemoryTransport)
    (transport,) = make_transports("amqp://host", max_size=1, name="tests")
    assert isinstance(transport, AMQPTransport)


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_urls_keep_their_order(kind: type) -> None:
    urls = kind(["amqp://b/v", "amqps://a/v"])
    assert addresses(urls) == ["amqp://b:5672/v", "amqps://a:5671/v"]


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ([], "an empty sequence"),
        (["memory://a", "amqp://b"], "does not go together"),
        (["amqp://b", 5], "a int is not a string"),
        (["amqp://b", "http://c"], "its scheme"),
        (None, "a NoneType is neither a string nor a sequence"),
        ({"amqp://a"}, "a set is neither"),
    ],
)
def test_what_cannot_be_used_is_said(url: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"url: .*{named}"):
        check_url(url)
