"""What tests of your own services need: the broker behind a `memory://` URL, and the faults it makes on demand.

A `Client` and a `Worker` with the same `memory://name` meet on one broker in the process, which is fast, needs nothing
outside, and can be broken at will:

    from aiorpcq import Client, Service, Worker
    from aiorpcq.testing import memory_broker

    async def test_a_call_survives_a_dropped_connection(service: Service) -> None:
        broker = memory_broker("orders")
        async with Worker("memory://orders", [service]), Client("memory://orders") as client:
            task = await client.submit("order", 1)
            broker.drop_links()
            assert await task.result() == "ordered"

The faults are methods of `MemoryBroker`. Those that concern links take a predicate of a `BrokerLink`, which tells its
`name`, "aiorpcq client#1" say, and the `queues` it consumes from, so that a test can break a worker's link and leave
its callers' alone: `broker.drop_links(lambda link: link.name.startswith("aiorpcq worker"))`.

- `drop_links`: connections break; `refuse_connections`, `accept_connections`: new ones fail for a while.
- `freeze_links`: connections go silent without breaking, until they are dropped.
- `close_channels`: the broker closes channels on connections that stand, as after an error or a consumer timeout.
- `lose_confirms`: a connection breaks after a message has arrived and before its publisher knows.
- `delete_queue`, `cancel_consumers`: a queue is deleted or moves away behind its consumers.
- `drop_messages`: a queue loses what was not persistent; `restart`: the broker loses all that a restart costs.
- `block`, `unblock`: the broker's memory alarm.
- `queue_depth`, `statistics`: what there is to see from outside.

A broker lives as long as somebody holds it, a worker or a client say: keep what `memory_broker` returns for the time of
the test. Its clock can be given (`memory_broker(name, now=...)`) and moved by hand: `expire` after each move.
"""

from __future__ import annotations

from .transports.memory import BrokerLink, BrokerStatistics, MemoryBroker, QueueStatistics, memory_broker

__all__ = ["BrokerLink", "BrokerStatistics", "MemoryBroker", "QueueStatistics", "memory_broker"]
