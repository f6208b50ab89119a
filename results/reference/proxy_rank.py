"""How well FID and KID of few images rank schedules as FID of 50,000 fresh ones does: digits.

    python results/reference/proxy_rank.py [--part I/N]

measures 46 schedules on the network of supernets/digits.yaml: the 16 best of the search in
digits/trials.csv by rank of non-domination, and 30 of search_spaces/digits.yaml that are spread
evenly over the logarithm of GFLOPs, 8 of them of uniform width. The proxies share the noise of
seed 0, image j of 1,000 is image j of 5,000; 50,000 images are of another seed. Writes
proxy_rank.csv and proxy_rank.png beside this file and prints Kendall's tau-b. Parts run at the same
time, each into a file of its own; the call without a part puts them together. Rows that are there
are kept, so that a stopped run continues. One thread a process, about 40 minutes of one core.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from stepsearch.build import build_schedule, plan_stage
from stepsearch.config import read_space
from stepsearch.core.noise import generator
from stepsearch.core.pareto import pareto_front
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule, parse_run_length, run_length
from stepsearch.core.settings import RunSettings
from stepsearch.evaluate import Evaluator, prepare_evaluation
from stepsearch.objectives.bootstrap import fid_replicates
from stepsearch.objectives.registry import OBJECTIVES, Samples
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import ensure_supernet
from stepsearch.ties import rank_agreement, standard_error

HERE = Path(__file__)
SPACE = HERE.parents[2] / "search_spaces" / "digits.yaml"
TRIALS = HERE.parent / "digits" / "trials.csv"
BEST, SPREAD, UNIFORM = 16, 22, 8
DRAWN = 4000  # random genomes that the spread ones are taken from
RUNGS = {"kid_1000": ("kid", 1000), "fid_2000": ("fid", 2000), "fid_5000": ("fid", 5000)}
FULL, SEED, FRESH = 50_000, 0, 1000  # images, seed of the proxies, seed of the full evaluation
Chosen = dict[str, tuple[str, StepSchedule]]  # key -> where it is from, and what it is


def searched(card: NetCard) -> Chosen:
    """The best trials of the README's search, rebuilt from their row; their keys prove it."""
    trials = pd.read_csv(TRIALS).sort_values(["rank", "gflops_per_image"], kind="stable")
    chosen: Chosen = {}
    for row in trials.head(BEST).to_dict("records"):
        text = row["solver_args"]
        pairs = [] if text != text else [p.partition("=") for p in text.split(";")]
        args = {name: yaml.safe_load(value) for name, _, value in pairs}
        widths = parse_run_length(row["widths"])
        plan = {"calls": len(widths), "grid": row["grid"], "widths": widths}
        schedule = StepSchedule((plan_stage(card, solver=row["solver"], **plan, **args),))
        if schedule.key() != row["key"]:
            raise SystemExit(f"{TRIALS}: trial {row['trial_id']} is not {schedule.key()}")
        chosen[row["key"]] = ("search", schedule)
    return chosen


def spread(settings: RunSettings, card: NetCard) -> Chosen:
    """Random and uniform schedules, as many from every part of the GFLOPs' logarithm."""
    space, cards, rng = settings.space, {card.name: card}, generator(0)
    sizes = [n for _, n in space.genes]
    genomes = [tuple(int(rng.integers(n)) for n in sizes) for _ in range(DRAWN)]
    pools = {"uniform": (list(space.uniform_genomes(10**6)), UNIFORM), "random": (genomes, SPREAD)}
    chosen: Chosen = {}
    for source, (pool, count) in pools.items():
        made = [build_schedule(space.decode(genome), cards) for genome in pool]
        made.sort(key=lambda s: (cost(s, card), s.key()))
        low, high = (math.log(cost(made[i], card)) for i in (0, -1))
        for i in range(count):
            target = math.exp(low + (high - low) * i / (count - 1))
            left = [s for s in made if s.key() not in chosen]
            best = min(left, key=lambda s: abs(math.log(cost(s, card) / target)))
            chosen[best.key()] = (source, best)
    return chosen


def cost(schedule: StepSchedule, card: NetCard) -> float:
    """GFLOPs per image."""
    return OBJECTIVES["gflops_per_image"](schedule, {card.key: card}, None)


def measure(evaluator: Evaluator, source: str, schedule: StepSchedule) -> dict[str, Any]:
    """One row."""
    few = evaluator.samples(schedule, SEED, max(images for _, images in RUNGS.values()))
    many = evaluator.samples(schedule, FRESH, FULL)
    stage, none = schedule.stages[0], {}
    row = {
        "source": source,
        "key": schedule.key(),
        "gflops_per_image": OBJECTIVES["gflops_per_image"](schedule, evaluator.cards, None),
        "nfe": schedule.nfe,
        "solver": stage.solver,
        "grid_start": stage.levels[0],
        "widths": run_length(schedule.widths),
    }
    for name, (objective, images) in RUNGS.items():
        samples = Samples(few.features[:images], few.reference)
        row[name] = OBJECTIVES[objective](schedule, none, samples)
    deviations = fid_replicates(many.features, many.reference, FRESH)
    row[f"fid_{FULL}"] = OBJECTIVES["fid"](schedule, none, many)
    row[f"fid_{FULL}_se"] = standard_error(deviations)
    return row


