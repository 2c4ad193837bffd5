"""The names of everything that is declared, and what may be one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiorpcq.protocol.retries import DELAY_STEPS
from aiorpcq.protocol.topology import (
    TO_ALL,
    Binding,
    Exchange,
    Names,
    Queue,
    check_method,
    check_service,
    split_method,
    to_service,
    to_worker,
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
        auto_delete=False,
        arguments={"x-queue-type": "classic"},
    )
    assert names.reply_queue("5f0c", 3, "s3cret").name != queue.name


def test_a_control_queue_is_exclusive_and_bounded() -> None:
    assert Names().control_queue("w1", 2) == Queue(
        "rpc.control.w1.2",
        durable=False,
        exclusive=True,
        auto_delete=False,
        arguments={"x-queue-type": "classic", "x-max-length": 100_000},
    )


def test_a_worker_hears_what_is_said_to_all_to_it_and_to_its_services() -> None:
    bindings = Names().control_bindings("w1", 2, ["default", "math"])
    assert {binding.routing_key for binding in bindings} == {TO_ALL, "worker.w1", "service.default", "service.math"}
    assert {(binding.queue, binding.exchange) for binding in bindings} == {("rpc.control.w1.2", "rpc.control")}
    assert (to_worker("w1"), to_service("math")) == ("worker.w1", "service.math")


@pytest.mark.parametrize(("step", "milliseconds"), [(0.1, 100), (0.5, 500), (1.0, 1_000), (3600.0, 3_600_000)])
def test_what_is_delayed_goes_on_to_the_request_exchange(step: float, milliseconds: int) -> None:
    exchange, queue, binding = Names().delay(step)
    name = f"rpc.retry.{milliseconds}"
    assert exchange == Exchange(name, "fanout")
    assert queue == Queue(
        name,
        arguments={"x-queue-type": "classic", "x-message-ttl": milliseconds, "x-dead-letter-exchange": "rpc"},
    )
    assert binding == Binding(name, name, "")


def test_every_step_of_a_delay_is_its_number_of_milliseconds() -> None:
    queues = [Names().delay(step)[1] for step in DELAY_STEPS]
    assert [queue.arguments["x-message-ttl"] for queue in queues] == [round(step * 1000) for step in DELAY_STEPS]
    assert len({queue.name for queue in queues}) == len(DELAY_STEPS)


def test_dead_letters_are_bounded_in_number_and_age_and_die_for_good() -> None:
    assert Names().dead_queue("math") == Queue(
        "rpc.math.dead",
        arguments={"x-queue-type": "classic", "x-max-length": 10_000, "x-message-ttl": 604_800_000},
    )


def test_a_durable_reply_queue_outlives_its_consumer_for_a_time() -> None:
    assert Names().durable_reply_queue("billing-1", 86_400.0) == Queue(
        "rpc.reply.billing-1.durable", arguments={"x-queue-type": "classic", "x-expires": 86_400_000}
    )


@pytest.mark.parametrize("identity", NOT_NAMES)
def test_what_cannot_name_a_client_is_refused(identity: Any) -> None:
    with pytest.raises(ValueError, match=r"^identity: .* does not match"):
        Names().durable_reply_queue(identity, 1.0)


@given(words | st.sampled_from(["reply", "control", "retry", "dead"]), words | st.just("dead"))
@example("reply", "dead")
@example("control", "dead")
def test_no_two_kinds_of_queues_share_a_name(one: str, other: str) -> None:
    names = Names()
    queues = [
        names.service_queue(one).name,
        names.dead_queue(one).name,
        names.durable_reply_queue(other, 1.0).name,
        names.reply_queue(other, 1, "s3cret").name,
        names.control_queue(other, 1).name,
        names.delay(1.0)[1].name,
    ]
    assert len(set(queues)) == len(queues)


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
    for use in (check_service, names.routing_key, names.service_queue, names.dead_queue, names.binding):
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
