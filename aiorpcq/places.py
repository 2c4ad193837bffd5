"""Places: how many requests of a service run at once in a worker, and which wait for a place."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .method import Method
from .protocol.deliveries import DeliveryMode
from .protocol.executions import Execution, ExecutionPhase

__all__ = ["Places", "RunOptions"]

_RUNNING = ExecutionPhase.RUNNING  # a global: in Python 3.11 a member costs four times as much to look up on its class


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a worker says about its runs: the defaults of its methods, and its bounds."""

    worker_id: str
    delivery: DeliveryMode
    max_attempts: int
    concurrency: int
    threads: int
    max_size: int
    caller_gone_grace: float


class Places:
    """The places of one service: its methods, how many more requests may run, and which wait for a place.

    The prefetch lets no more be delivered than may run, except where a request was acknowledged before its run or is
    answered while its method goes on. So *waiting* holds at most twice the prefetch: those that are answered while
    they wait are dropped when it is full.

    *older_than* is the wall clock's time when the worker began to listen for control messages, where requests may have
    waited in the service's queue by then; None where there were none, infinite while it cannot listen.
    """

    __slots__ = ("_concurrency", "free", "methods", "older_than", "service", "waiting")

    def __init__(self, service: str, methods: dict[str, Method], concurrency: int) -> None:
        self.service = service
        self.methods = methods
        self._concurrency = concurrency
        self.free = concurrency
        self.waiting: deque[tuple[Execution, Method]] = deque()
        self.older_than: float | None = None

    def wait(self, execution: Execution, method: Method) -> None:
        """Have a request wait for a place."""
        if len(self.waiting) >= 2 * self._concurrency:
            self.waiting = deque(entry for entry in self.waiting if entry[0].phase is _RUNNING)
        self.waiting.append((execution, method))

    def withdraw_suspects(self) -> list[Execution]:
        """Have those wait no longer that have lost a run, and return them."""
        waiting = self.waiting
        self.waiting = deque(entry for entry in waiting if not entry[0].losses)
        return [execution for execution, _ in waiting if execution.losses and execution.phase is _RUNNING]
