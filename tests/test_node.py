"""The private broker does what the tests that use it rely on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import aio_pika
import pytest

from tests.node import Cluster, Node, NodeError

_SOON = 20.0


@pytest.fixture
def own_node() -> Iterator[Node]:
    with Node() as started:
        yield started


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SOON
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _epmd_port(node: Node) -> int:
    return int(node.eval('list_to_integer(os:getenv("ERL_EPMD_PORT"))'))


async def _message_count_after_restart(node: Node, restart: Callable[[], None]) -> int:
    connection = await aio_pika.connect(node.url())
    channel = await connection.channel()
    queue = await channel.declare_queue("kept", durable=True)
    await channel.default_exchange.publish(
        aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT), queue.name
    )
    await connection.close()
    await asyncio.to_thread(restart)
    return node.queues()["kept"].messages


async def test_each_test_gets_a_virtual_host_of_its_own(node: Node, vhost: str, broker_url: str) -> None:
    async with await aio_pika.connect(broker_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("here", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name)
        assert node.queues(vhost)["here"].messages == 1
        assert node.connection_count(vhost) == 1
    assert "here" not in node.queues()


def test_the_programs_of_the_path_are_the_ones_that_run(node: Node) -> None:
    assert node.version >= (3, 10)
    assert node.ctl("version").strip() == ".".join(map(str, node.version))
    assert node.name in node.ctl("status")


def test_only_loopback_is_listened_on(node: Node) -> None:
    listeners = node.eval(
        "[inet:sockname(P) || P <- erlang:ports(), {ok, {_, N}} <- [inet:sockname(P)], is_integer(N)]"
    )
    addresses = {part.split("},")[0] for part in listeners.split("{ok,{{")[1:]}
    assert addresses == {"127,0,0,1"}


def test_a_user_may_do_what_it_was_allowed(node: Node, vhost: str) -> None:
    node.add_user("ada", "p@ss/word")
    node.set_permissions("ada", vhost, configure="^$", write="^a$", read=".*")
    assert [line.split() for line in node.ctl("list_permissions", "-p", vhost).splitlines() if "ada" in line] == [
        ["ada", "^$", "^a$", ".*"]
    ]


async def test_the_memory_alarm_blocks_a_publisher_until_it_clears(private_node: Node) -> None:
    async with await aio_pika.connect(private_node.url()) as connection:
        channel = await connection.channel()
        private_node.set_memory_alarm(True)
        publish = asyncio.ensure_future(channel.default_exchange.publish(aio_pika.Message(b"x"), "nowhere"))
        done, _ = await asyncio.wait([publish], timeout=0.3)
        assert not done
        private_node.set_memory_alarm(False)
        await asyncio.wait_for(publish, _SOON)


async def test_a_stopped_node_keeps_its_ports_and_durable_messages(private_node: Node) -> None:
    port = private_node.port
    assert await _message_count_after_restart(private_node, private_node.restart) == 1
    assert private_node.port == port


async def test_a_killed_node_refuses_connections_and_starts_again(private_node: Node) -> None:
    def kill_and_start() -> None:
        private_node.sync_metadata()
        private_node.kill()
        assert not private_node.running
        assert _refuses(private_node.port)
        private_node.start()

    assert await _message_count_after_restart(private_node, kill_and_start) == 1


async def test_a_paused_node_says_nothing_until_it_is_resumed(private_node: Node) -> None:
    private_node.pause()
    connect = asyncio.ensure_future(aio_pika.connect(private_node.url()))
    done, _ = await asyncio.wait([connect], timeout=0.3)
    assert not done
    private_node.resume()
    await (await asyncio.wait_for(connect, _SOON)).close()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_a_paused_node_has_stopped_with_all_its_threads(private_node: Node) -> None:
    private_node.eval("[spawn(fun() -> F = fun(G) -> G(G) end, F(F) end) || _ <- lists:seq(1, 4)]")  # it is busy
    for _ in range(20):
        private_node.pause()
        threads = list(Path(f"/proc/{private_node.pid}/task").iterdir())
        assert len(threads) > 1
        assert {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} == {"T"}
        private_node.resume()
        private_node.eval("ok")
    private_node.kill()  # its work has no end


async def test_the_connections_can_be_closed_by_the_broker(private_node: Node) -> None:
    async with await aio_pika.connect(private_node.url()) as connection:
        closed = asyncio.Event()
        connection.close_callbacks.add(lambda *_: closed.set())
        private_node.close_connections()
        await asyncio.wait_for(closed.wait(), _SOON)


async def test_a_connection_that_ends_while_it_is_closed_is_no_error(private_node: Node) -> None:
    private_node.eval("spawn(fun() -> rabbit_networking:register_connection(self()), receive _ -> ok end end)")
    opened = "length(rabbit_networking:connections())"
    await _until(lambda: private_node.eval(opened) == "1")
    private_node.close_connections()
    await _until(lambda: private_node.eval(opened) == "0")


async def test_one_connection_is_found_and_closed_by_its_name(private_node: Node) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ended = {}
        for name in ("kept", "closed"):
            connection = await stack.enter_async_context(
                await aio_pika.connect(private_node.url(), client_properties={"connection_name": name})
            )
            ended[name] = asyncio.Event()
            connection.close_callbacks.add(lambda *_, event=ended[name]: event.set())
        assert sorted(info.name for info in private_node.connections("/")) == ["closed", "kept"]
        assert private_node.connections("elsewhere") == []
        assert private_node.close_connections(name="closed") == 1
        await asyncio.wait_for(ended["closed"].wait(), _SOON)
        assert not ended["kept"].is_set()
        await _until(lambda: [info.name for info in private_node.connections()] == ["kept"])


@pytest.mark.parametrize(("code", "text"), [(404, "NOT_FOUND"), (406, "PRECONDITION_FAILED")])
async def test_the_broker_closes_one_channel(private_node: Node, code: Literal[404, 406], text: str) -> None:
    async with await aio_pika.connect(private_node.url()) as connection:
        channels = [await connection.channel() for _ in range(2)]
        reasons: asyncio.Queue[str] = asyncio.Queue()
        channels[1].close_callbacks.add(lambda _, reason: reasons.put_nowait(str(reason)))
        assert private_node.close_channels(code, number=2, vhost="/") == 1
        assert text in await asyncio.wait_for(reasons.get(), _SOON)
        await channels[0].declare_queue("lives", durable=True)


async def test_a_deleted_queue_is_gone_with_its_messages(private_node: Node) -> None:
    async with await aio_pika.connect(private_node.url()) as connection:
        channel = await connection.channel()
        await channel.declare_queue("doomed", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"x"), "doomed")
        assert private_node.queues()["doomed"].messages == 1
        private_node.delete_queue("doomed")
        assert private_node.queues() == {}


async def test_a_deleted_exchange_closes_the_channel_of_who_publishes_to_it(private_node: Node) -> None:
    async with await aio_pika.connect(private_node.url()) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("doomed")
        private_node.delete_exchange("doomed")
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity, match="doomed"):
            await exchange.publish(aio_pika.Message(b"x"), "")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_a_consumer_that_settles_nothing_has_its_time(private_node: Node, queue_type: str) -> None:
    if queue_type == "classic" and private_node.version >= (4, 3):
        pytest.skip("classic queues have no consumer timeout here")
    private_node.set_consumer_timeout(0.2)
    async with await aio_pika.connect(private_node.url()) as connection:
        slow, other = await connection.channel(), await connection.channel()
        got: list[aio_pika.abc.AbstractIncomingMessage] = []

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            got.append(message)
            if message.redelivered:
                await message.ack()

        await slow.declare_queue("slow", durable=True, arguments={"x-queue-type": queue_type})
        await (await slow.get_queue("slow")).consume(take)
        await other.default_exchange.publish(aio_pika.Message(b"x"), "slow")
        await _until(lambda: len(got) == 1)
        await (await other.get_queue("slow")).consume(take)

        def comes_again() -> bool:
            private_node.enforce_consumer_timeout()
            return len(got) == 2

        await _until(comes_again)
        assert got[1].redelivered


# --- clusters


async def _publish_to_quorum_queue(node: Node, queue: str) -> None:
    async with await aio_pika.connect(node.url()) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(
            aio_pika.Message(b"x", delivery_mode=aio_pika.DeliveryMode.PERSISTENT), queue
        )


async def test_the_members_of_a_cluster_are_one_broker(cluster: Cluster) -> None:
    first, second, third = cluster.nodes
    await _publish_to_quorum_queue(first, "shared")
    await _until(lambda: cluster.leader("shared").queues()["shared"].messages == 1)
    assert "shared" in second.queues()
    assert cluster.leader("shared") in cluster.nodes
    assert len({node.port for node in cluster.nodes}) == 3
    assert {_epmd_port(node) for node in cluster.nodes} == {_epmd_port(third)}


@pytest.mark.parametrize("way", ["kill", "stop_app"])
async def test_a_confirmed_message_outlives_the_loss_of_two_members(cluster: Cluster, way: str) -> None:
    first, *others = cluster.nodes
    await _publish_to_quorum_queue(first, "kept")
    for node in others:
        getattr(node, way)()
    cluster.wait_running([first])
    for node in others:
        if way == "stop_app":
            node.start_app()
    cluster.start_nodes()
    cluster.wait_running(cluster.nodes)
    async with await aio_pika.connect(others[0].url()) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        message = await queue.get(timeout=_SOON)
        await message.ack()
        assert message.body == b"x"


def test_closing_a_cluster_leaves_nothing_behind() -> None:
    with Cluster(size=2) as cluster:
        pids, epmd_port = [node.pid for node in cluster.nodes], _epmd_port(cluster.nodes[1])
    cluster.close()
    assert not any(node.folder.exists() for node in cluster.nodes)
    assert not any(map(_exists, pids))
    assert all(map(_refuses, (epmd_port, *(node.port for node in cluster.nodes))))


def test_reset_removes_what_tests_made(private_node: Node) -> None:
    private_node.add_vhost("more")
    private_node.add_user("eve", "x")
    private_node.reset()
    assert private_node.ctl("list_vhosts").split() == ["name", "/"]
    assert "eve" not in private_node.ctl("list_users")


async def test_tls_is_offered_with_a_certificate_that_its_authority_proves() -> None:
    with Node(tls=True) as node:
        context = ssl.create_default_context(cafile=node.ca_file)
        async with await aio_pika.connect(node.url(tls=True), ssl_context=context) as connection:
            await connection.channel()


def test_a_node_that_cannot_start_says_what_its_log_says() -> None:
    with contextlib.closing(Node(config={"no.such.setting": "1"})) as node:
        with pytest.raises(NodeError, match="configuration"):
            node.start()
        assert not node.running
    assert not node.folder.exists()


def test_a_failed_expression_is_an_error(node: Node) -> None:
    with pytest.raises(NodeError, match="badmatch"):
        node.eval("ok = other")


async def test_closing_leaves_nothing_behind(own_node: Node) -> None:
    server, epmd_port = own_node.pid, _epmd_port(own_node)
    own_node.close()
    own_node.close()
    assert not own_node.folder.exists()
    assert not _exists(server)
    assert all(map(_refuses, (own_node.port, epmd_port)))


async def test_a_killed_test_run_leaves_nothing_behind() -> None:
    program = (
        "from tests.node import Node; from tests.test_node import _epmd_port; node = Node(); node.start();"
        "print(node.pid, node.port, _epmd_port(node), node.folder, flush=True); input()"
    )
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert run.stdout is not None
    server, port, epmd_port, folder = (await run.stdout.readline()).split()
    run.send_signal(signal.SIGKILL)
    await run.communicate()
    await _until(lambda: not Path(folder.decode()).exists() and not _exists(int(server)))
    assert all(map(_refuses, (int(port), int(epmd_port))))
