"""Marks of fault tests."""

from __future__ import annotations

import pytest

__all__ = ["amqp_only", "memory_only"]

amqp_only = pytest.mark.parametrize("url", ["amqp"], indirect=True)
"""A fault that a broker in the process cannot have: it needs a socket, or a process of its own."""

memory_only = pytest.mark.parametrize("url", ["memory"], indirect=True)
"""A fault that is made with a hook of the memory broker; another test has it happen to a real one."""
