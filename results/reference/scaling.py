"""How busy a search keeps 2 to 1,024 workers, in both modes: a simulation with measured costs.

    python results/reference/scaling.py

A candidate takes a + b GFLOPs, and what its GFLOPs do not tell: `digits` has a, b and the spread of
the 120 trials of results/reference/digits (5,000 images on one CPU core), over random genomes of
search_spaces/digits.yaml; `cifar10` has the same genomes on the U-Net of supernets/cifar10.yaml, on
a GPU that is assumed, not measured, to do 10 TFLOP/s, with the spread of the digits. The driver
does one thing at a time. What NSGA-II takes to ask and be told, and the executor to hand out and
take in (a local Ray of 2 workers), is measured here as CPU time of the process, and what makes a
trial durable by the clock; RAY_WAIT was measured with up to 1,022 promises that never end.

Rows `spread`, `population` and `length` are the digits at 64 workers: candidates of the same mean
whose durations vary more or less, other populations, and longer or shorter searches.
Rows `long` are 40,960 trials with a population of 128 on 1,024 workers.
`with_idle_driver` is the utilisation that a driver would reach that takes no time, `driver_busy`
the part of the time that it works. Writes scaling.csv and scaling.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # read when ray is imported

import functools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.config import read_space
from stepsearch.core.noise import generator
from stepsearch.core.process import TRAINED
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import MODES, RunSettings
from stepsearch.core.trial import Measurement, Trial
from stepsearch.executors.ray_pool import RayExecutor
from stepsearch.nets.families import FAMILIES
from stepsearch.recipe_config import read_recipe
from stepsearch.search import Compiler, search_problem
from stepsearch.simulate import Driver, simulate
from stepsearch.store import RunStore

HERE = Path(__file__)
ROOT = HERE.parents[2]
WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
POPULATION, GENERATIONS = 128, 20
GPU_FLOPS, IMAGES = 1e13, 5000  # of the assumed GPU per second; of an evaluation
RAY_WAIT = 2.4e-7  # seconds of driver CPU per promise that is waited for, a result
ROUNDS, STEPS = 3, 100  # of a measurement, the fastest counts; genomes in a round


def setting(recipe_name: str, shape: tuple[int, ...]) -> tuple[RunSettings, NetCard]:
    """The space of the digits, and a card with the FLOPs of a recipe's network in it."""
    settings = read_space(ROOT / "search_spaces" / "digits.yaml")
    recipe = read_recipe(ROOT / "supernets" / f"{recipe_name}.yaml")
    family = FAMILIES[recipe.family]
    with torch.device("meta"):
        module = family.build(recipe.net, shape, recipe.widths)
    card = NetCard(
        name=settings.recipes[0].name,
        sha256="0" * 64,
        family=recipe.family,
        process=TRAINED,
        image_shape=shape,
        widths=recipe.widths,
        flops=tuple(family.flops(module, shape, width) for width in recipe.widths),
    )
    return settings, card


def random_gflops(settings: RunSettings, card: NetCard, count: int) -> np.ndarray:
    """GFLOPs per image of random genomes."""
    compiler, rng = Compiler(settings, {card.name: card}), generator(0)
    sizes = [n for _, n in settings.space.genes]
    genomes = [tuple(int(rng.integers(n)) for n in sizes) for _ in range(count)]
    return np.array([compiler.value("gflops_per_image", compiler.schedule(g)) for g in genomes])


def measured_line() -> tuple[float, float, np.ndarray]:
    """a, b of seconds = a + b GFLOPs of the digits' trials, and what each is of its line."""
    trials = pd.read_csv(HERE.parent / "digits" / "trials.csv")
    b, a = np.polyfit(trials["gflops_per_image"], trials["seconds"], 1)
    return a, b, (trials["seconds"] / (a + b * trials["gflops_per_image"])).to_numpy()


