"""The fast lane between a fake socket and a fake reader, on a loop that is run and whose time is moved by hand."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from itertools import pairwise
from typing import Any, SupportsIndex, TypeVarTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, header
from pamqp.commands import Basic, Channel, Connection

from aiorpcq.errors import PayloadTooLarge, RPCError
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.transports.amqp.consumer import Consumer
from aiorpcq.transports.amqp.frames import HEARTBEAT
from aiorpcq.transports.amqp.lane import Lane
from aiorpcq.transports.amqp.properties import PropertyError
from aiorpcq.transports.amqp.stream import LaneProtocol
from aiorpcq.transports.base import Delivery

from . import UNHURRIED, Frame, content, framed, marshal, read_frames

CONFIRMED, RETURNED, REFUSED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REFUSED, Outcome.LOST

FRAME_MAX = 4_096
MAX_BODY = 20_000


Ts = TypeVarTuple("Ts")


class ManualLoop(asyncio.AbstractEventLoop):
    """An event loop that runs one iteration when it is told to, and has the time that it is told."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(self.now + delay, callback, args, self, context)
        self._timers.append(timer)
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(f"an exception reached the loop: {context}")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle in self._timers:
            self._timers.remove(handle)

    def run(self) -> None:
        """Run one iteration."""
        ready, self._ready = self._ready, deque()
        for handle in ready:
            if not handle.cancelled():
                handle._run()

    def advance(self, seconds: float) -> None:
        """Let time pass, timers included."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.when() <= end]:
            first = min(due, key=asyncio.TimerHandle.when)
            self._timers.remove(first)
            self.now = first.when()
            first._run()
            self.run()
        self.now = end

    @property
    def timers(self) -> int:
        return len(self._timers)


class Reader(asyncio.StreamReader):
    """Keeps what aiormq would read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.fed: list[bytes] = []

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.fed.append(bytes(data))


