"""Where a relay may start, what it forgives, and what distillation is worth: the digits, 3 seeds.

    python results/reference/stages.py [WORKERS]

Uses the networks that results/reference/joint.py has trained. 5,000 images and classifier features
throughout. Writes beside this file
- relay_start.csv: FID over the noise level at which the second stage takes over;
- relay_artefacts.csv: FID after noise was added to the low-resolution samples, with the second
  stage, without it (enlarged as they are), and with the network of one stage in its place, started
  from the same noise;
- few_steps.csv: FID at 1, 2, 4 and 8 calls of the student, of its teacher by its best solver, and
  of its teacher under the student's sampler, each on the best of the grids that are listed here;
and stages.png of all three. Rows that are in the tables already are kept.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joint import HERE, NETWORKS, SEEDS, seeded

from stepsearch.build import plan_stage
from stepsearch.core.files import cache_folder
from stepsearch.core.noise import image_noise
from stepsearch.core.protocols import Net
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.core.settings import EvaluationSettings
from stepsearch.evaluate import Evaluator, prepare_evaluation, to_uint8
from stepsearch.nets.load import load_net
from stepsearch.objectives.features import make_extractor
from stepsearch.objectives.fid import Reference, moments
from stepsearch.objectives.registry import FeatureRequest
from stepsearch.progress import Display
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.relay import begin, enlarge
from stepsearch.supernet import ensure_supernet

IMAGES, BATCH = 5000, 500
FIRST = {"solver": "unipc", "calls": 10, "grid": "quad"}  # of a low-resolution sample
STARTS = (0.1, 0.2, 0.3, 0.45, 0.65, 0.95, 1.3, 1.7)
SECONDS = {"5 calls, eta 0.2": ("first", 5, 0.2), "9 calls": ("trapezoid", 9, 0.0)}
END = 0.05  # last noise level of a second stage that is asked
ADDED, TAKEOVER = (0.0, 0.15, 0.3, 0.6), (0.45, 0.95)  # deviations, starts
CALLS = (1, 2, 4, 8)
FEW_ENDS = (0.5, 1.0, 2.0)  # last noise levels of grids of few steps
KEYS = {
    "relay_start": ["seed", "second", "start"],
    "relay_artefacts": ["seed", "way", "added"],
    "few_steps": ["seed", "network", "calls"],
}
Row = dict[str, Any]
Nets = dict[str, Net]


@functools.cache
def networks(seed: int) -> dict[str, str]:
    """Weights of every network of a seed, trained unless they are there."""
    folder, found = seeded(seed), {}
    for name in NETWORKS:
        recipe = read_recipe(folder / "supernets" / f"{name}.yaml")
        found[name] = str(ensure_supernet(recipe, recipe_data(recipe))[0])
    return found


class Lab:
    """One seed's networks and what scores their images."""

    def __init__(self, seed: int) -> None:
        self.seed, paths = seed, networks(seed)
        self.nets: Nets = {name: load_net(path) for name, path in paths.items()}
        recipe = read_recipe(seeded(seed) / "supernets" / "digits.yaml")
        data = recipe_data(recipe)
        settings = EvaluationSettings(images=IMAGES, batch=BATCH, seed=seed)
        spec, _ = prepare_evaluation(settings, ("fid", "gflops_per_image"), data)
        self.evaluator = Evaluator(replace(spec, nets=tuple(paths.values())))
        request = ("classifier", None, data.images, data.labels, data.sha256, cache_folder())
        self._extractor = make_extractor(FeatureRequest(*request))
        with np.load(spec.reference) as file:
            self._reference = Reference(file["mean"], file["cov"])

    def plan(self, name: str, **settings: Any) -> Stage:
        """A stage of one of the networks."""
        return plan_stage(self.nets[name].card, **settings)

    def score(self, *stages: Stage) -> Row:
        """FID, its error and the cost of a schedule."""
        values = self.evaluator(StepSchedule(stages)).values
        return {k: round(values[k], 5) for k in ("fid", "fid_se", "gflops_per_image")}

    def run(self, stage: Stage, x: torch.Tensor, first: int) -> torch.Tensor:
        """One stage alone, from a state."""
        by_key = {net.card.key: net for net in self.nets.values()}
        return integrate(StepSchedule((stage,)), by_key, x, seed=self.seed, first_image=first)

    def distance(self, make: Callable[[int], torch.Tensor]) -> float:
        """FID of images that `make` gives for the number of the first of a batch."""
        batches = (to_uint8(make(first)) for first in range(0, IMAGES, BATCH))
        features = np.concatenate([self._extractor(images) for images in batches])
        return round(self._reference.distance(*moments(features.astype(np.float64))), 4)

    def noise(self, first: int, shape: tuple[int, ...], draw: int) -> torch.Tensor:
        """Noise that depends on the image and the draw alone."""
        return torch.from_numpy(image_noise(self.seed, first, (BATCH, *shape), draw))


