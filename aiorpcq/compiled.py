"""Whether this installation runs the modules on the path of every message compiled, or as Python."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

from .protocol import wire

__all__ = ["COMPILED"]

COMPILED: Final = wire.__file__.endswith(tuple(EXTENSION_SUFFIXES))
"""They are compiled together or not at all; the list is in `hatch_build.py`."""