class Socket(asyncio.Transport):
    """Keeps what is written, write by write; after `abort` nothing may be."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False
        self.protocol: asyncio.BaseProtocol | None = None
        self._loop = loop

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted
        self.writes.append(bytes(data))

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            assert self.protocol is not None
            self._loop.call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.aborted


class Wire:
    """A lane on channel 1, and both its ends."""

    def __init__(self, *, heartbeat: float = 0, max_body: int = MAX_BODY) -> None:
        self.loop = ManualLoop()  # type: ignore[abstract]  # the lane uses no more of a loop than this
        self.reader = Reader(self.loop)
        self.socket = Socket(self.loop)
        self.lost: list[RPCError] = []
        self.writable: list[bool] = []
        self.outcomes: list[tuple[bytes, Outcome]] = []
        self.deliveries: list[Delivery] = []
        self.protocol = LaneProtocol(self.reader, self.loop, max_body, self.lost.append, self.writable.append)
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)
        self.protocol.negotiated(FRAME_MAX, heartbeat)
        self.lane = self.protocol.open_lane(1)

    def publish(self, name: bytes, *, routing_key: str = "q", settled: bool = True, **properties: Any) -> None:
        """Publish a message whose body is *name*; its outcome goes to `outcomes`."""
        self.lane.publish(
            Publication("", routing_key, Properties(**properties), name, True, self._settled if settled else None)
        )

    def _settled(self, publication: Publication, outcome: Outcome) -> None:
        self.outcomes.append((publication.body, outcome))

    def consume(
        self,
        tag: str = "c",
        then: Callable[[Delivery], None] | None = None,
        *,
        no_ack: bool = False,
        on_cancelled: Callable[[RPCError], None] | None = None,
        answered: bool = True,
    ) -> Consumer:
        consumer = self.lane.add_consumer(tag, then or self.deliveries.append, no_ack=no_ack, on_cancelled=on_cancelled)
        if answered:
            self.lane.consuming(consumer)
        return consumer

    def replace_lanes(self) -> list[tuple[Lane, list[Consumer]]]:
        """Close the lanes whose channel the broker closes, as a link does; they are in what this returns."""
        closed: list[tuple[Lane, list[Consumer]]] = []
        self.protocol._on_lane_closed = lambda lane, error: closed.append((lane, lane.close(error)))
        return closed

    def receive(self, *frames: bytes) -> None:
        self.protocol.data_received(b"".join(frames))

    def sent(self) -> list[Frame]:
        """The frames written since it was last asked, all of channel 1."""
        writes, self.socket.writes = self.socket.writes, []
        frames = read_frames(b"".join(writes))
        assert {channel for channel, _ in frames} <= {1}
        return [frame for _, frame in frames]


@pytest.fixture
def wire() -> Wire:
    return Wire()


def deliver(
    tag: int,
    payload: bytes = b"",
    *,
    consumer: str = "c",
    redelivered: bool = False,
    channel: int = 1,
    **properties: Any,
) -> bytes:
    method = Basic.Deliver(consumer, tag, redelivered, "rpc", "key")
    return b"".join(content(method, Basic.Properties(**properties), payload, channel, FRAME_MAX))


def returned(payload: bytes = b"", *, routing_key: str = "q", exchange: str = "", **properties: Any) -> bytes:
    method = Basic.Return(312, "NO_ROUTE", exchange, routing_key)
    return b"".join(content(method, Basic.Properties(**properties), payload))


def ack(tag: int, *, multiple: bool = False) -> bytes:
    return marshal(Basic.Ack(tag, multiple))


def nack(tag: int, *, multiple: bool = False) -> bytes:
    return marshal(Basic.Nack(tag, multiple, False))


# --- closing


CLOSINGS = {
    "Channel.Close": (
        marshal(Channel.Close(404, "NOT_FOUND - no exchange", 60, 40), 1),
        "closed the channel: 404 NOT_FOUND",
    ),
    "Channel.CloseOk": (marshal(Channel.CloseOk(), 1), "closed the channel"),
    "Connection.Close": (
        marshal(Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0),
        "closed the connection: 320 CONNECTION",
    ),
}


@pytest.mark.parametrize(("closing", "reason"), CLOSINGS.values(), ids=CLOSINGS)
def test_nothing_is_written_once_the_peer_closed(wire: Wire, closing: bytes, reason: str) -> None:
    wire.consume()
    wire.receive(deliver(1), deliver(2), deliver(3))
    wire.publish(b"sent")
    wire.loop.run()
    assert len(wire.sent()) == 3
    wire.publish(b"waiting")
    wire.deliveries[0].ack()

    wire.receive(closing)
    assert wire.outcomes == [(b"sent", LOST), (b"waiting", LOST)]
    wire.publish(b"late")
    wire.deliveries[1].ack()
    wire.deliveries[2].nack(requeue=True)
    wire.receive(deliver(4), ack(1), returned())
    wire.loop.run()
    wire.loop.run()

    assert wire.sent() == []
    assert wire.outcomes[2:] == [(b"late", LOST)]
    assert [reason in str(error) for error in wire.lost] == [True]
    assert closing in wire.reader.fed
    assert wire.writable[-1] is False


def test_what_follows_a_close_in_the_same_read_is_not_handled(wire: Wire) -> None:
    wire.consume()
    wire.publish(b"x")
    wire.receive(CLOSINGS["Channel.Close"][0], ack(1), deliver(1))
    assert (wire.outcomes, wire.deliveries) == ([(b"x", LOST)], [])


def test_the_loss_of_a_channel_ends_the_connection_and_that_of_the_connection_is_aiormqs(wire: Wire) -> None:
    wire.receive(CLOSINGS["Channel.Close"][0])
    assert wire.socket.aborted
    other = Wire()
    other.receive(CLOSINGS["Connection.Close"][0])
    assert not other.socket.aborted  # aiormq answers with CloseOk


def test_a_publish_on_a_closed_lane_is_lost_by_way_of_the_loop(wire: Wire) -> None:
    wire.protocol.connection_lost(None)
    wire.publish(b"x")
    wire.publish(b"nobody waits", settled=False)
    assert wire.outcomes == []
    wire.loop.run()
    assert wire.outcomes == [(b"x", LOST)]


def test_a_publish_from_a_handler_of_the_loss_is_lost_by_way_of_the_loop(wire: Wire) -> None:
    def again(publication: Publication, outcome: Outcome) -> None:
        wire.outcomes.append((publication.body, outcome))
        wire.publish(b"second")

    wire.lane.publish(Publication("", "q", Properties(), b"first", True, again))
    wire.protocol.connection_lost(None)
    assert wire.outcomes == [(b"first", LOST)]
    wire.loop.run()
    assert wire.outcomes == [(b"first", LOST), (b"second", LOST)]


def test_the_loss_is_told_once_with_its_first_reason(wire: Wire) -> None:
    wire.receive(CLOSINGS["Connection.Close"][0])
    wire.protocol.connection_lost(ConnectionResetError("reset"))
    wire.protocol.connection_lost(None)
    assert [str(error) for error in wire.lost] == ["the broker closed the connection: 320 CONNECTION_FORCED"]


def test_a_broken_socket_loses_everything_and_says_why(wire: Wire) -> None:
    wire.publish(b"x")
    wire.protocol.connection_lost(ConnectionResetError("reset by peer"))
    assert wire.outcomes == [(b"x", LOST)]
    assert "reset by peer" in str(wire.lost[0])


def test_the_loss_of_a_channel_that_is_replaced_leaves_the_connection(wire: Wire) -> None:
    closed = wire.replace_lanes()
    told: list[RPCError] = []
    consuming = wire.consume(on_cancelled=told.append)
    wire.consume("asked", on_cancelled=told.append, answered=False)
    wire.receive(deliver(1), deliver(2))
    wire.publish(b"waiting")
    wire.publish(b"nobody waits", settled=False)
    wire.deliveries[0].ack()
    wire.socket.writes.clear()  # the first was sent at once
    wire.receive(CLOSINGS["Channel.Close"][0])
    assert wire.outcomes == [(b"waiting", LOST)]
    assert closed == [(wire.lane, [consuming])]
    assert (wire.lost, told) == ([], [])

    wire.deliveries[1].nack(requeue=True)
    wire.deliveries[0].nack(requeue=True)
    wire.publish(b"late")
    wire.loop.run()
    assert wire.outcomes[1:] == [(b"late", LOST)]
    assert wire.socket.writes == []  # the broker would end the connection over a frame of a channel it closed
    assert wire.lane.close_cause == (60, 40)

    wire.lane = wire.protocol.open_lane(1)
    wire.publish(b"next")
    wire.receive(ack(1))
    assert wire.outcomes[2:] == [(b"next", CONFIRMED)]


def test_what_waits_to_be_sent_on_another_channel_stays(wire: Wire) -> None:
    wire.replace_lanes()
    other = wire.protocol.open_lane(2)
    other.add_consumer("d", wire.deliveries.append, no_ack=False)
    wire.receive(deliver(1, consumer="d", channel=2))
    wire.publish(b"first")  # sent at once
    wire.publish(b"lost")
    other.publish(Publication("", "q", Properties(), b"kept", True, None))
    wire.deliveries[0].ack()
    wire.socket.writes.clear()
    wire.receive(CLOSINGS["Channel.Close"][0])
    wire.loop.run()
    channels = [channel for channel, _ in read_frames(b"".join(wire.socket.writes))]
    assert channels == [2, 2, 2, 2]  # a publish of three frames, and an ack


def test_a_lane_opened_on_a_lost_connection_is_closed(wire: Wire) -> None:
    wire.protocol.connection_lost(None)
    wire.lane = wire.protocol.open_lane(3)
    wire.publish(b"x")
    wire.loop.run()
    assert wire.outcomes == [(b"x", LOST)]


def test_a_cancel_by_the_broker_is_told_once_and_the_lane_goes_on(wire: Wire) -> None:
    told: list[RPCError] = []
    wire.consume(on_cancelled=told.append)
    wire.consume("other")
    wire.receive(deliver(1))
    cancel = marshal(Basic.Cancel("c", True))
    wire.receive(cancel, cancel, deliver(2, consumer="other"))
    assert ["the broker cancelled a consumer" in str(error) for error in told] == [True]
    assert cancel + cancel in wire.reader.fed  # aiormq answers where the broker wants an answer
    for delivery in wire.deliveries:
        delivery.ack()
    wire.loop.run()
    assert [type(frame) for frame in wire.sent()] == [Basic.Ack]
    assert wire.lost == []


def test_a_cancel_by_the_broker_right_behind_its_answer_is_told_too(wire: Wire) -> None:
    told: list[RPCError] = []
    consumer = wire.consume(on_cancelled=told.append, answered=False)
    wire.receive(marshal(Basic.ConsumeOk("c")), marshal(Basic.Cancel("c", True)))
    assert told == []
    wire.lane.consuming(consumer)  # whoever asked has read the answer
    wire.loop.run()
    assert len(told) == 1


def test_a_handler_of_a_cancelled_consumer_that_fails_is_logged(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_error: RPCError) -> None:
        raise ZeroDivisionError

    wire.consume(on_cancelled=fail)
    wire.receive(marshal(Basic.Cancel("c", True)))
    assert "a handler of a cancelled consumer failed" in caplog.text


def test_a_return_that_nobody_waits_for_is_told_to_who_asked(wire: Wire) -> None:
    seen: list[tuple[str, str | None]] = []
    wire.lane = wire.protocol.open_lane(1, lambda key, properties: seen.append((key, properties.correlation_id)))
    wire.publish(b"x", settled=False, correlation_id="1", type="STARTED")
    wire.publish(b"y", correlation_id="1", type="SUCCESS")
    wire.receive(
        returned(correlation_id="1", message_type="STARTED"), returned(correlation_id="1", message_type="SUCCESS")
    )
    assert seen == [("q", "1")]
    assert wire.outcomes == [(b"y", RETURNED)]


def test_a_cancel_by_the_broker_loses_the_link(wire: Wire) -> None:
    wire.consume()
    wire.publish(b"x")
    cancel = marshal(Basic.Cancel("c", True))
    wire.receive(cancel)
    assert wire.outcomes == [(b"x", LOST)]
    assert "the broker cancelled a consumer" in str(wire.lost[0])
    assert wire.reader.fed[0] == cancel


MALFORMED = {
    "end octet": framed(1, 1, b"\x00\x3c\x00\x50" + bytes(9), b"\x00"),
    "size": framed(3, 1, bytes(FRAME_MAX)),
    "delivery cut short": b"".join([framed(1, 1, b"\x00\x3c\x00\x3c\x01c"), *content(Basic.QosOk())[1:]]),
    "return cut short": b"".join([framed(1, 1, b"\x00\x3c\x00\x32\x01"), *content(Basic.QosOk())[1:]]),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_frame_closes_the_connection_with_a_clear_error(wire: Wire, data: bytes) -> None:
    wire.consume()
    wire.publish(b"x")
    wire.receive(data)
    assert [str(error).startswith("the broker sent a malformed frame: ") for error in wire.lost] == [True]
    assert (wire.socket.aborted, wire.outcomes) == (True, [(b"x", LOST)])
    wire.loop.run()
    assert len(wire.lost) == 1


# --- writable


ONE_MIB = 1 << 20


def test_publishers_wait_once_an_iteration_has_more_than_a_mebibyte_to_send() -> None:
    wire = Wire(max_body=ONE_MIB)
    wire.publish(bytes(ONE_MIB // 2), settled=False)
    assert wire.writable == []
    wire.publish(bytes(ONE_MIB // 2), settled=False)
    assert wire.writable == [False]
    wire.publish(b"all the same", settled=False)
    wire.loop.run()
    assert wire.writable == [False, True]
    assert published(wire.sent()) == [ONE_MIB // 2, ONE_MIB // 2, len(b"all the same")]
    wire.publish(b"next", settled=False)
    assert wire.writable == [False, True]


@given(st.lists(st.sampled_from(["block", "unblock", "pause", "resume", "fill", "flush"]), min_size=1, max_size=12))
@UNHURRIED
def test_it_is_writable_while_neither_blocked_nor_paused_nor_full(changes: list[str]) -> None:
    wire = Wire(max_body=ONE_MIB)
    blocked = paused = full = False
    for change in changes:
        if change in ("fill", "flush"):
            if full == (change == "fill"):
                continue
            full = change == "fill"
            if full:
                wire.publish(bytes(ONE_MIB), settled=False)
            else:
                wire.loop.run()
        elif change in ("pause", "resume"):
            if paused == (change == "pause"):
                continue  # asyncio pauses only what runs, and the other way round
            paused = change == "pause"
            (wire.protocol.pause_writing if paused else wire.protocol.resume_writing)()
        else:
            blocked = change == "block"
            frame = Connection.Blocked("low on memory") if blocked else Connection.Unblocked()
            wire.receive(marshal(frame, 0))
        assert wire.writable[-1] is (not blocked and not paused and not full)
        assert wire.protocol.blocked is blocked
    assert not wire.lost


def test_a_blocked_connection_still_confirms_and_delivers(wire: Wire) -> None:
    wire.consume()
    wire.publish(b"x")
    wire.receive(marshal(Connection.Blocked("low on memory"), 0), ack(1), deliver(1))
    assert (wire.outcomes, len(wire.deliveries)) == ([(b"x", CONFIRMED)], 1)


# --- writing


def test_publishes_and_acks_of_one_iteration_are_joined(wire: Wire) -> None:
    wire.consume()
    wire.publish(b"under way")
    wire.loop.run()
    wire.receive(*(deliver(tag) for tag in range(1, 101)))
    wire.socket.writes.clear()
    for number, delivery in enumerate(wire.deliveries):
        wire.publish(b"%d" % number)
        delivery.ack()
    assert wire.socket.writes == []
    wire.loop.run()
    assert len(wire.socket.writes) == 1
    frames = wire.sent()
    assert [frame.value for frame in frames if isinstance(frame, body.ContentBody)] == [b"%d" % n for n in range(100)]
    (settled,) = [frame for frame in frames if isinstance(frame, Basic.Ack)]
    assert (settled.delivery_tag, settled.multiple, frames[-1]) == (100, True, settled)
    wire.loop.run()
    assert wire.socket.writes == []


def test_what_handlers_send_during_a_read_is_joined(wire: Wire) -> None:
    def answer(delivery: Delivery) -> None:
        wire.publish(delivery.body)
        delivery.ack()

    wire.consume(then=answer)
    wire.receive(*(deliver(tag, b"%d" % tag) for tag in range(1, 51)))
    wire.loop.run()
    assert len(wire.socket.writes) == 1
    frames = wire.sent()
    assert sum(isinstance(frame, Basic.Publish) for frame in frames) == 50
    assert [frame.delivery_tag for frame in frames if isinstance(frame, Basic.Ack)] == [50]


@pytest.mark.parametrize("settled", [True, False])
def test_a_burst_of_publishes_takes_two_writes_at_the_most(wire: Wire, settled: bool) -> None:
    for _ in range(100):
        wire.publish(b"x", settled=settled)
    wire.loop.run()
    assert 1 <= len(wire.socket.writes) <= 2
    assert sum(isinstance(frame, Basic.Publish) for frame in wire.sent()) == 100


def test_two_lanes_share_a_write(wire: Wire) -> None:
    other = wire.protocol.open_lane(2)
    wire.consume()
    other.add_consumer("d", wire.deliveries.append, no_ack=False)
    wire.receive(deliver(1), deliver(1, consumer="d", channel=2))
    for delivery in wire.deliveries:
        delivery.ack()
    wire.loop.run()
    (written,) = wire.socket.writes
    assert [channel for channel, _ in read_frames(written)] == [1, 2]


def test_frames_of_one_publish_are_never_interleaved(wire: Wire) -> None:
    wire.consume()
    wire.receive(*(deliver(tag) for tag in range(1, 7)))
    sizes = [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 10_000, MAX_BODY]
    for size, delivery in zip(sizes, wire.deliveries, strict=True):
        wire.publish(bytes(size))
        if size % 2:
            delivery.nack(requeue=False)
        else:
            delivery.ack()
    wire.loop.run()
    assert published(wire.sent()) == sizes


def published(frames: list[Frame]) -> list[int]:
    """Sizes of the bodies published, each in consecutive frames."""
    sizes = []
    rest = iter(frames)
    for frame in rest:
        if isinstance(frame, Basic.Publish):
            sizes.append(_body_size(rest))
        else:
            assert isinstance(frame, Basic.Ack | Basic.Nack)
    return sizes


def _body_size(rest: Iterator[Frame]) -> int:
    head = next(rest)
    assert isinstance(head, header.ContentHeader)
    size = 0
    while size < head.body_size:
        chunk = next(rest)
        assert isinstance(chunk, body.ContentBody)
        size += len(chunk.value)
    assert size == head.body_size
    return size


def test_a_body_above_the_limit_is_refused_before_anything_is_written(wire: Wire) -> None:
    with pytest.raises(PayloadTooLarge, match=f"body of {MAX_BODY + 1} bytes, .* {MAX_BODY}$"):
        wire.publish(bytes(MAX_BODY + 1))
    wire.loop.run()
    assert wire.sent() == []
    wire.publish(bytes(MAX_BODY))
    wire.loop.run()
    wire.receive(ack(1))
    assert [outcome for _, outcome in wire.outcomes] == [CONFIRMED]


def test_a_property_that_does_not_fit_writes_nothing_and_takes_no_tag(wire: Wire) -> None:
    with pytest.raises(PropertyError, match="expiration"):
        wire.publish(b"bad", expiration=-1)
    wire.loop.run()
    assert wire.sent() == []
    wire.publish(b"good")
    wire.receive(ack(1))
    assert wire.outcomes == [(b"good", CONFIRMED)]


# --- confirms and returns


def test_a_confirm_settles_its_tag_alone(wire: Wire) -> None:
    for name in (b"1", b"2", b"3"):
        wire.publish(name)
    wire.receive(ack(2), nack(1))
    assert wire.outcomes == [(b"2", CONFIRMED), (b"1", REFUSED)]
    assert wire.lane.unconfirmed == 1


@pytest.mark.parametrize(("confirm", "outcome"), [(ack, CONFIRMED), (nack, REFUSED)])
def test_a_multiple_confirm_settles_all_it_covers_and_only_those(
    wire: Wire, confirm: Callable[..., bytes], outcome: Outcome
) -> None:
    for name in (b"1", b"2", b"3", b"4", b"5"):
        wire.publish(name, settled=name != b"2")
    wire.receive(ack(3))
    wire.receive(confirm(4, multiple=True))
    assert wire.outcomes == [(b"3", CONFIRMED), (b"1", outcome), (b"4", outcome)]
    wire.receive(confirm(5, multiple=True))
    assert wire.outcomes[3:] == [(b"5", outcome)]


def test_a_multiple_confirm_beyond_what_was_published_does_not_spoil_later_ones(wire: Wire) -> None:
    wire.publish(b"1")
    wire.receive(ack(2**62, multiple=True))
    wire.publish(b"2")
    wire.receive(ack(2, multiple=True))
    assert wire.outcomes == [(b"1", CONFIRMED), (b"2", CONFIRMED)]


class Counting(dict[int, Publication]):
    """Counts what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def __iter__(self) -> Iterator[int]:
        for key in super().__iter__():
            self.steps += 1
            yield key

    def pop(self, key: int, default: Any = None) -> Any:
        self.steps += 1
        return super().pop(key, default)