def rows_of(pattern: str) -> list[dict[str, Any]]:
    """Rows of all tables of that name beside this file."""
    tables = [pd.read_csv(path) for path in sorted(HERE.parent.glob(pattern))]
    return list(itertools.chain.from_iterable(t.to_dict("records") for t in tables))


def agreements(table: pd.DataFrame) -> pd.DataFrame:
    """Tau of every rung against the full evaluation: all schedules, and parts of them."""
    rank = table["gflops_per_image"].rank(pct=True)
    parts = {
        "all": table,
        "cheap third": table[rank <= 1 / 3],
        "middle third": table[(rank > 1 / 3) & (rank <= 2 / 3)],
        "dear third": table[rank > 2 / 3],
        "searched": table[table["source"].eq("search")],
        "spread": table[~table["source"].eq("search")],
    }
    full = f"fid_{FULL}"
    found = []
    for part, rows in parts.items():
        for rung in RUNGS:
            tau = rank_agreement(rows[rung], rows[full])
            found.append((part, rung, tau.count, tau.tau, tau.low, tau.high))
    names = ["schedules", "rung", "count", "tau", "low", "high"]
    return pd.DataFrame(found, columns=names)


def fronts(table: pd.DataFrame) -> str:
    """Of the front by 5,000 images, how much is on that by 50,000."""
    few, many = (
        set(table["key"][pareto_front(table[["gflops_per_image", name]].to_numpy())])
        for name in ("fid_5000", f"fid_{FULL}")
    )
    return f"front: {len(few)} by 5,000 images, {len(many)} by {FULL:,}, {len(few & many)} on both"


def plot(table: pd.DataFrame, taus: pd.DataFrame, path: Path) -> None:
    """A panel a rung: its value over that of the full evaluation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    colors = {"search": "#D55E00", "random": "#56B4E9", "uniform": "#222222"}
    for ax, rung in zip(figure.subplots(1, len(RUNGS)), RUNGS, strict=True):
        for source, color in colors.items():
            rows = table[table["source"].eq(source)]
            ax.plot(rows[f"fid_{FULL}"], rows[rung], ".", color=color, label=source)
        objective, images = RUNGS[rung]
        own = taus[taus["rung"].eq(rung) & taus["schedules"].eq("all")].iloc[0]
        says = f"{own['tau']:.3f} ({own['low']:.3f} to {own['high']:.3f})"
        ax.set_title(f"Kendall's tau-b {says}", fontsize=9)
        ax.set(xscale="log", yscale="log", xlabel=f"FID, {FULL:,} fresh images")
        ax.set_ylabel(f"{objective.upper()}, {images:,} images")
        ax.grid(True, color="#E6E6E6")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main(part: int, parts: int) -> None:
    """Measure what is missing, write the table after every row; draw it if this is all of it."""
    torch.set_num_threads(1)
    settings = read_space(SPACE, ["evaluation.device=cpu"])
    (recipe,) = settings.recipes
    data = recipe_data(recipe)
    spec, _ = prepare_evaluation(settings.evaluation, ("fid", "kid"), data)
    weights, card = ensure_supernet(recipe, data)
    evaluator = Evaluator(replace(spec, nets=(str(weights),)))
    chosen = {**spread(settings, card), **searched(card)}
    path = HERE.with_suffix(".csv" if parts == 1 else f".part-{part}-of-{parts}.csv")
    own = rows_of(path.name) if parts > 1 else rows_of(f"{HERE.stem}*.csv")
    own = list({row["key"]: row for row in own if row["key"] in chosen}.values())
    done = {row["key"] for row in own}
    for i, (key, (source, schedule)) in enumerate(chosen.items()):
        if i % parts != part or key in done:
            continue
        own.append(measure(evaluator, source, schedule))
        pd.DataFrame(own).to_csv(path, index=False)
        print(f"{len(own)} rows in {path}", file=sys.stderr, flush=True)
    if parts == 1:
        table = pd.DataFrame(own).sort_values(["gflops_per_image", "key"])
        table["n_samples"], table["metric_id"], table["supernet"] = FULL, spec.metric_id, card.key
        table.to_csv(path, index=False)
        taus = agreements(table)
        plot(table, taus, path.with_suffix(".png"))
        print(taus.round(3).to_string(index=False))
        print(fronts(table))


if __name__ == "__main__":
    words = (
        sys.argv[sys.argv.index("--part") + 1].split("/") if "--part" in sys.argv else ["0", "1"]
    )
    main(int(words[0]), int(words[1]))
