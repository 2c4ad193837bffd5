"""What bad input gets: an error for the call that it belongs to, and nothing for anybody else."""

from __future__ import annotations

import gzip
import logging
from typing import Any

import pytest

from aiorpcq import (
    CodecError,
    Codecs,
    ContentDisallowed,
    Context,
    InvalidArguments,
    JsonCodec,
    MethodNotFound,
    PayloadTooLarge,
    RemoteError,
    RPCError,
    Service,
    Unroutable,
)
from aiorpcq.protocol.messages import Properties, Request

from .parties import (
    BystanderFactory,
    ClientFactory,
    ReplyQueue,
    WorkerFactory,
    body_of,
    calculator,
    eventually,
    request_for,
)


class Point:
    """A class that no codec knows."""


async def error_of(replies: ReplyQueue) -> dict[str, Any]:
    """Return the value of the FAILURE that must come next."""
    delivery = await replies.next()
    assert delivery.properties.type == "FAILURE"
    value = body_of(delivery)
    assert isinstance(value, dict)
    return value


# --- names


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_an_unknown_service_is_unroutable_at_once(client: ClientFactory, way: str) -> None:
    caller = await client(timeout=None)
    with pytest.raises(Unroutable, match="nobody") as caught:
        await getattr(caller, way)("nobody.add", 1, 2)
    assert not caught.value.maybe_executed
    assert not caught.value.retryable
    assert caught.value.task_id is not None
    assert caller.statistics().pending == 0


async def test_a_service_is_routable_once_a_worker_has_run(client: ClientFactory, worker: WorkerFactory) -> None:
    caller = await client()
    with pytest.raises(Unroutable):
        await caller.call("add", 1, 2)
    await worker(calculator())
    assert await caller.call("add", 1, 2) == 3


