"""Exceptions as plain values, and back.

A FAILURE state's value is a mapping. `error` names the class of this library that the caller raises, `message` and
`maybe_executed` go with it. It is "RemoteError" where the method raised; then the rest is `type`, `module`, `message`,
`args`, `traceback`, `notes` and `cause`, a mapping like it. Nothing is imported or looked up by name on the way back
but what the caller has registered.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..deadline import MAXIMUM_TIMEOUT
from ..errors import (
    CodecError,
    ContentDisallowed,
    DeadlineExceeded,
    InvalidArguments,
    MethodNotFound,
    Overloaded,
    PayloadTooLarge,
    Poisoned,
    Rejected,
    RemoteError,
    RPCError,
    TaskRevoked,
    UnsupportedVersion,
    WorkerLost,
)

__all__ = ["ExceptionRegistry", "describe_error", "describe_exception", "rebuild_error", "text_of"]

_TEXT_LIMIT: Final = 16_384
_TRACEBACK_LIMIT: Final = 65_536
_CAUSE_DEPTH_LIMIT: Final = 8
_NOTES_LIMIT: Final = 32
_ARGUMENTS_LIMIT: Final = 32

_LOCAL_ERRORS: Final = {
    cls.__name__: cls
    for cls in (
        CodecError,
        ContentDisallowed,
        DeadlineExceeded,
        InvalidArguments,
        MethodNotFound,
        Overloaded,
        PayloadTooLarge,
        Poisoned,
        Rejected,
        TaskRevoked,
        UnsupportedVersion,
        WorkerLost,
    )
}


class ExceptionRegistry:
    """The exception classes a caller wants to catch as themselves, by module and qualified name."""

    __slots__ = ("_classes",)

    def __init__(self, classes: Iterable[type[Exception]] = ()) -> None:
        self._classes: dict[tuple[str, str], type[RemoteError]] = {}
        for cls in classes:
            self.register(cls)

    def register(self, cls: type[Exception]) -> None:
        """Let a remote exception of *cls* be raised as an instance of both `RemoteError` and *cls*.

        The constructor of *cls* is never called; `args` is what the remote exception had.
        """
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise ValueError(f"errors: {cls!r} is not an exception class")
        try:
            combined = type(cls.__name__, (RemoteError, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
            cls.__new__(combined)  # fails here and not at the first error, where it wants arguments
        except Exception as error:
            raise ValueError(f"{cls.__qualname__} cannot be combined with RemoteError: {error}") from error
        self._classes[cls.__module__, cls.__qualname__] = combined

    def find(self, module: str, name: str) -> type[RemoteError]:
        """Return the class to raise for a remote exception."""
        return self._classes.get((module, name), RemoteError)


def text_of(exception: BaseException) -> str:
    """Return what *exception* says, or its class where it cannot say; at most 16 KiB of encodable text."""
    return _safe(str, exception) or type(exception).__qualname__


def describe_error(error: RPCError) -> dict[str, Any]:
    """Return the value of a FAILURE state that this library caused."""
    described: dict[str, Any] = {
        "error": type(error).__name__,
        "message": _safe(str, error.message),
        "maybe_executed": error.maybe_executed,
    }
    if isinstance(error, Overloaded) and error.retry_after is not None:
        described["retry_after"] = error.retry_after
    return described


def describe_exception(exception: BaseException, can_encode: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the value of a FAILURE state that the method caused by raising *exception*.

    Arguments that *can_encode* refuses are replaced by their `repr`. Texts are cut at 16 KiB, the traceback at 64 KiB,
    the chain of causes at 8.
    """
    return {"error": RemoteError.__name__, **_describe(exception, can_encode, _CAUSE_DEPTH_LIMIT, set())}


def rebuild_error(value: Any, registry: ExceptionRegistry, task_id: str) -> RPCError:
    """Return the error that the value of a FAILURE state describes; one that makes no sense is a `RemoteError` too."""
    if not isinstance(value, Mapping):
        return RemoteError(_text(value), task_id=task_id)
    name = value.get("error")
    local = _LOCAL_ERRORS.get(name) if isinstance(name, str) else None
    if local is not None:
        maybe_executed = value.get("maybe_executed")
        error = local(
            _text(value.get("message", "")),
            task_id=task_id,
            maybe_executed=maybe_executed if isinstance(maybe_executed, bool) else None,
        )
        retry_after = value.get("retry_after")
        if (
            isinstance(error, Overloaded)
            and isinstance(retry_after, (int, float))
            and not isinstance(retry_after, bool)
            and 0 <= retry_after <= MAXIMUM_TIMEOUT
        ):
            error.retry_after = float(retry_after)
        return error
    return _rebuild(value, registry, task_id, _CAUSE_DEPTH_LIMIT)