def fastest(work: Callable[[], int]) -> float:
    """CPU seconds of this process for one of the pieces that `work` does."""
    times = []
    for _ in range(ROUNDS):
        clock = time.process_time()
        pieces = work()
        times.append((time.process_time() - clock) / pieces)
    return min(times)


def ask_seconds(settings: RunSettings, card: NetCard, mode: str, population: int) -> float:
    """What NSGA-II takes to ask a genome and to be told its value; compiling is a part of it."""
    compiler, rng = Compiler(settings, {card.name: card}), generator(1)
    problem = search_problem(settings, compiler)
    algorithm = ALGORITHMS["nsga2"](problem, replace(settings.search, population=population))
    count = None if mode == MODES[0] else 1

    def work(count: int | None = count) -> int:
        done = 0
        while done < STEPS:
            asked = algorithm.ask(count)
            values = [tuple(rng.random(2).tolist()) for _ in asked]
            algorithm.tell(values, asked)
            done += len(asked)
        return done

    while work(None) < population:  # what is asked first costs next to nothing
        continue
    return fastest(work)


def store_seconds(settings: RunSettings, card: NetCard) -> float:
    """What it takes to make a trial durable in a journal on this disk, by the clock."""
    compiler = Compiler(settings, {card.name: card})
    genome = settings.space.uniform_genomes(1)[0]
    schedule, candidate = compiler.schedule(genome), settings.space.decode(genome)
    values = {"fid": math.pi, "fid_se": math.e, "gflops_per_image": math.tau}
    result = Measurement(values, IMAGES, 0, "x" * 24, 1.234, "2026-01-01T00:00:00+00:00")
    widths, text, times = schedule.widths, schedule.to_json(), []
    with tempfile.TemporaryDirectory(dir=HERE.parent) as folder:
        store = RunStore.create(Path(folder) / "run", settings.objectives, {})
        for i in range(300):
            trial = Trial(i, 0, f"s{i}", text, candidate, widths, result)
            clock = time.perf_counter()
            store.append(trial)
            times.append(time.perf_counter() - clock)
        store.close()
    return float(np.quantile(times, 0.1))  # others write to the same disk


def ray_seconds(settings: RunSettings, card: NetCard) -> float:
    """What the executor takes for a candidate that takes nothing, both ways."""
    compiler, rng = Compiler(settings, {card.name: card}), generator(2)
    sizes = [n for _, n in settings.space.genes]
    schedules = [compiler.schedule(tuple(int(rng.integers(n)) for n in sizes)) for _ in range(1000)]
    answer = Measurement({"fid": 1.0}, IMAGES, 0, "x", 0.0, "")
    executor = RayExecutor(lambda: lambda schedule: answer, 2)
    try:
        list(executor.map(schedules[:100]))
        return fastest(lambda: sum(1 for _ in executor.map(schedules)))
    finally:
        executor.close()


class Drivers:
    """The driver, in each mode and with each population."""

    def __init__(self, settings: RunSettings, card: NetCard) -> None:
        self._ask = functools.cache(functools.partial(ask_seconds, settings, card))
        ray, store = ray_seconds(settings, card), store_seconds(settings, card)
        self._dispatch, self._collect = ray / 2, ray / 2 + store

    def __call__(self, mode: str, population: int) -> Driver:
        return Driver(self._ask(mode, population), self._dispatch, self._collect, RAY_WAIT)


def row(
    case: str, costs: np.ndarray, workers: int, mode: str, population: int, driver: Driver
) -> dict[str, Any]:
    """One simulated search."""
    found = simulate(costs.tolist(), workers, mode, population, driver)
    ideal = simulate(costs.tolist(), workers, mode, population)
    each = driver.ask + driver.dispatch + driver.collect + driver.per_running * (workers - 1)
    return {
        "case": case,
        "mode": mode,
        "workers": workers,
        "population": population,
        "trials": len(costs),
        "mean_seconds": costs.mean(),
        "spread": costs.std() / costs.mean(),
        "longest_over_mean": costs.max() / costs.mean(),
        "ask_ms": 1e3 * driver.ask,
        "dispatch_ms": 1e3 * driver.dispatch,
        "collect_ms": 1e3 * driver.collect,
        "makespan_seconds": found.makespan,
        "driver_busy": each * len(costs) / found.makespan,
        "with_idle_driver": ideal.utilisation,
        "utilisation": found.utilisation,
    }