def test_a_multiple_confirm_looks_only_at_what_it_covers_however_many_were_confirmed_before(wire: Wire) -> None:
    unconfirmed = wire.lane._unconfirmed = Counting()
    for number in range(1, 1_001):
        wire.publish(b"%d" % number)
        wire.receive(ack(number))
    for number in range(1_001, 1_101):
        wire.publish(b"%d" % number)
    unconfirmed.steps = 0
    wire.receive(ack(1_002, multiple=True))
    assert wire.outcomes[1_000:] == [(b"1001", CONFIRMED), (b"1002", CONFIRMED)]
    assert unconfirmed.steps <= 5  # the two, looked at and taken, and the first that is not covered


def test_a_return_wins_over_the_confirm_that_follows(wire: Wire) -> None:
    wire.publish(b"1", correlation_id="a")
    wire.publish(b"2", correlation_id="b")
    wire.receive(returned(b"2", correlation_id="b"), ack(2, multiple=True))
    assert wire.outcomes == [(b"2", RETURNED), (b"1", CONFIRMED)]


def test_a_return_settles_the_publication_of_its_type_and_route(wire: Wire) -> None:
    wire.publish(b"started", correlation_id="a", type="STARTED")
    wire.publish(b"elsewhere", correlation_id="a", type="SUCCESS", routing_key="other")
    wire.publish(b"wanted", correlation_id="a", type="SUCCESS")
    wire.publish(b"again", correlation_id="a", type="SUCCESS")
    wire.receive(returned(correlation_id="a", message_type="SUCCESS"))
    assert wire.outcomes == [(b"wanted", RETURNED)]
    wire.receive(returned(correlation_id="a", message_type="SUCCESS", exchange="rpc"))
    wire.receive(returned(correlation_id="a", message_type="FAILURE"))
    assert wire.outcomes == [(b"wanted", RETURNED)]
    wire.receive(returned(correlation_id="a", message_type="SUCCESS"))
    assert wire.outcomes[1:] == [(b"again", RETURNED)]