def _describe(
    exception: BaseException, can_encode: Callable[[Any], bool], depth: int, seen: set[int]
) -> dict[str, Any]:
    cls = type(exception)
    seen.add(id(exception))
    arguments, notes = _attribute(exception, "args"), _attribute(exception, "__notes__")
    described: dict[str, Any] = {
        "type": cls.__qualname__,
        "module": _safe(str, cls.__module__),
        "message": _safe(str, exception),
        "args": [
            argument if can_encode(argument) else _safe(repr, argument)
            for argument in (arguments[:_ARGUMENTS_LIMIT] if isinstance(arguments, tuple) else ())
        ],
        "traceback": _format(exception, chain=depth == _CAUSE_DEPTH_LIMIT),
    }
    if isinstance(notes, list) and notes:
        described["notes"] = [_safe(str, note) for note in notes[:_NOTES_LIMIT]]
    cause = exception.__cause__  # compared with None: an exception can have a length of 0
    if cause is None and not exception.__suppress_context__:
        cause = exception.__context__
    if cause is not None and depth > 1 and id(cause) not in seen:
        described["cause"] = _describe(cause, can_encode, depth - 1, seen)
    return described


def _format(exception: BaseException, *, chain: bool) -> str:
    try:
        text = "".join(traceback.format_exception(exception, chain=chain))
    except Exception:  # a broken attribute of the method's own classes; the frames do not depend on it
        text = "".join(traceback.format_tb(exception.__traceback__))
    return _encodable(text if len(text) <= _TRACEBACK_LIMIT else "...\n" + text[-_TRACEBACK_LIMIT:])


def _attribute(exception: BaseException, name: str) -> Any:
    try:
        return getattr(exception, name, None)
    except Exception:  # a broken property of the method's own classes
        return None


def _safe(convert: Callable[[Any], str], value: Any) -> str:
    try:
        return _encodable(convert(value)[:_TEXT_LIMIT])
    except Exception:  # a broken __str__ or __repr__ of the method's own classes
        return f"<{type(value).__qualname__}>"


def _encodable(text: str) -> str:
    """Return *text* with lone surrogates escaped: file names have them, and UTF-8 does not."""
    return text.encode("utf-8", "backslashreplace").decode()


def _rebuild(value: Mapping[Any, Any], registry: ExceptionRegistry, task_id: str, depth: int) -> RemoteError:
    name, module = _text(value.get("type", "Exception")), _text(value.get("module", "builtins"))
    cause, arguments, notes = value.get("cause"), value.get("args"), value.get("notes")
    plain = RemoteError(
        _text(value.get("message", "")),
        type=name,
        module=module,
        args=tuple(arguments) if isinstance(arguments, (list, tuple)) else (),
        traceback=_text(value.get("traceback", "")),
        cause=_rebuild(cause, registry, task_id, depth - 1) if isinstance(cause, Mapping) and depth > 1 else None,
        notes=tuple(map(_text, notes)) if isinstance(notes, (list, tuple)) else (),
        task_id=task_id,
    )
    for note in plain.notes[:_NOTES_LIMIT]:
        plain.add_note(note)
    cls = registry.find(module, name)
    if cls is RemoteError:
        return plain
    try:
        return _recast(plain, cls)
    except Exception:  # what a registered class does is its own affair, the error arrives all the same
        return plain


def _recast(plain: RemoteError, cls: type[RemoteError]) -> RemoteError:
    """Return *plain* as an instance of *cls*, past the constructors and `__setattr__` of the registered class."""
    error = cls.__new__(cls)
    BaseException.__init__(error, *plain.args)
    error.__dict__.update(plain.__dict__)
    error.__cause__ = plain.__cause__
    return error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _safe(repr, value)
