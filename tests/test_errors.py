"""The exception tree: where each error hangs, and what it says about the call."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from aiorpcq import errors
from aiorpcq.errors import RemoteError, RemoteTraceback, RPCError
from aiorpcq.protocol.failures import ExceptionRegistry, rebuild_error

# Name, whether the method may have run, whether trying again can help, what else it is.
TREE: list[tuple[str, bool, bool, type[Exception]]] = [
    ("BacklogLimitExceeded", True, False, RPCError),
    ("CodecError", False, False, RPCError),
    ("ConnectFailed", False, True, RPCError),
    ("ConnectionLost", False, True, RPCError),
    ("ContentDisallowed", False, False, RPCError),
    ("DeadlineExceeded", True, False, TimeoutError),
    ("InvalidArguments", False, False, RPCError),
    ("MethodNotFound", False, False, RPCError),
    ("NoWorkers", False, True, RPCError),
    ("Overloaded", False, True, RPCError),
    ("PayloadTooLarge", False, False, RPCError),
    ("Poisoned", True, False, RPCError),
    ("RPCError", False, False, Exception),
    ("Rejected", False, False, RPCError),
    ("RemoteError", True, False, RPCError),
    ("TaskRevoked", True, False, RPCError),
    ("TopologyMismatch", False, False, errors.ConnectFailed),
    ("UnknownTask", True, False, RPCError),
    ("Unroutable", False, False, RPCError),
    ("UnsupportedVersion", False, False, RPCError),
    ("UsageError", False, False, RuntimeError),
    ("WorkerLost", True, True, RPCError),
]


def find(name: str) -> type[RPCError]:
    cls: type[RPCError] = getattr(errors, name)
    assert issubclass(cls, RPCError)
    return cls


def test_the_tree_is_whole() -> None:
    assert {name for name, *_ in TREE} | {"RemoteTraceback"} == set(errors.__all__)


@pytest.mark.parametrize(("name", "maybe_executed", "retryable", "base"), TREE)
def test_an_error_says_what_is_known_of_its_call(
    name: str, maybe_executed: bool, retryable: bool, base: type[Exception]
) -> None:
    error = find(name)("it failed", task_id="t1")
    assert isinstance(error, base)
    assert (error.task_id, error.maybe_executed, error.retryable) == ("t1", maybe_executed, retryable)


@pytest.mark.parametrize("name", [name for name, *_ in TREE if name != "RemoteError"])
@pytest.mark.parametrize("maybe_executed", [False, True])
def test_what_is_known_of_one_call_overrules_what_its_class_says(name: str, maybe_executed: bool) -> None:
    assert find(name)("it failed", maybe_executed=maybe_executed).maybe_executed is maybe_executed


@pytest.mark.parametrize("name", [name for name, *_ in TREE if name != "RemoteError"])
def test_an_error_reads_as_its_message(name: str) -> None:
    assert str(find(name)("the queue 'a' is full")) == "the queue 'a' is full"


@pytest.mark.parametrize("name", [name for name, *_ in TREE])
def test_an_error_needs_no_message(name: str) -> None:
    error = find(name)()
    assert (error.message, error.task_id) == ("", None)


def test_a_remote_error_reads_as_its_type_and_message() -> None:
    assert str(RemoteError("no such user", type="KeyError")) == "KeyError: no such user"


def test_a_remote_error_without_message_reads_as_its_type() -> None:
    assert str(RemoteError(type="KeyError")) == "KeyError"


def test_a_remote_error_shows_what_it_reads_as() -> None:
    assert repr(RemoteError("no such user", type="KeyError")) == "<RemoteError KeyError: no such user>"


def test_a_remote_error_keeps_the_arguments_of_the_remote_exception() -> None:
    assert RemoteError("a", args=(1, "a")).args == (1, "a")


def test_the_remote_traceback_is_shown_with_the_error() -> None:
    error = RemoteError("boom", type="ValueError", traceback="Traceback: line 1 of the worker")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "line 1 of the worker" in "".join(traceback.format_exception(error))


def test_a_remote_error_without_traceback_has_no_cause_to_show() -> None:
    assert RemoteError("boom").__cause__ is None


def test_an_error_is_the_same_after_copying_and_pickling() -> None:
    error = RemoteError("no", type="KeyError", args=("a", 1), traceback="Traceback: no", task_id="t", notes=("n",))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(other), other.args, vars(other)) == (RemoteError, ("a", 1), vars(error))
        assert str(other.__cause__) == str(error.__cause__)


def test_an_error_of_a_registered_class_is_a_plain_remote_error_after_pickling() -> None:
    registry = ExceptionRegistry([LookupError])
    error = rebuild_error({"error": "RemoteError", "type": "LookupError", "args": ["x"]}, registry, "t")
    assert isinstance(error, LookupError)
    assert type(pickle.loads(pickle.dumps(error))) is RemoteError
