"""Storms of failures: what is tried again stays within its budget."""

from __future__ import annotations

from random import Random

from aiorpcq import Busy, Overloaded, RetryBudget, Service
from tests.contract.parties import ClientFactory, WorkerFactory, eventually

from .ledger import Ledger

_CALLS = 1_000
_CAPACITY = 20
_RATIO = 0.1
_SEED = 29


class Steady(Random):
    """Chance that always says the least: tries follow each other at once."""

    def random(self) -> float:
        return 0.0


class Failing:
    """A service whose method does nothing in a share of its runs, and says so."""

    def __init__(self, share: float) -> None:
        self.service = Service()
        self.runs = 0
        rng = Random(_SEED)

        @self.service.method
        async def work() -> str:
            self.runs += 1
            if rng.random() < share:
                raise Busy
            return "done"


async def storm(failing: Failing, client: ClientFactory, worker: WorkerFactory, ledger: Ledger) -> tuple[int, int]:
    """Make calls that may be made again a thousand times each; return how many came to a value, and to an error."""
    await worker(failing.service)
    budget = RetryBudget(ratio=_RATIO, capacity=_CAPACITY)
    caller = await client(retry_budget=budget, random=Steady())
    trying = caller.with_options(retries=1_000)
    outcomes = await ledger.outcomes([ledger.call(trying, "work") for _ in range(_CALLS)])
    values = outcomes.count("done")
    errors = sum(isinstance(outcome, Overloaded) and not outcome.maybe_executed for outcome in outcomes)
    assert values + errors == _CALLS
    statistics = caller.statistics()
    assert failing.runs == _CALLS + statistics.retried
    assert statistics.retried <= _CAPACITY + _RATIO * values
    assert budget.refused > 0  # it was the budget that ended them
    await eventually(lambda: caller.statistics().pending == 0)
    return values, errors


async def test_row_29_a_storm_in_which_half_the_attempts_fail_is_capped_by_the_budget(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    values, errors = await storm(Failing(0.5), client, worker, ledger)
    assert values > _CALLS * 0.4
    assert errors > _CALLS * 0.3


async def test_row_29_a_storm_in_which_every_attempt_fails_gets_no_more_than_the_whole_budget(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    failing = Failing(1.0)
    assert await storm(failing, client, worker, ledger) == (0, _CALLS)
    assert failing.runs == _CALLS + _CAPACITY
