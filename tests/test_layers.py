"""The package's imports go down only, as the architecture draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

_PACKAGE = "aiorpcq"

# What each layer stands on; it may import that, and what that stands on. A layer is a module or all of a package; "" is
# the package's own __init__.
_BELOW: dict[str, tuple[str, ...]] = {
    "limits": (),
    "errors": ("limits",),
    "states": (),
    "deadline": ("errors", "states"),
    "retry": ("deadline", "limits"),
    "health": (),
    "codec": ("errors", "states"),
    "protocol": ("deadline", "codec", "retry"),
    "transports.base": ("protocol",),
    "transports.supervisor": ("transports.base",),
    "transports.replacements": (),
    "transports.memory": ("transports.supervisor", "transports.replacements"),
    "transports.amqp": ("transports.supervisor", "transports.replacements"),
    "transports.registry": ("transports.memory", "transports.amqp"),
    "testing": ("transports.memory",),
    "router": ("transports.registry", "health"),
    "context": ("states",),
    "method": ("context", "protocol"),
    "service": ("method",),
    "methodthreads": (),
    "places": ("method",),
    "publisherstatistics": (),
    "publisher": ("transports.base", "publisherstatistics"),
    "republisher": ("transports.base",),
    "callerwatch": ("transports.base",),
    "consumers": ("transports.base",),
    "options": ("protocol",),
    "session": ("router",),
    "task": ("session",),
    "threads": ("task",),
    "requests": ("options", "session"),
    "sending": ("requests", "task"),
    "attempts": ("sending",),
    "client": ("attempts", "threads"),
    "executionstates": ("publisher",),
    "quarantine": ("republisher",),
    "executor": ("executionstates", "quarantine", "callerwatch", "places", "methodthreads"),
    "intake": ("executor",),
    "controller": ("executor",),
    "serving": ("intake", "controller", "consumers", "service", "transports.supervisor"),
    "worker": ("serving", "health", "transports.registry"),
    "deadletters": ("transports.registry",),
    "": ("client", "worker", "deadletters"),
    "compiled": ("protocol",),
    "__main__": ("", "compiled"),
}

# Which layer alone may import these.
_OWNER = {
    "aio_pika": "transports.amqp",
    "aiormq": "transports.amqp",
    "pamqp": "transports.amqp",
    "msgpack": "codec",
}

# What would give `protocol` a clock, chance, a loop or output of its own.
_IMPURE = {"anyio", "asyncio", "logging", "os", "random", "secrets", "threading", "time", "uuid"}
_CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}


@dataclass(frozen=True, slots=True)
class _Import:
    module: str  # absolute
    line: int
    late: bool


def breaches(sources: Mapping[str, str]) -> list[str]:
    """What the modules do that their layers forbid; *sources* by dotted name under the package, packages included."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        tree = ast.parse(source)
        if all(isinstance(node, ast.Expr) for node in tree.body):  # a docstring at most
            continue
        layer = _layer(name)
        if layer is None:
            found.append(f"{name}: in no layer, give it one in {Path(__file__).name}")
            continue
        if not _exports(tree):
            found.append(f"{name}: no __all__")
        if layer == "protocol":
            found += [f"{name}:{line}: reads a clock" for line in _clock_reads(tree)]
        graph[name] = set()
        for imported in _imports(tree, name, sources):
            found += [f"{name}:{imported.line}: {fault}" for fault in _faults(layer, imported)]
            if (own := _own(imported.module)) is not None and own in sources and own != name:
                graph[name].add(own)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("cycle: " + " -> ".join(error.args[1]))
    return found


def _faults(layer: str, imported: _Import) -> Iterator[str]:
    own = _own(imported.module)
    if own is None:
        outside = imported.module.split(".")[0]
        if _OWNER.get(outside, layer) != layer:
            yield f"{outside} belongs to {_OWNER[outside]}"
        if layer == "protocol" and outside in _IMPURE:
            yield f"{outside} in protocol"
        return
    if imported.late:
        yield f"late import of {imported.module}"
    target = _layer(own)
    if target is not None and target != layer and target not in _reachable(layer):
        yield f"{layer or _PACKAGE} may not import {target or _PACKAGE}"


def _layer(name: str) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in _BELOW), None)


def _reachable(layer: str) -> set[str]:
    return {layer}.union(*map(_reachable, _BELOW[layer]))


def _own(module: str) -> str | None:
    """The name under the package, None for what is not ours."""
    if module == _PACKAGE:
        return ""
    return module.removeprefix(f"{_PACKAGE}.") if module.startswith(f"{_PACKAGE}.") else None


