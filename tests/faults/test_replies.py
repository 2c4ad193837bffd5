"""Replies that come late, twice, or for nobody; methods whose value or exception cannot be sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiorpcq import CodecError, ContentDisallowed, DeadlineExceeded, RemoteError, RPCError, Service
from aiorpcq.protocol.messages import Properties
from aiorpcq.protocol.outofband import OutOfBandLimits
from tests.contract.parties import Bystander, BystanderFactory, ClientFactory, WorkerFactory, calculator, eventually

from .ledger import Ledger

_BOUND = 20


async def asked(stranger: Bystander, ledger: Ledger, caller: Any, service: str = "odd") -> tuple[Any, str, str]:
    """Return a call that the test answers itself, its id, and the reply queue."""
    queue = await stranger.serve(service)
    call = ledger.call(caller, f"{service}.one")
    delivery = await queue.next()
    delivery.ack()
    properties = delivery.properties
    assert properties.correlation_id is not None
    assert properties.reply_to is not None
    return call, properties.correlation_id, properties.reply_to


async def test_row_15_a_reply_after_the_deadline_settles_nothing(
    client: ClientFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    caller, stranger = await client(timeout=0.05), await bystander()
    call, task_id, replies = await asked(stranger, ledger, caller)
    assert isinstance((await ledger.outcomes([call]))[0], DeadlineExceeded)
    await stranger.state(replies, task_id, "SUCCESS", "late")
    await eventually(lambda: caller.statistics().duplicates == 1)
    assert caller.statistics().out_of_band == 0


async def test_row_15_the_first_of_several_replies_settles_the_call(
    client: ClientFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    caller, stranger = await client(), await bystander()
    call, task_id, replies = await asked(stranger, ledger, caller)
    for value in ("first", "second", "third"):
        await stranger.state(replies, task_id, "SUCCESS", value)
    assert await call == "first"
    await eventually(lambda: caller.statistics().duplicates == 2)
    assert caller.statistics().out_of_band == 0


async def test_row_15_replies_without_an_id_are_dropped_and_those_with_a_foreign_one_parked_within_bounds(
    client: ClientFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    caller, stranger = await client(out_of_band=OutOfBandLimits(tasks=_BOUND)), await bystander()
    call, task_id, replies = await asked(stranger, ledger, caller)
    body = b"\xa5wrong"
    for number in range(3 * _BOUND):
        await stranger.message(replies, Properties(content_type="application/msgpack", type="SUCCESS"), body)
        await stranger.state(replies, f"foreign-{number}", "SUCCESS", "wrong")
    await eventually(lambda: caller.statistics().parked == 3 * _BOUND)
    statistics = caller.statistics()
    assert (statistics.malformed, statistics.out_of_band, statistics.evicted) == (3 * _BOUND, _BOUND, 2 * _BOUND)
    assert statistics.pending == 1
    await stranger.state(replies, task_id, "SUCCESS", "right")
    assert await call == "right"


async def test_row_21_a_reply_that_cannot_be_read_is_an_error_of_that_call_alone(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, ledger: Ledger
) -> None:
    await worker(calculator())
    caller, stranger = await client(), await bystander()
    unreadable: list[tuple[bytes, str, str | None, type[RPCError]]] = [
        (b"\xc1", "application/msgpack", None, CodecError),
        (b"not zipped", "application/msgpack", "gzip", CodecError),
        (b"\x01", "application/x-python-serialize", None, ContentDisallowed),
        (b"\x01", "application/msgpack", "br", ContentDisallowed),
    ]
    for number, (body, content_type, encoding, error) in enumerate(unreadable):
        other = ledger.call(caller, "add", number, 1)
        call, task_id, replies = await asked(stranger, ledger, caller, f"odd{number}")
        properties = Properties(
            content_type=content_type, content_encoding=encoding, correlation_id=task_id, type="SUCCESS"
        )
        await stranger.message(replies, properties, body)
        outcome = (await ledger.outcomes([call]))[0]
        assert isinstance(outcome, error)
        assert outcome.maybe_executed
        assert await other == number + 1


class Unsendable:
    """A class that no codec knows."""


class UnsendableError(Exception):
    def __init__(self) -> None:
        super().__init__(Unsendable(), "\ud800", b"\xff")

    def __str__(self) -> str:
        raise RuntimeError("not even a text")


def hostile() -> Service:
    service = calculator()

    @service.method
    async def unsendable() -> Unsendable:
        return Unsendable()

    @service.method
    async def nested() -> list[Any]:
        value: list[Any] = []
        value.append(value)
        return value

    @service.method
    async def unsendable_error() -> None:
        raise UnsendableError

    @service.method
    async def raise_base(name: str) -> None:
        raise {"SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt(), "GeneratorExit": GeneratorExit()}[
            name
        ]

    @service.method
    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    @service.method
    def raise_base_in_thread(name: str) -> None:
        raise {"SystemExit": SystemExit(3), "StopIteration": StopIteration()}[name]

    return service


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("unsendable", (), CodecError),
        ("nested", (), CodecError),
        ("unsendable_error", (), RemoteError),
        ("raise_base", ("SystemExit",), RemoteError),
        ("raise_base", ("GeneratorExit",), RemoteError),
        ("cancel_itself", (), RemoteError),
        ("raise_base_in_thread", ("SystemExit",), RemoteError),
        ("raise_base_in_thread", ("StopIteration",), RemoteError),
    ],
)
async def test_row_20_whatever_a_method_does_is_an_error_reply_and_the_worker_lives(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    method: str,
    arguments: tuple[Any, ...],
    error: type[RPCError],
) -> None:
    serving = await worker(hostile(), concurrency=2)
    caller = await client()
    calls = [ledger.call(caller, method, *arguments) for _ in range(5)]
    for outcome in await ledger.outcomes(calls):
        assert isinstance(outcome, error)
        assert outcome.maybe_executed
    assert await ledger.outcomes([ledger.call(caller, "add", number, 1) for number in range(5)]) == [1, 2, 3, 4, 5]
    assert serving.statistics().started == 10  # none was run twice, and no place was lost
