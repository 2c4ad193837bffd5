"""Cluster: private RabbitMQ nodes that are one broker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

from .control import binary
from .process import Node
from .programs import NodeError

__all__ = ["Cluster"]

_JOIN_SECONDS = 60.0


class Cluster:
    """*size* private nodes, joined. `close`, or the end of a `with` block, ends all and leaves nothing behind.

    They share a cookie and an epmd; each has its ports, folder and data. Single members may be stopped, killed, paused
    and started like any `Node`, or leave and rejoin with `Node.stop_app` and `Node.start_app`.

    Args:
        config: further lines of each member's rabbitmq.conf.
    """

    def __init__(self, size: int = 3, *, config: Mapping[str, str] | None = None) -> None:
        first = Node(config=config)
        self.nodes: tuple[Node, ...] = (first, *(Node(config=config, peer=first) for _ in range(size - 1)))

    def start(self) -> None:
        """Start every member and join them; return when each sees all.

        Raises:
            NodeError: one did not start or join; the message ends with the tail of its log.
        """
        self.start_nodes()
        first, *others = self.nodes
        for node in others:
            _join(node, first)
        self.wait_running(self.nodes)

    def start_nodes(self) -> None:
        """Start the members that do not run, all at once: one that was stopped may wait for another's data.

        Raises:
            NodeError: one did not boot.
        """
        stopped = [node for node in self.nodes if not node.running]
        with ThreadPoolExecutor(max_workers=len(self.nodes)) as threads:
            for _ in threads.map(Node.start, stopped):
                pass

    def wait_running(self, nodes: Iterable[Node]) -> None:
        """Wait until each of *nodes* sees these run, and no others.

        Raises:
            NodeError: it did not come to that within a minute.
        """
        chosen = list(nodes)
        names = sorted(node.name for node in chosen)
        deadline = time.monotonic() + _JOIN_SECONDS
        while any(_running_names(node) != names for node in chosen):
            if time.monotonic() > deadline:
                raise NodeError(f"the cluster of {', '.join(names)} is not complete\n{chosen[0].log_tail()}")
            time.sleep(0.05)

    def leader(self, queue: str, vhost: str = "/") -> Node:
        """Return the member that leads a quorum queue, or holds a classic one.

        Raises:
            NodeError: there is no such queue, or its leader does not run.
        """
        resource = f"rabbit_misc:r({binary(vhost)}, queue, {binary(queue)})"
        asked = next(node for node in self.nodes if node.running)
        name = asked.eval(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}), "
            "Leader = case amqqueue:get_type(Q) of "
            "rabbit_quorum_queue -> {ok, _, {_, Member}} = ra:members(amqqueue:get_pid(Q)), Member; "
            "_ -> node(amqqueue:get_pid(Q)) end, atom_to_binary(Leader, utf8)"
        )
        return next(node for node in self.nodes if node.name == name)

    def close(self) -> None:
        """End every member and remove its folder; a second call does nothing."""
        with ExitStack() as closing:
            for node in self.nodes:  # in reverse order: the first one has the epmd of all
                closing.callback(node.close)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _join(node: Node, first: Node) -> None:
    # RabbitMQ 4 knows clusters by rabbit_db_cluster, with either of its databases.
    join = "rabbit_db_cluster:join" if node.version >= (4,) else "rabbit_mnesia:join_cluster"
    node.stop_app()
    node.eval(f"ok = {join}(binary_to_atom({binary(first.name)}, utf8), disc)")
    node.start_app()


def _running_names(node: Node) -> list[str]:
    running = "rabbit_nodes:list_running()" if node.version >= (4,) else "rabbit_mnesia:cluster_nodes(running)"
    return sorted(node.eval(f"iolist_to_binary([[atom_to_binary(N, utf8), 10] || N <- {running}])").splitlines())
