"""Who takes part in a contract test besides the client and the worker under test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

from aiorpcq import Client, Codecs, Context, Service, TopologyMismatch, Worker
from aiorpcq.protocol.messages import Outcome, Properties, Publication, Request, StateMessage
from aiorpcq.protocol.topology import Names, Queue
from aiorpcq.protocol.wire import encode_request, encode_state
from aiorpcq.task import StateStream
from aiorpcq.transports.base import Delivery, Link
from aiorpcq.transports.registry import make_transport

__all__ = [
    "Bystander",
    "BystanderFactory",
    "ClientFactory",
    "Gate",
    "Overview",
    "ReplyQueue",
    "WorkerFactory",
    "body_of",
    "calculator",
    "eventually",
    "leaving",
    "request_for",
]

PATIENCE = 10.0
"""Seconds that a test waits for what must come; nothing is timed by it."""

_MAX_SIZE = 64 * 1024 * 1024
_codecs = Codecs()


class ClientFactory(Protocol):
    async def __call__(self, **options: Any) -> Client: ...


class WorkerFactory(Protocol):
    async def __call__(self, *services: Service, **options: Any) -> Worker: ...


class BystanderFactory(Protocol):
    async def __call__(self) -> Bystander: ...


class Gate:
    """A method's two moments: it has begun, and it may end."""

    def __init__(self) -> None:
        self._entered = asyncio.Semaphore(0)
        self._open = asyncio.Event()

    async def entered(self, times: int = 1) -> None:
        """Wait until *times* more runs have come to `wait`."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(times):
                await self._entered.acquire()

    async def wait(self) -> None:
        """Say that a run is here, and wait for `open`."""
        self._entered.release()
        await self._open.wait()

    def open(self) -> None:
        """Let all go on, now and later."""
        self._open.set()


class Overview:
    """What the broker itself says, whichever it is: how many are connected, and how many consume from a queue."""

    def __init__(self, connections: Callable[[], int], consumers: Callable[[str], int]) -> None:
        self.connections = connections
        self.consumers = consumers


class ReplyQueue:
    """A reply queue that the test reads itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbox: asyncio.Queue[Delivery] = asyncio.Queue()

    async def next(self) -> Delivery:
        async with asyncio.timeout(PATIENCE):
            return await self.inbox.get()

    async def until_terminal(self) -> list[tuple[str, Any]]:
        """Return name and value of what comes, up to the first terminal state."""
        states: list[tuple[str, Any]] = []
        while not states or states[-1][0] not in ("SUCCESS", "FAILURE", "REVOKED"):
            delivery = await self.next()
            states.append((delivery.properties.type or "", body_of(delivery)))
        return states


class Bystander:
    """A link of the test's own: reads messages as they travel, and sends what no client or worker would."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._names = Names()
        self._whois: ReplyQueue | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Bystander]:
        # The transport holds a broker in the process, as long as it is held itself.
        transport = make_transport(url, max_size=_MAX_SIZE, name="contract test")
        link = await transport.connect(PATIENCE)
        try:
            await link.declare(Names().requests, Names().control)
            yield cls(link)
        finally:
            await link.close()

    async def publish(self, publication: Publication) -> Outcome:
        """Publish, and return what became of it."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        publication.settled = lambda _, settled: outcome.set_result(settled)
        self._link.publish(publication)
        async with asyncio.timeout(PATIENCE):
            return await outcome

    async def reply_queue(self) -> ReplyQueue:
        replies = ReplyQueue(f"contract.replies.{uuid4().hex}")
        await self._link.declare(Queue(replies.name, durable=False, exclusive=True, auto_delete=True))
        await self._link.consume(replies.name, replies.inbox.put_nowait, no_ack=True, exclusive=True)
        return replies

    async def declare(self, service: str, arguments: Mapping[str, Any] | None = None) -> str:
        """Declare and bind the queue of *service*, as a worker would; return its name."""
        queue = self._names.service_queue(service, arguments)
        await self._link.declare(queue, self._names.binding(service))
        return queue.name

    async def serve(self, service: str, on_delivery: Callable[[Delivery], None] | None = None) -> ReplyQueue:
        """Consume what is sent to *service*, and settle nothing but what *on_delivery* does."""
        queue = ReplyQueue(await self.declare(service))
        await self._link.consume(queue.name, on_delivery or queue.inbox.put_nowait)
        return queue

    async def request(
        self, request: Request, *, service: str = "default", headers: Mapping[str, Any] | None = None, **properties: Any
    ) -> Outcome:
        """Send *request*; *headers* are added to its own, *properties* take the place of its own."""
        names = self._names
        publication = encode_request(request, names.requests.name, names.routing_key(service))
        for name, value in properties.items():
            setattr(publication.properties, name, value)
        if headers is not None:
            publication.properties.headers = {**(publication.properties.headers or {}), **headers}
        return await self.publish(publication)

    async def state(
        self, reply_to: str, task_id: str, name: str, value: Any = None, *, sequence: int = 0, attempt: int = 1
    ) -> None:
        """Send a state to *reply_to*."""
        message = StateMessage(task_id, name, *_codecs.encode(value), attempt=attempt, sequence=sequence)
        assert await self.publish(encode_state(message, reply_to)) is Outcome.CONFIRMED

    async def message(self, queue: str, properties: Properties, body: bytes = b"") -> None:
        """Send anything to *queue*."""
        assert await self.publish(Publication("", queue, properties, body)) is Outcome.CONFIRMED

    async def until_gone(self, queue: str) -> None:
        """Wait until there is no queue of that name: RabbitMQ 4.3 takes messages for one that is being deleted."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(TopologyMismatch):  # it is still its owner's
                    if await self._link.inspect(queue) is None:
                        return

    async def reply_queue_of(self, client: Client) -> str:
        """Return the name of the reply queue of *client*."""
        service = "whois"
        if self._whois is None:
            self._whois = await self.serve(service)
        asking = asyncio.ensure_future(client.call(f"{service}.me"))
        asked = await self._whois.next()
        asked.ack()
        assert asked.properties.reply_to is not None
        assert asked.properties.correlation_id is not None
        await self.state(asked.properties.reply_to, asked.properties.correlation_id, "SUCCESS")
        await asking
        return asked.properties.reply_to


def request_for(
    method: str,
    *arguments: Any,
    task_id: str,
    reply_to: str | None,
    **fields: Any,
) -> Request:
    """Return a request as a client would send it, with a body of MessagePack."""
    return Request(task_id, method, *_codecs.encode([list(arguments), {}]), reply_to=reply_to, **fields)


def body_of(delivery: Delivery) -> Any:
    """Return the value that a message carries."""
    properties = delivery.properties
    return _codecs.decode(delivery.body, properties.content_type, properties.content_encoding)


def calculator(name: str = "default") -> Service:
    """A service of small methods that most tests can do with."""
    service = Service(name)

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    @service.method
    async def echo(value: Any = None) -> Any:
        return value

    @service.method
    async def count(ctx: Context, steps: int) -> int:
        for step in range(1, steps + 1):
            await ctx.progress(step)
        return steps

    @service.method
    async def fail(text: str) -> None:
        raise ValueError(text)

    return service


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of; a counter of the other side, for instance."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is none to wait for, see above
            await asyncio.sleep(0.001)


def leaving(states: StateStream) -> contextlib.aclosing[StateStream]:
    """Close a stream at the end of the block, however it is left."""
    return contextlib.aclosing(states)
