"""Values: what was sent is what arrives, with every codec and compression."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from aiorpcq import CodecError, Codecs, ContentDisallowed, JsonCodec, MsgpackCodec, RetryPolicy, Service, TaskRevoked
from aiorpcq.states import RECEIVED, RETRY, REVOKED, STARTED, SUCCESS

from .parties import BystanderFactory, ClientFactory, WorkerFactory, calculator

VALUES = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**200),
    1.5,
    float("inf"),
    "",
    "häßlich \N{SNOWMAN} \0",
    b"",
    b"\x00\xff",
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": None}, 1: "one", (1, 2): "tuple"},
    (),
    (1, ("a", [b"b"])),
    {1, 2, 3},
    frozenset({"a"}),
    datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
    datetime(2024, 2, 29, 12, 30),
    datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    date(1999, 12, 31),
    time(23, 59, 59, 999999),
    timedelta(days=-1, microseconds=1),
    UUID("12345678123456781234567812345678"),
    Decimal("-1234567890.123456789012345678901234567890"),
    complex(1, -2.5),
]


async def test_every_type_round_trips_as_argument_and_as_value(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    caller = await client()
    for value in VALUES:
        result = await caller.call("echo", value)
        assert (result, type(result)) == (value, type(value))
        result = await caller.call("echo", value=[value])
        assert (result, type(result[0])) == ([value], type(value))


async def test_the_method_sees_the_same_types_as_the_caller(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def kind(value: Any) -> str:
        return type(value).__name__

    await worker(service)
    caller = await client()
    for value in VALUES:
        assert await caller.call("kind", value) == type(value).__name__


async def test_json_goes_end_to_end(client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory) -> None:
    await worker(calculator(), codecs=Codecs(JsonCodec()))
    caller = await client(codecs=Codecs(JsonCodec()))
    value = {"a": [1, 2.5, None, True, "ü"], "big": 2**100}
    assert await caller.call("echo", value) == value
    seen = await (await bystander()).serve("seen")
    await caller.cast("seen.it", 1, x="ü")
    request = await seen.next()
    assert request.properties.content_type == "application/json"
    assert request.body == '[[1],{"x":"ü"}]'.encode()


async def test_json_callers_and_msgpack_workers_understand_each_other(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    assert await (await client(codecs=Codecs(JsonCodec()))).call("echo", [1, "a"]) == [1, "a"]


async def test_a_value_outside_the_callers_accept_list_is_never_decoded(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    caller = await client(codecs=Codecs(JsonCodec(), accept=["application/json"]))
    with pytest.raises(ContentDisallowed, match="application/msgpack") as caught:
        await caller.call("echo", 1)
    assert caught.value.maybe_executed
    assert caught.value.task_id is not None


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_large_bodies_are_compressed_end_to_end(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, compression: str
) -> None:
    def codecs() -> Codecs:
        return Codecs(compression=compression, compress_above=100)

    await worker(calculator(), codecs=codecs())
    caller = await client(codecs=codecs())
    value = "compress me " * 10_000
    assert await caller.call("echo", value) == value
    assert await caller.call("echo", "short") == "short"
    seen = await (await bystander()).serve("seen")
    await caller.cast("seen.it", value)
    request = await seen.next()
    assert request.properties.content_encoding == compression
    assert len(request.body) < 5_000


async def test_small_bodies_are_not_compressed(client: ClientFactory, bystander: BystanderFactory) -> None:
    seen = await (await bystander()).serve("seen")
    await (await client(codecs=Codecs(compression="gzip"))).cast("seen.it", "short")
    assert (await seen.next()).properties.content_encoding is None


async def test_a_worker_answers_compressed_requests_in_its_own_way(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator())
    value = "x" * 100_000
    assert await (await client(codecs=Codecs(compression="gzip", compress_above=0))).call("echo", value) == value


@dataclass(frozen=True)
class Point:
    x: int
    y: int


async def test_users_types_travel_once_both_sides_know_them(client: ClientFactory, worker: WorkerFactory) -> None:
    def codecs() -> Codecs:
        codec = MsgpackCodec()
        codec.register(Point, 64, lambda point: [point.x, point.y], lambda plain: Point(*plain))
        return Codecs(codec)

    await worker(calculator(), codecs=codecs())
    assert await (await client(codecs=codecs())).call("echo", [Point(1, 2)]) == [Point(1, 2)]


class ReprCodec:
    """A codec of the user's own, for text alone."""

    content_type = "text/x-repr"

    def encode(self, value: Any) -> bytes:
        return repr(value).encode()

    def decode(self, body: bytes) -> Any:
        import ast  # noqa: PLC0415 - only this codec needs it

        return ast.literal_eval(body.decode())


