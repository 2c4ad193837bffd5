"""The names of everything that is declared, and what may be one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.protocol.topology import (
    Binding,
    Exchange,
    Names,
    Queue,
    check_method,
    check_service,
    split_method,
)

words = st.text("abcXYZ019_-", min_size=1, max_size=30)
NOT_NAMES: list[Any] = ["", " ", "a b", "a.b", "a\n", "a/b", "a:b", "ä", "#", "*", "a" * 101, None, 5, b"a"]


def test_the_exchanges_are_durable_and_begin_with_the_prefix() -> None:
    names = Names("jobs")
    assert names.requests == Exchange("jobs", "direct", durable=True, auto_delete=False)
    assert names.control == Exchange("jobs.control", "topic", durable=True, auto_delete=False)


def test_the_prefix_is_rpc_by_default() -> None:
    assert Names().requests.name == "rpc"


@pytest.mark.parametrize("prefix", ["", "a.b", "a b", "a\n", "a:b", "a" * 51, "ä"])
def test_a_prefix_that_would_not_read_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^prefix: "):
        Names(prefix)


def test_a_service_queue_is_bound_by_its_key() -> None:
    names = Names()
    assert names.routing_key("math") == "rpc:math"
    assert names.binding("math") == Binding("rpc.math", "rpc", "rpc:math")


def test_a_service_queue_is_durable_classic_and_returns_to_sender() -> None:
    assert Names().service_queue("math") == Queue(
        "rpc.math", durable=True, arguments={"x-queue-type": "classic", "x-dead-letter-exchange": ""}
    )


def test_a_service_queue_has_no_dead_letter_routing_key() -> None:
    assert "x-dead-letter-routing-key" not in Names().service_queue("math").arguments


def test_the_options_of_a_service_are_added_to_its_queue() -> None:
    queue = Names().service_queue("math", {"x-queue-type": "quorum", "x-max-length": 5})
    assert queue.arguments == {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-max-length": 5}


def test_a_reply_queue_is_exclusive_and_has_a_name_for_each_generation() -> None:
    names = Names()
    queue = names.reply_queue("5f0c", 2, "s3cret")
    assert queue == Queue(
        "rpc.reply.5f0c.2.s3cret",
        durable=False,
        exclusive=True,
        auto_delete=True,
        arguments={"x-queue-type": "classic"},
    )
    assert names.reply_queue("5f0c", 3, "s3cret").name != queue.name


@given(words)
def test_no_service_queue_is_named_as_a_reply_queue(name: str) -> None:
    names = Names()
    queue = names.service_queue(name).name
    assert not queue.startswith("rpc.reply.")
    assert queue.count(".") == 1


@given(words, words)
def test_services_that_differ_share_nothing(one: str, other: str) -> None:
    names = Names()
    assert (names.routing_key(one) == names.routing_key(other)) == (one == other)
    assert (names.service_queue(one) == names.service_queue(other)) == (one == other)


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_cannot_name_a_service_is_refused(name: Any) -> None:
    names = Names()
    for use in (check_service, names.routing_key, names.service_queue, names.binding):
        with pytest.raises(ValueError, match=r"^service name .* does not match"):
            use(name)


@given(words)
def test_a_word_names_a_service_and_a_method(name: str) -> None:
    assert check_service(name) == check_method(name) == name


@given(words.filter(lambda name: "." not in name))
def test_a_method_without_service_is_of_the_default_service(name: str) -> None:
    assert split_method(name) == ("default", name)


@given(words, st.lists(words, min_size=1, max_size=3).map(".".join))
def test_what_is_before_the_first_dot_is_the_service(service: str, method: str) -> None:
    assert split_method(f"{service}.{method}") == (service, method)


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "ä", "a/b", "a" * 256, None, 5, b"a"])
def test_what_cannot_name_a_method_is_refused(name: Any) -> None:
    for use in (check_method, split_method):
        with pytest.raises(ValueError, match=r"^method name .* is not made of"):
            use(name)


def test_a_method_of_a_service_whose_name_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^service name "):
        split_method("a" * 101 + ".b")
