"""What ends a call without a terminal state, and what is known then: one error for each way."""

from __future__ import annotations

from ..errors import ConnectionLost, DeadlineExceeded, Overloaded, Poisoned, Rejected, RPCError, Unroutable
from ..protocol.calls import Call, Sending
from ..protocol.messages import Outcome, Properties, Publication
from ..protocol.wire import MalformedMessage, ReturnReason, decode_request, return_reason
from ..states import PENDING

__all__ = ["deadline_error", "lost_error", "refused_error", "returned_error", "unknown_error"]


def deadline_error(call: Call) -> RPCError:
    """Return what the end of its time is to *call*, by what is known of its request."""
    if call.sending is Sending.LOST and call.name == PENDING:
        text = "the connection was lost before the broker confirmed the request, and no answer came by the deadline"
        return ConnectionLost(text, task_id=call.task_id, maybe_executed=True)
    return DeadlineExceeded(
        "no terminal state came by the deadline" if call.maybe_executed else "the request could not be sent",
        task_id=call.task_id,
        maybe_executed=call.maybe_executed,
    )


def lost_error(call: Call, reason: str) -> RPCError:
    """Return what the loss of its connection is to *call*, where it cannot be claimed."""
    text = f"the connection was lost while the call was under way: {reason}"
    return ConnectionLost(text, task_id=call.task_id, maybe_executed=True)


def unknown_error(call: Call, before: str) -> RPCError:
    """Return what it is to *call*, which has no deadline, that neither a worker nor a queue has it."""
    text = f"{before}no worker and no queue knows the task any more"
    return ConnectionLost(text, task_id=call.task_id, maybe_executed=True)


def refused_error(call: Call, publication: Publication, outcome: Outcome, *, repeated: bool) -> RPCError:
    """Return what it is to *call* that the broker returned its request, or would not take it.

    Where the request was *repeated* the first may have been run, and so may one that a worker has said to have: the
    broker also says no where a queue ends before it confirms.
    """
    maybe_executed = repeated or call.name != PENDING
    if outcome is Outcome.RETURNED:
        text = f"no queue is bound for {publication.routing_key!r}"
        return Unroutable(text, task_id=call.task_id, maybe_executed=maybe_executed)
    text = "the broker refused the request: its queue is full"
    return Overloaded(text, task_id=call.task_id, maybe_executed=maybe_executed)


def returned_error(call: Call, properties: Properties, *, repeated: bool) -> RPCError:
    """Return what it is to *call* that its request came back.

    It was not run by way of this message. Where it was *repeated*, had been published or run before, or a worker has
    said that it received it, it may have been run by way of another.
    """
    task_id, reason = call.task_id, return_reason(properties.headers)
    maybe_executed = repeated or call.name != PENDING or _was_out_before(properties)
    if reason is ReturnReason.EXPIRED:
        text = "the request expired in its queue"
        return DeadlineExceeded(text, task_id=task_id, maybe_executed=maybe_executed)
    if reason is ReturnReason.DELIVERY_LIMIT:
        return Poisoned("the request passed its queue's delivery limit", task_id=task_id)
    if reason is ReturnReason.QUEUE_FULL:
        text = "the request was dropped from a full queue"
        return Overloaded(text, task_id=task_id, maybe_executed=maybe_executed)
    return Rejected("the request was rejected", task_id=task_id, maybe_executed=maybe_executed)


def _was_out_before(properties: Properties) -> bool:
    try:
        request = decode_request(properties, b"")
    except MalformedMessage:
        return False
    history = request.history
    return request.attempt > 1 or (history is not None and (history.origin is not None or history.losses > 0))
