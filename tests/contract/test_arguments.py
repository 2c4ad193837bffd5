"""How the arguments of a call reach the method, and its value the caller."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq import Client, Context, Service

from .parties import ClientFactory, WorkerFactory, calculator, eventually


async def test_positional_arguments_arrive_in_order(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def join(a: str, b: str, c: str) -> str:
        return a + b + c

    await worker(service)
    assert await (await client()).call("join", "x", "y", "z") == "xyz"


async def test_keyword_arguments_arrive_by_name(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator())
    assert await (await client()).call("add", b=2, a=40) == 42


async def test_what_the_caller_leaves_out_is_the_default(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def greet(name: str, greeting: str = "hello", *, mark: str = "!") -> str:
        return f"{greeting} {name}{mark}"

    await worker(service)
    caller = await client()
    assert await caller.call("greet", "ada") == "hello ada!"
    assert await caller.call("greet", "ada", mark="?") == "hello ada?"
    assert await caller.call("greet", "ada", "good morning") == "good morning ada!"


async def test_collecting_parameters_collect(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def collect(first: int, *rest: int, **named: int) -> list[Any]:
        return [first, list(rest), named]

    await worker(service)
    caller = await client()
    assert await caller.call("collect", 1) == [1, [], {}]
    assert await caller.call("collect", 1, 2, 3, x=4, y=5) == [1, [2, 3], {"x": 4, "y": 5}]


async def test_a_keyword_may_be_called_as_the_parameters_of_call_itself_are(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    service = Service()

    @service.method
    async def named(**named: Any) -> dict[str, Any]:
        return named

    await worker(service)
    given = {"method": 1, "self": 2, "args": 3, "timeout": 4, "task_id": 5}
    assert await (await client()).call("named", **given) == given


async def test_keyword_only_parameters_are_given_by_name(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def scale(value: int, *, factor: int) -> int:
        return value * factor

    await worker(service)
    assert await (await client()).call("scale", 21, factor=2) == 42


async def first(ctx: Context, a: int, b: int = 2) -> Any:
    return ctx.task_id, a, b


async def middle(a: int, ctx: Context, b: int = 2) -> Any:
    return ctx.task_id, a, b


async def last(a: int, b: int = 2, *, ctx: Context) -> Any:
    return ctx.task_id, a, b


async def before_the_rest(ctx: Context, *rest: int) -> Any:
    a, b = (*rest, 2)[:2]
    return ctx.task_id, a, b


async def positional_only(ctx: Context, a: int, /, b: int = 2) -> Any:
    return ctx.task_id, a, b


def in_a_thread(a: int, ctx: Context, b: int = 2) -> Any:
    return ctx.task_id, a, b


@pytest.mark.parametrize("function", [first, middle, last, before_the_rest, positional_only, in_a_thread])
async def test_the_context_is_injected_wherever_the_method_wants_it(
    client: ClientFactory, worker: WorkerFactory, function: Any
) -> None:
    service = Service()
    service.method(function)
    await worker(service)
    caller = await client()
    name = function.__name__
    assert await caller.with_options(task_id="t1").call(name, 1) == ("t1", 1, 2)
    assert await caller.with_options(task_id="t2").call(name, 1, 3) == ("t2", 1, 3)


@pytest.mark.parametrize("function", [first, middle, last, in_a_thread])
async def test_the_context_is_injected_beside_keyword_arguments(
    client: ClientFactory, worker: WorkerFactory, function: Any
) -> None:
    service = Service()
    service.method(function)
    await worker(service)
    caller = await client()
    name = function.__name__
    assert await caller.with_options(task_id="t1").call(name, 1, b=3) == ("t1", 1, 3)
    assert await caller.with_options(task_id="t2").call(name, b=3, a=1) == ("t2", 1, 3)


async def test_the_context_knows_the_call(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service("files")

    @service.method(name="meta.show")
    async def show(ctx: Context) -> list[Any]:
        return [ctx.task_id, ctx.method, ctx.attempt, ctx.redelivered, ctx.parent_id, ctx.root_id, dict(ctx.metadata)]

    await worker(service)
    caller = (await client()).with_options(task_id="t1")
    assert await caller.call("files.meta.show") == ["t1", "meta.show", 1, False, None, "t1", {}]


async def test_metadata_reach_the_context(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def metadata(ctx: Context) -> dict[str, Any]:
        return dict(ctx.metadata)

    await worker(service)
    given = {"trace": "00-ab-cd-01", "user": 7, "ratio": 0.5, "on": True, "none": None, "nested": {"tags": ["a", "b"]}}
    assert await (await client()).with_options(metadata=given).call("metadata") == given


async def test_metadata_that_no_header_can_carry_are_a_value_error(
    client: ClientFactory, worker: WorkerFactory
) -> None:
    serving = await worker(calculator())
    caller = await client()
    with pytest.raises(ValueError, match="object"):
        await caller.with_options(metadata={"x": object()}).call("add", 1, 2)
    assert caller.statistics().pending == 0
    assert serving.statistics().started == 0


async def test_the_default_service_needs_no_name(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(Service("math"), calculator())
    assert await (await client()).call("add", 1, 2) == 3


async def test_a_named_service_is_called_by_its_name(client: ClientFactory, worker: WorkerFactory) -> None:
    await worker(calculator("math"))
    assert await (await client()).call("math.add", 1, 2) == 3


async def test_services_keep_their_methods_apart(client: ClientFactory, worker: WorkerFactory) -> None:
    left, right = Service("left"), Service("right")

    @left.method(name="name")
    async def of_left() -> str:
        return "left"

    @right.method(name="name")
    async def of_right() -> str:
        return "right"

    await worker(left, right)
    caller = await client()
    assert [await caller.call("left.name"), await caller.call("right.name")] == ["left", "right"]


async def test_names_of_methods_may_have_dots(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service("files")

    @service.method(name="images.resize.fast")
    async def resize() -> str:
        return "done"

    await worker(service)
    assert await (await client()).call("files.images.resize.fast") == "done"


async def test_a_method_without_a_value_returns_none(client: ClientFactory, worker: WorkerFactory) -> None:
    service = Service()

    @service.method
    async def nothing() -> None:
        pass

    await worker(service)
    caller = await client()
    assert [await caller.call("nothing")] == [None]
    assert [await (await caller.submit("nothing"))] == [None]


async def test_a_cast_runs_the_method(client: ClientFactory, worker: WorkerFactory) -> None:
    service, seen = Service(), []

    @service.method
    async def audit(entry: int) -> None:
        seen.append(entry)

    @service.method
    async def entries() -> list[int]:
        return seen

    await worker(service)
    caller = await client()
    await caller.cast("audit", 7)
    assert await caller.call("entries") == [7]


async def test_a_method_that_fails_in_a_cast_is_logged_and_harms_nothing(
    client: ClientFactory, worker: WorkerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    serving = await worker(calculator())
    caller = await client()
    await caller.cast("fail", "unheard")
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().publisher.failed == 1
    assert "method fail failed" in caplog.text


async def test_one_task_id_is_one_task_whatever_is_called(client: ClientFactory, worker: WorkerFactory) -> None:
    """A worker answers an id that it has answered before from its cache: an id makes a call idempotent."""
    serving = await worker(calculator())
    caller = (await client()).with_options(task_id="order-7")
    assert await caller.call("add", 1, 2) == 3
    await eventually(lambda: serving.statistics().running == 0)
    assert await caller.call("add", 5, 5) == 3
    assert serving.statistics().started == 1


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_what_cannot_name_a_method_is_a_value_error(client: ClientFactory, way: str) -> None:
    caller = await client()
    for method in (
        "",
        "a b",
        ".add",
        "add.",
        "a..b",
        "über.add",
        "a/b",
        "add\n",
        "x" * 256,
        "y" * 101 + ".add",
        None,
        3,
    ):
        with pytest.raises(ValueError, match="name"):
            await getattr(caller, way)(method)
    assert caller.statistics().pending == 0


async def test_a_registered_function_stays_callable() -> None:
    service = Service()

    @service.method
    async def double(value: int) -> int:
        return value * 2

    assert await double(21) == 42


async def test_metadata_too_large_for_a_header_is_a_value_error(client: ClientFactory) -> None:
    caller = await client()
    with pytest.raises(ValueError, match="metadata: more than 65536 bytes"):
        caller.with_options(metadata={"trace": "x" * 70_000})


async def test_a_broker_of_an_unknown_kind_is_a_value_error_that_names_no_password() -> None:
    with pytest.raises(ValueError, match="url") as caught:
        Client("kafka://user:secret@host/")
    assert "secret" not in str(caught.value)
