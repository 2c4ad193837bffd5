"""The command line: `python -m aiorpcq`, for whoever runs services and wants to see what became of their requests."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from .compiled import COMPILED
from .deadletters import DeadLetter, DeadLetters
from .errors import CodecError, ConnectFailed, ConnectionLost, ContentDisallowed, PayloadTooLarge, RPCError

__all__ = ["main"]

_DONE: Final = 0
_REFUSED: Final = 1
_UNREACHABLE: Final = 3
_INTERRUPTED: Final = 130

_EXIT_CODES: Final = """\
exit codes:
  0  done
  1  refused: no such letter, no such service, queue full
  2  wrong use of the command
  3  the broker cannot be reached, or the connection was lost
"""
_URL_VARIABLE: Final = "AIORPCQ_URL"
_DEFAULT_URL: Final = "amqp://localhost"
_CELL: Final = 60
"""Characters of a cell in a table."""
_SHOWN: Final = 10_000
"""Characters of arguments that are shown to a human; --json shows all."""
_DEPTH: Final = 100
"""Levels of nested values that are shown."""
_INTEGER_BITS: Final = 10_000
"""Bits of an integer that --json shows in decimal, below the 4,300 digits that Python prints."""

_Command = Callable[[argparse.Namespace, DeadLetters], Awaitable[None]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv*, by default the process's own; return its exit code.

    Raises:
        SystemExit: it is wrong, or asks for help or the version.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        asyncio.run(_run(options))
    except ValueError as error:  # an option out of its range; the text names it
        parser.error(str(error))
    except (ConnectFailed, ConnectionLost) as error:
        return _fail(error, _UNREACHABLE)
    except RPCError as error:
        return _fail(error, _REFUSED)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _DONE


async def _run(options: argparse.Namespace) -> None:
    urls = options.url or [os.environ.get(_URL_VARIABLE) or _DEFAULT_URL]
    command: _Command = options.command
    async with DeadLetters(urls, options.service, prefix=options.prefix) as letters:
        await command(options, letters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m aiorpcq",
        description="Look after RPC services on a broker.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aiorpcq {_version()}, {_build()}")
    _add_dead(parser.add_subparsers(title="commands", metavar="command", required=True))
    return parser


def _build() -> str:
    return "compiled" if COMPILED else "Python alone"


def _version() -> str:
    try:
        return version("aiorpcq")
    except PackageNotFoundError:  # run from its source
        return "(not installed, its version is unknown)"


def _add_dead(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dead = commands.add_parser(
        "dead",
        help="list, show, replay or discard the requests that were given up on",
        description="Dead letters: requests that were run too often without an answer. They are kept for seven days.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = dead.add_subparsers(title="commands", metavar="command", required=True)
    where = _where()

    listing = actions.add_parser("list", parents=[where], help="list the oldest letters; they stay in their queue")
    listing.add_argument("--limit", type=int, default=100, help="how many at the most (default: %(default)s)")
    listing.set_defaults(command=_list)

    showing = actions.add_parser("show", parents=[where], help="show one letter with its arguments")
    showing.add_argument("id", help="id of the letter")
    showing.set_defaults(command=_show)

    replaying = actions.add_parser(
        "replay", parents=[where], help="send letters to their service again, as their first attempt"
    )
    replaying.add_argument("id", nargs="+", help="id of a letter")
    replaying.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="deadline of the request from now (default: none)"
    )
    replaying.set_defaults(command=_replay)

    discarding = actions.add_parser("discard", parents=[where], help="remove letters for good")
    discarding.add_argument("id", nargs="+", help="id of a letter")
    discarding.set_defaults(command=_discard)


def _where() -> argparse.ArgumentParser:
    """Return the options that every command has."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--url",
        action="append",
        help=f"the broker; give several to have them tried in turn (default: the environment's {_URL_VARIABLE}, else "
        f"{_DEFAULT_URL}). A password is better in the environment: a command line can be read by others",
    )
    options.add_argument("--service", default="default", help="whose letters (default: %(default)s)")
    options.add_argument("--prefix", default="rpc", help="prefix of the names of queues (default: %(default)s)")
    options.add_argument("--json", action="store_true", help="print JSON")
    return options


