"""Services: how methods are registered, and how the arguments of a request fit them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiorpcq.context
from aiorpcq.context import Context
from aiorpcq.errors import InvalidArguments
from aiorpcq.method import Method, MethodOptions
from aiorpcq.retry import RetryPolicy
from aiorpcq.service import Service


class Sink:
    """Keeps the states that a context publishes."""

    def __init__(self, remaining: float | None = None) -> None:
        self.states: list[tuple[str, Any]] = []
        self.left = remaining
        self.stopped = False

    async def update(self, name: str, value: Any) -> None:
        self.states.append((name, value))

    def remaining(self) -> float | None:
        return self.left

    def is_stopped(self) -> bool:
        return self.stopped


CONTEXT = Context(Sink(), task_id="t", method="m")


def make_method(function: Callable[..., Any]) -> Method:
    return Method("m", function)


def bind(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what *function* does with these arguments, by way of `Method.bind`."""
    positional, named = make_method(function).bind([list(args), kwargs], lambda: CONTEXT)
    return function(*positional, **named)


# Each function beside the one that has the context taken out; both return what they got.


def plain(a: int, b: int = 2) -> Any:
    return a, b


def nothing() -> Any:
    return ()


def nothing_ctx(ctx: Context) -> Any:
    assert ctx is CONTEXT
    return ()


def first(ctx: Context, a: int, b: int = 2) -> Any:
    assert ctx is CONTEXT
    return a, b


def middle(a: int, ctx: Context, b: int = 2) -> Any:
    assert ctx is CONTEXT
    return a, b


def last(a: int, b: int = 2, ctx: Context = CONTEXT) -> Any:
    assert ctx is CONTEXT
    return a, b


def keyword(a: int, b: int = 2, *, ctx: Context) -> Any:
    assert ctx is CONTEXT
    return a, b


def positional_only(ctx: Context, a: int, b: int = 2, /) -> Any:
    assert ctx is CONTEXT
    return a, b


def positional_only_plain(a: int, b: int = 2, /) -> Any:
    return a, b


def collecting(a: int, *rest: int, c: int = 3, **named: int) -> Any:
    return a, rest, c, named


def collecting_first(ctx: Context, a: int, *rest: int, c: int = 3, **named: int) -> Any:
    assert ctx is CONTEXT
    return a, rest, c, named


def collecting_middle(a: int, ctx: Context, *rest: int, c: int = 3, **named: int) -> Any:
    assert ctx is CONTEXT
    return a, rest, c, named


def collecting_keyword(a: int, *rest: int, c: int = 3, ctx: Context, **named: int) -> Any:
    assert ctx is CONTEXT
    return a, rest, c, named


def required(a: int = 1, *, c: int) -> Any:
    return a, c


def required_ctx(ctx: Context, a: int = 1, *, c: int) -> Any:
    assert ctx is CONTEXT
    return a, c


PAIRS = [
    (plain, plain),
    (nothing, nothing),
    (nothing_ctx, nothing),
    (first, plain),
    (middle, plain),
    (last, plain),
    (keyword, plain),
    (positional_only, positional_only_plain),
    (positional_only_plain, positional_only_plain),
    (collecting, collecting),
    (collecting_first, collecting),
    (collecting_middle, collecting),
    (collecting_keyword, collecting),
    (required, required),
    (required_ctx, required),
]


