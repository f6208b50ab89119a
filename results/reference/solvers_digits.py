"""FID of the full-width digits supernet for every solver, grid and number of calls, two seeds.

    python results/reference/solvers_digits.py [WORKERS]

writes solvers_digits.csv and solvers_digits.png beside this file, 5,000 images a row. The network
is that of supernets/digits.yaml and is trained if it is not there. Rows that are in the table
already are kept, so that a stopped run continues.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stepsearch.build import plan_stage
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import EvaluationSettings
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation
from stepsearch.progress import Display
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import ensure_supernet

HERE = Path(__file__)
RECIPE = HERE.parents[2] / "supernets" / "digits.yaml"
CALLS = (4, 5, 6, 8, 10, 15, 20)
SEEDS = (0, 1)
GRIDS = ("quad", "logsnr", "uniform")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("ddim", {}),
    "DDPM small": ("ddpm", {"variance": "small"}),
    "DDPM large": ("ddpm", {"variance": "large"}),
    "Heun": ("heun", {}),
    "DPM++(2M)": ("dpmpp_2m", {}),
    "DPM++(2S)": ("dpmpp_2s", {}),
    "UniPC-2": ("unipc", {"order": 2}),
    "UniPC-3": ("unipc", {"order": 3}),
    "tAB3-DEIS": ("deis", {"order": 3}),
    "PFDiff 1_1": ("pfdiff", {"k": 1, "l": 1}),
    "PFDiff 2_1": ("pfdiff", {"k": 2, "l": 1}),
    "PFDiff 3_1": ("pfdiff", {"k": 3, "l": 1}),
    "PFDiff c=0.45": ("pfdiff", {"c": 0.45}),
}
Job = tuple[str, str, int, int]  # label, grid, calls, seed


def jobs() -> list[Job]:
    """All rows of the table; Heun knows odd numbers of calls only."""
    return [
        (label, grid, calls, seed)
        for grid in GRIDS
        for label, (solver, _) in SETTINGS.items()
        for calls in CALLS
        if solver != "heun" or calls % 2
        for seed in SEEDS
    ]


@functools.cache
def evaluator(spec: EvaluatorSpec) -> Evaluator:
    """One per process."""
    return Evaluator(spec)


def measure(spec: EvaluatorSpec, card: NetCard, job: Job) -> dict[str, Any]:
    """One row."""
    label, grid, calls, seed = job
    solver, args = SETTINGS[label]
    stage = plan_stage(card, solver=solver, calls=calls, grid=grid, **args)
    result = evaluator(spec).measure(StepSchedule((stage,)), seed)
    return {
        "label": label,
        "solver": solver,
        "solver_args": text(args),
        "grid": grid,
        "calls": calls,
        "seed": seed,
        "fid": round(result.values["fid"], 4),
        "fid_se": round(result.values["fid_se"], 4),
        "n_samples": result.n_samples,
        "metric_id": result.metric_id,
        "supernet": card.key,
    }


def text(args: Mapping[str, Any]) -> str | None:
    """As the column solver_args of a run writes arguments."""
    return ";".join(f"{name}={value}" for name, value in args.items()) or None


def plot(table: pd.DataFrame, path: Path) -> None:
    """A panel a grid, a line a solver: mean of the seeds, bars from one seed to the other."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    grids = [grid for grid in GRIDS if grid in set(table["grid"])]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(GRIDS), sharex=True, sharey=True)
    colors = {label: colormaps["tab20"](i) for i, label in enumerate(SETTINGS)}
    for ax, grid in zip(axes, grids, strict=False):
        for label, rows in table[table["grid"] == grid].groupby("label", sort=False):
            fids = rows.groupby("calls")["fid"].agg(["mean", "min", "max"])
            low, high = fids["mean"] - fids["min"], fids["max"] - fids["mean"]
            dashes = "-" if str(label).startswith("PFDiff") else "--"
            look = {"color": colors[str(label)], "linestyle": dashes, "linewidth": 1.2}
            ax.errorbar(fids.index, fids["mean"], [low, high], label=label, marker=".", **look)
        ax.set(title=f"{grid} grid", xscale="log", yscale="log", ylim=(None, 300))
        ax.set_xticks(CALLS, [str(n) for n in CALLS])
        ax.minorticks_off()
        ax.grid(True, color="#E6E6E6")
    seeds = f"{table['seed'].nunique()} seeds"
    figure.supxlabel("network calls per image, full width")
    figure.supylabel(f"FID ({int(table['n_samples'].iloc[0]):,} images, {seeds})")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main(workers: int) -> None:
    """Measure what is missing, write the table after every row, draw it at the end."""
    recipe, path = read_recipe(RECIPE), HERE.with_suffix(".csv")
    data = recipe_data(recipe)
    spec, _ = prepare_evaluation(EvaluationSettings(device="cpu"), ("fid",), data)
    weights, card = ensure_supernet(recipe, data)
    spec = replace(spec, nets=(str(weights),))
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(r["label"], r["grid"], r["calls"], r["seed"]) for r in rows}
    todo = [job for job in jobs() if job not in done]
    with Display() as display, ProcessPoolExecutor(workers) as pool:
        display.stage("schedules", len(todo))
        for i, row in enumerate(pool.map(functools.partial(measure, spec, card), todo)):
            rows.append(row)
            pd.DataFrame(rows).to_csv(path, index=False)
            display.advance("schedules", i + 1, len(todo))
    plot(pd.DataFrame(rows), path.with_suffix(".png"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
