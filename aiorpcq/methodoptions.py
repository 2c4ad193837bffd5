"""MethodOptions: how a method is run, as users say it; checked where it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from .deadline import check_timeout
from .limits import check_integer, check_kind
from .protocol.deliveries import DeliveryMode
from .retry import RetryPolicy

__all__ = ["MethodOptions", "OnCallerGone", "check_delivery"]

OnCallerGone = Literal["finish", "cancel"]
"""What becomes of a run whose caller is gone for longer than a reconnect takes."""

_MOST_ATTEMPTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """How a method is run; None leaves an option to the service, then to the worker. `Service.method` explains them."""

    timeout: float | None = None
    delivery: DeliveryMode | None = None
    max_attempts: int | None = None
    retry: RetryPolicy | None = None
    on_caller_gone: OnCallerGone | None = None
    idempotent: bool = False

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        check_delivery(self.delivery)
        if self.max_attempts is not None:
            check_integer(self.max_attempts, "max_attempts", 1, _MOST_ATTEMPTS)
        check_kind(self.retry, "retry", RetryPolicy)
        if self.on_caller_gone is not None and self.on_caller_gone not in get_args(OnCallerGone):
            raise ValueError(f"on_caller_gone: {self.on_caller_gone!r} is none of {', '.join(get_args(OnCallerGone))}")
        if not isinstance(self.idempotent, bool):
            raise ValueError(f"idempotent: {self.idempotent!r} is neither True nor False")

    def under(self, defaults: MethodOptions) -> MethodOptions:
        """Return these options, with what they leave open taken from *defaults*."""
        return MethodOptions(
            timeout=defaults.timeout if self.timeout is None else self.timeout,
            delivery=self.delivery or defaults.delivery,
            max_attempts=self.max_attempts or defaults.max_attempts,
            retry=self.retry or defaults.retry,
            on_caller_gone=self.on_caller_gone or defaults.on_caller_gone,
            idempotent=self.idempotent or defaults.idempotent,
        )


def check_delivery(delivery: DeliveryMode | None) -> DeliveryMode | None:
    """Return *delivery* as it was given, or raise `ValueError`; None leaves it to somebody else."""
    if delivery is not None and delivery not in get_args(DeliveryMode):
        raise ValueError(f"delivery: {delivery!r} is none of {', '.join(get_args(DeliveryMode))}")
    return delivery
