"""What a client finds out when its reply queue is consumed: whether it may publish, and whether exchanges are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest

from aiorpcq import Client, ConnectFailed, ConnectionLost, Unroutable, Worker
from aiorpcq.testing import memory_broker
from tests.contract.breaking import only_lost
from tests.contract.parties import PATIENCE, calculator, eventually
from tests.node import Node

MODES = pytest.mark.parametrize("mode", ["exclusive", "durable", "direct"])


def options(mode: str) -> dict[str, str]:
    return {"reply_queue": mode, **({"identity": "caller"} if mode == "durable" else {})}


@pytest.fixture
def reader(node: Node, vhost: str) -> str:
    """The URL of a user who may do everything but publish requests."""
    name = f"reader-{vhost}"
    node.add_user(name, "secret")
    node.set_permissions(name, vhost, write=r"^rpc\..*$")
    return node.url(name, "secret", vhost)


@MODES
async def test_a_client_that_may_not_publish_requests_is_refused_at_the_start(reader: str, mode: str) -> None:
    with pytest.raises(ConnectFailed, match=r"exchange 'rpc'.*ACCESS_REFUSED"):
        await Client(reader, **options(mode)).open()  # type: ignore[arg-type]  # two of its options


@MODES
async def test_a_client_that_may_not_read_more_than_its_replies_is_not_refused(
    node: Node, vhost: str, mode: str
) -> None:
    name = f"caller-{vhost}"
    node.add_user(name, "secret")
    node.set_permissions(
        name,
        vhost,
        configure=r"^(rpc|rpc\.control|rpc\.reply\..*)$",
        write=r"^(rpc|rpc\.control)$",
        read=r"^(amq\.rabbitmq\.reply-to|rpc\.reply\..*)$",
    )
    async with Client(node.url(name, "secret", vhost), **options(mode)) as caller:  # type: ignore[arg-type]  # as above
        assert caller.health().ready
        assert caller.statistics().generation == 1


async def test_a_client_is_opened_while_the_broker_takes_nothing() -> None:
    name = uuid4().hex
    broker = memory_broker(name)
    broker.block()
    async with Client(f"memory://{name}") as caller:
        assert not caller.health().ready
        broker.unblock()
        assert caller.health().ready


async def test_a_client_is_opened_while_an_alarm_keeps_the_broker_from_answering(private_node: Node) -> None:
    private_node.set_memory_alarm(True)
    async with Client(private_node.url()) as caller:
        await eventually(lambda: not caller.health().ready)
        private_node.set_memory_alarm(False)
        await eventually(lambda: caller.health().ready)
        assert caller.statistics().generation == 1


async def test_an_exchange_that_was_deleted_is_declared_again(
    node: Node, vhost: str, broker_url: str, jump: Callable[[float], None]
) -> None:
    async with Client(broker_url, timeout=10) as caller:
        node.delete_exchange("rpc", vhost)
        call = asyncio.ensure_future(caller.call("add", 1, 2))
        await eventually(lambda: caller.statistics().pending == 1)
        await only_lost(caller)
        await eventually(lambda: caller.health().ready)
        jump(11)
        with pytest.raises(ConnectionLost, match="confirmed"):
            await call
        with pytest.raises(Unroutable):  # from here on a worker that declares its queue is found
            await caller.call("add", 1, 2)
        async with Worker(broker_url, [calculator()]), asyncio.timeout(PATIENCE):
            assert await caller.call("add", 1, 2) == 3
        assert caller.statistics().generation == 1
