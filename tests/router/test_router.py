"""The router where what its clients left behind comes after its end."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from uuid import uuid4

import pytest

from aiorpcq import Client, Codecs
from aiorpcq.protocol.calls import Call
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.wire import encode_state


@pytest.mark.parametrize("closes", [True, False])
def test_a_stream_that_outlives_its_client_or_event_loop_is_dropped_in_silence(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Its states are parked then, and no timer can be set for them."""
    gc.collect()  # what others have left
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    kept: list[object] = []

    async def read() -> None:
        url = f"memory://{uuid4().hex}"
        first, second = Client(url, timeout=None), Client(url, timeout=None)
        for client in (first, second):
            await client.open()
            states = client.stream("t")
            reading = asyncio.ensure_future(anext(states))
            kept.extend((client, states, reading))
        await asyncio.sleep(0)
        router = first._session.router()
        assert router.link is not None
        router.link.publish(encode_state(StateMessage("t", "PROGRESS", *Codecs().encode(1)), router.reply_to))
        await asyncio.gather(*(kept[2::3]))  # type: ignore[call-overload]
        if closes:
            await second.aclose()
            await first.aclose()
            assert len(router.table.pending) == 1

    asyncio.run(read())
    kept.clear()
    gc.collect()
    assert raised == []


async def test_a_stream_that_another_thread_drops_is_left_in_the_loops_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs in whichever thread comes to it."""
    left: asyncio.Queue[int] = asyncio.Queue()
    async with Client(f"memory://{uuid4().hex}", timeout=None) as client:
        router = client._session.router()

        def leave(call: Call) -> None:
            left.put_nowait(threading.get_ident())

        monkeypatch.setattr(router, "leave", leave)
        states = client.stream("t")
        reading = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        kept = [states]
        del states, reading
        thread = threading.Thread(target=kept.clear)
        thread.start()
        thread.join()
        assert left.empty()
        assert await asyncio.wait_for(left.get(), 10) == threading.get_ident()
