"""Services and their methods: what a worker offers, and what a running method knows of its call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol, TypeVar, get_args, get_type_hints, overload

import anyio.from_thread

from .deadline import check_timeout
from .errors import InvalidArguments
from .limits import check_integer
from .protocol.topology import DEFAULT_SERVICE, check_method, check_service
from .states import PENDING, PROGRESS, READY_STATES, RECEIVED, RETRY, STARTED

__all__ = ["Context", "DeliveryMode", "Method", "Service"]

DeliveryMode = Literal["at_least_once", "at_most_once"]
"""When a request is acknowledged: after its terminal state is confirmed, or when its run starts."""

F = TypeVar("F", bound=Callable[..., Any])

_RESERVED_STATES: Final = READY_STATES | {PENDING, RECEIVED, STARTED, RETRY}
_STATE_NAME_LIMIT: Final = 255


class StateSink(Protocol):
    """Where a context sends its states: the worker's publisher."""

    async def update(self, name: str, value: Any) -> None:
        """Publish a state that is not terminal."""

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline, None where there is none."""


class Context:
    """What a method knows of the call it answers; a parameter annotated `Context` gets it.

    Attributes:
        task_id: id of the task.
        method: name of the method.
        attempt: 1 for the first run of the request.
        redelivered: whether the broker delivered the request before, to this worker or another.
        parent_id: task id of the call in whose method this call was made, or None.
        root_id: task id at the root of that chain; the task's own id where it has no parent.
        metadata: what the caller gave as `metadata`; never None.
    """

    __slots__ = ("_sink", "attempt", "metadata", "method", "parent_id", "redelivered", "root_id", "task_id")

    def __init__(
        self,
        sink: StateSink,
        *,
        task_id: str,
        method: str,
        attempt: int = 1,
        redelivered: bool = False,
        parent_id: str | None = None,
        root_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._sink = sink
        self.task_id = task_id
        self.method = method
        self.attempt = attempt
        self.redelivered = redelivered
        self.parent_id = parent_id
        self.root_id = root_id or task_id
        self.metadata: Mapping[str, Any] = metadata or {}

    def __repr__(self) -> str:
        return f"<Context of {self.method} task {self.task_id}>"

    @property
    def remaining(self) -> float | None:
        """Seconds left until the run is stopped, at least 0; None where it has no deadline."""
        return self._sink.remaining()

    async def progress(self, value: Any) -> None:
        """Publish a PROGRESS state with *value*.

        Nothing is sent where the caller did not ask for states (`call`, `cast`). Waits while the connection cannot
        take more.

        Raises:
            CodecError: *value* cannot be encoded.
            PayloadTooLarge: it is too large.
        """
        await self._sink.update(PROGRESS, value)

    async def update_state(self, name: str, value: Any = None) -> None:
        """Publish a custom state; otherwise like `progress`.

        Raises:
            ValueError: *name* is empty, too long, or one of the states that only the worker may publish.
        """
        if not isinstance(name, str) or not name or len(name.encode()) > _STATE_NAME_LIMIT:
            raise ValueError(f"state name {name!r:.100} is empty or longer than {_STATE_NAME_LIMIT} bytes")
        if name in _RESERVED_STATES:
            raise ValueError(f"state {name} is published by the worker alone")
        await self._sink.update(name, value)

    def progress_from_thread(self, value: Any) -> None:
        """Do what `progress` does, for a plain `def` method, which runs in a thread."""
        anyio.from_thread.run(self.progress, value)

    def update_state_from_thread(self, name: str, value: Any = None) -> None:
        """Do what `update_state` does, for a plain `def` method, which runs in a thread."""
        anyio.from_thread.run(self.update_state, name, value)


class Method:
    """A registered function, and how the arguments of a request fit it."""

    __slots__ = (
        "_context_parameter",
        "_context_position",
        "_maximum",
        "_required",
        "_shown",
        "_signature",
        "delivery",
        "function",
        "is_async",
        "name",
        "timeout",
    )

    def __init__(
        self, name: str, function: Callable[..., Any], timeout: float | None, delivery: DeliveryMode | None
    ) -> None:
        self.name = name
        self.function = function
        self.timeout = timeout
        self.delivery = delivery
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # an object with an async __call__
        )
        signature = inspect.signature(function)
        self._context_parameter, self._context_position = _find_context(name, function, signature)
        parameters = [p for p in signature.parameters.values() if p.name != self._context_parameter]
        self._signature = signature.replace(parameters=parameters)
        self._shown = _without_values(parameters)
        self._required, self._maximum = _positional_bounds(parameters)

    @property
    def wants_context(self) -> bool:
        """Whether the function has a parameter for its `Context`."""
        return self._context_parameter is not None

    def bind(self, arguments: Any, context: Callable[[], Context] | None) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments to call the function with; *context* makes what it may want.

        Raises:
            InvalidArguments: *arguments* do not fit the signature, or are no arguments.
        """
        if (
            type(arguments) is not list
            or len(arguments) != 2
            or type(arguments[0]) is not list
            or type(arguments[1]) is not dict
        ):
            raise InvalidArguments("the body is not a list of positional and a map of keyword arguments")
        positional: list[Any] = arguments[0]
        named: dict[str, Any] = arguments[1]
        if named or not self._required <= len(positional) <= self._maximum:
            try:
                self._signature.bind(*positional, **named)
            except TypeError as error:
                raise InvalidArguments(f"{self.name}{self._shown}: {error}") from None
        if self._context_parameter is not None and context is not None:
            if self._context_parameter in named:
                raise InvalidArguments(f"{self.name}: {self._context_parameter} is not the caller's to give")
            if self._context_position is None or self._context_position > len(positional):
                named[self._context_parameter] = context()
            else:
                positional.insert(self._context_position, context())
        return positional, named


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
    ) -> None:
        self.name = check_service(name)
        self.methods: dict[str, Method] = {}
        self._timeout = check_timeout(timeout)
        self._delivery = check_delivery(delivery)
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
            self.queue_arguments["x-overflow"] = overflow
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
    ) -> Callable[[F], F]: ...

    def method(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        delivery: DeliveryMode | None = None,
    ) -> F | Callable[[F], F]:
        """Offer a function as a method; it stays callable as it was.

        An `async def` runs in the worker's event loop, a plain `def` in a thread.

        Args:
            function: the function, where the decorator has no options.
            name: what callers call it; the function's own name by default.
            timeout: seconds a run may take, within the caller's deadline; the service's by default.
            delivery: "at_least_once" or "at_most_once"; the service's, then the worker's by default.

        Raises:
            ValueError: the name is taken or malformed, or an option is out of range.
        """
        if function is None:

            def register(decorated: F) -> F:
                self._register(decorated, name, timeout, delivery)
                return decorated

            return register
        self._register(function, name, timeout, delivery)
        return function

    def _register(
        self,
        function: Callable[..., Any],
        name: str | None,
        timeout: float | None,
        delivery: DeliveryMode | None,
    ) -> None:
        if not callable(function):
            raise ValueError(f"{function!r:.100} is not a function")
        name = check_method(getattr(function, "__name__", "") if name is None else name)
        if name in self.methods:
            raise ValueError(f"service {self.name!r} has a method {name!r} already")
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        self.methods[name] = Method(name, function, timeout, check_delivery(delivery) or self._delivery)