def test_a_return_that_nobody_waits_for_settles_nothing(wire: Wire) -> None:
    wire.publish(b"progress", correlation_id="a", type="PROGRESS", settled=False)
    wire.publish(b"success", correlation_id="a", type="SUCCESS")
    wire.receive(returned(correlation_id="a", message_type="PROGRESS"), ack(2, multiple=True))
    assert wire.outcomes == [(b"success", CONFIRMED)]


def test_a_handler_that_fails_does_not_keep_the_next_from_its_outcome(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_publication: Publication, _outcome: Outcome) -> None:
        raise ZeroDivisionError

    wire.lane.publish(Publication("", "q", Properties(), b"secret", True, fail))
    wire.publish(b"2")
    wire.receive(ack(2, multiple=True))
    assert wire.outcomes == [(b"2", CONFIRMED)]
    assert [record.getMessage() for record in caplog.records] == ["a confirm handler failed"]


def test_a_handler_of_a_confirm_may_publish(wire: Wire) -> None:
    def again(publication: Publication, outcome: Outcome) -> None:
        wire.outcomes.append((publication.body, outcome))
        wire.publish(b"2")

    wire.lane.publish(Publication("", "q", Properties(), b"1", True, again))
    wire.receive(ack(1, multiple=True))
    wire.receive(ack(2, multiple=True))
    assert wire.outcomes == [(b"1", CONFIRMED), (b"2", CONFIRMED)]