@pytest.mark.parametrize(("function", "without_context"), PAIRS, ids=[function.__name__ for function, _ in PAIRS])
@given(args=st.lists(st.integers(0, 9), max_size=4), kwargs=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)))
def test_arguments_fit_a_method_as_they_fit_its_function(
    function: Callable[..., Any], without_context: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    try:
        expected = without_context(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidArguments, match=r"^m\("):
            bind(function, *args, **kwargs)
    else:
        assert bind(function, *args, **kwargs) == expected


@pytest.mark.parametrize("function", [first, middle, last, keyword, collecting_first, collecting_keyword])
def test_the_context_is_not_the_callers_to_give(function: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArguments, match="ctx"):
        bind(function, 1, ctx=5)


def test_the_context_is_not_in_the_signature_that_a_caller_is_told() -> None:
    with pytest.raises(InvalidArguments, match=r"^m\(a, b=\.\.\.\): missing a required argument"):
        bind(first)


def test_the_context_is_made_where_it_is_wanted_and_nowhere_else() -> None:
    def fail() -> Context:
        raise AssertionError

    assert make_method(plain).bind([[1], {}], fail) == ([1], {})


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        5,
        "ab",
        b"ab",
        [],
        {},
        [[]],
        [[], {}, []],
        [{}, []],
        [[], []],
        [(), {}],
        ([], {}),
        [None, None],
        [[1], None],
        {"args": [], "kwargs": {}},
    ],
)
def test_a_body_that_is_no_arguments_is_refused(arguments: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"^the body is not"):
        make_method(plain).bind(arguments, lambda: CONTEXT)


@pytest.mark.parametrize("key", [1, None, b"a", 1.5])
@pytest.mark.parametrize("function", [plain, collecting, keyword])
def test_a_keyword_that_is_no_string_is_refused(function: Callable[..., Any], key: Any) -> None:
    with pytest.raises(InvalidArguments):
        make_method(function).bind([[1], {key: 1}], lambda: CONTEXT)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abctx", max_size=3), inner, max_size=2),
    )
)
def test_whatever_the_body_holds_it_fits_or_is_refused(arguments: Any) -> None:
    for function in (plain, middle, collecting_first):
        with contextlib.suppress(InvalidArguments):
            positional, named = make_method(function).bind(arguments, lambda: CONTEXT)
            function(*positional, **named)


def test_a_context_annotation_may_be_quoted_or_qualified() -> None:
    def quoted(ctx: "Context") -> Any:  # noqa: UP037  # the quotes are what is tested
        return ctx

    def qualified(ctx: aiorpcq.context.Context) -> Any:
        return ctx

    assert bind(quoted) is CONTEXT
    assert bind(qualified) is CONTEXT


def test_a_context_is_found_beside_annotations_that_cannot_be_resolved() -> None:
    def method(ctx: Context, a: NotThere) -> Any:  # type: ignore[name-defined]  # noqa: F821  # what is tested
        return ctx, a

    assert bind(method, 1) == (CONTEXT, 1)


def test_a_parameter_that_is_called_context_is_not_one() -> None:
    def method(context: int) -> Any:
        return context

    assert bind(method, 5) == 5


def test_two_contexts_are_refused() -> None:
    def method(one: Context, other: Context) -> None:
        """Never called."""

    with pytest.raises(ValueError, match=r"^method 'm' has more than one parameter annotated Context"):
        make_method(method)


def test_a_context_that_collects_others_is_refused() -> None:
    def positional(*contexts: Context) -> None:
        """Never called."""

    def named(**contexts: Context) -> None:
        """Never called."""

    for method in (positional, named):
        with pytest.raises(ValueError, match=r"^method 'm': the parameter annotated Context collects others"):
            make_method(method)


def test_a_context_that_could_be_given_neither_by_position_nor_by_name_is_refused() -> None:
    def method(a: int = 1, ctx: Context = CONTEXT, /) -> None:
        """Never called."""

    with pytest.raises(ValueError, match=r"^method 'm': the parameter annotated Context is positional-only behind"):
        make_method(method)


class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b

    async def __call__(self, a: int, ctx: Context) -> Any:
        return a, ctx


def test_a_bound_method_can_be_offered() -> None:
    assert bind(Calculator().add, 1, 2) == 3


def test_a_partial_can_be_offered_under_a_name() -> None:
    service = Service()
    service.method(name="add_five")(functools.partial(Calculator().add, 5))
    positional, named = service.methods["add_five"].bind([[1], {}], lambda: CONTEXT)
    assert service.methods["add_five"].function(*positional, **named) == 6


