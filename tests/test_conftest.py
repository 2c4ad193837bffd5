"""The check for tasks that a test leaves running."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

_TESTS = """
import asyncio

async def test_leaves_one():
    test_leaves_one.task = asyncio.create_task(asyncio.sleep(60), name="forgotten")

async def test_ends_its_own():
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()

def test_without_a_loop():
    pass
"""


def test_a_test_that_leaves_a_task_fails_with_its_name(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeconftest("from tests.conftest import no_task_left, _task_check")
    pytester.makepyfile(_TESTS)
    result = pytester.runpytest_subprocess("--asyncio-mode=auto", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*tasks left running*", "*forgotten*"])
