"""DeadLetters: the requests of a service that were given up on, to be looked at, replayed or discarded.

Each operation reads the queue on a connection of its own, as its only reader, and settles nothing but the letter it is
about. When the connection closes the broker puts the others back where they were. So nothing is lost whatever becomes
of the reader, and letters need not be held here while the queue is searched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final

from .codec import Codecs
from .deadline import check_timeout
from .errors import (
    CodecError,
    ConnectFailed,
    ConnectionLost,
    Overloaded,
    PayloadTooLarge,
    UnknownTask,
    Unroutable,
    UsageError,
)
from .limits import DEFAULT_MAX_SIZE, check_integer, check_kind, check_max_size
from .protocol.deadletters import DeadLetter, exhume, read
from .protocol.messages import Outcome, Publication
from .protocol.topology import DEFAULT_SERVICE, Names
from .protocol.wire import MalformedMessage
from .transports.base import Delivery, Link
from .transports.registry import make_transports

__all__ = ["DeadLetter", "DeadLetters"]

logger = logging.getLogger("aiorpcq.client")

_MOST_LETTERS: Final = 10_000
"""Letters that are listed at the most; the queue keeps no more."""

_METADATA_SIZE: Final = 16 * 1024 * 1024
"""Characters of metadata that a list holds at the most, as they are written."""

_POLL: Final = 0.02
"""Seconds between two questions to the broker whether another reader is done."""

_QUIET: Final = 0.5
"""Seconds without a letter after which the broker is asked whether there are more."""

_IN_USE: Final = "in exclusive use"
"""What RabbitMQ says where it refuses another reader; it refuses who lacks the permission with the same code."""


class DeadLetters:
    """The dead letters of *service*.

    *url* is the broker's, or several of them to be tried in turn. *timeout* bounds, in seconds, the opening of a
    connection, the wait for another reader to be done, and the wait for a confirm. Letters whose body is larger than
    *max_size* bytes are listed and cannot be replayed; it is to be what the workers have.

    Raises:
        ValueError: an option is out of its range; the text names it.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        service: str = DEFAULT_SERVICE,
        *,
        prefix: str = "rpc",
        codecs: Codecs | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        timeout: float = 10.0,
    ) -> None:
        size = check_max_size(max_size)
        check_kind(codecs, "codecs", Codecs)
        self._transports = make_transports(url, max_size=size, name="aiorpcq dead letters")
        self._names = Names(prefix)
        self._service = service
        self._queue = self._names.dead_queue(service).name
        self._routing_key = self._names.routing_key(service)
        self._codecs = Codecs(max_size=size) if codecs is None else codecs
        if not check_timeout(timeout):
            raise ValueError(f"timeout: {timeout!r} is not a number of seconds above 0")
        self._timeout = timeout
        self._one_at_a_time = asyncio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._service!r} at {self._transports[0].address}>"

    async def __aenter__(self) -> DeadLetters:
        """Connect once, so that a wrong address is told at the beginning.

        Raises:
            ConnectFailed: no address can be reached.
        """
        await (await self._connect()).close()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False

    async def count(self) -> int:
        """Return how many dead letters there are; those that somebody else is reading are not counted.

        Raises:
            ConnectFailed, ConnectionLost: the broker cannot be asked.
        """
        async with self._linked() as link:
            status = await link.inspect(self._queue)
        return 0 if status is None else status.messages

    async def list(self, limit: int = 100) -> list[DeadLetter]:
        """Return the oldest *limit* dead letters, at most 10,000, the oldest first; they stay where they are.

        There are fewer where their metadata have more than 16 MiB together. What is in the queue and is no dead letter
        is logged and left out.

        Raises:
            ConnectFailed: the queue cannot be read, or somebody else reads it for longer than the timeout.
            ConnectionLost: the connection was lost meanwhile.
        """
        check_integer(limit, "limit", 1, _MOST_LETTERS)
        letters: list[DeadLetter] = []
        size = seen = 0

        def visit(delivery: Delivery) -> bool:
            nonlocal size, seen
            seen += 1
            letter = self._read(delivery)
            if letter is not None:
                size += 0 if letter.metadata is None else len(repr(letter.metadata))
                if size > _METADATA_SIZE:
                    return True
                letters.append(letter)
            return seen >= limit

        async with self._reading(visit, prefetch=limit):
            return letters

    async def get(self, letter_id: str) -> DeadLetter:
        """Return one dead letter, which stays where it is.

        Raises:
            UnknownTask: there is no letter of that id.
            ConnectFailed, ConnectionLost: as `list`.
        """
        async with self._finding(letter_id) as (_, _, letter):
            return letter

    async def arguments(self, letter_id: str) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments of a dead letter, which stays where it is.

        Raises:
            CodecError, ContentDisallowed: they cannot be decoded, which may be what the request died of.
            PayloadTooLarge: they are larger than a limit of these letters or of their codecs.
            UnknownTask: there is no letter of that id.
            ConnectFailed, ConnectionLost: as `list`.
        """
        async with self._finding(letter_id) as (_, delivery, _):
            self._check_size(delivery)
            properties, body = delivery.properties, delivery.body
        value = self._codecs.decode(body, properties.content_type, properties.content_encoding)
        match value:
            case [list(positional), dict(named)]:
                return positional, named
        raise CodecError("the body is not a list of positional and a map of keyword arguments")

    async def replay(self, letter_id: str, *, timeout: float | None = None) -> None:
        """Send a dead letter to its service again, as the request it was, and remove it once the broker has that.

        It starts from its first attempt and is answered to the queue it came from. It has no deadline, or one in
        *timeout* seconds. Where the connection is lost in between the letter stays; replaying it again is safe, since
        workers that remember the first replay do not run it twice.

        Raises:
            UnknownTask: there is no letter of that id: it may have been replayed already.
            Unroutable: no queue is bound for the service; the letter stays.
            Overloaded: the queue of the service is full; the letter stays.
            PayloadTooLarge: it is larger than the limit max_size; it stays.
            ConnectFailed, ConnectionLost: as `list`.
        """
        seconds = check_timeout(timeout)
        if seconds == 0:
            raise ValueError("timeout: 0 would have the request expire at once")
        async with self._finding(letter_id) as (link, delivery, _):
            self._check_size(delivery)
            publication = exhume(
                delivery.properties,
                delivery.body,
                self._names.requests.name,
                self._routing_key,
                deadline=None if seconds is None else time.time() + seconds,
                expiration=seconds,
            )
            await self._publish(link, publication)
            try:
                await self._remove(link, delivery)
            except ConnectionLost as error:
                error.maybe_executed = True
                raise

    async def discard(self, letter_id: str) -> None:
        """Remove a dead letter for good.

        Raises:
            UnknownTask: there is no letter of that id.
            ConnectFailed, ConnectionLost: as `list`.
        """
        async with self._finding(letter_id) as (link, delivery, _):
            await self._remove(link, delivery)

    @asynccontextmanager
    async def _finding(self, letter_id: str) -> AsyncIterator[tuple[Link, Delivery, DeadLetter]]:
        """Find a letter; nobody else reads the queue until the end of the block."""
        found: list[tuple[Delivery, DeadLetter]] = []

        def visit(delivery: Delivery) -> bool:
            letter = self._read(delivery)
            if letter is None or letter.id != letter_id:
                return False
            found.append((delivery, letter))
            return True

        async with self._reading(visit) as link:
            if not found:
                raise UnknownTask(
                    f"service {self._service!r} has no dead letter {letter_id!r:.100}: "
                    "it was replayed or discarded, has expired, or never was"
                )
            yield link, *found[0]

    @asynccontextmanager
    async def _reading(self, visit: Callable[[Delivery], bool], prefetch: int = 0) -> AsyncIterator[Link]:
        """Show the letters to *visit*, the oldest first, until it returns True or there are no more.

        Nobody else reads the queue until the end of the block. The link closes there, which gives back what was read.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._timeout
        async with self._one_at_a_time:
            while True:
                async with self._linked() as link:
                    waiting = await self._wait_free(link, give_up)
                    if waiting:
                        reading = _Reading(visit, min(waiting, prefetch or waiting))
                        try:
                            await link.consume(self._queue, reading.on_delivery, prefetch=prefetch, exclusive=True)
                        except ConnectFailed as error:
                            if _IN_USE in error.message and loop.time() < give_up:
                                continue  # another reader was faster
                            raise
                        await reading.wait(link, self._queue)
                    yield link
                    return

    async def _wait_free(self, link: Link, give_up: float) -> int:
        """Wait until nobody reads the queue; return how many letters it has then.

        A reader leaves and gives back in one step, so the number has all of them.
        """
        while True:
            status = await link.inspect(self._queue)
            if status is None:
                return 0
            if not status.consumers:
                return status.messages
            if asyncio.get_running_loop().time() >= give_up:
                raise ConnectFailed(f"queue {self._queue!r} is read by somebody else ({status.consumers} consumers)")
            await asyncio.sleep(_POLL)

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[Link]:
        if not self._open:
            raise UsageError("the dead letters are not open: use `async with`")
        link = await self._connect()
        try:
            yield link
        finally:
            await link.close()

    async def _connect(self) -> Link:
        failures: list[ConnectFailed] = []
        for transport in self._transports:
            try:
                return await transport.connect(self._timeout)
            except ConnectFailed as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise ConnectFailed("; ".join(map(str, failures))) from failures[-1]

    async def _publish(self, link: Link, publication: Publication) -> None:
        """Publish, and raise unless the broker has it."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def settled(_: Publication, told: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(told)

        publication.settled = settled
        task_id, sent = publication.properties.correlation_id, False
        try:
            async with asyncio.timeout(self._timeout):
                await link.wait_writable()
                link.publish(publication)
                sent = True
                told = await outcome
        except TimeoutError as error:
            text = f"the broker did not {'confirm' if sent else 'take'} the request within {self._timeout:g} s"
            raise ConnectionLost(text, task_id=task_id, maybe_executed=sent) from error
        if told is Outcome.RETURNED:
            raise Unroutable(f"no queue is bound for service {self._service!r}", task_id=task_id)
        if told is Outcome.REFUSED:
            raise Overloaded(f"the queue of service {self._service!r} is full", task_id=task_id)
        if told is Outcome.LOST:
            text = "the connection was lost before the confirm; the letter is still there and may be replayed again"
            raise ConnectionLost(text, task_id=task_id, maybe_executed=True)

    async def _remove(self, link: Link, delivery: Delivery) -> None:
        """Acknowledge a letter, and raise unless the broker knows."""
        delivery.ack()
        await link.inspect(self._queue)  # an acknowledgement has no answer; this goes the same way behind it

    def _read(self, delivery: Delivery) -> DeadLetter | None:
        try:
            return read(delivery.properties, delivery.body, delivery.oversize or None)
        except MalformedMessage as error:
            logger.warning("queue %s holds what is no dead letter: %s", self._queue, error)
            return None

    def _check_size(self, delivery: Delivery) -> None:
        if delivery.oversize:
            raise PayloadTooLarge(f"the body has {delivery.oversize} bytes, more than the limit max_size")


class _Reading:
    """One pass over the queue: ends when *visit* returns True, or with the letter that is number *expected*."""

    __slots__ = ("_done", "_expected", "_seen", "_visit")

    def __init__(self, visit: Callable[[Delivery], bool], expected: int) -> None:
        self._visit = visit
        self._expected = expected
        self._seen = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_delivery(self, delivery: Delivery) -> None:
        """Show a letter, and forget it: its body is not held, and closing the link gives it back."""
        if self._done.done():
            return
        self._seen += 1
        if self._visit(delivery) or self._seen == self._expected:
            self._done.set_result(None)

    async def wait(self, link: Link, queue: str) -> None:
        """Wait for the end of the pass, which comes early where letters have expired since they were counted.

        Raises:
            ConnectionLost: the link was lost first.
        """
        while not self._done.done():
            seen = self._seen
            await asyncio.wait((self._done, link.lost), timeout=_QUIET, return_when=asyncio.FIRST_COMPLETED)
            if link.lost.done():
                raise link.lost.result()
            if self._seen == seen and not self._done.done():
                status = await link.inspect(queue)
                if status is None or not status.messages:
                    return
