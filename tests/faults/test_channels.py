"""Channels that the broker closes under full load, on connections that stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import pytest

from aiorpcq import Client, ConnectionLost, Service, Worker
from tests.contract.breaking import only_lost
from tests.contract.parties import ClientFactory, WorkerFactory, eventually
from tests.node import Node
from tests.node.control import binary, channels_of

from .breaking import Breaker, ChannelError
from .ledger import Ledger
from .link import Side
from .marks import amqp_only
from .waiting import Waiting

_CALLS = 1_000
_ROUNDS = 3
_TIMEOUT = 10.0
_PLACES = 100

# Records of AMQP 0-9-1 methods, as rabbit_framing has them: a passive declaration, and an unknown delivery tag.
MISTAKES: Final[dict[ChannelError, str]] = {
    404: f"{{'queue.declare', 0, {binary('no such queue')}, true, false, false, false, false, []}}",
    406: "{'basic.ack', 4294967295, false}",
}

CODES = pytest.mark.parametrize("code", [404, 406])


class Counting:
    """A service that counts how often it is run for each number."""

    def __init__(self) -> None:
        self.service = Service()
        self.runs: Counter[int] = Counter()

        @self.service.method
        async def double(number: int) -> int:
            self.runs[number] += 1
            await asyncio.sleep(0)
            return 2 * number


class Breaks:
    """Has the channel of one side closed, again and again."""

    def __init__(self, breaker: Breaker, side: Side, code: ChannelError, log: pytest.LogCaptureFixture) -> None:
        self._breaker = breaker
        self._side = side
        self._code = code
        self._log = log

    async def outcomes_of_load(
        self, ledger: Ledger, caller: Client, serving: Worker, jump: Callable[[float], None] | None = None
    ) -> Sequence[Any]:
        """Make calls, and have the channel closed as soon as the first answers are there; three times.

        The next time is when the loss is noticed, and there is another channel. *jump* ends what was lost with it.
        """
        calls: list[asyncio.Task[Any]] = []
        for number in range(1, _ROUNDS + 1):
            before = len(calls)
            calls += [ledger.call(caller, "double", number) for number in range(before, before + _CALLS)]
            await asyncio.wait(calls[before:], return_when=asyncio.FIRST_COMPLETED)
            await self._breaker.close_channels(self._side, self._code)
            await eventually(lambda number=number: self._noticed == number)  # type: ignore[misc]
            await eventually(lambda: caller.health().ready and serving.health().ready)
        if jump is not None:
            await only_lost(caller)
            jump(_TIMEOUT + 1)
        return await ledger.outcomes(calls)

    @property
    def _noticed(self) -> int:
        """How often the side has said that it lost its consumer."""
        said = [record.getMessage() for record in self._log.records if record.name == f"aiorpcq.{self._side}"]
        return len([text for text in said if f"the broker closed the channel: {self._code}" in text])


@CODES
async def test_row_35_a_worker_whose_channel_is_closed_answers_every_call_and_keeps_its_connection(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    code: ChannelError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    counting = Counting()
    serving = await worker(counting.service)
    caller = await client()
    connections = await breaker.connections()
    outcomes = await Breaks(breaker, "worker", code, caplog).outcomes_of_load(ledger, caller, serving)
    assert outcomes == [2 * number for number in range(_ROUNDS * _CALLS)]
    assert set(counting.runs.values()) == {1}  # what came again was adopted, or answered from the cache
    assert await breaker.connections() == connections
    assert serving.statistics().restored == _ROUNDS
    assert await caller.call("double", -1) == -2


@CODES
async def test_row_35_a_client_whose_channel_is_closed_resolves_what_was_not_confirmed_and_keeps_its_connection(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    code: ChannelError,
    caplog: pytest.LogCaptureFixture,
    jump: Callable[[float], None],
) -> None:
    counting = Counting()
    serving = await worker(counting.service)
    caller = await client(timeout=_TIMEOUT)
    connections = await breaker.connections()
    outcomes = await Breaks(breaker, "client", code, caplog).outcomes_of_load(ledger, caller, serving, jump)
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, ConnectionLost):
            assert outcome.maybe_executed
            assert counting.runs[number] <= 1
        else:
            assert outcome == 2 * number
            assert counting.runs[number] == 1
    assert await breaker.connections() == connections
    assert caller.statistics().generation == 1
    assert caller.statistics().republished == 0
    assert await caller.call("double", -1) == -2


@CODES
async def test_row_35_a_client_whose_channel_is_closed_sends_again_what_is_idempotent_and_gets_every_value(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    code: ChannelError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    counting = Counting()
    serving = await worker(counting.service)
    caller = await client(idempotent=["double"])
    connections = await breaker.connections()
    outcomes = await Breaks(breaker, "client", code, caplog).outcomes_of_load(ledger, caller, serving)
    assert outcomes == [2 * number for number in range(_ROUNDS * _CALLS)]
    assert set(counting.runs.values()) == {1}
    assert await breaker.connections() == connections
    assert caller.statistics().generation == 1


@CODES
async def test_row_35_calls_that_are_not_to_be_resumed_end_at_once(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    code: ChannelError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    counting = Counting()
    serving = await worker(counting.service)
    caller = await client(on_disconnect="fail", timeout=None)
    connections = await breaker.connections()
    for number, outcome in enumerate(
        await Breaks(breaker, "client", code, caplog).outcomes_of_load(ledger, caller, serving)
    ):
        assert outcome == 2 * number or (isinstance(outcome, ConnectionLost) and outcome.maybe_executed)
        assert counting.runs[number] <= 1
    assert await breaker.connections() == connections
    assert await caller.call("double", -1) == -2


@amqp_only
@pytest.mark.parametrize("timeout", [30.0, None])
@CODES
async def test_row_35_answers_that_were_in_the_closed_channel_are_sent_again(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    node: Node,
    vhost: str,
    code: ChannelError,
    timeout: float | None,
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service)
    caller = await client(timeout=timeout)
    calls = [ledger.call(caller, "wait", number) for number in range(_PLACES)]
    await waiting.gate.entered(_PLACES)
    await eventually(lambda: caller.statistics().pending == _PLACES)
    async with held_channel(node, vhost, code):
        waiting.gate.open()
        await eventually(lambda: serving.statistics().cached == _PLACES)  # all is said, and confirmed by the broker
    assert await ledger.outcomes(calls) == list(range(_PLACES))
    assert sorted(waiting.runs) == list(range(_PLACES))
    assert serving.statistics().publisher.resent >= _PLACES
    assert caller.statistics().generation == 1


@contextlib.asynccontextmanager
async def held_channel(node: Node, vhost: str, code: ChannelError) -> AsyncIterator[None]:
    """Have the broker come to close the client's channel at the end of the block, and do nothing with it before."""
    (port,) = [connection.port for connection in node.connections(vhost) if connection.name == "aiorpcq client"]
    mistake = MISTAKES[code]
    suspended = await asyncio.to_thread(
        node.eval,
        "length([begin erlang:suspend_process(Channel), "
        f"gen_server2:cast(Channel, {{method, {mistake}, none, noflow}}) end || Channel <- {channels_of(port, 1)}])",
    )
    assert suspended == "1"
    try:
        yield
    finally:
        await asyncio.to_thread(node.resume_processes)
