"""Exceptions as values and back: nothing the method raises is too odd to describe, nothing a peer sends to rebuild."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq import errors
from aiorpcq.codec import Codecs
from aiorpcq.errors import InvalidArguments, Overloaded, RemoteError, RemoteTraceback, RPCError
from aiorpcq.protocol.failures import ExceptionRegistry, describe_error, describe_exception, rebuild_error

TEXT_LIMIT = 16_384
TRACEBACK_LIMIT = 65_536
CAUSES_LIMIT = 8

NO_CLASSES = ExceptionRegistry()

LOCAL = (
    "CodecError",
    "ContentDisallowed",
    "DeadlineExceeded",
    "InvalidArguments",
    "MethodNotFound",
    "Overloaded",
    "PayloadTooLarge",
    "Poisoned",
    "Rejected",
    "TaskRevoked",
    "UnsupportedVersion",
    "WorkerLost",
)


class QuotaError(Exception):
    """One that callers register; its constructor wants what nothing remote could give."""

    def __init__(self, user: str, *, limit: int) -> None:
        super().__init__(user, limit)
        self.limit = limit

    class InnerError(Exception):
        """Has a dot in its qualified name."""


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class UnprintableObject:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class EmptyError(Exception):
    """False, where it is asked: it has no items."""

    def __len__(self) -> int:
        return 0


class NoTruthError(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


class NoArgumentsError(Exception):
    args = None  # type: ignore[assignment]  # what a method's own class may do


class BrokenArgumentsError(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError("no arguments")

    @args.setter
    def args(self, value: object) -> None:
        """Ignore it."""


class BrokenNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # what a method's own class may do
        raise RuntimeError("no notes")


class NoModuleError(Exception):
    __module__ = None  # type: ignore[assignment]  # what a method's own class may do


class BadTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307  # what a method's own class may do


ODD: dict[str, Callable[[], BaseException]] = {
    "no text": lambda: UnprintableError("x"),
    "text of another type": lambda: BadTextError("x"),
    "arguments that cannot be shown": lambda: ValueError(UnprintableObject()),
    "no arguments": lambda: NoArgumentsError("x"),
    "broken arguments": lambda: BrokenArgumentsError("x"),
    "broken notes": lambda: BrokenNotesError("x"),
    "no module": lambda: NoModuleError("x"),
    "no truth": lambda: NoTruthError("x"),
    "half a character": lambda: ValueError("\udcff", "\udcff"),
    "a long text": lambda: ValueError("x" * 100_000),
    "many arguments": lambda: ValueError(*range(10_000)),
    "a huge argument": lambda: ValueError(10**5_000),
    "system exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop iteration": lambda: StopIteration(5),
    "group": lambda: ExceptionGroup("several", [ValueError("one"), UnprintableError("two")]),
    "base group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("two")]),
}


def never(_: Any) -> bool:
    return False


def can_encode(value: Any) -> bool:
    try:
        Codecs().encode(value)
    except RPCError:
        return False
    return True


def raised(exception: BaseException) -> BaseException:
    """Return *exception* with a traceback."""
    try:
        raise exception
    except BaseException as error:
        return error


def transfer(exception: BaseException, registry: ExceptionRegistry = NO_CLASSES) -> RemoteError:
    """Return what a caller raises where the method raised *exception*, by way of the default codec."""
    codecs = Codecs()
    value = codecs.decode(*codecs.encode(describe_exception(raised(exception), can_encode)))
    error = rebuild_error(value, registry, "t1")
    assert isinstance(error, RemoteError)
    return error


def chain(error: RemoteError) -> list[RemoteError]:
    found = [error]
    while found[-1].cause is not None:
        found.append(found[-1].cause)
    return found


@given(
    st.text(),
    st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(), max_size=5),
)
def test_an_exception_arrives_with_type_module_arguments_and_task(text: str, arguments: list[Any]) -> None:
    error = transfer(QuotaError.InnerError(text, *arguments))
    assert (error.type, error.module, error.task_id) == ("QuotaError.InnerError", __name__, "t1")
    assert error.args == (text, *arguments)
    assert error.maybe_executed


def test_an_exception_arrives_with_its_message_and_traceback() -> None:
    error = transfer(KeyError("no such user"))
    assert error.message == "'no such user'"
    assert str(error) == "KeyError: 'no such user'"
    assert "in raised" in error.traceback
    assert isinstance(error.__cause__, RemoteTraceback)


def test_an_exception_without_arguments_arrives_without() -> None:
    error = transfer(ValueError())
    assert (error.args, error.message, error.notes, error.cause) == ((), "", (), None)


def test_notes_arrive() -> None:
    exception = ValueError("x")
    exception.add_note("first")
    exception.add_note("second")
    assert transfer(exception).notes == ("first", "second")


def test_notes_are_bounded() -> None:
    exception = ValueError("x")
    for number in range(1_000):
        exception.add_note(str(number))
    assert len(transfer(exception).notes) == 32


def test_notes_that_are_no_list_are_left_out() -> None:
    exception = ValueError("x")
    exception.__notes__ = "text"  # type: ignore[assignment]  # nothing stops a method from that
    assert transfer(exception).notes == ()


def test_notes_of_any_kind_arrive_as_text() -> None:
    exception = ValueError("x")
    exception.__notes__ = [5, UnprintableObject()]  # type: ignore[list-item]  # nothing stops a method from that
    assert transfer(exception).notes == ("5", "<UnprintableObject>")


def test_an_argument_that_cannot_be_encoded_arrives_as_its_repr() -> None:
    error = transfer(ValueError(1, ValueError, UnprintableObject()))
    assert error.args == (1, "<class 'ValueError'>", "<UnprintableObject>")


def test_arguments_that_cannot_be_encoded_are_not_sent() -> None:
    assert describe_exception(ValueError(1, "a"), never)["args"] == ["1", "'a'"]


def test_the_chain_of_causes_arrives() -> None:
    exception = ValueError("outer")
    exception.__cause__ = KeyError("middle")
    exception.__cause__.__cause__ = OSError("inner")
    assert [error.type for error in chain(transfer(exception))] == ["ValueError", "KeyError", "OSError"]


def test_the_first_traceback_shows_the_chain_and_the_others_themselves() -> None:
    exception = ValueError("outer")
    exception.__cause__ = KeyError("middle")
    exception.__cause__.__cause__ = OSError("inner")
    tracebacks = [error.traceback for error in chain(transfer(exception))]
    shown = [[name in text for name in ("ValueError", "KeyError", "OSError")] for text in tracebacks]
    assert shown == [[True, True, True], [False, True, False], [False, False, True]]


def test_a_context_arrives_as_the_cause() -> None:
    exception = ValueError("outer")
    exception.__context__ = KeyError("while handling")
    assert [error.type for error in chain(transfer(exception))] == ["ValueError", "KeyError"]


def test_a_suppressed_context_does_not_arrive() -> None:
    exception = ValueError("outer")
    exception.__context__ = KeyError("hidden")
    exception.__suppress_context__ = True
    assert transfer(exception).cause is None


@pytest.mark.parametrize("cause", [EmptyError("x"), NoTruthError("x")])
def test_a_cause_counts_whatever_its_truth(cause: Exception) -> None:
    exception = ValueError("outer")
    exception.__context__ = KeyError("while handling")
    exception.__cause__ = cause
    assert [error.type for error in chain(transfer(exception))] == ["ValueError", type(cause).__name__]


def test_the_chain_of_causes_is_bounded() -> None:
    exception: Exception = ValueError("innermost")
    for number in range(100):
        outer = ValueError(number)
        outer.__cause__ = exception
        exception = outer
    assert [error.args for error in chain(transfer(exception))] == [(99 - number,) for number in range(CAUSES_LIMIT)]


@pytest.mark.parametrize("attribute", ["__cause__", "__context__"])
def test_a_circular_chain_ends(attribute: str) -> None:
    one, other = ValueError("one"), KeyError("other")
    setattr(one, attribute, other)
    setattr(other, attribute, one)
    assert [error.type for error in chain(transfer(one))] == ["ValueError", "KeyError"]


def test_an_exception_that_is_its_own_cause_arrives_once() -> None:
    exception = ValueError("one")
    exception.__cause__ = exception
    assert transfer(exception).cause is None


@pytest.mark.parametrize("odd", ODD)
def test_whatever_is_raised_arrives(odd: str) -> None:
    exception = ODD[odd]()
    error = transfer(exception)
    assert error.type == type(exception).__qualname__
    assert error.traceback


@pytest.mark.parametrize("odd", ODD)
def test_whatever_caused_it_arrives(odd: str) -> None:
    exception = ValueError("outer")
    exception.__cause__ = ODD[odd]()
    assert [error.type for error in chain(transfer(exception))] == [
        "ValueError",
        type(exception.__cause__).__qualname__,
    ]


def test_an_exception_with_broken_text_arrives_with_its_type_as_message() -> None:
    assert transfer(UnprintableError("x")).message == "<UnprintableError>"


def test_half_a_character_arrives_escaped() -> None:
    error = transfer(ValueError("name: \udcff"))
    assert error.message == "name: \\udcff"
    assert "name: \\udcff" in error.traceback


def test_long_texts_are_cut() -> None:
    exception = ValueError("x" * 100_000)
    exception.add_note("y" * 100_000)
    described = describe_exception(raised(exception), never)
    assert [len(text) for text in (described["message"], *described["args"], *described["notes"])] == [TEXT_LIMIT] * 3
    assert len(described["traceback"]) <= TRACEBACK_LIMIT + 10


def test_the_traceback_of_a_deep_recursion_is_cut_to_its_end() -> None:
    def even(depth: int) -> None:
        odd(depth - 1)

    def odd(depth: int) -> None:
        if depth < 0:
            raise ValueError("the bottom")
        even(depth - 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        even(10_000)
    except ValueError as exception:
        described = describe_exception(exception, never)
    finally:
        sys.setrecursionlimit(limit)
    assert len(described["traceback"]) <= TRACEBACK_LIMIT + 10
    assert described["traceback"].startswith("...\n")
    assert described["traceback"].endswith("ValueError: the bottom\n")


def test_an_exhausted_stack_arrives() -> None:
    def descend() -> None:
        descend()

    with pytest.raises(RecursionError) as caught:
        descend()
    assert transfer(caught.value).type == "RecursionError"


def test_the_members_of_a_group_are_in_its_traceback() -> None:
    error = transfer(ExceptionGroup("several", [ValueError("first"), KeyError("second")]))
    assert error.message == "several (2 sub-exceptions)"
    assert "ValueError: first" in error.traceback
    assert "KeyError: 'second'" in error.traceback


def test_a_registered_exception_is_raised_as_itself() -> None:
    error = transfer(QuotaError("ann", limit=5), ExceptionRegistry([QuotaError]))
    assert isinstance(error, QuotaError)
    assert isinstance(error, RemoteError)
    assert (error.args, error.type, error.module) == (("ann", 5), "QuotaError", __name__)


def test_a_registered_exception_is_found_by_its_qualified_name() -> None:
    error = transfer(QuotaError.InnerError("x"), ExceptionRegistry([QuotaError.InnerError]))
    assert isinstance(error, QuotaError.InnerError)


def test_a_registered_cause_is_its_class_too() -> None:
    exception = ValueError("outer")
    exception.__cause__ = QuotaError("ann", limit=5)
    assert isinstance(transfer(exception, ExceptionRegistry([QuotaError])).cause, QuotaError)


def test_a_subclass_of_what_is_registered_is_not() -> None:
    class StricterError(QuotaError):
        """Its caller may not know it."""

    error = transfer(StricterError("ann", limit=5), ExceptionRegistry([QuotaError]))
    assert type(error) is RemoteError


@pytest.mark.parametrize(
    "cls", [KeyError, OSError, FileNotFoundError, TimeoutError, UnicodeDecodeError, StopIteration, ConnectionError]
)
def test_built_in_exceptions_can_be_registered(cls: type[Exception]) -> None:
    value = {"error": "RemoteError", "type": cls.__name__, "module": "builtins", "args": [1, 2], "message": "text"}
    error = rebuild_error(value, ExceptionRegistry([cls]), "t1")
    assert isinstance(error, cls)
    assert (error.args, str(error)) == ((1, 2), f"{cls.__name__}: text")


@pytest.mark.parametrize("cls", [int, BaseException, KeyboardInterrupt, "ValueError", None, ValueError("x")])
def test_what_is_no_exception_class_cannot_be_registered(cls: Any) -> None:
    with pytest.raises(ValueError, match="is not an exception class"):
        ExceptionRegistry([cls])


class ReadOnlyError(Exception):
    @property
    def message(self) -> str:
        return "fixed"


class DemandingError(Exception):
    def __new__(cls, text: str) -> DemandingError:
        return super().__new__(cls, text)


class SealedError(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no subclasses")


@pytest.mark.parametrize("cls", [DemandingError, SealedError, ExceptionGroup, RemoteError])
def test_a_class_that_could_not_be_rebuilt_cannot_be_registered(cls: type[Exception]) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__} cannot be combined with RemoteError"):
        ExceptionRegistry([cls])


def test_a_registered_class_may_have_a_property_of_the_same_name() -> None:
    value = {"type": "ReadOnlyError", "module": __name__, "message": "x", "args": [1]}
    error = rebuild_error(value, ExceptionRegistry([ReadOnlyError]), "t1")
    assert isinstance(error, ReadOnlyError)
    assert (error.message, error.args, error.task_id) == ("fixed", (1,), "t1")


@dataclass(frozen=True)
class FrozenError(Exception):
    message: str
    type: int


def test_a_frozen_dataclass_can_be_registered() -> None:
    value = {"type": "FrozenError", "module": __name__, "message": "x"}
    error = rebuild_error(value, ExceptionRegistry([FrozenError]), "t1")
    assert isinstance(error, FrozenError)
    assert error.message == "x"


class FickleError(Exception):
    """Could be rebuilt when it was registered, and not any more."""

    broken = False

    def __new__(cls, *args: object) -> FickleError:
        if cls.broken:
            raise RuntimeError("not today")
        return super().__new__(cls, *args)


def test_a_registered_class_that_fails_gives_way_to_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ExceptionRegistry([FickleError])
    monkeypatch.setattr(FickleError, "broken", True)
    error = rebuild_error({"type": "FickleError", "module": __name__, "message": "x"}, registry, "t1")
    assert (type(error), error.message) == (RemoteError, "x")


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("maybe_executed", [True, False])
def test_an_error_of_the_library_arrives_as_itself(name: str, maybe_executed: bool) -> None:
    sent = getattr(errors, name)("it failed", maybe_executed=maybe_executed)
    error = rebuild_error(describe_error(sent), NO_CLASSES, "t1")
    assert type(error) is type(sent)
    assert (error.message, error.maybe_executed, error.task_id) == ("it failed", maybe_executed, "t1")


@pytest.mark.parametrize("maybe_executed", [None, 1, "yes", []])
def test_what_a_peer_does_not_say_of_the_run_is_said_by_the_class(maybe_executed: object) -> None:
    value = {"error": "Poisoned", "message": "x", "maybe_executed": maybe_executed}
    assert rebuild_error(value, NO_CLASSES, "t1").maybe_executed is True


def test_the_text_of_an_error_of_the_library_can_be_encoded() -> None:
    """A keyword that a JSON caller sent can hold half a character, and the text holds the keyword."""
    value = describe_error(InvalidArguments("unexpected keyword argument '\ud800'"))
    assert value["message"] == "unexpected keyword argument '\\ud800'"


def test_the_text_of_an_error_of_the_library_is_cut() -> None:
    assert len(describe_error(InvalidArguments("x" * 100_000))["message"]) == TEXT_LIMIT


@pytest.mark.parametrize("name", ["ConnectionLost", "Unroutable", "RPCError", "SystemExit", "os.system", "__class__"])
def test_only_errors_that_a_worker_answers_with_are_found_by_name(name: str) -> None:
    assert type(rebuild_error({"error": name, "message": "x"}, NO_CLASSES, "t1")) is RemoteError


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("antigravity", "geohash"), ("builtins", "SystemExit")])
def test_nothing_is_imported_or_looked_up(module: str, name: str) -> None:
    before = set(sys.modules)
    error = rebuild_error({"error": "RemoteError", "type": name, "module": module, "args": ["x"]}, NO_CLASSES, "t1")
    assert type(error) is RemoteError
    assert (error.type, error.module) == (name, module)
    assert set(sys.modules) == before


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize("key", ["error", "type", "module", "message", "traceback", "args", "notes", "cause"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        1.5,
        b"\xff",
        "\ud800",
        [],
        {},
        [[]],
        {5: 6},
        10**5_000,
        nested(10_000, lambda inner: [inner]),
        nested(10_000, lambda inner: {"cause": inner, "notes": inner}),
        UnprintableObject(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_makes_no_sense_is_a_remote_error(key: str, value: Any) -> None:
    for described in (value, {key: value}, {"error": "Poisoned", key: value}, {"notes": [value], "args": [value]}):
        error = rebuild_error(described, NO_CLASSES, "t1")
        assert isinstance(error, RPCError)
        assert error.task_id == "t1"
        assert isinstance(str(error), str)


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from(LOCAL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "type", "module", "message", "args", "traceback", "notes", "cause"])
            | st.text(max_size=3)
            | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(values)
def test_whatever_a_peer_sends_is_an_error_of_the_library(value: Any) -> None:
    error = rebuild_error(value, ExceptionRegistry([QuotaError, OSError]), "t1")
    assert isinstance(error, RPCError)
    assert error.task_id == "t1"
    assert str(error) is not None
    if isinstance(error, RemoteError):
        assert len(chain(error)) <= CAUSES_LIMIT
        assert isinstance(error.args, tuple)
        assert all(isinstance(text, str) for text in (error.type, error.module, error.traceback, *error.notes))


@pytest.mark.parametrize("retry_after", [-1, 10**400, float("inf"), float("nan"), True, "1", None])
def test_a_pause_that_makes_no_sense_is_left_out(retry_after: Any) -> None:
    value = {"error": "Overloaded", "message": "busy", "maybe_executed": False, "retry_after": retry_after}
    error = rebuild_error(value, ExceptionRegistry(), "t")
    assert isinstance(error, Overloaded)
    assert error.retry_after is None
