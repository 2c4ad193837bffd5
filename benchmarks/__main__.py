"""The command: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from urllib.parse import urlsplit

import aiormq

from aiorpcq.compiled import COMPILED
from tests.node import NodeError

from .broker import Broker, open_broker
from .contestants import AIO_PIKA, AIORPCQ, MEMORY
from .memory import measure_memory
from .processes import PeerError
from .report import COMPARED_AT, Results, make_tables
from .rounds import Entry, Plan, run_rounds

THROUGHPUT, MEMORY_TRANSPORT, PENDING = PARTS = ("throughput", "memory-transport", "memory")

_DESCRIPTION = """\
Measure aiorpcq beside aio_pika.patterns.RPC on the same broker.

Three parts, each of which --only runs alone:
  throughput        add(a, b) over RabbitMQ, caller and worker in two processes:
                    calls a second, latency, CPU a call of every process
  memory-transport  the same over memory://, in one process
  memory            what 100,000 pending calls hold, and what they leave behind

Both libraries run with all their defaults, in turns within each round, and
what is printed are medians over the rounds; a ratio is the median of the
rounds' ratios. Progress goes to standard error, the tables to standard output.
"""

_EPILOG = """\
The broker is a private RabbitMQ node that is gone afterwards. Of a broker that
is given by --url the CPU is not known; names begin with "bench-" there, and what
was declared is deleted. Close other programs: everything shares the machine.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return the exit status."""
    options = _parse(arguments)
    try:
        asyncio.run(_run(options))
    except (PeerError, NodeError, OSError, aiormq.exceptions.AMQPError) as error:
        print(f"benchmarks: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        print("benchmarks: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


async def _run(options: argparse.Namespace) -> None:
    parts = PARTS if options.only is None else (options.only,)
    running = asyncio.current_task()
    assert running is not None
    # So that a broker that is given is cleaned in this case, too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    _warn_of_company()
    async with open_broker(options.url, _tell) as broker:
        plan = Plan(options.rounds, options.seconds, options.uvloop, broker.setup, broker.clock, _tell)
        results = Results(
            throughput=await run_rounds(plan, _in_turns(options.concurrency)) if THROUGHPUT in parts else None,
            memory_transport=(
                await run_rounds(plan, _in_memory(options.concurrency)) if MEMORY_TRANSPORT in parts else None
            ),
            memory=(
                await measure_memory(broker.setup, uvloop=options.uvloop, tell=_tell) if PENDING in parts else None
            ),
        )
        _print(results, options, broker)


def _in_turns(concurrency: Sequence[int]) -> list[Entry]:
    return [(name, number) for number in concurrency for name in (AIORPCQ, AIO_PIKA)]


def _in_memory(concurrency: Sequence[int]) -> list[Entry]:
    """memory://, and what it is compared with right after."""
    entries: list[Entry] = []
    for number in concurrency:
        entries.append((MEMORY, number))
        if number == COMPARED_AT:
            entries.append((AIO_PIKA, number))
    return entries


def _print(results: Results, options: argparse.Namespace, broker: Broker) -> None:
    lines = [_machine(broker, uvloop=options.uvloop)]
    if results.throughput is not None or results.memory_transport is not None:
        rounds = "one round" if options.rounds == 1 else f"medians of {options.rounds} rounds"
        lines.append(f"{rounds}, {options.seconds:g} s a measurement, contestants in turns")
    tables = make_tables(results, options.concurrency)
    blocks = ["\n".join(lines), *(table.as_markdown() if options.markdown else table.as_text() for table in tables)]
    print("\n\n".join(blocks))


def _machine(broker: Broker, *, uvloop: bool) -> str:
    """Return what the figures depend on, without what would tell whose machine it is."""
    libraries = [AIORPCQ, AIO_PIKA, "aiormq", "msgpack", *(["uvloop"] if uvloop else [])]
    return ", ".join(
        [
            f"{_cpus()} CPUs",
            f"{platform.system()} {platform.machine()}",
            f"{platform.python_implementation()} {platform.python_version()}",
            f"RabbitMQ {broker.version}",
            *(f"{library} {_version(library)}".rstrip() for library in libraries),
            *([] if uvloop else ["no uvloop"]),
            "compiled as in a wheel" if COMPILED else "aiorpcq as Python alone",
        ]
    )


def _warn_of_company() -> None:
    load = os.getloadavg()[0]
    if load > _cpus() / 4:
        _tell(f"the machine is busy (load average {load:.1f}): ratios suffer less from it than figures, but they do")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # it runs from a folder
        return ""


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="how many rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="how long each measurement takes (default: %(default)g)",
    )
    parser.add_argument(
        "--concurrency",
        type=_counts,
        default=[1, 64, 512],
        metavar="N,N,...",
        help="how many calls are under way at once (default: 1,64,512)",
    )
    parser.add_argument("--url", type=_url, help="use the broker at this amqp:// or amqps:// URL")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument(
        "--no-uvloop", dest="uvloop", action="store_false", help="run on asyncio's own event loop, in every process"
    )
    options = parser.parse_args(arguments)
    if options.uvloop and find_spec("uvloop") is None:
        parser.error("uvloop is not installed; install it, or say --no-uvloop")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _counts(text: str) -> list[int]:
    return list(dict.fromkeys(_count(part.strip()) for part in text.split(",")))


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise argparse.ArgumentTypeError("it does not read amqp://host or amqps://host")  # it may have a password
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