async def test_an_unknown_method_is_not_found(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    with pytest.raises(MethodNotFound, match="subtract") as caught:
        await (await client()).call("subtract", 1, 2)
    assert not caught.value.maybe_executed
    assert caught.value.task_id is not None


async def test_a_submitted_unknown_method_fails_as_a_task(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    task = await (await client()).submit("subtract", 1, 2)
    with pytest.raises(MethodNotFound):
        await task
    assert task.state == "FAILURE"


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "named", "says"),
    [
        ((), {}, "missing"),
        ((1,), {}, "'b'"),
        ((1, 2, 3), {}, "too many"),
        ((1, 2), {"c": 3}, "'c'"),
        ((1,), {"a": 1}, "'a'"),
        ((1, 2), {"ctx": 3}, "ctx"),
        ((1, 2), {"key": 3, "a": 3}, "'a'"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_and_the_method_not_run(
    client: ClientFactory, worker: WorkerFactory, arguments: tuple[Any, ...], named: dict[str, Any], says: str
) -> None:
    service, ran = Service(), False

    @service.method
    async def strict(a: int, ctx: Context, b: int, *, key: int = 0) -> None:
        nonlocal ran
        ran = True

    await worker(service)
    with pytest.raises(InvalidArguments, match=says) as caught:
        await (await client()).call("strict", *arguments, **named)
    assert not caught.value.maybe_executed
    assert not ran


async def test_a_refusal_shows_no_default_values(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def connect(host: str, password: str = "s3cret", *, retries: int = 61_803) -> None:
        """Never run."""

    await worker(service)
    with pytest.raises(InvalidArguments, match=r"connect\(host, password=\.\.\., \*, retries=\.\.\.\)") as caught:
        await (await client()).call("connect")
    assert "s3cret" not in str(caught.value)
    assert "61" not in str(caught.value)


async def test_a_missing_keyword_only_argument_is_refused(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def scale(value: int, *, factor: int) -> int:
        return value * factor

    await worker(service)
    caller = await client()
    with pytest.raises(InvalidArguments, match="factor"):
        await caller.call("scale", 1)
    with pytest.raises(InvalidArguments):
        await caller.call("scale", 1, 2)


async def test_a_caller_cannot_give_the_context_even_where_keywords_are_collected(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def collect(ctx: Context, **named: Any) -> dict[str, Any]:
        return named

    await worker(service)
    with pytest.raises(InvalidArguments, match="ctx"):
        await (await client()).call("collect", ctx=1)


async def test_a_type_error_of_the_method_itself_is_remote(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    with pytest.raises(RemoteError) as caught:
        await (await client()).call("add", 1, "2")
    assert caught.value.type == "TypeError"


async def test_a_body_of_another_form_is_refused(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    bodies: list[Any] = [None, 1, "ab", [], [[]], [[], {}, {}], [{}, []], [(), {}], [[], {1: 2}], [[], []]]
    for number, body in enumerate(bodies):
        await stranger.request(Request(f"t{number}", "echo", *Codecs().encode(body), reply_to=replies.name))
        assert (await error_of(replies))["error"] == "InvalidArguments"
    assert serving.statistics().publisher.succeeded == 0


# --- values


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_an_argument_that_cannot_be_encoded_is_an_error_before_anything_is_sent(
    client: ClientFactory, bystander: BystanderFactory, way: str
) -> None:
    seen = await (await bystander()).serve("seen")
    caller = await client()
    with pytest.raises(CodecError, match=r"test_bad_input\.Point") as caught:
        await getattr(caller, way)("seen.it", [Point()])
    assert not caught.value.maybe_executed
    assert caller.statistics().pending == 0
    await caller.cast("seen.it", "next")
    assert body_of(await seen.next()) == [["next"], {}]


async def test_json_names_the_type_it_cannot_carry(client: ClientFactory) -> None:
    with pytest.raises(CodecError, match="bytes"):
        await (await client(codecs=Codecs(JsonCodec()))).call("add", b"")


async def test_a_value_that_cannot_be_encoded_is_an_error_of_its_call(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = calculator()

    @service.method
    async def point() -> Point:
        return Point()

    await worker(service)
    caller = await client()
    with pytest.raises(CodecError, match=r"test_bad_input\.Point") as caught:
        await caller.call("point")
    assert caught.value.maybe_executed
    assert await caller.call("add", 1, 2) == 3


async def test_a_progress_value_that_cannot_be_encoded_is_raised_in_the_method(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def report(ctx: Context) -> str:
        try:
            await ctx.progress(Point())
        except CodecError as error:
            return str(error)
        return "nothing"

    await worker(service)
    assert "Point" in await (await (await client()).submit("report"))


@pytest.mark.parametrize("name", ["SUCCESS", "FAILURE", "REVOKED", "PENDING", "RECEIVED", "STARTED", "RETRY", ""])
async def test_a_method_cannot_publish_the_workers_own_states(
    client: ClientFactory, worker: WorkerFactory, name: str
) -> None:
    service = Service()

    @service.method
    async def report(ctx: Context) -> None:
        await ctx.update_state(name)

    await worker(service)
    caller = await client()
    with pytest.raises(RemoteError, match="state") as caught:
        await caller.call("report")
    assert caught.value.type == "ValueError"


async def test_arguments_past_the_limit_are_refused_before_they_are_sent(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    serving = await worker(calculator())
    caller = await client(max_size=2_000)
    with pytest.raises(PayloadTooLarge, match="2000"):
        await caller.call("echo", "x" * 2_000)
    assert caller.statistics().pending == 0
    assert serving.statistics().started == 0
    assert await caller.call("add", 1, 2) == 3


async def test_arguments_past_the_limit_of_the_link_alone_are_refused_too(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client(max_size=2_000, codecs=Codecs())
    for way in (caller.call, caller.submit, caller.cast):
        with pytest.raises(PayloadTooLarge, match="2000"):
            await way("echo", "x" * 2_000)
    assert caller.statistics().pending == 0
    assert await caller.call("add", 1, 2) == 3


@pytest.mark.parametrize("options", [{}, {"codecs": Codecs()}], ids=["codecs", "link"])
async def test_a_value_past_the_workers_limit_is_an_error_of_its_call(
    client: ClientFactory, worker: WorkerFactory, options: dict[str, Any]
) -> None:
    service = calculator()

    @service.method
    async def large() -> str:
        return "x" * 10_000

    serving = await worker(service, max_size=10_000, **options)
    caller = await client()
    with pytest.raises(PayloadTooLarge, match="10000") as caught:
        await caller.call("large")
    assert caught.value.maybe_executed
    assert await caller.call("add", 1, 2) == 3
    await eventually(lambda: serving.statistics().publisher.unconfirmed == 0)


@pytest.mark.parametrize("options", [{}, {"codecs": Codecs()}], ids=["codecs", "link"])
async def test_an_exception_past_the_workers_limit_says_what_fits(
    client: ClientFactory, worker: WorkerFactory, options: dict[str, Any]
) -> None:
    await worker(calculator(), max_size=2_000, **options)
    caller = await client()
    with pytest.raises(RemoteError) as caught:
        await caller.call("fail", "x" * 1_500)
    assert caught.value.type == "ValueError"


async def test_an_exception_with_a_message_past_the_workers_limit_is_an_error_all_the_same(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = calculator()

    @service.method
    async def rant() -> None:
        raise ValueError("x" * 100_000)

    await worker(service, max_size=2_000)
    caller = await client()
    with pytest.raises(RPCError) as caught:
        await caller.call("rant")
    assert not isinstance(caught.value, TimeoutError)
    assert await caller.call("add", 1, 2) == 3


async def test_a_progress_value_past_the_limit_is_raised_in_the_method(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def report(ctx: Context) -> str:
        try:
            await ctx.progress("x" * 10_000)
        except PayloadTooLarge:
            return "too large"
        return "sent"

    await worker(service, max_size=2_000, codecs=Codecs())
    assert await (await (await client()).submit("report")) == "too large"


# --- requests by hand


@pytest.mark.parametrize(
    ("body", "content_type", "content_encoding", "error"),
    [
        (b"\xc1", "application/msgpack", None, "CodecError"),
        (b"", "application/msgpack", None, "CodecError"),
        (b"[[1, 2], {}", "application/json", None, "CodecError"),
        (b"\x92\x90\x80\x00", "application/msgpack", None, "CodecError"),
        (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize", None, "ContentDisallowed"),
        (b"\x92\x90\x80", "", None, "ContentDisallowed"),
        (b"\x92\x90\x80", None, None, "ContentDisallowed"),
        (b"\x92\x90\x80", "application/msgpack", "br", "ContentDisallowed"),
        (b"\x92\x90\x80", "application/msgpack", "gzip", "CodecError"),
        (gzip.compress(bytes(200_000)), "application/msgpack", "gzip", "PayloadTooLarge"),
        (bytes(100_001), "application/msgpack", None, "PayloadTooLarge"),
    ],
    ids=[
        "broken msgpack",
        "empty",
        "broken json",
        "trailing bytes",
        "pickle",
        "empty content type",
        "no content type",
        "unknown encoding",
        "no gzip",
        "expanding",
        "oversized",
    ],
)
async def test_a_body_that_cannot_be_read_is_an_error_of_its_call_alone(
    client: ClientFactory,
    worker: WorkerFactory,
    bystander: BystanderFactory,
    body: bytes,
    content_type: str | None,
    content_encoding: str | None,
    error: str,
) -> None:
    codecs = Codecs(max_size=100_000, max_decompressed=100_000)
    serving = await worker(calculator(), codecs=codecs, max_size=100_000)
    caller = await client()
    stranger = await bystander()
    replies = await stranger.reply_queue()
    request = Request("t", "echo", body, "", content_encoding, reply_to=replies.name)
    await stranger.request(request, content_type=content_type)
    value = await error_of(replies)
    assert value["error"] == error
    assert value["maybe_executed"] is False
    assert await caller.call("add", 1, 2) == 3
    await eventually(lambda: serving.statistics().running == 0)


async def test_a_body_larger_than_the_workers_limit_is_an_error_at_the_caller(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator(), max_size=2_000)
    caller = await client()
    with pytest.raises(PayloadTooLarge, match="2000") as caught:
        await caller.call("echo", "x" * 500_000)
    assert not caught.value.maybe_executed
    assert await caller.call("add", 1, 2) == 3


async def test_a_value_larger_than_the_callers_limit_is_an_error_at_the_caller(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = calculator()

    @service.method
    async def large() -> str:
        return "x" * 500_000

    await worker(service)
    caller = await client(max_size=2_000)
    with pytest.raises(PayloadTooLarge, match="2000") as caught:
        await caller.call("large")
    assert caught.value.maybe_executed
    assert await caller.call("add", 1, 2) == 3


async def test_json_is_refused_by_a_worker_that_does_not_accept_it(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator(), codecs=Codecs(accept=["application/msgpack"]))
    with pytest.raises(ContentDisallowed, match="application/json") as caught:
        await (await client(codecs=Codecs(JsonCodec()))).call("echo", 1)
    assert not caught.value.maybe_executed


async def test_a_request_of_another_major_version_is_refused(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    request = request_for("add", 1, 2, task_id="t", reply_to=replies.name)
    await stranger.request(request, headers={"wire-version": 2})
    value = await error_of(replies)
    assert value["error"] == "UnsupportedVersion"
    assert value["maybe_executed"] is False
    assert serving.statistics().started == 0


async def test_requests_of_another_major_version_with_one_id_are_all_settled(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    stranger = await bystander()
    await stranger.declare("default")
    replies = await stranger.reply_queue()
    request = request_for("add", 1, 2, task_id="t", reply_to=replies.name)
    for _ in range(10):  # they come together: those after the first find it unsettled
        await stranger.request(request, headers={"wire-version": 2})
    serving = await worker(calculator(), concurrency=10)
    await stranger.request(request_for("add", 1, 2, task_id="good", reply_to=replies.name))
    while (answer := await replies.next()).properties.correlation_id != "good" or answer.properties.type == "STARTED":
        if answer.properties.correlation_id == "t":
            assert body_of(answer)["error"] == "UnsupportedVersion"
    assert body_of(answer) == 3
    await serving.aclose()
    left = await stranger.serve("default")
    await stranger.request(request_for("add", 1, 2, task_id="last", reply_to=replies.name))
    assert (await left.next()).properties.correlation_id == "last"


async def test_a_request_of_this_version_that_says_so_is_served(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(request_for("add", 1, 2, task_id="t", reply_to=replies.name), headers={"wire-version": 1})
    assert await replies.until_terminal() == [("SUCCESS", 3)]


async def test_unknown_headers_are_ignored(worker: WorkerFactory, bystander: BystanderFactory) -> None:
    await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    request = request_for("add", 1, 2, task_id="t", reply_to=replies.name)
    await stranger.request(request, headers={"of-tomorrow": {"x": [1, None]}, "y": b"\xff"})
    assert await replies.until_terminal() == [("SUCCESS", 3)]


async def test_a_malformed_request_comes_back_to_its_caller_and_the_worker_lives(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    serving = await worker(calculator())
    stranger = await bystander()
    replies = await stranger.reply_queue()
    malformed: list[dict[str, Any]] = [
        {"attempt": "first"},
        {"deadline": "soon"},
        {"parent-id": 7},
        {"metadata": "none"},
        {"metadata": ["a"]},
    ]
    for headers in malformed:
        await stranger.request(request_for("add", 1, 2, task_id="bad", reply_to=replies.name), headers=headers)
        returned = await replies.next()
        assert returned.properties.correlation_id == "bad"
        assert returned.properties.reply_to == replies.name
        assert (returned.properties.headers or {})["x-death"][0]["reason"] == "rejected"
    await stranger.request(request_for("add", 1, 2, task_id="good", reply_to=replies.name))
    assert await replies.until_terminal() == [("SUCCESS", 3)]
    assert serving.statistics().rejected == len(malformed)


async def test_a_message_that_is_no_request_at_all_is_dropped(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, caplog: pytest.LogCaptureFixture
) -> None:
    serving = await worker(calculator())
    caller = await client()
    stranger = await bystander()
    with caplog.at_level(logging.WARNING, "aiorpcq.worker"):
        await stranger.message("rpc.default", Properties(), b"secret")
        await stranger.message("rpc.default", Properties(correlation_id="t"), b"secret")
        assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().rejected == 2
    assert "no request" in caplog.text
    assert "secret" not in caplog.text
