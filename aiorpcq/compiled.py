"""Whether this installation runs the modules on the path of every message compiled, or as Python."""

from __future__ import annotations

from typing import Final

from .protocol import wire

__all__ = ["COMPILED"]

COMPILED: Final = not wire.__file__.endswith(".py")
"""They are compiled together or not at all; the list is in `hatch_build.py`."""
