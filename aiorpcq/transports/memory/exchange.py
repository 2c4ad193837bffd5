"""Exchanges: from a routing key to queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import ConnectFailed, TopologyMismatch
from ...protocol.topology import Exchange
from .queue import MemoryQueue

__all__ = ["MemoryExchange"]

_KINDS = ("direct", "fanout", "topic")
_ROUTES_LIMIT = 1_000  # routing keys a topic exchange remembers the queues of


class MemoryExchange:
    """An exchange and its bindings. The queues of a key are kept ready as a tuple, so routing is one look-up."""

    def __init__(self, declared: Exchange) -> None:
        if declared.kind not in _KINDS:
            raise ConnectFailed(f"exchange {declared.name!r}: kind {declared.kind!r} is not one of {', '.join(_KINDS)}")
        self.declared = declared
        self.name = declared.name
        self.is_deleted = False
        self._fanout = declared.kind == "fanout"
        self._topic = declared.kind == "topic"
        self._queues: dict[str, tuple[MemoryQueue, ...]] = {}
        self._routes: dict[str, tuple[MemoryQueue, ...]] = {}

    def check_declared(self, other: Exchange) -> None:
        """Raise `TopologyMismatch` where *other* declares this exchange with other properties."""
        mine = self.declared
        for argument, received, current in (
            ("type", other.kind, mine.kind),
            ("durable", other.durable, mine.durable),
            ("auto_delete", other.auto_delete, mine.auto_delete),
            ("arguments", dict(other.arguments), dict(mine.arguments)),
        ):
            if received != current:
                raise TopologyMismatch(
                    f"inequivalent arg {argument!r} for exchange {self.name!r}: "
                    f"received {received!r} but current is {current!r}"
                )

    def bind(self, queue: MemoryQueue, routing_key: str) -> None:
        """Route messages of *routing_key* to *queue*. Idempotent."""
        bound = self._queues.get(routing_key, ())
        if queue not in bound:
            self._queues[routing_key] = (*bound, queue)
            self._routes.clear()

    def unbind(self, queue: MemoryQueue) -> None:
        """Forget *queue*. An auto-delete exchange is deleted with its last binding."""
        keys = [key for key, bound in self._queues.items() if queue in bound]
        for key in keys:
            remaining = tuple(other for other in self._queues[key] if other is not queue)
            if remaining:
                self._queues[key] = remaining
            else:
                del self._queues[key]
        if keys:
            self._routes.clear()
            self.is_deleted = self.declared.auto_delete and not self._queues

    def route(self, routing_key: str) -> tuple[MemoryQueue, ...]:
        """Return the queues for *routing_key*, each once."""
        if not self._fanout and not self._topic:
            return self._queues.get(routing_key, ())
        queues = self._routes.get(routing_key)
        if queues is None:
            queues = _distinct(bound for key, bound in self._queues.items() if self._fanout or _match(key, routing_key))
            if len(self._routes) >= _ROUTES_LIMIT:
                self._routes.clear()
            self._routes[routing_key] = queues
        return queues

    def route_all(self, routing_keys: Iterable[str]) -> tuple[MemoryQueue, ...]:
        """Return the queues for any of *routing_keys*, each once."""
        return _distinct(self.route(key) for key in routing_keys)


def _distinct(groups: Iterable[tuple[MemoryQueue, ...]]) -> tuple[MemoryQueue, ...]:
    return tuple(dict.fromkeys(queue for group in groups for queue in group))


def _match(pattern: str, routing_key: str) -> bool:
    return _match_words(pattern.split("."), routing_key.split(".") if routing_key else [])


def _match_words(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Match by the rows of a table, so that many `#` in one pattern cannot make it take exponential time."""
    reached = [True] + [False] * len(words)  # reached[n]: the pattern so far matches the first n words
    for part in pattern:
        if part == "#":
            for n in range(1, len(reached)):
                reached[n] = reached[n] or reached[n - 1]
        else:
            reached = [False] + [reached[n] and part in ("*", words[n]) for n in range(len(words))]
    return reached[-1]
