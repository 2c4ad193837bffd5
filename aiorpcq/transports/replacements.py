"""How often a link may replace its channel before it is given up."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Replacements"]

_LIMIT: Final = 10
_PERIOD: Final = 10.0


class Replacements:
    """Counts the channels of one link that the broker closed: ten in ten seconds may be replaced, the next may not.

    A program that consumes from a queue that is not there, each time it is told that its consumers have ended, would
    otherwise keep itself and the broker busy with that.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_LIMIT)

    def may_replace(self, now: float) -> bool:
        """Count one more at *now*, in seconds of any clock that goes forward; tell whether it may be replaced."""
        times = self._times
        if len(times) == _LIMIT and times[0] > now - _PERIOD:
            return False
        times.append(now)
        return True

    def __str__(self) -> str:
        return f"{_LIMIT + 1} channels were closed within {_PERIOD:g} s"
