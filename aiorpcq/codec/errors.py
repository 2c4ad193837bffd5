"""What a codec or a limit raises: errors that name types, sizes and limits, never a value."""

from __future__ import annotations

from typing import NoReturn

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from ..errors import CodecError, PayloadTooLarge

__all__ = ["decode_error", "encode_error", "refuse_encoding", "too_large", "type_name"]


def type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"a body of {size} bytes is larger than the limit of {limit}")


def refuse_encoding(error: BaseException) -> NoReturn:
    """Raise what `encode_error` makes, with its cause: compiled callers lose that."""
    raise encode_error(error) from error


def encode_error(error: BaseException) -> CodecError:
    if isinstance(error, UnicodeEncodeError):
        return CodecError("cannot encode a str with lone surrogates")
    if isinstance(error, RecursionError) or "recursion limit" in str(error):  # msgpack's is a ValueError
        return CodecError("cannot encode a value nested too deeply")
    return CodecError(f"cannot encode the value: {type_name(type(error))}")


def decode_error(error: BaseException) -> CodecError:
    if isinstance(error, UnicodeError):
        return CodecError("cannot decode a body with invalid utf-8")
    if isinstance(error, (RecursionError, msgpack.StackError)):
        return CodecError("cannot decode a body nested too deeply")
    if isinstance(error, msgpack.ExtraData):
        return CodecError("cannot decode a body with trailing bytes")
    if isinstance(error, TypeError):
        return CodecError("cannot decode a body with a key that cannot be hashed")
    return CodecError("cannot decode a malformed or truncated body")
