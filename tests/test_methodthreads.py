"""The threads of plain methods, where a run ends before its thread begins."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq.methodthreads import MethodThreads


async def test_a_run_that_is_withdrawn_as_it_asks_for_a_thread_leaves_its_place_free() -> None:
    """anyio before 4.16 kept the place, so that every plain method of the worker waited for ever in the end."""
    threads = MethodThreads(1, asyncio.get_running_loop())
    withdrawn = asyncio.ensure_future(threads.run("a", pytest.fail, [], {}, pytest.fail))
    await asyncio.sleep(0)
    assert threads.withdraw("a")
    withdrawn.cancel()
    await asyncio.gather(withdrawn, return_exceptions=True)
    assert threads.running == 0
    value, error = await asyncio.wait_for(threads.run("b", lambda: "ran", [], {}, lambda: None), 10)
    assert (value, error) == ("ran", None)
