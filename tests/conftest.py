"""Fixtures for every test: brokers, and the check that nothing is left running."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from aiorpcq.transports.amqp.stream import LaneProtocol
from hatch_build import MODULES
from tests.node import Cluster, Node
from tests.skipping import jumping, skip_time

# The same examples every time, and as long as they take: HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

_ROOT = Path(__file__).parent.parent

_vhosts = (f"test-{number}" for number in itertools.count(1))

# A task that was told to end in the test's last line still needs some turns of the loop.
_TURNS_TO_END = 10


def pytest_configure() -> None:
    """Refuse to test compiled modules if a source has changed since: they hold the constants of others, too."""
    newest = max((_ROOT / "aiorpcq").rglob("*.py"), key=lambda source: source.stat().st_mtime)
    for path in MODULES:
        for suffix in EXTENSION_SUFFIXES:
            built = (_ROOT / path).with_suffix(suffix)
            if built.exists() and built.stat().st_mtime < newest.stat().st_mtime:
                pytest.exit(f"{built.name} is older than {newest.name}: python hatch_build.py compiled, or python", 4)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a failure with what the test's brokers logged, and without the garbage collector.

    That would log the tasks that the failure left, format their tracebacks, and parse source for them in the midst of
    parsing source for the report; CPython 3.11 ends the whole run over that ("AST constructor recursion depth
    mismatch").
    """
    if call.excinfo is None:
        return (yield)
    gc.collect()
    gc.disable()
    try:
        report = yield
    finally:
        gc.enable()
    if report.failed:
        report.sections += [(f"log of {node.name}", log) for node in _nodes(item) if (log := node.log_tail())]
    return report


def _nodes(item: pytest.Item) -> Iterable[Node]:
    """Return the RabbitMQ nodes that a test had, by whatever fixture."""
    fixtures = getattr(item, "funcargs", {}).values()
    members = [node for value in fixtures if isinstance(value, Cluster) for node in value.nodes]
    return dict.fromkeys(value for value in (*fixtures, *members) if isinstance(value, Node))


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The suite's RabbitMQ, started by the first test that wants it. Leave it running: see `private_node`."""
    with Node() as started:
        yield started


@pytest.fixture
def vhost(node: Node) -> Iterator[str]:
    """A fresh virtual host on `node`, so that no test sees another's queues."""
    name = next(_vhosts)
    node.add_vhost(name)
    yield name
    node.delete_vhost(name)


@pytest.fixture
def broker_url(node: Node, vhost: str) -> str:
    """The URL of a fresh virtual host on a real RabbitMQ."""
    return node.url(vhost=vhost)


@pytest.fixture(scope="module")
def _module_node() -> Iterator[Node]:
    with Node() as started:
        yield started


@pytest.fixture
def private_node(_module_node: Node) -> Node:
    """A RabbitMQ that the test may stop, kill, pause and restart; the module's tests share it, each finds it running.

    Its virtual host `/` is emptied before each test; users and alarms that a test made are gone as well.
    """
    if _module_node.running:
        _module_node.resume()
    else:
        _module_node.start()
    _module_node.reset()
    return _module_node


@pytest.fixture(scope="module")
def _module_cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture
def cluster(_module_cluster: Cluster) -> Cluster:
    """Three RabbitMQ nodes that are one broker, and that the test may stop, kill, pause and start one by one.

    The module's tests share them; each finds all three running and the virtual host `/` empty.
    """
    for node in _module_cluster.nodes:
        if node.running:
            node.resume()
    _module_cluster.start_nodes()
    _module_cluster.wait_running(_module_cluster.nodes)
    _module_cluster.nodes[0].reset()
    return _module_cluster


@pytest.fixture
async def jump() -> Callable[[float], None]:
    """Moves the clock of the event loop ahead by some seconds; see `jumping`."""
    return jumping(asyncio.get_running_loop())


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """How often links have looked whether their broker is silent, by the seconds of their heartbeat.

    That is what they count the silence by: a machine that stands still makes it longer, but no more looks.
    """
    counted: Counter[float] = Counter()
    watch = LaneProtocol._watch

    def counting(protocol: LaneProtocol, heartbeat: float) -> None:
        counted[heartbeat] += 1
        watch(protocol, heartbeat)

    monkeypatch.setattr(LaneProtocol, "_watch", counting)
    return counted


@pytest.fixture
async def skipped_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass but what timers wait for, and that at once; see `skip_time`."""
    skip_time(asyncio.get_running_loop(), monkeypatch)


@pytest.fixture(autouse=True)
def no_task_left(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves an asyncio task running, after its other fixtures are closed."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_task_check")


@pytest.fixture
async def _task_check() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = await _tasks_left(before)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    if left:
        pytest.fail("tasks left running:\n" + "\n".join(map(repr, left)))


async def _tasks_left(before: set[asyncio.Task[object]]) -> list[asyncio.Task[object]]:
    allowed = {*before, asyncio.current_task()}
    for _ in range(_TURNS_TO_END):
        if not asyncio.all_tasks() - allowed:
            break
        await asyncio.sleep(0)
    return sorted(asyncio.all_tasks() - allowed, key=asyncio.Task.get_name)
