"""Options that cannot be: a `ValueError` that names them, before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq import CacheLimits, Client, Codecs, Context, JsonCodec, OutOfBandLimits, Service, Worker

from .parties import calculator


@pytest.fixture(params=["memory://options", "amqp://localhost"], ids=["memory", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    """An address that nothing connects to."""
    address: str = request.param
    return address


async def function() -> None:
    pass


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", -1),
        ("timeout", "1"),
        ("timeout", True),
        ("timeout", float("nan")),
        ("timeout", 1e10),
        ("priority", -1),
        ("priority", 256),
        ("priority", "high"),
        ("priority", True),
        ("metadata", ["a"]),
        ("metadata", {1: 2}),
        ("metadata", {"x": object()}),
        ("metadata", {"x": {"y": [{"z": {1}}]}}),
        ("metadata", {"x": 2**64}),
        ("metadata", {"x": float("inf")}),
        ("metadata", {"x": [float("nan")]}),
        ("metadata", {"x": "\ud800"}),
        ("retries", -1),
        ("retries", 1_001),
        ("retries", True),
        ("on_disconnect", "wait"),
        ("on_disconnect", None),
        ("task_id", ""),
        ("task_id", "x" * 256),
        ("task_id", 7),
        ("task_id", "\ud800"),
        ("idempotent", ["add"]),
        ("persistent", 1),
        ("cancel_task", None),
        ("require_workers", "no"),
    ],
)
def test_call_options(url: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Client(url).with_options(**{option: value})


def test_metadata_are_what_they_were_when_they_were_checked(url: str) -> None:
    given: dict[str, Any] = {"trace": ["a"]}
    changed = Client(url).with_options(metadata=given)
    given["trace"].append(float("nan"))  # RabbitMQ would close the connection over it
    assert changed._options.metadata == {"trace": ["a"]}


@pytest.mark.parametrize("option", ["max_pending", "backlog", "_router"])
def test_unknown_call_options(url: str, option: str) -> None:
    with pytest.raises(ValueError, match=option):
        Client(url).with_options(**{option: 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", -1),
        ("max_pending", 0),
        ("max_pending", 1.5),
        ("when_full", "drop"),
        ("on_disconnect", "reconnect"),
        ("backlog", 0),
        ("backlog", True),
        ("max_size", 0),
        ("max_size", "8M"),
        ("reply_queue", "shared"),
        ("identity", "me"),
        ("reply_queue_ttl", 0),
        ("reply_queue_ttl", -1),
        ("reply_queue_ttl", None),
        ("idempotent", "add"),
        ("idempotent", [1]),
        ("idempotent", ["a..b"]),
        ("idempotent", 7),
        ("retry_budget", 10),
        ("codecs", JsonCodec()),
        ("codecs", "json"),
        ("out_of_band", 1_000),
        ("random", 7),
        ("prefix", ""),
        ("prefix", "a.b"),
        ("prefix", "x" * 51),
    ],
)
def test_client_options(url: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Client(url, **{option: value})


@pytest.mark.parametrize("identity", [None, "", "a.b", "x" * 101, 7])
def test_the_identity_of_a_durable_reply_queue(url: str, identity: Any) -> None:
    with pytest.raises(ValueError, match="identity"):
        Client(url, reply_queue="durable", identity=identity)


def test_urls_of_different_kinds(url: str) -> None:
    other = "amqp://localhost" if url.startswith("memory") else "memory://other"
    for urls in ([], [url, other], [url, 7], [url, "redis://localhost"]):
        with pytest.raises(ValueError, match="url"):
            Client(urls)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 65_536),
        ("threads", 0),
        ("threads", 1.5),
        ("max_size", 0),
        ("grace", -1),
        ("delivery", "exactly_once"),
        ("codecs", JsonCodec()),
        ("cache", 1024),
        ("prefix", "a b"),
    ],
)
def test_worker_options(url: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Worker(url, [calculator()], **{option: value})


@pytest.mark.parametrize("services", [[], [calculator(), calculator()], ["math"], [None], calculator(), "math"])
def test_worker_services(url: str, services: Any) -> None:
    with pytest.raises(ValueError, match="services"):
        Worker(url, services)


def test_two_services_of_one_name(url: str) -> None:
    with pytest.raises(ValueError, match="'math'"):
        Worker(url, [Service("math"), Service("math")])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue_type", "stream"),
        ("max_priority", 0),
        ("max_priority", 256),
        ("max_length", 0),
        ("overflow", "drop-tail"),
        ("message_ttl", -1),
        ("timeout", -1),
        ("delivery", "twice"),
    ],
)
def test_service_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Service(**{option: value})


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ü", "x" * 101, None, 7])
def test_names_of_services(name: Any) -> None:
    with pytest.raises(ValueError, match="service name"):
        Service(name)


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a b", "ü", "x" * 256, 7])
def test_names_of_methods(name: Any) -> None:
    with pytest.raises(ValueError, match="method name"):
        Service().method(name=name)(function)


@pytest.mark.parametrize(("option", "value"), [("timeout", -1), ("delivery", "twice")])
def test_method_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Service().method(**{option: value})(function)


def test_two_methods_of_one_name() -> None:
    service = Service("math")
    service.method(name="add")(function)
    with pytest.raises(ValueError, match="add"):
        service.method(name="add")(function)


def test_what_is_no_function() -> None:
    with pytest.raises(ValueError, match="not a function"):
        Service().method(name="add")(7)  # type: ignore[type-var]  # wrong on purpose


def test_two_contexts() -> None:
    async def confused(first: Context, second: Context) -> None:
        pass

    with pytest.raises(ValueError, match="Context"):
        Service().method(confused)


def test_a_context_that_collects() -> None:
    async def confused(*contexts: Context) -> None:
        pass

    with pytest.raises(ValueError, match="Context"):
        Service().method(confused)


@pytest.mark.parametrize("value", [0, -1, None, "1", True, [], float("nan")])
@pytest.mark.parametrize("option", ["tasks", "size", "age"])
def test_limits_of_the_out_of_band_buffer(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        OutOfBandLimits(**{option: value})


@pytest.mark.parametrize("task_id", [7, None, b"id", "", "x" * 256])
@pytest.mark.parametrize("way", ["stream", "cancel", "forget"])
async def test_what_is_no_task_id_is_refused_by_what_takes_one(url: str, way: str, task_id: Any) -> None:
    async def use() -> None:
        done = getattr(Client(url), way)(task_id)
        await done  # only `cancel` comes as far as this

    with pytest.raises(ValueError, match="task_id"):
        await use()


@pytest.mark.parametrize("value", [0, -1, None, "1", True, [], float("nan")])
@pytest.mark.parametrize("option", ["size", "age"])
def test_limits_of_the_cache(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        CacheLimits(**{option: value})


@pytest.mark.parametrize("limits", [CacheLimits, OutOfBandLimits])
def test_an_age_is_a_time_that_a_clock_can_tell(limits: Any) -> None:
    with pytest.raises(ValueError, match="age"):
        limits(age=10**400)
    assert limits(age=float("inf")).age == float("inf")


@pytest.mark.parametrize("errors", [ValueError, "ValueError", ["ValueError"]])
def test_errors_are_several_exception_classes(errors: Any) -> None:
    with pytest.raises(ValueError, match="errors"):
        Client("memory://options", errors=errors)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compression", "brotli"),
        ("compress_above", -1),
        ("max_size", 0),
        ("max_decompressed", 0),
        ("accept", []),
        ("accept", ["text/unknown"]),
        ("accept", JsonCodec()),
    ],
)
def test_codec_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        Codecs(JsonCodec(), **{option: value})


@pytest.mark.parametrize("address", ["redis://localhost", "localhost", "", "memory:/x", "amqp"])
async def test_addresses_of_no_broker(address: str) -> None:
    with pytest.raises(ValueError, match="url"):
        await Client(address).open()
    with pytest.raises(ValueError, match="url"):
        Worker(address, [calculator()])
