"""What a method raises, as its caller sees it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aiorpcq import (
    Client,
    DeadlineExceeded,
    MethodNotFound,
    RemoteError,
    RPCError,
    Service,
    TaskRevoked,
    Unroutable,
)
from aiorpcq.errors import RemoteTraceback

from .parties import BystanderFactory, ClientFactory, WorkerFactory, calculator


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Mute(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307 - as broken classes do


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(code)
        self.code = code


class WithMessage(Exception):
    @property
    def message(self) -> str:
        return "mine"


class Demanding(Exception):
    def __new__(cls, first: int, second: int) -> Demanding:
        return super().__new__(cls, first, second)


class Outer:
    class Nested(LookupError):
        pass


def raising(make: Callable[[], BaseException]) -> Service:
    """A service with two methods that raise what *make* makes, one of each kind."""
    service = calculator()

    @service.method
    async def in_the_loop() -> None:
        raise make()

    @service.method
    def in_a_thread() -> None:
        raise make()

    return service


async def caught_from(caller: Client, method: str, *arguments: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await caller.call(method, *arguments)
    return caught.value


WAYS = pytest.mark.parametrize("method", ["in_the_loop", "in_a_thread"])


@pytest.mark.parametrize(
    "cls",
    [
        ValueError,
        KeyError,
        OSError,
        MemoryError,
        RecursionError,
        AssertionError,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        StopAsyncIteration,
        TimeoutError,
        BaseException,
        DeadlineExceeded,
        Unroutable,
        MethodNotFound,
    ],
)
async def test_whatever_a_method_raises_is_a_remote_error_and_the_worker_lives(
    client: ClientFactory, worker: WorkerFactory, cls: type[BaseException]
) -> None:
    await worker(raising(lambda: cls("boom")))
    caller = await client()
    for method in ("in_the_loop", "in_a_thread"):
        error = await caught_from(caller, method)
        assert type(error) is RemoteError
        assert (error.type, error.module) == (cls.__qualname__, cls.__module__)
        assert "boom" in error.message
        assert error.args == ("boom",)
        assert error.maybe_executed
        assert error.task_id is not None
    assert await caller.call("add", 1, 2) == 3


async def test_stop_iteration_of_a_plain_method_is_a_remote_error(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: StopIteration("boom")))
    error = await caught_from(await client(), "in_a_thread")
    assert (error.type, error.args) == ("StopIteration", ("boom",))


async def test_stop_iteration_of_an_asynchronous_method_is_what_python_makes_of_it(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(raising(lambda: StopIteration("boom")))
    error = await caught_from(await client(), "in_the_loop")
    assert error.type == "RuntimeError"
    assert error.cause is not None
    assert (error.cause.type, error.cause.args) == ("StopIteration", ("boom",))


@WAYS
async def test_an_exception_group_shows_its_members_in_the_traceback(
    client: ClientFactory, worker: WorkerFactory, method: str
) -> None:
    await worker(raising(lambda: ExceptionGroup("several", [ValueError("first"), KeyError("second")])))
    error = await caught_from(await client(), method)
    assert error.type == "ExceptionGroup"
    assert "several" in error.message
    assert "ValueError: first" in error.traceback
    assert "KeyError: 'second'" in error.traceback


async def test_the_text_of_the_error_says_type_and_message(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    assert str(await caught_from(await client(), "fail", "boom")) == "ValueError: boom"


@WAYS
async def test_the_remote_traceback_names_function_and_line(
    client: ClientFactory, worker: WorkerFactory, method: str
) -> None:
    await worker(raising(lambda: ValueError("boom")))
    error = await caught_from(await client(), method)
    assert f"in {method}" in error.traceback
    assert "raise make()" in error.traceback
    assert error.traceback.rstrip().endswith("ValueError: boom")


async def test_the_remote_traceback_is_shown_as_the_cause(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    error = await caught_from(await client(), "fail", "boom")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert error.traceback in str(error.__cause__)


async def test_causes_come_as_a_chain(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def chain() -> None:
        try:
            try:
                raise KeyError("k")
            except KeyError as error:
                raise ValueError("v") from error
        except ValueError as error:
            raise OSError("o") from error

    await worker(service)
    error: RemoteError | None = await caught_from(await client(), "chain")
    seen = []
    while error is not None:
        seen.append((error.type, error.args))
        error = error.cause
    assert seen == [("OSError", ("o",)), ("ValueError", ("v",)), ("KeyError", ("k",))]


async def test_an_exception_during_handling_is_a_cause_unless_suppressed(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def during(suppressed: bool) -> None:
        try:
            raise KeyError("k")
        except KeyError:
            if suppressed:
                raise ValueError("v") from None
            raise ValueError("v")  # noqa: B904 - the implicit chain is what is tested

    await worker(service)
    caller = await client()
    cause = (await caught_from(caller, "during", False)).cause
    assert cause is not None
    assert cause.type == "KeyError"
    assert (await caught_from(caller, "during", True)).cause is None


async def test_a_chain_without_end_is_cut(client: ClientFactory, worker: WorkerFactory) -> None:
    def make() -> BaseException:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        return first

    await worker(raising(make))
    error = await caught_from(await client(), "in_the_loop")
    assert error.cause is not None
    assert error.cause.cause is None


async def test_notes_travel(client: ClientFactory, worker: WorkerFactory) -> None:
    def make() -> BaseException:
        error = ValueError("boom")
        error.add_note("row 7")
        error.add_note("file a.csv")
        return error

    await worker(raising(make))
    error = await caught_from(await client(), "in_the_loop")
    assert error.notes == ("row 7", "file a.csv")
    assert "row 7" in error.traceback


async def test_arguments_that_cannot_be_encoded_come_as_their_repr(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(raising(lambda: ValueError("text", {1, 2}, Outer, "\ud800")))
    error = await caught_from(await client(), "in_the_loop")
    assert error.args == ("text", {1, 2}, repr(Outer), repr("\ud800"))


@pytest.mark.parametrize("cls", [Speechless, Mute])
@WAYS
async def test_an_exception_without_text_is_still_a_remote_error(
    client: ClientFactory, worker: WorkerFactory, method: str, cls: type[Exception]
) -> None:
    await worker(raising(lambda: cls(cls("argument"))))
    caller = await client()
    error = await caught_from(caller, method)
    assert error.type == cls.__qualname__
    assert cls.__qualname__ in error.message
    assert len(error.args) == 1
    assert await caller.call("add", 1, 2) == 3


async def test_text_that_is_no_unicode_is_escaped(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: ValueError("lone \udc80")))
    error = await caught_from(await client(), "in_the_loop")
    assert error.message == r"lone \udc80"
    assert "in_the_loop" in error.traceback


async def test_a_message_without_end_is_cut(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: ValueError("x" * 1_000_000)))
    error = await caught_from(await client(), "in_the_loop")
    assert 1_000 < len(error.message) < 100_000
    assert len(error.traceback) < 100_000


# --- registered classes


async def caught_as(client: ClientFactory, cls: type[Exception], method: str = "in_the_loop") -> RemoteError:
    caller = await client(errors=[cls])
    with pytest.raises(cls) as caught:
        await caller.call(method)
    assert isinstance(caught.value, RemoteError)
    return caught.value


async def test_a_registered_class_is_raised_as_itself(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: LookupError("k", 1)))
    error = await caught_as(client, LookupError)
    assert (error.type, error.message, error.args) == ("LookupError", "('k', 1)", ("k", 1))
    assert "in_the_loop" in error.traceback


async def test_other_classes_stay_remote_errors(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: KeyError("k")))
    caller = await client(errors=[LookupError])
    with pytest.raises(RemoteError) as caught:
        await caller.call("in_the_loop")
    assert not isinstance(caught.value, LookupError)


async def test_the_constructor_of_a_registered_class_is_not_called(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(raising(lambda: KeywordOnly(code=7)))
    assert (await caught_as(client, KeywordOnly)).args == (7,)


async def test_a_nested_class_can_be_registered(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(raising(lambda: Outer.Nested("k")))
    assert (await caught_as(client, Outer.Nested)).type == "Outer.Nested"


async def test_a_class_made_in_a_function_can_be_registered(client: ClientFactory, worker: WorkerFactory) -> None:
    class Local(Exception):
        pass

    await worker(raising(lambda: Local("k")))
    assert "<locals>.Local" in (await caught_as(client, Local)).type


@pytest.mark.parametrize("cls", [OSError, UnicodeDecodeError, SyntaxError, ImportError, WithMessage])
async def test_a_class_with_fields_of_its_own_can_be_registered(
    client: ClientFactory, worker: WorkerFactory, cls: type[Exception]
) -> None:
    def make() -> Exception:
        return cls("utf-8", b"", 0, 1, "bad") if cls is UnicodeDecodeError else cls("boom")

    await worker(raising(make))
    error = await caught_as(client, cls)
    assert str(error).startswith(cls.__qualname__)


async def test_a_class_that_cannot_be_made_without_arguments_is_refused_or_raised(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(raising(lambda: Demanding(1, 2)))
    try:
        caller = await client(errors=[Demanding])
    except ValueError as error:
        assert "Demanding" in str(error)  # noqa: PT017 - either way is right, a TypeError at the call is not
        return
    with pytest.raises(RemoteError) as caught:
        await caller.call("in_the_loop")
    assert caught.value.args == (1, 2)


async def test_an_exception_group_that_is_registered_is_refused_or_raised(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    await worker(raising(lambda: ExceptionGroup("several", [ValueError("first")])))
    try:
        caller = await client(errors=[ExceptionGroup])
    except ValueError as error:
        assert "ExceptionGroup" in str(error)  # noqa: PT017 - as above
        return
    with pytest.raises(RemoteError) as caught:
        await caller.call("in_the_loop")
    assert caught.value.type == "ExceptionGroup"


async def test_causes_are_registered_classes_too(client: ClientFactory, worker: WorkerFactory) -> None:
    def make() -> BaseException:
        error = ValueError("v")
        error.__cause__ = LookupError("k")
        return error

    await worker(raising(make))
    caller = await client(errors=[LookupError])
    assert isinstance((await caught_from(caller, "in_the_loop")).cause, LookupError)


@pytest.mark.parametrize("cls", [BaseException, SystemExit, int, "ValueError", None])
async def test_what_is_no_exception_class_cannot_be_registered(url: str, cls: Any) -> None:
    with pytest.raises(ValueError, match="exception class"):
        Client(url, errors=[cls])


async def test_an_error_is_never_imported_by_its_name(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    service = await stranger.serve("odd")
    caller = await client()
    call = asyncio.ensure_future(caller.call("odd.one"))
    request = (await service.next()).properties
    assert request.reply_to is not None
    assert request.correlation_id is not None
    await stranger.state(
        request.reply_to,
        request.correlation_id,
        "FAILURE",
        {"error": "RemoteError", "type": "Quitter", "module": "this", "message": "m", "args": ["a"]},
    )
    with pytest.raises(RemoteError) as caught:
        await call
    assert type(caught.value) is RemoteError
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        {},
        {"error": 1},
        {"error": "SystemExit", "message": "m"},
        {"error": "RemoteError", "type": 1, "module": None, "args": 5, "notes": "n", "cause": [1], "traceback": {}},
        {1: 2},
        [["a"]],
    ],
)
async def test_a_failure_that_makes_no_sense_is_a_remote_error(
    client: ClientFactory, bystander: BystanderFactory, value: Any
) -> None:
    stranger = await bystander()
    service = await stranger.serve("odd")
    caller = await client()
    call = asyncio.ensure_future(caller.call("odd.one"))
    request = (await service.next()).properties
    assert request.reply_to is not None
    assert request.correlation_id is not None
    await stranger.state(request.reply_to, request.correlation_id, "FAILURE", value)
    with pytest.raises(RemoteError) as caught:
        await call
    assert type(caught.value) is RemoteError
    assert str(caught.value)


async def test_a_revoked_task_raises_its_own_error(client: ClientFactory, bystander: BystanderFactory) -> None:
    stranger = await bystander()
    service = await stranger.serve("odd")
    caller = await client()
    task = await caller.submit("odd.one")
    request = (await service.next()).properties
    assert request.reply_to is not None
    await stranger.state(request.reply_to, task.id, "REVOKED")
    with pytest.raises(TaskRevoked) as caught:
        await task
    assert caught.value.task_id == task.id


async def test_every_error_is_an_rpc_error(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    with pytest.raises(RPCError):
        await (await client()).call("fail", "boom")


async def test_an_error_of_a_nested_call_is_remote_for_the_outer_caller(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = calculator()
    inner = await client()

    @service.method
    async def outer() -> None:
        await inner.call("fail", "deep")

    await worker(service)
    error = await caught_from(await client(), "outer")
    assert (error.type, error.module) == ("RemoteError", "aiorpcq.errors")
    assert "ValueError: deep" in error.message
