"""Requests that nobody can serve or read: an error for that call alone."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from aiorpcq import Codecs, MethodNotFound, PayloadTooLarge, Unroutable
from aiorpcq.protocol.messages import Request
from tests.contract.parties import BystanderFactory, ClientFactory, WorkerFactory, body_of, calculator, eventually

from .ledger import Ledger

_CALLS = 100
_LIMIT = 100_000

UNREADABLE = [
    (b"\xc1", "application/msgpack", None, "CodecError"),
    (b"[[1, 2], {}", "application/json", None, "CodecError"),
    (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize", None, "ContentDisallowed"),
    (b"\x92\x90\x80", "application/msgpack", "br", "ContentDisallowed"),
    (b"\x92\x90\x80", "application/msgpack", "gzip", "CodecError"),
    (gzip.compress(bytes(100 * _LIMIT)), "application/msgpack", "gzip", "PayloadTooLarge"),
]


async def test_row_01_an_unknown_service_is_unroutable_at_once_beside_calls_that_are_served(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    serving = await worker(calculator())
    caller = await client(timeout=None)
    calls = [ledger.call(caller, "add" if number % 2 else "nobody.add", number, 1) for number in range(_CALLS)]
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        if number % 2:
            assert outcome == number + 1
        else:
            assert isinstance(outcome, Unroutable)
            assert not outcome.maybe_executed
    assert serving.statistics().started == _CALLS // 2


async def test_row_01_an_unknown_method_is_not_found_and_nothing_is_run(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    serving = await worker(calculator())
    caller = await client(timeout=None)
    for outcome in await ledger.outcomes([ledger.call(caller, "subtract", 2, 1) for _ in range(_CALLS)]):
        assert isinstance(outcome, MethodNotFound)
        assert not outcome.maybe_executed
    assert serving.statistics().started == 0


async def test_row_21_a_request_that_cannot_be_read_is_answered_and_takes_nothing_from_others(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    await worker(calculator(), concurrency=2, codecs=Codecs(max_size=_LIMIT, max_decompressed=_LIMIT))
    caller, stranger = await client(), await bystander()
    replies = await stranger.reply_queue()
    calls = []
    for number, (body, content_type, encoding, _) in enumerate(UNREADABLE):
        calls += [ledger.call(caller, "add", number, 1) for _ in range(10)]
        await stranger.request(Request(f"t{number}", "echo", body, content_type, encoding, reply_to=replies.name))
    assert await ledger.outcomes(calls) == [number + 1 for number in range(len(UNREADABLE)) for _ in range(10)]
    errors: dict[str | None, Any] = {}
    for _ in UNREADABLE:
        delivery = await replies.next()
        assert delivery.properties.type == "FAILURE"
        errors[delivery.properties.correlation_id] = body_of(delivery)
    for number, (_, _, _, error) in enumerate(UNREADABLE):
        assert errors[f"t{number}"]["error"] == error
        assert errors[f"t{number}"]["maybe_executed"] is False


async def test_row_22_a_request_over_the_limit_fails_here_and_nothing_else_is_touched(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    serving = await worker(calculator())
    caller = await client(max_size=_LIMIT)
    before = [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
    large = [ledger.call(caller, "echo", b"x" * _LIMIT) for _ in range(3)]
    after = [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
    for outcome in await ledger.outcomes(large):
        assert isinstance(outcome, PayloadTooLarge)
        assert not outcome.maybe_executed
    assert await ledger.outcomes(before + after) == [number + 1 for number in range(_CALLS)] * 2
    assert serving.statistics().started == 2 * _CALLS
    assert caller.statistics().generation == 1


@pytest.mark.parametrize("limited", ["worker", "client"])
async def test_row_22_a_reply_over_the_limit_is_an_error_and_nothing_else_is_touched(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, limited: str
) -> None:
    service = calculator()

    @service.method
    async def large() -> bytes:
        return b"x" * _LIMIT

    serving = await worker(service, **({"max_size": _LIMIT} if limited == "worker" else {}))
    caller = await client(**({"max_size": _LIMIT} if limited == "client" else {}))
    calls = [
        ledger.call(caller, "add" if number % 10 else "large", *[number, 1] * bool(number % 10))
        for number in range(_CALLS)
    ]
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        if number % 10:
            assert outcome == number + 1
        else:
            assert isinstance(outcome, PayloadTooLarge)
            assert outcome.maybe_executed
    assert caller.statistics().generation == 1
    await eventually(lambda: serving.statistics().publisher.unconfirmed == 0)
