"""`mypyc_attr`: what a class of a compiled module has to say to be a base of classes in Python."""

from __future__ import annotations

from collections.abc import Callable

try:
    from mypy_extensions import mypyc_attr
except ImportError:  # it is read where the modules are compiled, and does nothing where they run

    def mypyc_attr(*_: str, **__: str | bool | None) -> Callable[[type], type]:  # type: ignore[misc]  # the same use
        """Return a decorator that returns its class."""
        return lambda cls: cls


__all__ = ["mypyc_attr"]
