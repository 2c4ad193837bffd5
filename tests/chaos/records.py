"""What is recorded of a run: calls, how they were settled, runs of methods, what was broken, and what was left.

Times are those of `time.monotonic`, which the processes of one machine share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal
from zlib import crc32

__all__ = ["Call", "Disturbance", "History", "Leftover", "MemorySample", "Result", "Run", "Settlement", "answer_to"]

Mode = Literal["at_least_once", "no_rerun", "at_most_once"]


class Result(Enum):
    """How a call ended, as its caller saw it."""

    VALUE = "value"
    ERROR = "error"  # an RPCError
    UNTYPED = "untyped"  # an exception that is none
    CANCELLED = "cancelled"  # the caller cancelled its wait
    CONFIRMED = "confirmed"  # a cast that the broker has
    HUNG = "hung"  # the caller gave up waiting


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was begun. The *token* is its argument: no two calls have the same, and retries keep it."""

    token: str
    verb: str
    method: str
    mode: Mode
    idempotent: bool
    started: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """An end of a call. *value* is the value, or the text of the error; *error* its class."""

    token: str
    at: float
    result: Result
    value: str = ""
    error: str = ""
    maybe_executed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a method that was begun by *worker*, a name that no two worker processes share.

    *ended* is None where nothing was heard of its end: the process was killed.
    """

    token: str
    task_id: str
    attempt: int
    worker: str
    started: float
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault that was made, from *started* to *ended*; of one worker, or of all where *worker* is None."""

    kind: str
    started: float
    ended: float
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Bytes that the callers' process had resident when *share* of the calls were made."""

    share: float
    size: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that *owner* still held at the end, when it should have held none; 0 where it held none."""

    owner: str
    what: str
    count: int


@dataclass(slots=True)
class History:
    """All that was recorded; the lists need no order.

    Attributes:
        max_attempts: how often the workers run a request at the most.
        finished: whether the callers came to their end by themselves.
    """

    calls: list[Call] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    max_attempts: int = 5
    finished: bool = True


def answer_to(token: str) -> str:
    """Return what a method answers to *token*: nothing that could be had without asking for it."""
    return f"{token}:{crc32(token.encode()):08x}"
