"""Waitlist: calls that wait, in the order they came, until there is room for one more."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from ..errors import ConnectionLost, Overloaded
from ..protocol.calls import Call

__all__ = ["Waitlist"]


class _Waiter:
    __slots__ = ("future", "limit", "owner")

    def __init__(self, owner: object, limit: int, future: asyncio.Future[None]) -> None:
        self.owner = owner
        self.limit = limit
        self.future = future


class Waitlist:
    """Callers that wait until fewer than their limit of calls are *pending*.

    A caller that was let in is counted in *admitted* until it goes on, in a later iteration of the loop; so nobody who
    comes meanwhile takes its place. Its length is bounded by the tasks of the program: a caller is in it once.
    """

    def __init__(self, pending: Mapping[str, Call]) -> None:
        self._pending = pending
        self.admitted = 0
        self._granted = False
        self.waiters: dict[_Waiter, None] = {}
        self._turns: dict[int, OrderedDict[_Waiter, None]] = {}  # by limit, never empty

    def __len__(self) -> int:
        return len(self.waiters)

    async def enter(self, owner: object, limit: int, until: float | None) -> None:
        """Return when there is room. The caller has to register its call before it next awaits.

        Raises:
            Overloaded: there was none by *until*, on the clock of the event loop.
            ConnectionLost: `close` was called for *owner*.
        """
        if limit not in self._turns and len(self._pending) + self.admitted < limit:
            self._granted = True
            return
        waiter = _Waiter(owner, limit, asyncio.get_running_loop().create_future())
        self.waiters[waiter] = self._turns.setdefault(limit, OrderedDict())[waiter] = None
        try:
            async with asyncio.timeout_at(until):
                await waiter.future
        except TimeoutError:
            self._leave(waiter)
            text = f"there was no room in time: {len(self._pending)} calls are pending, max_pending is {limit}"
            raise Overloaded(text) from None
        except BaseException:
            self._leave(waiter)
            raise
        self.admitted -= 1
        self._granted = True

    def take_grant(self) -> bool:
        """Tell whether the call that is registered now is the one that `enter` has just returned to."""
        granted, self._granted = self._granted, False
        return granted

    def admit(self) -> None:
        """Let in who has room by now, those of one limit in turn; who has none does not hold up another's."""
        self._granted = False  # to a call that has failed before it was registered
        for limit, turn in list(self._turns.items()):
            while turn and len(self._pending) + self.admitted < limit:
                waiter, _ = turn.popitem(last=False)
                del self.waiters[waiter]
                if not waiter.future.done():
                    self.admitted += 1
                    waiter.future.set_result(None)
            if not turn:
                del self._turns[limit]

    def close(self, owner: object) -> None:
        """Send away who waits for *owner*: it closes."""
        for waiter in list(self.waiters):
            if waiter.owner is owner and not waiter.future.done():
                waiter.future.set_exception(ConnectionLost("the client was closed"))

    def _leave(self, waiter: _Waiter) -> None:
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self.admitted -= 1
        else:
            self.waiters.pop(waiter, None)
            turn = self._turns.get(waiter.limit)
            if turn is not None:
                turn.pop(waiter, None)
        self.admit()