def second(lab: Lab, start: float, how: str) -> Stage:
    """A second stage from a noise level."""
    step, calls, eta = SECONDS[how]
    grid = {"karras": {"start": start, "end": END}}
    return lab.plan("digits-relay", solver="relay", calls=calls, grid=grid, step=step, eta=eta)


def relay_start(lab: Lab) -> Iterator[Row]:
    """FID over where the second stage takes over."""
    first = lab.plan("digits-4", **FIRST)
    for how in SECONDS:
        for start in STARTS:
            row = lab.score(first, second(lab, start, how))
            yield {"second": how, "start": start, **row}
    for calls in (5, 10, 20):
        row = lab.score(lab.plan("digits", **FIRST | {"calls": calls}))
        yield {"second": f"single stage, {calls} calls", "start": 0.0, **row}


def relay_artefacts(lab: Lab) -> Iterator[Row]:
    """FID after noise was added to the samples of the first stage."""
    first, net = lab.plan("digits-4", **FIRST), lab.nets["digits-4"]
    large = tuple(lab.nets["digits"].card.image_shape)
    for added in ADDED:

        def low(first_image: int, added: float = added) -> torch.Tensor:
            x = lab.noise(first_image, net.card.image_shape, 0)
            images = lab.run(first, x, first_image)
            return images + added * lab.noise(first_image, net.card.image_shape, 100)

        yield {"way": "enlarged", "added": added, "fid": lab.distance(lambda j: enlarge(low(j), 2))}
        for start in TAKEOVER:
            stage = second(lab, start, "9 calls")

            def relayed(j: int, stage: Stage = stage) -> torch.Tensor:
                draws, process = iter((200, 201)), lab.nets["digits-relay"].card.diffusion
                x = begin(low(j), stage, process, lambda _: lab.noise(j, large, next(draws)))
                return lab.run(stage, x, j)

            yield {"way": f"relay from {start:g}", "added": added, "fid": lab.distance(relayed)}
            grid = {"karras": {"start": start, "end": END}}
            plain = lab.plan("digits", solver="heun", calls=9, grid=grid)
            level = plain.levels[0]  # trained times only

            def renoised(j: int, stage: Stage = plain, level: float = level) -> torch.Tensor:
                x = enlarge(low(j), 2) + level * lab.noise(j, large, 200)
                return lab.run(stage, lab.nets["digits"].card.diffusion.alpha(level) * x, j)

            way = f"one-stage network from {start:g}"
            yield {"way": way, "added": added, "fid": lab.distance(renoised)}


