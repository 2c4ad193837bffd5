"""The command: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.node import NodeError

from .report import make_tables, write_breaches
from .run import ChaosError, Plan, run_chaos
from .schedule import Kind, make_schedule

__all__ = ["main"]

_DESCRIPTION = """\
Call methods from many callers while workers, links and the broker are broken,
and judge what came of every call.

The faults, and the calls with their options, are drawn from --seed: the same
seed gives the same schedule. When a fault strikes is said in calls made, so it
does not depend on how fast the machine is; what it strikes then does.

Every call and every run of a method is written down by the process that made
it. At the end a judge compares them: no call lost, none hung, none settled
twice, no wrong value, nothing run that is said not to have run, nothing run
again against its delivery mode, nothing leaked, memory flat.
"""

_EPILOG = """\
The broker is a private RabbitMQ node that is gone afterwards; which one is on
the PATH is used. Progress goes to standard error, the tables to standard
output. The exit status is 1 where an invariant was broken; the histories of
the first such calls are then in a file whose name is printed.

Kinds of faults:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    options = _parse(arguments)
    schedule = make_schedule(options.seed, faults=options.faults, workers=options.workers, kinds=options.only)
    if options.show_schedule:
        print(f"{'at':>8}  {'kind':22}  worker  seconds  amount")
        for fault in schedule:
            text = f"{fault.at:8.2%}  {fault.kind.value:22}  {fault.worker:6}  {fault.seconds:7.3f}  {fault.amount:6}"
            print(text)
        return 0
    plan = Plan(
        schedule=schedule,
        seed=options.seed,
        calls=None if options.minutes else options.calls,
        seconds=options.minutes * 60 if options.minutes else None,
        workers=options.workers,
        callers=options.callers,
        rate=options.rate,
    )
    try:
        outcome = asyncio.run(run_chaos(plan, _tell))
    except (ChaosError, NodeError, OSError) as error:
        print(f"chaos: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    head = (
        f"seed {options.seed}, {options.callers} callers, {options.workers} workers, RabbitMQ {outcome.broker}, "
        f"{outcome.seconds:.0f} s"
    )
    tables = make_tables(outcome)
    print("\n\n".join([head, *(table.as_markdown() if options.markdown else table.as_text() for table in tables)]))
    path = Path(tempfile.gettempdir()) / f"aiorpcq-chaos-seed-{options.seed}.txt"
    if not outcome.verdict.breaches:
        path.unlink(missing_ok=True)  # it would tell of a run before
        return 0
    write_breaches(outcome, path)
    print(f"\n{len(outcome.verdict.breaches)} breaches; the first are in {path}")
    return 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=_DESCRIPTION,
        epilog=_EPILOG + "\n".join(f"  {kind.value}" for kind in Kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=_count, default=200_000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=_positive, metavar="M", help="go on for so long, instead of for so many calls"
    )
    parser.add_argument("--faults", type=_count, default=200, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--only", type=_kinds, default=tuple(Kind), metavar="KIND,...", help="make only these faults")
    parser.add_argument(
        "--seed", type=int, default=7, metavar="N", help="what all is drawn from (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=_count, default=3, metavar="N", help="worker processes (default: %(default)s)"
    )
    parser.add_argument(
        "--callers", type=_count, default=200, metavar="N", help="callers at once (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=_positive, default=1_000.0, metavar="N", help="calls a second to aim at (default: %(default)g)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--show-schedule", action="store_true", help="print the schedule and make no call")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _kinds(text: str) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; --help lists the kinds") from None


if __name__ == "__main__":
    sys.exit(main())