def test_an_object_with_an_async_call_is_async() -> None:
    method = make_method(Calculator())
    assert method.is_async
    assert method.bind([[1], {}], lambda: CONTEXT) == ([1, CONTEXT], {})


def test_a_partial_of_an_async_function_is_async() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    assert make_method(functools.partial(add, 1)).is_async


def test_a_plain_function_is_not_async() -> None:
    assert not make_method(plain).is_async


def test_a_decorated_function_stays_what_it_was() -> None:
    service = Service()

    @service.method
    def add(a: int, b: int) -> int:
        return a + b

    @service.method(name="minus")
    def subtract(a: int, b: int) -> int:
        return a - b

    assert (add(1, 2), subtract(3, 1)) == (3, 2)
    assert {name: method.function for name, method in service.methods.items()} == {"add": add, "minus": subtract}


def test_a_name_is_taken_once() -> None:
    service = Service("math")
    service.method(plain)
    with pytest.raises(ValueError, match=r"^service 'math' has a method 'plain' already"):
        service.method(plain)


def test_one_function_can_have_several_names_and_services() -> None:
    service, other = Service(), Service("other")
    service.method(plain)
    service.method(name="dotted.name")(plain)
    other.method(plain)
    assert (list(service.methods), list(other.methods)) == (["plain", "dotted.name"], ["plain"])


@pytest.mark.parametrize("name", ["", "a b", ".a", "a..b", "ä", "a" * 256])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^method name "):
        Service().method(name=name)(plain)


def test_a_function_without_a_usable_name_needs_one() -> None:
    with pytest.raises(ValueError, match=r"^method name '<lambda>'"):
        Service().method(lambda: None)
    with pytest.raises(ValueError, match=r"^method name ''"):
        Service().method(functools.partial(plain, 1))


@pytest.mark.parametrize("function", [5, "add", b"add", [], object()])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a function$"):
        Service().method(function)


def test_a_method_that_is_refused_is_not_registered() -> None:
    service = Service()
    with pytest.raises(ValueError, match=r"^timeout: "):
        service.method(timeout=-1)(plain)
    with pytest.raises(ValueError, match=r"^delivery: 'twice' is none of at_least_once, "):
        service.method(delivery="twice")(plain)  # type: ignore[call-overload]  # what is tested
    assert service.methods == {}


def test_options_of_the_service_are_the_defaults_of_its_methods() -> None:
    service = Service(timeout=5, delivery="at_most_once")
    service.method(plain)
    service.method(name="other", timeout=1, delivery="at_least_once")(plain)
    options = [(method.timeout, method.delivery) for method in service.methods.values()]
    assert options == [(5.0, "at_most_once"), (1.0, "at_least_once")]


def test_without_options_a_method_has_no_timeout_and_leaves_the_delivery_to_the_worker() -> None:
    service = Service()
    service.method(plain)
    assert (service.methods["plain"].timeout, service.methods["plain"].delivery) == (None, None)


def test_a_service_without_options_leaves_its_queue_as_it_is() -> None:
    service = Service()
    assert (service.name, service.queue_arguments) == ("default", {})


def test_every_option_of_a_queue_takes_effect() -> None:
    service = Service(
        "math", queue_type="quorum", max_priority=9, max_length=100, overflow="reject-publish", message_ttl=1.5
    )
    assert service.queue_arguments == {
        "x-queue-type": "quorum",
        "x-max-priority": 9,
        "x-max-length": 100,
        "x-overflow": "reject-publish",
        "x-message-ttl": 1_500,
    }


def test_a_full_classic_queue_refuses_what_a_delay_queue_gives_back_too() -> None:
    """With reject-publish alone RabbitMQ drops that, and nobody hears of it."""
    service = Service(max_length=1, overflow="reject-publish")
    assert service.queue_arguments == {"x-max-length": 1, "x-overflow": "reject-publish-dlx"}