async def test_users_codecs_carry_calls(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator(), codecs=Codecs(ReprCodec()))
    assert await (await client(codecs=Codecs(ReprCodec()))).call("add", 1, b=2) == 3


class NumberCodec(ReprCodec):
    """Carries a call's arguments and numbers, and takes anything else badly."""

    def encode(self, value: Any) -> bytes:
        if isinstance(value, list | int):
            return super().encode(value)
        raise SystemExit if isinstance(value, str) else LookupError("no number")


@pytest.mark.parametrize("value", [None, "text"])
async def test_a_value_that_the_workers_codec_takes_badly_is_a_codec_error_once_the_method_ran(
    client: ClientFactory, worker: WorkerFactory, value: object
) -> None:
    service = Service("numbers")
    runs = []

    @service.method
    async def answer(number: int) -> object:
        runs.append(number)
        return value if number else number

    await worker(service, codecs=Codecs(NumberCodec()))
    caller = await client(codecs=Codecs(ReprCodec()))
    with pytest.raises(CodecError, match="cannot encode the value") as caught:
        await caller.call("numbers.answer", 1)
    assert caught.value.maybe_executed
    assert await caller.call("numbers.answer", 0) == 0
    assert runs == [1, 0]


async def test_what_a_worker_has_to_say_itself_comes_in_json_where_its_codec_cannot_carry_it(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service("numbers")

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    @service.method
    async def wait() -> None:
        await asyncio.Event().wait()

    await worker(service, codecs=Codecs(NumberCodec()))
    caller = await client(codecs=Codecs(ReprCodec()))
    states = [state async for state in (await caller.submit("numbers.add", 2, 3)).stream()]
    assert [state.name for state in states] == [RECEIVED, STARTED, SUCCESS]
    assert states[1].value["pid"] == os.getpid()
    assert states[2].value == 5

    strict = await client(codecs=Codecs(ReprCodec(), accept=[ReprCodec()]))
    task = await strict.submit("numbers.wait")
    with pytest.raises(ContentDisallowed):
        [state async for state in task.stream() if state.name == STARTED]
    await task.cancel()
    with pytest.raises(TaskRevoked):
        await task

    task = await caller.submit("numbers.wait")
    async for state in task.stream():
        if state.name == STARTED:
            await task.cancel()
        elif state.name == REVOKED:
            break
    with pytest.raises(TaskRevoked):
        await task


@pytest.mark.parametrize("where", ["worker", "codecs"])
async def test_a_long_reason_for_another_run_is_cut_to_what_may_be_sent(
    client: ClientFactory, worker: WorkerFactory, where: str
) -> None:
    service, runs = Service(), list[int]()

    @service.method(retry=RetryPolicy(on=(OSError,), attempts=2, backoff=0, jitter="none"))
    async def answer() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise OSError("x" * 10_000)
        return len(runs)

    limit: dict[str, Any] = {"max_size": 2048} if where == "worker" else {"codecs": Codecs(max_size=2048)}
    await worker(service, **limit)
    task = await (await client(**limit)).submit("answer")
    states = {state.name: state async for state in task.stream()}
    assert states[RETRY].value["reason"] == "x" * 64
    assert (await task, runs) == (2, [1, 1])


class StubbornCodec(ReprCodec):
    """Leaves where it should read."""

    def decode(self, body: bytes) -> Any:
        raise SystemExit


async def test_a_body_that_the_workers_codec_cannot_read_is_a_codec_error_and_nothing_was_run(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(calculator(), codecs=Codecs(StubbornCodec()))
    caller = await client(codecs=Codecs(ReprCodec()))
    with pytest.raises(CodecError, match="cannot decode") as caught:
        await caller.call("add", 1, 2)
    assert not caught.value.maybe_executed


@pytest.mark.parametrize("size", [4_000, 131_072, 1_000_000, 5_000_000])
async def test_bodies_of_many_frames_arrive_whole(client: ClientFactory, worker: WorkerFactory, size: int) -> None:
    await worker(calculator())
    value = bytes(range(256)) * (size // 256)
    assert await (await client()).call("echo", value) == value


async def test_bodies_at_the_limit_pass(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator(), max_size=10_000)
    caller = await client(max_size=10_000)
    value = b"x" * (10_000 - len(b"\x92\x91\xc5\x00\x00\x80"))  # [[bin 16], {}]
    assert await caller.call("echo", value) == value
