"""Ports of loopback that a node or a proxy has for itself, whether it listens at the moment or not."""

from __future__ import annotations

import random
import socket
from typing import Final

__all__ = ["Ports"]

# Below the ephemeral range of Linux (32768) and macOS (49152), so that no outgoing connection takes the port of a node
# that is stopped and will start again. RabbitMQ's own ports (5672, 15672, 25672) are outside too.
_RANGE: Final = range(26_000, 32_000)


class Ports:
    """*count* TCP ports that nobody listens on and that no other `Ports` has, in this process or another.

    A UDP socket of the same number, which is in no TCP listener's way, holds each until `close`: the time until a node
    listens, and that in which it is stopped, are long enough for a suite beside to choose the same.

    Raises:
        OSError: there are not so many.
    """

    def __init__(self, count: int) -> None:
        self._held: list[socket.socket] = []
        for number in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            if len(self._held) == count:
                break
            self._try(number)
        if len(self._held) < count:
            self.close()
            raise OSError(f"fewer than {count} ports are free from {_RANGE.start} to {_RANGE.stop - 1}")

    @property
    def numbers(self) -> list[int]:
        """The ports."""
        return [holder.getsockname()[1] for holder in self._held]

    def close(self) -> None:
        """Let others have them. Idempotent; `numbers` is empty then."""
        while self._held:
            self._held.pop().close()

    def _try(self, number: int) -> None:
        holder = socket.socket(type=socket.SOCK_DGRAM)
        try:
            holder.bind(("127.0.0.1", number))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", number))
        except OSError:
            holder.close()
        else:
            self._held.append(holder)
