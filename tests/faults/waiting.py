"""A service whose runs the test holds."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.contract.parties import Gate, calculator

__all__ = ["Waiting"]


class Waiting:
    """The service of `calculator`, and a method `wait` that returns its argument as soon as `gate` is open.

    *runs* has the argument of each run, in the order they began; *ended* of those that came to their end; *stopped* of
    those that were cancelled. *options* are those of the method.
    """

    def __init__(self, name: str = "default", **options: Any) -> None:
        self.service = calculator(name)
        self.gate = Gate()
        self.runs: list[Any] = []
        self.ended: list[Any] = []
        self.stopped: list[Any] = []

        @self.service.method(**options)
        async def wait(number: Any = None) -> Any:
            self.runs.append(number)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.append(number)
                raise
            self.ended.append(number)
            return number
