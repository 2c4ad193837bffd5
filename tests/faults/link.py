"""The link of one side to its broker, broken by a proxy before a real one, and by the hooks of one in memory."""

from __future__ import annotations

from typing import Literal, Protocol

from aiorpcq.transports.memory import BrokerLink, MemoryBroker
from tests.proxy import Proxy

__all__ = ["BreakableLink", "MemoryLinks", "ProxiedLink", "Side"]

Side = Literal["client", "worker"]


class BreakableLink(Protocol):
    """Whoever is given `url` is connected by it."""

    url: str

    async def silence(self) -> None:
        """Let nothing through any more, in either direction, without ending anything."""

    async def silence_sending(self) -> None:
        """Let nothing through to the broker."""

    async def silence_receiving(self) -> None:
        """Let nothing through from the broker; of one in memory, that is the confirm of the next request."""

    async def reset(self) -> None:
        """Break the connection, with what was held, and let the next one stand."""


class ProxiedLink:
    """See `BreakableLink`."""

    def __init__(self, proxy: Proxy, url: str) -> None:
        self.url = proxy.url(url)
        self._proxy = proxy

    async def silence(self) -> None:
        self._proxy.blackhole()

    async def silence_sending(self) -> None:
        self._proxy.to_broker.blackhole()

    async def silence_receiving(self) -> None:
        self._proxy.to_client.blackhole()

    async def reset(self) -> None:
        assert self._proxy.reset() == 1
        self._proxy.heal()  # what it held goes to sockets that are closed
        await self._proxy.wait_connections(self._proxy.accepted + 1)


class MemoryLinks:
    """See `BreakableLink`; the links of every client, or every worker, of a broker in memory."""

    def __init__(self, broker: MemoryBroker, url: str, side: Side) -> None:
        self.url = url
        self._broker = broker
        self._side = side
        self._drops_itself = False

    async def silence(self) -> None:
        assert self._broker.freeze_links(self._is_ours)

    async def silence_sending(self) -> None:
        await self.silence()

    async def silence_receiving(self) -> None:
        self._broker.lose_confirms(lambda publication: publication.exchange == "rpc")
        self._drops_itself = True

    async def reset(self) -> None:
        if self._drops_itself:
            self._drops_itself = False
        else:
            assert self._broker.drop_links(self._is_ours)

    def _is_ours(self, link: BrokerLink) -> bool:
        return link.name.startswith(f"aiorpcq {self._side}")
