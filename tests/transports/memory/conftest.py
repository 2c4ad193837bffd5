"""A broker with a clock that is moved by hand, and two links to it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from aiorpcq.transports.memory import MemoryBroker, MemoryLink, memory_broker

from .traffic import Clock, connected

NUMBERS = itertools.count(1)  # no test meets the broker of another one


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    return memory_broker(f"test-{next(NUMBERS)}", now=clock)


@pytest.fixture
async def link(broker: MemoryBroker) -> AsyncIterator[MemoryLink]:
    async with connected(broker) as opened:
        yield opened


@pytest.fixture
async def other(broker: MemoryBroker) -> AsyncIterator[MemoryLink]:
    async with connected(broker) as opened:
        yield opened
