"""How busy a search keeps its workers, as a simulation of events: nothing is computed."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from stepsearch.core.settings import MODES

GENERATIONAL, STEADY = MODES


@dataclass(frozen=True, slots=True)
class Driver:
    """Seconds of the one process that asks, hands out and takes in; it does one thing at a time.

    `per_running` is added to `collect` for every other trial that is running: waiting for any of
    many takes longer than waiting for any of few.
    """

    ask: float = 0.0  # one genome asked and its value told
    dispatch: float = 0.0  # one schedule handed to a worker
    collect: float = 0.0  # one result taken in and made durable
    per_running: float = 0.0


MEASURED = Driver(ask=5e-3, dispatch=3e-4, collect=4e-3, per_running=2.4e-7)  # of scaling.py


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated search."""

    workers: int
    makespan: float  # seconds from the first ask to the last result
    busy: float  # seconds of work, all workers together

    @property
    def utilisation(self) -> float:
        """Part of the workers' time that is work."""
        return self.busy / (self.workers * self.makespan)


def simulate(
    costs: Sequence[float],
    workers: int,
    mode: str,
    population: int,
    driver: Driver = Driver(),
) -> Outcome:
    """A search over candidates of the given costs.

    Generational: each `population` candidates are asked, run longest first, and all of them taken
    in before the next are asked. Steady: one is asked whenever a worker is free, in their order.

    Args:
        costs: seconds of work of every candidate, in the order of asking.
        mode: one of MODES.
    """
    clock = 0.0
    if mode == STEADY:
        clock = _drain(costs, workers, driver, 0.0, ask=driver.ask)
    else:
        for first in range(0, len(costs), population):
            born = sorted(costs[first : first + population], reverse=True)
            clock = _drain(born, workers, driver, clock + driver.ask * len(born))
    return Outcome(workers, clock, sum(costs))


def _drain(
    costs: Sequence[float], workers: int, driver: Driver, clock: float, ask: float = 0.0
) -> float:
    """When the last result is in, if handing out `costs` in their order begins at `clock`."""
    waiting, running = iter(costs), list[float]()
    left = len(costs)
    while left or running:
        while left and len(running) < workers:
            clock += ask + driver.dispatch
            heapq.heappush(running, clock + next(waiting))
            left -= 1
        clock = max(clock, heapq.heappop(running)) + driver.collect
        clock += driver.per_running * len(running)
    return clock
