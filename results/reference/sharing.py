"""The price of sharing weights: uniform-width FID of supernets beside networks trained alone.

    python results/reference/sharing.py [WORKERS]

Every network sees the same batches of digits, 1,400 of 128 images. `alone` are seven plain U-Nets,
one a width; the others are one supernet each, trained in different ways. A width is sampled by
UniPC-2 on the quad grid at 10 calls, 5,000 images. Writes sharing.csv and sharing.png beside this
file; rows that are in the table already are kept, so that a stopped run continues.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stepsearch.build import plan_stage
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import EvaluationSettings, Recipe
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation
from stepsearch.progress import Display
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import ensure_supernet

HERE = Path(__file__)
RECIPE = HERE.parents[2] / "supernets" / "digits.yaml"
SEEDS, CALLS = (0, 1), 10
SANDWICH: dict[str, Any] = {"learning_rate": 1e-2, "ema": 0.995, "between": 1}
WAYS: dict[str, dict[str, Any]] = {  # of training a supernet, beside SANDWICH
    "sandwich": {},
    "all widths": {"between": 5},
    "rate 2e-2": {"learning_rate": 2e-2},
    "narrow first": {"width_weight": -1.0},
    "distilled": {"distill": 0.5},
}
REPEATED = ("alone", "sandwich")  # with every seed; others with the first
Job = tuple[str, float | None, int]  # way, width of a network alone, seed


def jobs(widths: tuple[float, ...]) -> list[Job]:
    """All networks to train, those with the first seed first."""
    found: list[Job] = []
    for seed in SEEDS:
        ways = [w for w in WAYS if seed == SEEDS[0] or w in REPEATED]
        found += [("alone", width, seed) for width in widths]
        found += [(way, None, seed) for way in ways]
    return found


def recipe_of(base: Recipe, job: Job, folder: str) -> Recipe:
    """The recipe of one network; its weights go to `folder`."""
    way, width, seed = job
    assert base.train is not None
    net, widths, changes = dict(base.net), base.widths, SANDWICH | WAYS.get(way, {})
    if width is not None:
        net |= {"base": round(net["base"] * width), "sinusoid": net["base"]}
        widths, changes = (1.0,), SANDWICH
    train = replace(base.train, seed=seed, **changes)
    return replace(base, net=net, widths=widths, train=train, file=f"{folder}/digits.yaml")


def measure(base: Recipe, spec: EvaluatorSpec, job: Job) -> list[dict[str, Any]]:
    """Train one network and score each of its widths."""
    way, width, seed = job
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        recipe = recipe_of(base, job, folder)
        path, card = ensure_supernet(recipe, recipe_data(recipe))
        seconds = time.perf_counter() - start
        evaluator = Evaluator(replace(spec, nets=(str(path),)))
        rows = []
        for own in card.widths:
            stage = plan_stage(card, solver="unipc", order=2, calls=CALLS, grid="quad", widths=own)
            result = evaluator.measure(StepSchedule((stage,)), seed)
            rows.append(
                {
                    "way": way,
                    "width": own if width is None else width,
                    "seed": seed,
                    "fid": round(result.values["fid"], 4),
                    "fid_se": round(result.values["fid_se"], 4),
                    "n_samples": result.n_samples,
                    "training_seconds": round(seconds, 1),
                    "metric_id": result.metric_id,
                }
            )
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean FID of the seeds, a row a width and a column a way."""
    order = ["alone", *WAYS]
    means = table.pivot_table(index="width", columns="way", values="fid", aggfunc="mean")
    return means[[way for way in order if way in means]].sort_index()


def plot(table: pd.DataFrame, path: Path) -> None:
    """FID against width: networks alone, and supernets; bars from best to worst seed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax = figure.subplots()
    for i, (way, rows) in enumerate(table.groupby("way", sort=False)):
        fids = rows.groupby("width")["fid"].agg(["mean", "min", "max"])
        bars = [fids["mean"] - fids["min"], fids["max"] - fids["mean"]]
        look = {"color": "black" if way == "alone" else colormaps["tab10"](i % 10)}
        look |= {"linewidth": 2 if way in REPEATED else 0.9, "capsize": 2, "marker": "."}
        ax.errorbar(fids.index, fids["mean"], bars, label=way, **look)
    ax.set(xlabel="width", yscale="log", xticks=sorted(table["width"].unique()))
    images = int(table["n_samples"].iloc[0])
    ax.set_ylabel(f"FID (UniPC-2, {CALLS} calls, {images:,} images)")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.grid(True, color="#E6E6E6")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main(workers: int) -> None:
    """Measure what is missing, write the table after every network, draw it at the end."""
    base, path = read_recipe(RECIPE), HERE.with_suffix(".csv")
    data = recipe_data(base)
    spec, _ = prepare_evaluation(EvaluationSettings(device="cpu"), ("fid",), data)
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(r["way"], r["width"], r["seed"]) for r in rows}
    todo = [j for j in jobs(base.widths) if (j[0], j[1] or base.widths[0], j[2]) not in done]
    with Display() as display, ProcessPoolExecutor(workers) as pool:
        display.stage("networks", len(todo))
        futures = [pool.submit(functools.partial(measure, base, spec), job) for job in todo]
        for i, future in enumerate(as_completed(futures)):
            rows += future.result()
            table = pd.DataFrame(rows).sort_values(["seed", "way", "width"])
            table.to_csv(path, index=False)
            display.advance("networks", i + 1, len(todo))
    table = pd.read_csv(path)
    plot(table, path.with_suffix(".png"))
    print(summary(table).round(2).to_string())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
