"""How a test sees that nothing refers to a call any more."""

from __future__ import annotations

import gc
from collections.abc import Callable

from aiorpcq.protocol.calls import Call

__all__ = ["watch_references"]


def watch_references(call: Call) -> Callable[[], bool]:
    """Return what tells whether anything refers to *call* still, once the caller's own reference is gone.

    It looks for the call among all objects: a compiled one cannot be weakly referenced.
    """
    task_id = call.task_id

    def is_referenced() -> bool:
        gc.collect()
        return any(type(found) is Call and found.task_id == task_id for found in gc.get_objects())

    return is_referenced
