"""The router where what its clients left behind comes after its end."""

from __future__ import annotations

import asyncio
import gc
import sys
from uuid import uuid4

import pytest

from aiorpcq import Client, Codecs
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
