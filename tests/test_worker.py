"""What a worker does that needs a real broker to be seen: with processes that end, and with bytes that are no text."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiorpcq import Client, Service, Worker
from aiorpcq.protocol.messages import Properties, Publication
from aiorpcq.transports.amqp.connection import AMQPLink, AMQPTransport
from aiorpcq.transports.amqp.frames import PublishEncoder
from tests.contract.parties import calculator, eventually
from tests.node import Node

_ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 30.0
_ENDED = 7

_ENDING = f"""
import asyncio, os, sys

from aiorpcq import Service, Worker

service = Service("ending", delivery="at_most_once")


@service.method
async def end():
    os._exit({_ENDED})


@service.method
def end_in_thread():
    os._exit({_ENDED})


async def main(url):
    await Worker(url, [service]).run()


if sys.argv[2] == "uvloop":
    import uvloop

    uvloop.run(main(sys.argv[1]))
else:
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("method", ["end", "end_in_thread"])
async def test_a_method_that_ends_its_process_is_not_run_again_at_most_once(
    node: Node, vhost: str, broker_url: str, loop: str, method: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    async with Worker(broker_url, [Service("ending")]), Client(broker_url) as caller:
        pass  # the queue is there from now on
    async with Client(broker_url) as caller:
        await caller.cast(f"ending.{method}")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _ENDING, broker_url, loop],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert done.returncode == _ENDED, done.stderr
    await eventually(lambda: node.connection_count(vhost) == 0)
    await eventually(lambda: node.queues(vhost)["rpc.ending"].consumers == 0)
    assert node.queues(vhost)["rpc.ending"].messages == 0


_STUCK = """
import asyncio, logging, sys, time

from aiorpcq import Client, Service, Worker

logging.basicConfig(level="INFO")
service = Service()


@service.method
def stuck():
    print("stuck", flush=True)
    time.sleep(600)


async def main():
    running = asyncio.ensure_future(Worker("memory://stuck", [service], grace=float(sys.argv[1])).run())
    async with Client("memory://stuck") as caller:
        await caller.cast("stuck")
        await running
    print("drained", file=sys.stderr, flush=True)


asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("grace", "said"), [(600.0, b"draining"), (0.0, b"did not end within the grace"), (0.0, b"drained")]
)
async def test_a_second_signal_ends_the_process_although_a_method_runs_in_a_thread(
    grace: float, said: bytes, number: signal.Signals
) -> None:
    """The interpreter would wait for the thread."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _STUCK,
        str(grace),
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            assert await process.stdout.readline() == b"stuck\n"
            process.send_signal(number)
            while said not in await process.stderr.readline():
                pass
            process.send_signal(number)
            assert await process.wait() == -number
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("field", ["reply_to", "correlation_id"])
async def test_a_request_with_an_address_that_is_no_text_is_refused_and_takes_no_place(
    broker_url: str, field: str
) -> None:
    link: AMQPLink = await AMQPTransport(broker_url, max_size=1 << 20, name="tests").connect(_PATIENCE)
    try:
        async with Worker(broker_url, [calculator()], concurrency=1) as serving, Client(broker_url) as caller:
            for _ in range(2):
                publish_undecodable(link, field)
            await eventually(lambda: serving.statistics().rejected == 2)
            assert await caller.call("add", 1, 2) == 3
            statistics = serving.statistics()
            assert (statistics.started, statistics.rejected) == (1, 2)
    finally:
        await link.close()


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 65_536},
        {"concurrency": True},
        {"threads": 0},
        {"threads": 10_001},
        {"delivery": "twice"},
        {"delivery": ""},
        {"max_attempts": 0},
        {"max_attempts": 1_001},
        {"max_size": 0},
        {"grace": -1},
        {"grace": None},
        {"grace": float("nan")},
        {"caller_gone_grace": -1},
        {"caller_gone_grace": None},
        {"prefix": ""},
        {"prefix": "a.b"},
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: "):
        Worker("memory://options", [Service()], **options)


@pytest.mark.parametrize("services", [[], [Service(), Service()], [Service(), 5], ["default"]])
def test_services_that_cannot_be_served_are_named(services: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^services: "):
        Worker("memory://options", services)


@pytest.mark.parametrize("url", ["http://localhost", "", [], ["memory://a", "amqp://localhost"], 5])
def test_a_url_that_cannot_be_read_is_named(url: Any) -> None:
    with pytest.raises(ValueError, match=r"^url: "):
        Worker(url, [Service()])


def publish_undecodable(link: AMQPLink, field: str) -> None:
    """Send a request as our own encoder writes it, but for the bytes of *field*."""
    text = "x" * 100
    properties = Properties(content_type="application/msgpack", correlation_id="t", reply_to="nobody", type="add")
    setattr(properties, field, text)
    encoder = PublishEncoder(link._lane.channel, 131_072)
    frames = encoder.encode(Publication("rpc", "rpc:default", properties, b"\x92\x92\x01\x02\x80"))
    assert frames.count(text.encode()) == 1
    assert link._protocol is not None
    link._protocol.write(frames.replace(text.encode(), b"\xff" * len(text)))
