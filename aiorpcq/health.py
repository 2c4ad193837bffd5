"""Health: whether a client or a worker can do its work, for whoever asks from outside."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether it is ready, and if not why; what a readiness probe answers with. It is true where it is ready.

    Attributes:
        ready: whether what is asked of it now is done now.
        reason: why not, None where it is ready.
    """

    ready: bool
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.ready
