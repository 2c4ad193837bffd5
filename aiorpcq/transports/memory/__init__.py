"""A broker in the process, for programs and tests that need none outside.

It has RabbitMQ's semantics as far as RPC relies on them (3.10, checked against the broker): routing, confirms and
returns, prefetch, redelivery, expiry, length limits, priorities, dead-lettering.
"""

from .base import BrokerLink
from .broker import MemoryBroker
from .link import MemoryLink, MemorySubscription
from .queue import MemoryDelivery
from .statistics import BrokerStatistics, QueueStatistics
from .transport import MemoryTransport, memory_broker

__all__ = [
    "BrokerLink",
    "BrokerStatistics",
    "MemoryBroker",
    "MemoryDelivery",
    "MemoryLink",
    "MemorySubscription",
    "MemoryTransport",
    "QueueStatistics",
    "memory_broker",
]