def table() -> pd.DataFrame:
    """All rows."""
    settings, digits = setting("digits", (1, 8, 8))
    _, cifar = setting("cifar10", (3, 32, 32))
    a, b, residuals = measured_line()
    driver, most = Drivers(settings, digits), 2 * max(WORKERS) * GENERATIONS
    noise = generator(3).choice(residuals, most)
    costs = {
        "digits": (a + b * random_gflops(settings, digits, most)) * noise,
        "cifar10": 1e9 * random_gflops(settings, cifar, most) * IMAGES / GPU_FLOPS * noise,
    }
    rows = []
    for case, all_costs in costs.items():
        for workers in WORKERS:
            for population in sorted({POPULATION, 2 * workers}):
                some = all_costs[: population * GENERATIONS]
                rows += [
                    row(case, some, workers, m, population, driver(m, population)) for m in MODES
                ]
    for case, all_costs in costs.items():  # a steady search needs no large population
        wide = (f"{case}, long", all_costs, max(WORKERS))
        rows += [row(*wide, m, POPULATION, driver(m, POPULATION)) for m in MODES]
    mean = costs["digits"].mean()
    for spread in (0.0, 0.25, 0.5, 1.0, 2.0):
        sigma = math.sqrt(math.log(1 + spread**2))
        drawn = generator(4).lognormal(-(sigma**2) / 2, sigma, POPULATION * GENERATIONS)
        rows += [
            row("spread", mean * drawn, 64, m, POPULATION, driver(m, POPULATION)) for m in MODES
        ]
    for population in (64, 128, 192, 256, 384, 512):
        some = costs["digits"][: population * GENERATIONS]
        rows += [row("population", some, 64, m, population, driver(m, population)) for m in MODES]
    for generations in (5, 10, 20, 40, 80):
        some = costs["digits"][: POPULATION * generations]
        rows += [row("length", some, 64, m, POPULATION, driver(m, POPULATION)) for m in MODES]
    return pd.DataFrame(rows)


def plot(found: pd.DataFrame, path: Path) -> None:
    """Utilisation against workers, a panel a case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    cases = ("digits", "cifar10")
    for ax, case in zip(figure.subplots(1, len(cases), sharey=True), cases, strict=True):
        rows = found[found["case"] == case]
        for mode, color in zip(MODES, ("#D55E00", "#0072B2"), strict=True):
            for kind, line in (("128", "-"), ("2 x workers", "--")):
                fixed = rows["population"] == POPULATION
                chosen = fixed if kind == "128" else rows["population"] == 2 * rows["workers"]
                some = rows[chosen & (rows["mode"] == mode)]
                label = f"{mode}, population {kind}"
                ax.plot(some["workers"], some["utilisation"], line, color=color, label=label)
        ax.set(xscale="log", xlabel="workers", ylim=(0, 1.02), xticks=WORKERS)
        ax.set_title(f"{case}, {rows['mean_seconds'].mean():.3g} s a candidate", fontsize=9)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", labelsize=7)
        ax.minorticks_off()
        ax.grid(True, color="#E6E6E6")
    figure.axes[0].set_ylabel("part of the workers' time that is work")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Simulate, print, write, draw."""
    torch.set_num_threads(1)
    found = table()
    rounded = found.round({"mean_seconds": 3, "makespan_seconds": 1, "longest_over_mean": 2})
    rounded = rounded.round(4)
    rounded.to_csv(HERE.with_suffix(".csv"), index=False)
    print(rounded.to_string(index=False))
    plot(found, HERE.with_suffix(".png"))


if __name__ == "__main__":
    main()
