"""Links that slice and cut what they carry, and brokers that refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiorpcq import Client, ConnectFailed, ConnectionLost, Worker
from aiorpcq.transports.memory import memory_broker
from tests.contract.breaking import next_generation, only_lost
from tests.contract.parties import ClientFactory, WorkerFactory, calculator, eventually
from tests.node import Node
from tests.proxy import Proxy

from .ledger import Ledger
from .marks import amqp_only

_CALLS = 30
_PASSWORD = "s3cret-word"

# From the end of one frame to the middle of another, wherever it may be: a frame's header has seven bytes.
CUTS = [1, 5, 7, 8, 30, 150, 151, 500]


# --- slices and cuts


@amqp_only
async def test_row_30_bytes_sliced_to_one_give_the_same_results(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, proxy: Proxy, url: str
) -> None:
    proxy.to_broker.slice_to = proxy.to_client.slice_to = 1
    await worker(calculator(), url=proxy.url(url))
    caller = await client(url=proxy.url(url))
    calls = [ledger.call(caller, "add", number, 1) for number in range(10)]
    assert await ledger.outcomes(calls) == list(range(1, 11))
    body = bytes(range(256)) * 4
    assert await caller.call("echo", body) == body
    task = await caller.submit("count", 3)
    states = [(state.name, state.value) async for state in task.stream() if state.name in ("PROGRESS", "SUCCESS")]
    assert states == [("PROGRESS", 1), ("PROGRESS", 2), ("PROGRESS", 3), ("SUCCESS", 3)]
    assert caller.statistics().generation == 1
    assert proxy.accepted == 2


@amqp_only
@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("direction", ["to_broker", "to_client"])
async def test_row_30_a_client_cut_in_mid_frame_settles_every_call_and_reconnects(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    proxy: Proxy,
    url: str,
    jump: Callable[[float], None],
    direction: str,
    size: int,
) -> None:
    await worker(calculator())
    caller = await client(url=proxy.url(url), timeout=10)
    getattr(proxy, direction).cut_after(size)
    calls = [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
    await proxy.wait_connections(2)
    await next_generation(caller)
    # A request that may be lost with the connection is not sent again: it is settled at its deadline at the latest.
    await only_lost(caller)
    jump(11)
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        assert outcome == number + 1 or (isinstance(outcome, ConnectionLost) and outcome.maybe_executed)
    assert await caller.call("add", 1, 2) == 3
    assert caller.statistics().generation == 2
    assert proxy.open == 1


@amqp_only
@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("direction", ["to_broker", "to_client"])
async def test_row_30_a_worker_cut_in_mid_frame_reconnects_and_answers_every_call(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, proxy: Proxy, url: str, direction: str, size: int
) -> None:
    serving = await worker(calculator(), url=proxy.url(url))
    caller = await client()
    getattr(proxy, direction).cut_after(size)
    calls = [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
    assert await ledger.outcomes(calls) == [number + 1 for number in range(_CALLS)]
    await proxy.wait_connections(2)
    assert proxy.open == 1
    assert serving.statistics().started == _CALLS  # what came again was adopted, or answered from the cache


@amqp_only
@pytest.mark.parametrize("size", [1, 100, 300, 700])
@pytest.mark.parametrize("direction", ["to_broker", "to_client"])
async def test_row_30_a_connection_cut_while_it_is_opened_is_a_typed_error(
    proxy: Proxy, url: str, direction: str, size: int
) -> None:
    way = getattr(proxy, direction)
    way.cut_after(size)
    with pytest.raises(ConnectFailed):
        await Client(proxy.url(url)).open()
    await proxy.wait_closed()
    assert proxy.accepted == 1
    async with Client(proxy.url(url)) as caller:
        assert caller.statistics().pending == 0


# --- refusals


@pytest.fixture
def limited_user(node: Node, vhost: str) -> str:
    """A user that may do nothing in the test's virtual host."""
    name = f"limited-{vhost}"
    node.add_user(name, _PASSWORD)
    return name


def start(role: str, url: str) -> Any:
    """What opens a client or starts a worker."""
    return Client(url).open() if role == "client" else Worker(url, [calculator()]).start()


@amqp_only
@pytest.mark.parametrize("role", ["client", "worker"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [("password", "user name or password"), ("vhost", "vhost"), ("access", "vhost"), ("configure", "permission")],
)
async def test_row_31_what_the_broker_refuses_is_a_typed_error_at_the_start_and_tried_once(
    node: Node, vhost: str, limited_user: str, proxy: Proxy, url: str, role: str, fault: str, says: str
) -> None:
    if fault != "access":
        node.set_permissions(limited_user, vhost, **({"configure": "^$"} if fault == "configure" else {}))
    password = "wrong" if fault == "password" else _PASSWORD
    address = node.url(limited_user, password, "nowhere" if fault == "vhost" else vhost, port=proxy.port)
    with pytest.raises(ConnectFailed, match=says) as caught:
        await start(role, address)
    assert password not in str(caught.value)
    await proxy.wait_closed()
    assert proxy.accepted == 1


@pytest.fixture(scope="module")
def tls_node() -> Iterator[Node]:
    with Node(tls=True) as started:
        yield started


@pytest.mark.parametrize("role", ["client", "worker"])
@pytest.mark.parametrize("fault", ["unknown authority", "no TLS there"])
async def test_row_31_a_refused_tls_handshake_is_a_typed_error_at_the_start_and_tried_once(
    tls_node: Node, role: str, fault: str
) -> None:
    port = tls_node.tls_port if fault == "unknown authority" else tls_node.port
    async with Proxy(port) as proxy:
        with pytest.raises(ConnectFailed):
            await start(role, tls_node.url(tls=True, port=proxy.port))
        await proxy.wait_closed()
        assert proxy.accepted == 1


@amqp_only
@pytest.mark.parametrize("role", ["client", "worker"])
async def test_row_31_a_port_that_refuses_is_a_typed_error_at_the_start(proxy: Proxy, url: str, role: str) -> None:
    await proxy.refuse()
    with pytest.raises(ConnectFailed, match="cannot be reached"):
        await start(role, proxy.url(url))


@pytest.mark.parametrize("role", ["client", "worker"])
async def test_row_31_a_broker_in_memory_that_refuses_is_a_typed_error_at_the_start(role: str) -> None:
    broker = memory_broker("refusing")
    broker.refuse_connections("no place")
    with pytest.raises(ConnectFailed, match="no place"):
        await start(role, "memory://refusing")


@amqp_only
async def test_row_31_a_client_whose_permission_was_taken_away_goes_on_when_it_is_back(
    node: Node,
    vhost: str,
    limited_user: str,
    client: ClientFactory,
    worker: WorkerFactory,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node.set_permissions(limited_user, vhost)
    await worker(calculator())
    caller = await client(url=node.url(limited_user, _PASSWORD, vhost, port=proxy.port))
    assert await caller.call("add", 1, 2) == 3
    with caplog.at_level(logging.WARNING, "aiorpcq.client"):
        node.set_permissions(limited_user, vhost, configure="^$")
        proxy.reset()
        await eventually(lambda: "no permission" in caplog.text)
    node.set_permissions(limited_user, vhost)
    assert await caller.call("add", 3, 4) == 7
    assert _PASSWORD not in caplog.text