CONFIRM_STEPS = st.one_of(
    st.tuples(st.just("publish"), st.booleans(), st.just(0)),
    st.tuples(st.sampled_from(["ack", "nack"]), st.booleans(), st.integers(1, 12)),
    st.tuples(st.just("return"), st.booleans(), st.integers(1, 12)),
)


@given(st.lists(CONFIRM_STEPS, max_size=40))
@UNHURRIED
def test_every_publication_is_settled_once_and_as_the_broker_says(steps: list[tuple[str, bool, int]]) -> None:
    wire = Wire()
    waiting: dict[int, bytes] = {}
    expected: list[tuple[bytes, Outcome]] = []
    published = 0
    for step, flag, tag in steps:
        if step == "publish":
            published += 1
            name = b"%d" % published
            wire.publish(name, settled=flag, correlation_id=name.decode())
            if flag:
                waiting[published] = name
        elif step == "return":
            wire.receive(returned(correlation_id=str(tag)))
            if tag in waiting:
                expected.append((waiting.pop(tag), RETURNED))
        elif tag <= published:  # what a broker may say, twice included
            wire.receive((ack if step == "ack" else nack)(tag, multiple=flag))
            covered = [known for known in waiting if known == tag or (flag and known < tag)]
            expected += [(waiting.pop(known), CONFIRMED if step == "ack" else REFUSED) for known in covered]
    assert wire.outcomes == expected
    assert wire.lane.unconfirmed == len(waiting)
    wire.protocol.connection_lost(None)
    wire.receive(ack(12, multiple=True))
    assert wire.outcomes == expected + [(name, LOST) for name in waiting.values()]


