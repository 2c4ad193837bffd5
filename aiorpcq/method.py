"""Method: a function that a service offers, how it is to be run, and how the arguments of a request fit it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_type_hints

from .context import Context
from .deadline import check_timeout
from .errors import InvalidArguments
from .limits import check_integer, check_kind
from .protocol.deliveries import DeliveryMode
from .retry import RetryPolicy

__all__ = ["Method", "MethodOptions", "OnCallerGone", "check_delivery"]

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
        "options",
        "timeout",
        "watches_caller",
    )

    def __init__(self, name: str, function: Callable[..., Any], options: MethodOptions | None = None) -> None:
        self.name = name
        self.function = function
        self.options = options or MethodOptions()
        self.timeout = self.options.timeout
        self.delivery = self.options.delivery
        self.watches_caller = self.options.on_caller_gone == "cancel"
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