async def _list(options: argparse.Namespace, letters: DeadLetters) -> None:
    found = await letters.list(options.limit)
    if options.json:
        _print_json([_described(letter) for letter in found])
    elif not found:
        print(f"service {options.service} has no dead letters")
    else:
        _print_table(
            ("ID", "BURIED (UTC)", "METHOD", "RUNS", "LOST", "BYTES", "REASON"),
            [
                (each.id, _time(each), each.method, str(each.attempts), str(each.losses), str(each.size), each.reason)
                for each in found
            ],
        )


async def _show(options: argparse.Namespace, letters: DeadLetters) -> None:
    letter = await letters.get(options.id)
    fields, problem = _described(letter), None
    positional: Sequence[Any] = ()
    named: Mapping[str, Any] = {}
    try:
        positional, named = await letters.arguments(options.id)
    except (CodecError, ContentDisallowed, PayloadTooLarge) as error:
        problem = str(error)
    if options.json:
        arguments = (
            {"args": None, "kwargs": None, "problem": problem} if problem else {"args": positional, "kwargs": named}
        )
        _print_json({**fields, "arguments": arguments})
        return
    fields["buried_at"] = _time(letter)
    for name, value in fields.items():
        if value is not None:
            print(f"{name.replace('_', ' '):14} {_printable(value if isinstance(value, str) else repr(value))}")
    shown = f"cannot be shown: {problem}" if problem else _call(positional, named)
    print(f"{'arguments':14} {_printable(shown)}")


async def _replay(options: argparse.Namespace, letters: DeadLetters) -> None:
    for letter_id in options.id:
        await letters.replay(letter_id, timeout=options.timeout)
        _tell(options, letter_id, "replayed")


async def _discard(options: argparse.Namespace, letters: DeadLetters) -> None:
    for letter_id in options.id:
        await letters.discard(letter_id)
        _tell(options, letter_id, "discarded")


def _tell(options: argparse.Namespace, letter_id: str, done: str) -> None:
    if options.json:
        _print_json({"id": letter_id, "done": done})
    else:
        print(f"{done} {_printable(letter_id)}")


def _described(letter: DeadLetter) -> dict[str, Any]:
    return asdict(letter)


def _time(letter: DeadLetter) -> str:
    try:
        return f"{datetime.fromtimestamp(letter.buried_at, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a worker whose clock is in another age
        return repr(letter.buried_at)


def _call(positional: Sequence[Any], named: Mapping[str, Any]) -> str:
    try:
        shown = ", ".join([*map(repr, positional), *(f"{name}={value!r}" for name, value in named.items())])
    except RecursionError:
        return "nested too deep to be shown"
    except ValueError:  # as in `_shown`
        return "an integer in it is too long to be shown"
    return f"({shown})" if len(shown) <= _SHOWN else f"({shown[:_SHOWN]} … {len(shown) - _SHOWN} characters more)"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    cells = [[_cut(_printable(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _printable(text: str) -> str:
    """Return *text* without what a terminal would obey: it came from the network."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value, 0), indent=2))


def _plain(value: Any, depth: int) -> Any:
    """Return *value* as JSON can hold it: what it has no type for as its `repr`.

    A mapping of which two keys would look the same is a list of pairs.
    """
    if value is None or isinstance(value, (str, bool)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _INTEGER_BITS else hex(value)
    if depth < _DEPTH and isinstance(value, Mapping):
        pairs = [
            (name if isinstance(name, str) else _shown(name), _plain(item, depth + 1)) for name, item in value.items()
        ]
        named = dict(pairs)
        return named if len(named) == len(pairs) else pairs
    if depth < _DEPTH and isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return _shown(value)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deep to be shown"
    except ValueError:  # Python does not print an integer of more than 4,300 digits
        return f"a {type(value).__name__} with an integer too long to be shown"


def _fail(error: RPCError, code: int) -> int:
    print(f"{type(error).__name__}: {_printable(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding, something is shown
    sys.exit(main())
