"""Service: a named set of methods, served from one queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from .deadline import check_timeout
from .limits import check_integer
from .method import Method, MethodOptions, OnCallerGone
from .protocol.deliveries import DeliveryMode
from .protocol.topology import DEFAULT_SERVICE, check_method, check_service
from .retry import RetryPolicy

__all__ = ["Service"]

F = TypeVar("F", bound=Callable[..., Any])


class Service:
    """A named set of methods, served from one queue.

    The methods of the default service are called by their own name ("add"), those of a named one with the service's
    name before it ("math.add"). Names match `[A-Za-z0-9_-]+`.

    The other options are arguments of the service's queue. They cannot be changed once the queue exists; a worker that
    finds others refuses to start and says which.

    Args:
        name: name of the service.
        queue_type: "classic", or "quorum" for a replicated queue.
        max_priority: highest priority a request can have, 1 to 255; None for a queue without priorities.
        max_length: how many requests may wait; None is no bound.
        overflow: what happens past it: "drop-head" returns the oldest request to its caller, "reject-publish" refuses
            the newest. The broker's own default is "drop-head".
        message_ttl: seconds a request may wait whatever its own deadline; None is no bound.
        timeout: default of the methods' `timeout`.
        delivery: default of the methods' `delivery`.
        max_attempts: default of the methods' `max_attempts`.
        retry: default of the methods' `retry`.
        on_caller_gone: default of the methods' `on_caller_gone`.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    def __init__(
        self,
        name: str = DEFAULT_SERVICE,
        *,
        queue_type: Literal["classic", "quorum"] = "classic",
        max_priority: int | None = None,
        max_length: int | None = None,
        overflow: Literal["drop-head", "reject-publish"] | None = None,
        message_ttl: float | None = None,
        timeout: float | None = None,
        delivery: DeliveryMode | None = None,
        max_attempts: int | None = None,
        retry: RetryPolicy | None = None,
        on_caller_gone: OnCallerGone | None = None,
    ) -> None:
        self.name = check_service(name)
        self.methods: dict[str, Method] = {}
        self._defaults = MethodOptions(timeout, delivery, max_attempts, retry, on_caller_gone)
        self.queue_arguments: dict[str, Any] = {}
        if queue_type not in ("classic", "quorum"):
            raise ValueError(f"queue_type: {queue_type!r} is neither classic nor quorum")
        if queue_type != "classic":
            self.queue_arguments["x-queue-type"] = queue_type
        if max_priority is not None:
            self.queue_arguments["x-max-priority"] = check_integer(max_priority, "max_priority", 1, 255)
        if max_length is not None:
            self.queue_arguments["x-max-length"] = check_integer(max_length, "max_length", 1, 2**31)
        if overflow is not None:
            if overflow not in ("drop-head", "reject-publish"):
                raise ValueError(f"overflow: {overflow!r} is neither drop-head nor reject-publish")
            # What a delay queue gives back to a full queue is refused too; without -dlx it would be lost in silence.
            is_returned = overflow == "reject-publish" and queue_type == "classic"
            self.queue_arguments["x-overflow"] = "reject-publish-dlx" if is_returned else overflow
        if message_ttl is not None:
            self.queue_arguments["x-message-ttl"] = int((check_timeout(message_ttl, "message_ttl") or 0) * 1000)

    def __repr__(self) -> str:
        return f"<Service {self.name!r} of {len(self.methods)} methods>"

    @overload
    def method(self, function: F, /) -> F: ...

    @overload
    def method(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        delivery: DeliveryMode | None = None,
        max_attempts: int | None = None,
        retry: RetryPolicy | None = None,
        on_caller_gone: OnCallerGone | None = None,
        idempotent: bool = False,
    ) -> Callable[[F], F]: ...

    def method(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        delivery: DeliveryMode | None = None,
        max_attempts: int | None = None,
        retry: RetryPolicy | None = None,
        on_caller_gone: OnCallerGone | None = None,
        idempotent: bool = False,
    ) -> F | Callable[[F], F]:
        """Offer a function as a method; it stays callable as it was.

        An `async def` runs in the worker's event loop, a plain `def` in a thread.

        Args:
            function: the function, where the decorator has no options.
            name: what callers call it; the function's own name by default.
            timeout: seconds a run may take, within the caller's deadline; the service's by default.
            delivery: "at_least_once", "no_rerun" or "at_most_once", see `DeliveryMode`; the service's, then the
                worker's by default.
            max_attempts: how many runs may be lost with their workers before the caller gets `Poisoned`, 1 to 1,000; 5
                by default.
            retry: when to run the method again that raised; None is never, by default.
            on_caller_gone: "cancel" stops a run whose caller has been gone for the worker's `caller_gone_grace`;
                "finish", the default, lets it go on.
            idempotent: whether running it twice does what running it once does. Workers say so to who asks; a caller
                says it of its own with `CallOptions.idempotent`.

        Raises:
            ValueError: the name is taken or malformed, or an option is out of range.
        """
        options = MethodOptions(timeout, delivery, max_attempts, retry, on_caller_gone, idempotent)
        if function is None:

            def register(decorated: F) -> F:
                self._register(decorated, name, options)
                return decorated

            return register
        self._register(function, name, options)
        return function

    def _register(self, function: Callable[..., Any], name: str | None, options: MethodOptions) -> None:
        if not callable(function):
            raise ValueError(f"{function!r:.100} is not a function")
        name = check_method(getattr(function, "__name__", "") if name is None else name)
        if name in self.methods:
            raise ValueError(f"service {self.name!r} has a method {name!r} already")
        self.methods[name] = Method(name, function, options.under(self._defaults))
