"""One stage, relay and few-step student in one front: the digits, three seeds.

    python results/reference/joint.py [WORKERS]

Trains the networks of search_spaces/digits-joint.yaml with seeds 0, 1 and 2 and searches the space
with each, under results/joint; then, for half as many trials each, its single stage alone and its
relay alone (about two hours on two cores). Writes beside this file joint/seed*-*.csv, all trials;
joint.csv and joint_calls.csv, the best FID within a budget of GFLOPs, or of network calls, of every
search, and of each kind in the joint one; joint_wins.csv, where each kind is best by GFLOPs; and
joint.png. What is there already is kept, so that a stopped run continues.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from stepsearch.cli import main
from stepsearch.core.kinds import KINDS
from stepsearch.drawing import COLORS
from stepsearch.report_front import LABELS
from stepsearch.tables import complete_rows, kind_wins, staircase

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "results" / "joint"
SPACE = ROOT / "search_spaces" / "digits-joint.yaml"
SEEDS = (0, 1, 2)
SEARCHES = {  # sections left out, supernets, part of the generations
    "joint": ((), ("digits", "digits-dpdm"), 1),
    "single": (("relay", "distilled"), ("digits",), 2),
    "relay": (("distilled",), (), 2),
}
NETWORKS = ("digits", "digits-4", "digits-relay", "digits-dpdm")
BUDGETS: dict[str, tuple[str, tuple[float, ...]]] = {
    "joint": ("gflops_per_image", (0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05)),
    "joint_calls": ("nfe", (2, 3, 4, 5, 6, 8, 10)),
}


def seeded(seed: int) -> Path:
    """A folder with the recipes and the space, all of them with one seed."""
    folder = WORK / f"seed{seed}"
    for name in ("supernets", "search_spaces"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        recipe = yaml.safe_load((ROOT / "supernets" / f"{name}.yaml").read_text())
        recipe["train" if "train" in recipe else "distill"]["seed"] = seed
        (folder / "supernets" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for name, (left_out, supernets, share) in SEARCHES.items():
        space = yaml.safe_load(SPACE.read_text())
        space = {key: value for key, value in space.items() if key not in left_out}
        space["supernets"] = [s for s in space["supernets"] if Path(s).stem in supernets]
        space["search"]["generations"] //= share
        space["search"]["seed"] = space["evaluation"]["seed"] = seed
        if not supernets:
            del space["supernets"]
        (folder / "search_spaces" / f"{name}.yaml").write_text(yaml.safe_dump(space))
    return folder


def search(seed: int, name: str, workers: int) -> pd.DataFrame:
    """The trials of one of SEARCHES with a seed, searched unless their table is there."""
    table = HERE / "joint" / f"seed{seed}-{name}.csv"
    if not table.is_file():
        space, run = seeded(seed) / "search_spaces" / f"{name}.yaml", WORK / f"{name}{seed}"
        words = ["run", str(space), "-o", str(run), "--resume", "--workers", str(workers)]
        if code := main(words):
            sys.exit(code)
        table.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "trials.csv", table)
    return pd.read_csv(table).assign(run=seed, search=name)


def within(trials: pd.DataFrame, cost: str, budgets: Sequence[float]) -> pd.DataFrame:
    """The best FID of every search within budgets of a cost, mean and deviation over the seeds.

    `joint` is all of the joint search, `joint_KIND` a kind in it, the others searches of one kind.
    """
    done = complete_rows(trials)
    parts = {name: done[done["search"].eq(name)] for name in SEARCHES}
    joint = parts["joint"]
    parts |= {f"joint_{kind}": joint[joint["kind"].eq(kind)] for kind in KINDS}
    rows = []
    for budget, (name, part) in itertools.product(budgets, parts.items()):
        best = part[part[cost] <= budget].groupby("run")["fid"].min()
        if len(best) == len(SEEDS):
            row = {cost: budget, "search": name, "fid": best.mean(), "fid_sd": best.std()}
            rows.append(row | {"seeds": len(best)})
    return pd.DataFrame(rows)


def plot(trials: pd.DataFrame, path: Path) -> None:
    """A panel a seed: all trials, the front of each kind, and the front of all."""
    from matplotlib.figure import Figure

    done = complete_rows(trials[trials["search"].eq("joint")])
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SEEDS), sharex=True, sharey=True)
    for ax, (seed, own) in zip(axes, done.groupby("run"), strict=True):
        for kind, rows in own.groupby("kind"):
            x, y, best = rows["gflops_per_image"], rows["fid"], staircase(rows)
            ax.plot(x, y, ".", color=COLORS[kind], ms=3.5, alpha=0.4, mew=0)
            ax.step(x[best], y[best], where="post", lw=1.1, color=COLORS[kind], label=LABELS[kind])
        ax.set(xscale="log", yscale="log", title=f"seed {seed}", xlabel="GFLOPs per image")
        ax.set_ylim(top=300)
        ax.grid(True, lw=0.3)
    axes[0].set_ylabel(f"FID ({int(done['n_samples'].iloc[0]):,} images, classifier features)")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=160, metadata={"Software": None})


def run(workers: int) -> None:
    """All searches, then the tables and the picture."""
    every = itertools.product(SEEDS, SEARCHES)
    trials = pd.concat([search(*one, workers) for one in every], ignore_index=True)
    for file, (cost, budgets) in BUDGETS.items():
        table = within(trials, cost, budgets)
        table.round(4).to_csv(HERE / f"{file}.csv", index=False)
        print(table.pivot_table(index=cost, columns="search", values="fid").round(2).to_string())
    joint = trials[trials["search"].eq("joint")].groupby("run")
    wins = pd.concat([kind_wins(own).assign(seed=seed) for seed, own in joint])
    wins.round(4).to_csv(HERE / "joint_wins.csv", index=False)
    plot(trials, HERE / "joint.png")
    print(wins.to_string(index=False))


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
