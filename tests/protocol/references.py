"""How a test sees that nothing refers to a call any more."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

from aiorpcq.protocol.calls import Call

__all__ = ["watch_references"]


class _Owner:
    """Whose call it is: the call alone refers to it, and, unlike a compiled call, it can be weakly referenced."""


def watch_references(call: Call) -> Callable[[], bool]:
    """Return what tells whether anything refers to *call* still, once the caller's own reference is gone."""
    owner = call.owner = _Owner()
    reference = weakref.ref(owner)

    def is_referenced() -> bool:
        gc.collect()
        return reference() is not None

    return is_referenced