def _imports(tree: ast.Module, name: str, sources: Mapping[str, str]) -> Iterator[_Import]:
    late = {id(inner) for node in ast.walk(tree) if _is_function(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, node.lineno, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, name, sources)
            for alias in node.names:
                # `from package import module` imports the module, `from module import name` its module.
                longer = f"{base}.{alias.name}"
                own = _own(longer)
                yield _Import(longer if own is not None and own in sources else base, node.lineno, id(node) in late)


def _absolute(node: ast.ImportFrom, name: str, sources: Mapping[str, str]) -> str:
    if node.level == 0:
        return node.module or ""
    is_package = name == "" or any(other.startswith(f"{name}.") for other in sources)
    parts = [_PACKAGE, *filter(None, name.split("."))]
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _exports(tree: ast.Module) -> bool:
    targets = [
        target
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def _clock_reads(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in _CLOCKS:
                yield node.lineno


def _sources() -> dict[str, str]:
    root = Path(__file__).parent.parent / _PACKAGE
    paths = {path: path.relative_to(root).with_suffix("").parts for path in sorted(root.rglob("*.py"))}
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path.read_text() for path, parts in paths.items()
    }


def test_the_package_keeps_its_layers() -> None:
    sources = _sources()
    assert "protocol.messages" in sources
    assert breaches(sources) == []


def test_layers_are_not_circular() -> None:
    TopologicalSorter(_BELOW).prepare()


_GOOD = {
    "": '"""A docstring needs no __all__."""',
    "errors": "__all__ = ['RPCError']",
    "codec": "from .binary import MsgpackCodec\n__all__: list[str] = []",
    "codec.binary": "import msgpack\nfrom ..errors import RPCError\nfrom .base import Codec\n__all__ = []",
    "codec.base": "__all__ = []",
    "protocol": "",
    "protocol.calls": "from ..errors import RPCError\nfrom datetime import datetime\n__all__ = []",
    "protocol.wire": "from . import calls\nfrom ..codec import dumps\n__all__ = []",
    "transports": '"""Ways to a broker."""',
    "transports.registry": "from . import base\nfrom .amqp.lane import Lane\n__all__ = []",
    "transports.base": "import asyncio\nfrom ..protocol.wire import encode\n__all__ = []",
    "transports.amqp": "",
    "transports.amqp.lane": "import aiormq.connection\nfrom ..base import Transport\n__all__ = []",
    "router": "from .transports.base import Transport\n__all__ = []",
    "client": "from . import router\nfrom .transports.registry import make_transport\n__all__ = []",
    "worker": "from aiorpcq.transports.registry import make_transport\n__all__ = []",
}


def test_an_orderly_package_has_no_breach() -> None:
    assert breaches(_GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("errors", "from .codec import dumps", "errors may not import codec"),
        ("protocol.wire", "from ..transports.base import Delivery", "protocol may not import transports.base"),
        ("protocol.wire", "from aiorpcq.transports import base", "protocol may not import transports.base"),
        ("protocol.wire", "import aiorpcq", "protocol may not import aiorpcq"),
        ("protocol.wire", "import asyncio", "asyncio in protocol"),
        ("protocol.wire", "from time import monotonic", "time in protocol"),
        ("protocol.wire", "import datetime\nx = datetime.datetime.now()", "reads a clock"),
        ("protocol.wire", "import msgpack", "msgpack belongs to codec"),
        ("codec.binary", "from ..protocol.wire import encode", "codec may not import protocol"),
        ("codec.base", "from . import MsgpackCodec", "cycle: "),
        ("transports.base", "import aio_pika", "aio_pika belongs to transports.amqp"),
        ("transports.base", "if True:\n    import pamqp.frame", "pamqp belongs to transports.amqp"),
        ("transports.memory", "from .amqp.lane import Lane", "transports.memory may not import transports.amqp"),
        (
            "publisher",
            "from .transports.registry import make_transport",
            "publisher may not import transports.registry",
        ),
        ("router", "from .client import Client", "router may not import client"),
        ("client", "from .worker import Worker", "client may not import worker"),
        ("worker", "from . import client", "worker may not import client"),
        ("client", "def f():\n    from .router import ReplyRouter", "late import of aiorpcq.router"),
        ("protocol.calls", "from .wire import encode", "cycle: "),
        ("client", "x = 1", "no __all__"),
        ("transports", "from .base import Transport", "in no layer"),
        ("helpers", "__all__ = []", "in no layer"),
    ],
)
def test_a_breach_is_found(module: str, source: str, breach: str) -> None:
    exports = "" if breach == "no __all__" else "\n__all__ = []"
    assert any(breach in found for found in breaches({**_GOOD, module: source + exports}))
