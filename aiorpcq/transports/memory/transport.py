"""The transport of `memory://` URLs, and the brokers that they name."""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from collections.abc import Callable
from urllib.parse import urlsplit

from ...limits import DEFAULT_MAX_SIZE
from .broker import MemoryBroker
from .link import MemoryLink

__all__ = ["MemoryTransport", "memory_broker"]

_brokers: weakref.WeakValueDictionary[str, MemoryBroker] = weakref.WeakValueDictionary()
_lock = threading.Lock()
_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")


def memory_broker(name: str = "default", *, now: Callable[[], float] | None = None) -> MemoryBroker:
    """Return the broker of that name, made when first asked for.

    Transports and links hold their broker; once nobody does it is forgotten, with all that it held. *now* is the clock
    of a broker that this call makes.

    Raises:
        ValueError: *now* is given, and the broker exists already.
    """
    with _lock:
        broker = _brokers.get(name)
        if broker is None:
            broker = _brokers[name] = MemoryBroker(name, now)
        elif now is not None:
            raise ValueError(f"broker {name!r} exists already, with a clock of its own")
        return broker


class MemoryTransport:
    """Makes links to a broker in the process: `memory://` is the one named "default", `memory://name` another.

    *name* is what the names of its links begin with, the URL where there is none. It holds its broker, so everything
    that is made for one URL before the first of them is gone meets on one broker.

    Raises:
        ValueError: the URL is not one of those.
    """

    def __init__(self, url: str, *, max_size: int = DEFAULT_MAX_SIZE, name: str = "") -> None:
        parts = urlsplit(url)
        broker = parts.netloc.rpartition("@")[2] or "default"
        if parts.scheme != "memory" or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{parts.scheme}://{broker}{parts.path} is not of the form memory://name")
        if not _NAME.match(broker):
            raise ValueError(f"broker name {broker!r} does not match [A-Za-z0-9_.-]+")
        self.address = f"memory://{broker}"
        self.broker = memory_broker(broker)
        self._max_size = max_size
        self._name = name or self.address

    def __repr__(self) -> str:
        return f"<MemoryTransport {self.address}>"

    async def connect(self, timeout: float) -> MemoryLink:
        """Open a link; it takes one iteration of the loop, whatever *timeout* says.

        Raises:
            ConnectFailed: the broker refuses, or is in use by another event loop.
        """
        await asyncio.sleep(0)
        return MemoryLink(self.broker, f"{self._name}#{next(self.broker.link_numbers)}", self._max_size)