# --- deliveries


def test_a_delivery_says_what_the_broker_said(wire: Wire) -> None:
    wire.consume()
    wire.receive(deliver(7, b"body", redelivered=True, correlation_id="a", expiration="50", headers={"n": 1}))
    (delivery,) = wire.deliveries
    assert (delivery.exchange, delivery.routing_key) == ("rpc", "key")
    assert (delivery.body, delivery.redelivered) == (b"body", True)
    assert delivery.properties == Properties(correlation_id="a", expiration=50, headers={"n": 1})


def test_handlers_are_called_in_delivery_order_and_one_that_fails_does_not_stop_the_next(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def handle(delivery: Delivery) -> None:
        seen.append(delivery.body)
        if delivery.body == b"1":
            raise ZeroDivisionError

    wire.consume(then=handle)
    data = b"".join(deliver(tag, b"%d" % tag) for tag in range(4))
    wire.receive(data[:150])
    wire.receive(data[150:])
    assert seen == [b"0", b"1", b"2", b"3"]
    assert [record.getMessage() for record in caplog.records] == ["a delivery handler failed"]
    assert not wire.lost


def test_handlers_are_not_called_before_the_whole_read_is_parsed(wire: Wire) -> None:
    wire.consume()
    wire.receive(deliver(1), MALFORMED["end octet"])
    assert wire.deliveries == []


def test_a_delivery_for_an_unknown_consumer_is_given_back(wire: Wire) -> None:
    wire.consume("known")
    wire.receive(deliver(1, consumer="unknown"), deliver(2, consumer="known"))
    wire.loop.run()
    (given_back,) = wire.sent()
    assert isinstance(given_back, Basic.Nack)
    assert (given_back.delivery_tag, given_back.multiple, given_back.requeue) == (1, False, True)
    assert len(wire.deliveries) == 1


def test_a_message_with_malformed_properties_is_delivered_without_them(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    # A time no datetime can hold, which any publisher of the vhost may send.
    table = b"\x01tT" + b"\x7f" * 8
    properties = b"\x20\x00" + len(table).to_bytes(4, "big") + table
    frames = content(Basic.Deliver("c", 1, False, "", "q"), None, b"secret")
    frames[1] = framed(2, 1, b"\x00\x3c\x00\x00" + (6).to_bytes(8, "big") + properties)
    wire.consume()
    wire.receive(*frames)
    (delivery,) = wire.deliveries
    assert (delivery.properties, delivery.body) == (Properties(), b"secret")
    (record,) = caplog.records
    assert "malformed properties" in record.getMessage()
    assert "secret" not in caplog.text
    delivery.ack()
    wire.loop.run()
    assert [type(frame) for frame in wire.sent()] == [Basic.Ack]


def test_a_delivery_is_settled_once(wire: Wire) -> None:
    wire.consume()
    wire.receive(deliver(1), deliver(2))
    first, second = wire.deliveries
    first.ack()
    first.ack()
    first.nack(requeue=True)
    second.nack(requeue=False)
    second.nack(requeue=True)
    second.ack()
    wire.loop.run()
    second.ack()
    wire.loop.run()
    refused, acked = wire.sent()
    assert isinstance(refused, Basic.Nack)
    assert isinstance(acked, Basic.Ack)
    assert (refused.delivery_tag, refused.requeue) == (2, False)
    assert (acked.delivery_tag, acked.multiple) == (1, False)


def test_nothing_is_said_about_deliveries_that_want_no_ack(wire: Wire) -> None:
    wire.consume(no_ack=True)
    wire.receive(deliver(1), deliver(2))
    wire.deliveries[0].ack()
    wire.deliveries[1].nack(requeue=True)
    wire.loop.run()
    assert wire.sent() == []


# --- acknowledgements


class Broker:
    """What a broker makes of our acknowledgements: which deliveries are settled, and how."""

    def __init__(self) -> None:
        self.unsettled: list[int] = []
        self.settled: dict[int, str] = {}
        self.frames = 0

    def read(self, frames: list[Frame]) -> None:
        for frame in frames:
            assert isinstance(frame, Basic.Ack | Basic.Nack)
            self.frames += 1
            # RabbitMQ closes the channel on a tag that it does not know or that is settled already (406).
            assert frame.delivery_tag in self.unsettled
            how = "ack" if isinstance(frame, Basic.Ack) else f"nack {frame.requeue}"
            covered = [
                tag
                for tag in self.unsettled
                if tag == frame.delivery_tag or (frame.multiple and tag < frame.delivery_tag)
            ]
            for tag in covered:
                self.unsettled.remove(tag)
                self.settled[tag] = how


ACK_ROUNDS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["c", "c", "c", "c", "no-ack", "unknown"]), max_size=6),
        st.lists(
            st.tuples(st.sampled_from(["ack", "ack", "ack", "nack True", "nack False"]), st.integers(0, 9)), max_size=6
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(ACK_ROUNDS)
@settings(UNHURRIED, max_examples=300)
def test_the_broker_settles_what_was_asked_and_nothing_else(
    rounds: list[tuple[list[str], list[tuple[str, int]]]],
) -> None:
    wire, broker = Wire(), Broker()
    wire.consume()
    wire.consume("no-ack", lambda _delivery: None, no_ack=True)
    asked: dict[int, str] = {}
    open_tags: list[int] = []
    tag = 0
    for consumers, settlements in rounds:
        for consumer in consumers:
            tag += 1
            if consumer != "no-ack":
                broker.unsettled.append(tag)
            if consumer == "unknown":
                asked[tag] = "nack True"
            elif consumer == "c":
                open_tags.append(tag)
            wire.receive(deliver(tag, consumer=consumer))
        for how, number in settlements[: len(open_tags)]:
            at = number % len(open_tags)
            asked[open_tags.pop(at)] = how
            delivery = wire.deliveries.pop(at)
            if how == "ack":
                delivery.ack()
            else:
                delivery.nack(requeue=how == "nack True")
        wire.loop.run()
        broker.read(wire.sent())
        assert broker.settled == asked
        assert broker.unsettled == open_tags


@given(st.integers(1, 20), st.randoms(use_true_random=False))
@UNHURRIED
def test_acks_of_all_that_came_take_one_frame_in_any_order(count: int, rng: Any) -> None:
    wire, broker = Wire(), Broker()
    wire.consume()
    wire.receive(*(deliver(tag) for tag in range(1, count + 2)))
    broker.unsettled = list(range(1, count + 2))
    covered = wire.deliveries[:count]
    rng.shuffle(covered)
    for delivery in covered:
        delivery.ack()
    wire.loop.run()
    broker.read(wire.sent())
    assert broker.settled == dict.fromkeys(range(1, count + 1), "ack")
    assert broker.frames == 1


def test_acks_with_an_older_delivery_unsettled_are_sent_one_by_one(wire: Wire) -> None:
    wire.consume()
    wire.receive(deliver(1), deliver(2), deliver(3))
    wire.deliveries[1].ack()
    wire.deliveries[2].ack()
    wire.loop.run()
    settled = [(frame.delivery_tag, frame.multiple) for frame in wire.sent() if isinstance(frame, Basic.Ack)]
    assert sorted(settled) == [(2, False), (3, False)]


def test_an_ack_never_covers_a_delivery_between_that_nobody_acked(wire: Wire) -> None:
    wire.consume()
    wire.receive(*(deliver(tag) for tag in range(1, 6)))
    for at in (0, 1, 3):
        wire.deliveries[at].ack()
    wire.loop.run()
    broker = Broker()
    broker.unsettled = [1, 2, 3, 4, 5]
    broker.read(wire.sent())
    assert (broker.settled, broker.unsettled) == ({1: "ack", 2: "ack", 4: "ack"}, [3, 5])


@pytest.mark.parametrize("before", ["acked", "refused", "no-ack", "unknown"])
def test_what_is_settled_already_does_not_keep_later_acks_apart(wire: Wire, before: str) -> None:
    wire.consume()
    wire.consume("no-ack", lambda _delivery: None, no_ack=True)
    wire.receive(deliver(1, consumer=before if before in ("no-ack", "unknown") else "c"))
    if before == "acked":
        wire.deliveries.pop().ack()
    elif before == "refused":
        wire.deliveries.pop().nack(requeue=True)
    wire.loop.run()
    wire.sent()
    wire.receive(deliver(2), deliver(3))
    for delivery in wire.deliveries:
        delivery.ack()
    wire.loop.run()
    (settled,) = wire.sent()
    assert isinstance(settled, Basic.Ack)
    assert (settled.delivery_tag, settled.multiple) == (3, True)


# --- consumers


def test_deliveries_go_to_the_handler_of_their_consumer(wire: Wire) -> None:
    first: list[Delivery] = []
    second: list[Delivery] = []
    wire.consume("first", first.append)
    wire.consume("second", second.append)
    wire.receive(deliver(1, b"a", consumer="second"), deliver(2, b"b", consumer="first"))
    assert ([d.body for d in first], [d.body for d in second]) == ([b"b"], [b"a"])


async def test_a_cancel_ends_when_the_broker_has_answered() -> None:
    lane, protocol, written = on_running_loop()
    seen: list[bytes] = []
    consumer = lane.add_consumer("c", lambda delivery: seen.append(delivery.body), no_ack=True)
    cancels = [lane.cancel_consumer(consumer) for _ in range(2)]
    await turns()
    assert [type(frame) for _, frame in read_frames(b"".join(written))] == [Basic.Cancel]
    protocol.data_received(deliver(1, b"still"))
    assert not any(cancel is None or cancel.done() for cancel in cancels)
    protocol.data_received(marshal(Basic.CancelOk("c")))
    assert all(cancel is not None and cancel.done() for cancel in cancels)
    protocol.data_received(deliver(2, b"too late"))
    assert seen == [b"still"]
    assert lane.cancel_consumer(consumer) is None


async def test_a_cancel_ends_when_the_lane_is_closed() -> None:
    lane, protocol, _ = on_running_loop()
    consumer = lane.add_consumer("c", lambda _delivery: None, no_ack=True)
    cancel = lane.cancel_consumer(consumer)
    await turns()
    assert cancel is not None
    assert not cancel.done()
    protocol.connection_lost(None)
    assert cancel.done()
    assert lane.cancel_consumer(consumer) is None


def on_running_loop() -> tuple[Lane, LaneProtocol, list[bytes]]:
    loop = asyncio.get_running_loop()
    socket = Socket(loop)
    protocol = LaneProtocol(Reader(loop), loop, MAX_BODY, lambda _error: None, lambda _writable: None)
    socket.protocol = protocol
    protocol.connection_made(socket)
    protocol.negotiated(FRAME_MAX, 0)
    return protocol.open_lane(1), protocol, socket.writes


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


# --- what aiormq sees


def test_what_is_not_the_lanes_reaches_aiormq_whole_and_in_order(wire: Wire) -> None:
    wire.consume()
    passing = [
        marshal(Basic.QosOk(), 1),
        *content(Basic.Deliver("t", 1, False, "", "q"), None, b"x", 2),
        marshal(Channel.OpenOk(), 3),
    ]
    data = b"".join(frame + deliver(tag) for tag, frame in enumerate(passing))
    for at in range(0, len(data), 11):
        wire.receive(data[at : at + 11])
    fed = [frame for frame in b"".join(wire.reader.fed).split(HEARTBEAT) if frame]
    assert b"".join(fed) == b"".join(passing)
    assert len(wire.deliveries) == len(passing)


def test_aiormq_is_fed_a_heartbeat_at_most_once_a_second_while_lane_frames_flow(wire: Wire) -> None:
    times = []
    for step in range(100):
        wire.receive(deliver(step, consumer="unknown"))
        times += [wire.loop.now] * wire.reader.fed.count(HEARTBEAT)
        wire.reader.fed.clear()
        wire.loop.advance(0.1)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) >= 9
    assert all(0.999 <= gap <= 1.101 for gap in gaps)


