"""What is said of a call that ends without a terminal state."""

from __future__ import annotations

import pytest

from aiorpcq.protocol.calls import Call
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.router.endings import refused_error, returned_error
from aiorpcq.states import PENDING, STARTED


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("name", [PENDING, STARTED])
def test_what_comes_back_of_a_call_that_began_somewhere_may_have_run(name: str, repeated: bool) -> None:
    """A queue may end between a delivery and the confirm, and a worker between a delivery and its ack."""
    call, publication = Call("t", None, None), Publication("rpc", "rpc:odd", Properties(), b"")
    call.name = name
    errors = [refused_error(call, publication, outcome, repeated=repeated) for outcome in Outcome]
    errors.append(returned_error(call, Properties(), repeated=repeated))
    assert {error.maybe_executed for error in errors} == {repeated or name == STARTED}
