"""What some versions of RabbitMQ do with consumers, by what a broker says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["recovers_consumers", "wants_cancel_ok"]


def wants_cancel_ok(properties: Mapping[str, Any]) -> bool:
    """Tell whether the broker keeps a consumer that it has cancelled until that is answered, and does not say so.

    RabbitMQ does from 4.3.0 on, after a consumer timeout, which only quorum queues have there: it gives the consumer
    messages again, once those that it held for too long are settled (seen in 4.3.6). From 4.3.7 on it says so, and
    aiormq answers. Before 4.3.0 it closes the channel of who answers.
    """
    capabilities, version = properties.get("capabilities"), _version(properties)
    if isinstance(capabilities, dict) and capabilities.get("accept_consumer_cancel_ok"):
        return False
    return version is not None and version >= (4, 3)


def recovers_consumers(properties: Mapping[str, Any]) -> bool:
    """Tell whether the broker has consumers go on by themselves with a queue of the name of a deleted one.

    RabbitMQ 3.10 does where the next queue is there before a channel has taken in the deletion, tells that channel's
    client nothing, and then loses what it delivers to it: the client is deaf, and its prefetch of messages is stuck
    (seen in 3.10.8 with two workers, the faster of which had declared the queue again; not in 4.3.6). The consumer
    argument `x-cancel-on-ha-failover` has it tell the client instead, but quorum queues refuse that (406, in 3.10.8).
    """
    version = _version(properties)
    return version is not None and version < (4, 0)


def _version(properties: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the first two numbers of RabbitMQ's version, None for another broker."""
    version = properties.get("version")
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if properties.get("product") != "RabbitMQ" or found is None:
        return None
    return int(found[1]), int(found[2])
