"""The seam between RPC and a broker.

A `Transport` makes links; a `Link` is one connection to the broker from its opening to its loss, which is final: what
comes after is another link (`transports.supervisor`). Whatever a link offers is there on every transport and means the
same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import RPCError
from ..protocol.messages import Properties, Publication
from ..protocol.topology import Binding, Exchange, Queue

__all__ = ["Delivery", "Link", "QueueStatus", "Subscription", "Transport"]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue as the broker tells it: *messages* are those ready in it, not the ones in consumers' hands."""

    messages: int
    consumers: int


class Delivery(Protocol):
    """A message that a subscription brought. Properties and headers are to be read, not changed.

    *oversize* is 0, or the size of a body above the size limit; *body* is empty then. Where the broker closes the
    channel or the link is lost, what is unsettled goes back to its queue, and may come again from there.
    """

    properties: Properties
    body: bytes
    redelivered: bool
    oversize: int

    @property
    def exchange(self) -> str: ...

    @property
    def routing_key(self) -> str: ...

    @property
    def is_void(self) -> bool:
        """Whether its channel was closed, alone or with the link, before it was settled.

        The broker delivers the message again, to whomever, if it still has it.
        """

    @property
    def requeued(self) -> bool:
        """Whether the broker has taken it back unsettled, its channel being closed while the link stands.

        Where the link is lost that cannot be told: a broker that has restarted has nothing transient.
        """

    def ack(self) -> None:
        """Tell the broker to forget the message.

        Nothing happens where it is settled already, or went back to its queue.
        """

    def nack(self, *, requeue: bool) -> None:
        """Give the message back to its queue, or have it dead-lettered. Nothing happens where `ack` does nothing."""


class Subscription(Protocol):
    """A consumer on a queue."""

    async def cancel(self) -> None:
        """Stop it. Once this returns nothing more is delivered; what was delivered can still be settled."""


class Link(Protocol):
    """One connection to the broker.

    `lost` is done, with the reason as its result, as soon as the link is of no more use: closed by either side, or the
    broker took something away that nobody can replace (a consumer without `on_cancelled`). Shield it when awaiting it:
    cancelling the future loses the reason.

    A link outlives the channel that carries its messages. Where the broker closes that (an error of ours, a consumer
    timeout, an administrator), what is unconfirmed ends as LOST, what is unsettled goes back to its queue, and the
    consumers end with `on_cancelled` once another channel stands, and before the link is `writable` again, unless the
    socket or the broker makes it so in that very moment.
    """

    lost: asyncio.Future[RPCError]
    writable: bool
    on_returned: Callable[[str, Properties], None] | None
    """Called in the event loop with routing key and properties of a mandatory publication that was returned and whose
    `settled` is None; None, which it is at first, drops them in silence. To be set by the link's owner."""

    def publish(self, publication: Publication) -> None:
        """Send *publication*; its `settled` is called with the outcome.

        The outcome is LOST on a link that is lost, and while its channel is being replaced.

        Raises:
            PayloadTooLarge: the body is larger than the size limit.
            ValueError: a property does not fit its field; nothing was sent.
        """

    async def wait_writable(self) -> None:
        """Wait until `writable`: there is a channel, its output buffer is below the high-water mark, and the broker has
        not blocked us.

        Returns at once when the link is lost.
        """

    async def declare(self, *entities: Exchange | Queue | Binding) -> None:
        """Declare exchanges, queues and bindings, in order.

        Raises:
            TopologyMismatch: one exists with other properties.
            ConnectFailed: the user may not declare it.
            ConnectionLost: the link was lost meanwhile.
        """

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        no_ack: bool = False,
        exclusive: bool = False,
        on_cancelled: Callable[[RPCError], None] | None = None,
    ) -> Subscription:
        """Consume from *queue*.

        *on_delivery* is called in the event loop, for each message, in delivery order. At most *prefetch* messages are
        unsettled at once; 0 is no bound.

        *on_cancelled* is called once, in the event loop, with the reason, where the broker ends the consumer and the
        link stands: its queue was deleted or moved, it held a message for too long, or its channel was closed. The
        queue may be declared and consumed again at once; one that is auto-delete went with its last consumer. It is
        not called after `Subscription.cancel`, nor where the whole link is lost. Without it, the link is lost instead.

        Raises:
            ConnectFailed: the queue is not there, may not be read, or is another's.
            ConnectionLost: the link was lost meanwhile.
        """

    async def inspect(self, queue: str) -> QueueStatus | None:
        """Ask the broker about *queue*; None where there is no queue of that name.

        Raises:
            TopologyMismatch: it is exclusive to another connection.
            ConnectFailed: the user may not ask about it.
            ConnectionLost: the link was lost meanwhile.
        """

    async def close(self) -> None:
        """Close the link, bounded in time. What is unsettled ends as LOST. Idempotent."""


class Transport(Protocol):
    """Makes links to the broker at one address."""

    address: str
    """The URL without its password."""

    async def connect(self, timeout: float) -> Link:
        """Open a link within *timeout* seconds.

        Raises:
            ConnectFailed: it cannot be opened; the message says why, without the password.
        """