def few_steps(lab: Lab) -> Iterator[Row]:
    """The student beside its two baselines, each on the best of its settings."""
    student, teacher = lab.nets["digits-dpdm"].card, "digits"
    assert student.distilled is not None
    top, bottom = student.distilled.levels[0], student.distilled.levels[-1]
    few = [{"karras": {"start": top, "end": end}} for end in FEW_ENDS if end >= bottom]
    solvers = ("ddim", "dpmpp_2m", "unipc")
    grids = ("uniform", "quad", {"karras": {"start": top}}, {"logsnr": {"start": top}})
    ways: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "student": [("digits-dpdm", {"solver": "renoise", "grid": g}) for g in few],
        "teacher, renoise": [(teacher, {"solver": "renoise", "grid": g}) for g in few],
        "teacher, best solver": [
            (teacher, {"solver": s, "grid": g}) for s in solvers for g in grids
        ],
    }
    for calls in CALLS:
        for way, settings in ways.items():
            found = []
            alike = calls == 1 and way != "teacher, best solver"  # grids of one node
            for name, how in settings[: 1 if alike else None]:
                stage = lab.plan(name, calls=calls, **how)
                text = f"{how['solver']} {how['grid']}"
                found.append(lab.score(stage) | {"setting": text})
            yield {"network": way, "calls": calls, **min(found, key=lambda row: row["fid"])}


EXPERIMENTS = {
    "relay_start": relay_start,
    "relay_artefacts": relay_artefacts,
    "few_steps": few_steps,
}


def measure(name: str, seed: int) -> pd.DataFrame:
    """All rows of one experiment and seed."""
    torch.set_num_threads(1)
    rows = [{"seed": seed, **row} for row in EXPERIMENTS[name](Lab(seed))]
    return pd.DataFrame(rows).assign(n_samples=IMAGES)


def table_of(name: str) -> Path:
    """Where an experiment's rows are."""
    return HERE / f"{name}.csv"


def plot(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """A panel an experiment: means of the seeds, bars from the best to the worst."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    axis = {"relay_start": ("second", "start"), "relay_artefacts": ("way", "added")}
    axis["few_steps"] = ("network", "calls")
    for ax, (name, (group, x)) in zip(axes, axis.items(), strict=True):
        for i, (label, rows) in enumerate(tables[name].groupby(group, sort=False)):
            fids = rows.groupby(x)["fid"].agg(["mean", "min", "max"])
            look: Row = {"color": colormaps["tab10"](i % 10)}
            if str(label).startswith("single stage"):
                ax.axhline(fids["mean"].iloc[0], ls=":", lw=1, label=label, **look)
                continue
            bars = [fids["mean"] - fids["min"], fids["max"] - fids["mean"]]
            ax.errorbar(fids.index, fids["mean"], bars, marker=".", capsize=2, label=label, **look)
        ax.set(yscale="log", xscale="linear" if name == "relay_artefacts" else "log")
        ax.grid(True, lw=0.3, which="both")
        ax.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        for side in [ax.yaxis] + [ax.xaxis] * (name != "relay_artefacts"):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(NullFormatter())
    axes[0].set(ylabel="FID", xlabel="relay_start (noise level)")
    axes[1].set(xlabel="deviation of the noise added to low-resolution samples")
    axes[2].set(xlabel="network calls")
    axes[2].set_xticks(CALLS, CALLS)
    figure.savefig(path, dpi=160, metadata={"Software": None})


def run(workers: int) -> None:
    """Every experiment of every seed that is missing, then the picture."""
    tables = {n: pd.read_csv(table_of(n)) if table_of(n).is_file() else None for n in EXPERIMENTS}
    jobs = [
        (name, seed)
        for seed in SEEDS
        for name, table in tables.items()
        if table is None or seed not in set(table["seed"])
    ]
    with Display() as display, ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(measure, *job): job for job in jobs}
        for done, future in enumerate(as_completed(waiting), 1):
            name, _ = waiting[future]
            tables[name] = pd.concat([tables[name], future.result()])
            order = [column for column in KEYS[name] if column != "calls"]
            tables[name].sort_values(order[:1], kind="stable").to_csv(table_of(name), index=False)
            display.advance("experiments", done, len(jobs))
    found = {name: table for name, table in tables.items() if table is not None}
    plot(found, HERE / "stages.png")
    for name, table in found.items():
        means = table.groupby(KEYS[name][1:], sort=False)["fid"].agg(["mean", "std"])
        print(f"\n{name}\n{means.round(2).to_string()}")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