@pytest.mark.parametrize(
    "options",
    [
        {"queue_type": "stream"},
        {"queue_type": None},
        {"max_priority": 0},
        {"max_priority": 256},
        {"max_priority": True},
        {"max_priority": 1.0},
        {"max_length": 0},
        {"max_length": "5"},
        {"max_length": 2**31 + 1},
        {"overflow": "drop-tail"},
        {"message_ttl": -1},
        {"message_ttl": float("nan")},
        {"message_ttl": "5"},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"timeout": True},
        {"delivery": "exactly_once"},
        {"delivery": ""},
        {"max_attempts": 0},
        {"max_attempts": 1_001},
        {"max_attempts": True},
        {"retry": 3},
        {"retry": ConnectionError},
        {"on_caller_gone": "ignore"},
        {"on_caller_gone": ""},
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: "):
        Service(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"delivery": "twice"},
        {"max_attempts": 0},
        {"retry": "always"},
        {"on_caller_gone": "ignore"},
        {"idempotent": 1},
    ],
)
def test_an_option_of_a_method_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    service = Service()
    with pytest.raises(ValueError, match=f"^{name}: "):
        service.method(**options)(plain)
    assert service.methods == {}


def test_every_option_of_a_method_is_the_services_where_it_has_none() -> None:
    policy, other = RetryPolicy(on=(OSError,)), RetryPolicy(on=(ValueError,))
    service = Service(max_attempts=3, retry=policy, on_caller_gone="cancel")
    service.method(plain)
    service.method(name="other", max_attempts=7, retry=other, on_caller_gone="finish", idempotent=True)(plain)
    options = [method.options for method in service.methods.values()]
    assert options == [
        MethodOptions(max_attempts=3, retry=policy, on_caller_gone="cancel"),
        MethodOptions(max_attempts=7, retry=other, on_caller_gone="finish", idempotent=True),
    ]


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ä", None, 5])
def test_a_service_with_a_malformed_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^service name "):
        Service(name)


def test_a_service_reads_as_its_name_and_size() -> None:
    service = Service("math")
    service.method(plain)
    assert repr(service) == "<Service 'math' of 1 methods>"


def test_a_context_knows_its_call() -> None:
    context = Context(
        Sink(1.5),
        task_id="t",
        method="m",
        attempt=2,
        redelivered=True,
        parent_id="p",
        root_id="r",
        metadata={"user": 7},
    )
    assert (context.task_id, context.method, context.attempt, context.redelivered) == ("t", "m", 2, True)
    assert (context.parent_id, context.root_id, context.metadata, context.remaining) == ("p", "r", {"user": 7}, 1.5)


def test_a_call_that_has_no_parent_is_its_own_root() -> None:
    assert (CONTEXT.parent_id, CONTEXT.root_id, CONTEXT.metadata, CONTEXT.remaining) == (None, "t", {}, None)


def test_a_context_tells_whether_its_run_is_to_stop() -> None:
    sink = Sink()
    context = Context(sink, task_id="t", method="m")
    assert not context.is_cancelled
    sink.stopped = True
    assert context.is_cancelled


def test_a_context_shows_no_metadata() -> None:
    context = Context(Sink(), task_id="t", method="m", metadata={"token": "s3cret"})
    assert repr(context) == "<Context of m task t>"


async def test_a_context_publishes_progress_and_custom_states() -> None:
    sink = Sink()
    context = Context(sink, task_id="t", method="m")
    await context.progress({"done": 1})
    await context.update_state("HALFWAY", 5)
    await context.update_state("WAITING")
    assert sink.states == [("PROGRESS", {"done": 1}), ("HALFWAY", 5), ("WAITING", None)]


@pytest.mark.parametrize("name", ["PENDING", "RECEIVED", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"])
async def test_a_state_that_the_worker_publishes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^state {name} is published by the worker alone$"):
        await CONTEXT.update_state(name)


@pytest.mark.parametrize("name", ["", "a" * 256, "ä" * 128, None, 5, b"a"])
async def test_a_state_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^state name "):
        await CONTEXT.update_state(name)
