"""State names, Celery's sets of them, and the precedence by which two states of one task compare."""

from __future__ import annotations

from typing import Final

__all__ = [
    "EXCEPTION_STATES",
    "FAILURE",
    "IGNORED",
    "PENDING",
    "PROGRESS",
    "PROPAGATE_STATES",
    "READY_STATES",
    "RECEIVED",
    "REJECTED",
    "RETRY",
    "REVOKED",
    "STARTED",
    "SUCCESS",
    "UNREADY_STATES",
    "is_terminal",
    "precedence",
]

PENDING: Final = "PENDING"
RECEIVED: Final = "RECEIVED"
STARTED: Final = "STARTED"
PROGRESS: Final = "PROGRESS"
RETRY: Final = "RETRY"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"
REJECTED: Final = "REJECTED"
IGNORED: Final = "IGNORED"

READY_STATES: Final = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES: Final = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES: Final = frozenset({FAILURE, REVOKED})

# Celery's order (celery.states.PRECEDENCE), best first; a custom state, PROGRESS among them, ranks with None.
_RANKS: Final = {
    rank: position
    for position, rank in enumerate((SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING))
}


def is_terminal(name: str) -> bool:
    """Tell whether no state can follow *name*."""
    return name in READY_STATES


def precedence(name: str) -> int:
    """Return the rank of *name* in Celery's order: 0 for SUCCESS, higher for states that give way to it."""
    return _RANKS.get(name, _RANKS[None])
