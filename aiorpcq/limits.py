"""Bounds that several modules share, and the checks that an option keeps within its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "DEFAULT_MAX_SIZE",
    "EVICTION_DELAY",
    "STATE_OVERHEAD",
    "CacheLimits",
    "check_age",
    "check_integer",
    "check_iterable",
    "check_kind",
    "check_max_size",
]

DEFAULT_MAX_SIZE: Final = 8 * 1024 * 1024
"""Bytes that a body may have where nothing else is said."""

STATE_OVERHEAD: Final = 500
"""Bytes that a held state costs besides its body, rounded up from tracemalloc."""

EVICTION_DELAY: Final = 1.0
"""Seconds past their age that held states may stay, so that they go in numbers and not one by one."""

_LEAST_SIZE: Final = 1024  # an error reply must fit
_MOST_SIZE: Final = 2**31


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Bounds of the cache of terminal states: bytes (with 500 for each state), and seconds.

    Raises:
        ValueError: *size* is not a whole number from 1, or *age* not a number above 0.
    """

    size: int = 64 * 1024 * 1024
    age: float = 120.0

    def __post_init__(self) -> None:
        check_integer(self.size, "cache.size", 1, sys.maxsize)
        check_age(self.age, "cache.age")


def check_age(value: float, option: str) -> None:
    """Raise `ValueError` naming *option* where *value* is no number of seconds above 0; infinity is one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (0 < value <= sys.float_info.max or value == math.inf):
        raise ValueError(f"{option}: {value!r} is not a number of seconds above 0")


def check_iterable(value: object, option: str) -> None:
    """Raise `ValueError` naming *option* where one thing is given, or a text, in place of several."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{option}: a {type(value).__name__} is not an iterable of what it is to hold")


def check_integer(value: int, option: str, least: int, most: int) -> int:
    """Return *value* as it was given, or raise `ValueError` naming *option*."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{option}: {value!r} is not an integer between {least} and {most}")
    return value


def check_kind(value: object, option: str, kind: type) -> None:
    """Raise `ValueError` naming *option* where *value* is given and no *kind*; None leaves it to the default."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{option}: a {type(value).__name__} is not a {kind.__name__}")


def check_max_size(value: int) -> int:
    """Return the size limit as it was given, or raise `ValueError` where it cannot bound a message."""
    return check_integer(value, "max_size", _LEAST_SIZE, _MOST_SIZE)
