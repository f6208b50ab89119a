"""One stage, relay and few-step student in one front: the digits, three seeds.

    python results/reference/joint.py [WORKERS]

Trains the networks of search_spaces/digits-joint.yaml with seeds 0, 1 and 2 and searches the space
with each, under results/joint (about an hour and a half on two cores). Writes beside this file
joint/seed*/trials.csv and pareto.csv, joint.csv (the best FID of each kind within a budget of
GFLOPs), joint_wins.csv (where each kind is best) and joint.png; what is there already is kept, so
that a stopped run continues.
"""

from __future__ import annotations

import shutil
import sys
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
NETWORKS = ("digits", "digits-4", "digits-relay", "digits-dpdm")
BUDGETS = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.045, 0.06, 0.08)  # GFLOPs per image


def seeded(seed: int) -> Path:
    """A folder with the recipes and the space, all of them with one seed."""
    folder = WORK / f"seed{seed}"
    for name in ("supernets", "search_spaces"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        recipe = yaml.safe_load((ROOT / "supernets" / f"{name}.yaml").read_text())
        recipe["train" if "train" in recipe else "distill"]["seed"] = seed
        (folder / "supernets" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    space = yaml.safe_load(SPACE.read_text())
    space["search"]["seed"] = space["evaluation"]["seed"] = seed
    (folder / "search_spaces" / SPACE.name).write_text(yaml.safe_dump(space))
    return folder


def search(seed: int, workers: int) -> pd.DataFrame:
    """The trials of one seed, searched unless their table is there."""
    table = HERE / "joint" / f"seed{seed}" / "trials.csv"
    if not table.is_file():
        folder, run = seeded(seed), WORK / f"run{seed}"
        words = ["run", str(folder / "search_spaces" / SPACE.name), "-o", str(run), "--resume"]
        if code := main([*words, "--workers", str(workers)]):
            sys.exit(code)
        table.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "pareto.csv", table.with_name("pareto.csv"))
        shutil.copy(run / "trials.csv", table)
    return pd.read_csv(table).assign(run=seed)


def within(trials: pd.DataFrame) -> pd.DataFrame:
    """The best FID of each kind within each budget, mean and deviation over the seeds."""
    done = complete_rows(trials)
    rows = []
    for budget in BUDGETS:
        best = done[done["gflops_per_image"] <= budget].groupby(["kind", "run"])["fid"].min()
        row: dict[str, float | str] = {"gflops": budget}
        means = {}
        for kind in KINDS:
            found = best.get(kind)
            if found is not None and len(found) == len(SEEDS):
                means[kind] = found.mean()
                row |= {f"{kind}_fid": found.mean(), f"{kind}_sd": found.std()}
        rows.append(row | {"best": min(means, key=lambda kind: means[kind], default="")})
    columns = [f"{kind}_{what}" for kind in KINDS for what in ("fid", "sd")]
    return pd.DataFrame(rows).reindex(columns=["gflops", *columns, "best"])


def plot(trials: pd.DataFrame, path: Path) -> None:
    """A panel a seed: all trials, the front of each kind, and the front of all."""
    from matplotlib.figure import Figure

    done = complete_rows(trials)
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
    """All seeds, then the table and the picture."""
    trials = pd.concat([search(seed, workers) for seed in SEEDS], ignore_index=True)
    table = within(trials)
    table.round(4).to_csv(HERE / "joint.csv", index=False)
    wins = [kind_wins(own).assign(seed=seed) for seed, own in trials.groupby("run")]
    pd.concat(wins).round(4).to_csv(HERE / "joint_wins.csv", index=False)
    plot(trials, HERE / "joint.png")
    print(table.round(2).to_string(index=False))
    print(pd.concat(wins).to_string(index=False))


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