def test_aiormq_is_fed_no_heartbeat_when_only_its_own_frames_come(wire: Wire) -> None:
    own = marshal(Channel.OpenOk(), 2)
    for _ in range(30):
        wire.receive(own)
        wire.loop.advance(1)
    assert wire.reader.fed == [own] * 30


# --- silence


def test_a_silent_broker_is_given_up_within_two_heartbeats(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire(heartbeat=10)
    wire.publish(b"x")
    wire.loop.advance(15)
    wire.receive(HEARTBEAT)
    wire.loop.advance(10)
    assert not wire.lost
    wire.loop.advance(10)
    assert [str(error) for error in wire.lost] == ["the broker was silent for 2 heartbeats of 10 s"]
    assert (wire.socket.aborted, wire.outcomes) == (True, [(b"x", LOST)])
    assert wire.loop.timers == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@given(st.lists(st.floats(0.0, 17.4), min_size=1, max_size=6))
@UNHURRIED
def test_a_broker_that_says_something_is_not_given_up_and_one_that_stops_is(gaps: list[float]) -> None:
    wire = Wire(heartbeat=10)
    for gap in gaps:
        wire.loop.advance(gap)
        assert not wire.lost
        wire.receive(HEARTBEAT[:4])
        wire.receive(HEARTBEAT[4:])
    wire.loop.advance(15)
    assert not wire.lost
    wire.loop.advance(5.001)
    assert len(wire.lost) == 1


def test_silence_is_not_timed_without_heartbeats_or_after_the_loss() -> None:
    wire = Wire(heartbeat=0)
    assert wire.loop.timers == 0
    wire = Wire(heartbeat=10)
    assert wire.loop.timers == 1
    wire.receive(CLOSINGS["Connection.Close"][0])
    assert wire.loop.timers == 0