def check_delivery(delivery: DeliveryMode | None) -> DeliveryMode | None:
    """Return *delivery* as it was given, or raise `ValueError`; None leaves it to somebody else."""
    if delivery is not None and delivery not in get_args(DeliveryMode):
        raise ValueError(f"delivery: {delivery!r} is none of {', '.join(get_args(DeliveryMode))}")
    return delivery


_CONTEXT_ANNOTATIONS: Final = (Context, Context | None, "Context", "Context | None")


def _find_context(
    name: str, function: Callable[..., Any], signature: inspect.Signature
) -> tuple[str | None, int | None]:
    """Return name and position of the parameter annotated `Context`; the position is None where it has none."""
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations that cannot be resolved here, such as names imported for type checkers only
        hints = {key: value.annotation for key, value in signature.parameters.items()}
    found = [
        (position, parameter)
        for position, parameter in enumerate(signature.parameters.values())
        if hints.get(parameter.name) in _CONTEXT_ANNOTATIONS
    ]
    if not found:
        return None, None
    if len(found) > 1:
        raise ValueError(f"method {name!r} has more than one parameter annotated Context")
    position, parameter = found[0]
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise ValueError(f"method {name!r}: the parameter annotated Context collects others")
    before = list(signature.parameters.values())[:position]
    if parameter.kind is parameter.POSITIONAL_ONLY and any(p.default is not p.empty for p in before):
        raise ValueError(f"method {name!r}: the parameter annotated Context is positional-only behind a default")
    return parameter.name, None if parameter.kind is parameter.KEYWORD_ONLY else position


class _Elided:
    def __repr__(self) -> str:
        return "..."


def _without_values(parameters: list[inspect.Parameter]) -> inspect.Signature:
    """Return a signature to show to callers: neither annotations nor the values of defaults are their business."""
    return inspect.Signature(
        [
            parameter.replace(
                annotation=parameter.empty,
                default=parameter.default if parameter.default is parameter.empty else _Elided(),
            )
            for parameter in parameters
        ]
    )


def _positional_bounds(parameters: list[inspect.Parameter]) -> tuple[int, float]:
    """Return how many positional arguments alone satisfy the signature: at least, and at most.

    Within them a call without keywords needs no `Signature.bind`, which costs more than the rest of a small call.
    """
    least, most = 0, 0.0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                return 1, 0  # positional arguments alone never do
        elif parameter.kind is not parameter.VAR_KEYWORD:
            most += 1
            if parameter.default is parameter.empty:
                least += 1
    return least, most
