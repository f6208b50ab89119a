"""FID against training steps with and without Immiscible Diffusion: pools 1, 64, 256, 1024.

    python results/reference/immiscible.py digits [WORKERS]
    python results/reference/immiscible.py ../shared/data/cifar10-jpeg-train.parquet [WORKERS]

The first trains the network of supernets/digits.yaml at full width alone, the second a small U-Net
on CIFAR-10 at 16x16; three seeds each. EMA weights are sampled by ODE (DDIM, quad grid) at 5, 10
and 20 calls. Writes immiscible_{digits,cifar10}.csv and .png beside this file; rows that are in the
table already are kept, so that a stopped run continues.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import ttest_ind

from stepsearch.build import plan_stage
from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import EvaluationSettings, Immiscible, TrainConfig
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation
from stepsearch.nets.families import FAMILIES, noise_error
from stepsearch.nets.load import save_net
from stepsearch.progress import Display
from stepsearch.training.batches import Batches
from stepsearch.training.data import Dataset, load_dataset
from stepsearch.training.loop import train_supernet
from stepsearch.training.noising import AddNoise

HERE = Path(__file__)
POOLS, SEEDS, CALLS = (1, 64, 256, 1024), (0, 1, 2), (5, 10, 20)


@dataclass(frozen=True)
class Setup:
    """A data set with its network and budget."""

    net: Mapping[str, Any]
    train: TrainConfig
    marks: tuple[int, ...]  # steps after which weights are scored
    images: int


DIGITS = Setup(
    net={"base": 16, "mult": [1, 2], "blocks": 1, "groups": 2},
    train=TrainConfig(steps=1600, batch=128, learning_rate=1e-2, ema=0.995),
    marks=(200, 400, 800, 1600),
    images=5000,
)
CIFAR10 = Setup(
    net={"base": 16, "mult": [1, 2, 2], "blocks": 1, "groups": 4},
    train=TrainConfig(steps=800, batch=64, learning_rate=4e-3, ema=0.99, flip=True),
    marks=(200, 400, 800),
    images=2000,
)


def job(
    setup: Setup, data: Dataset, spec: EvaluatorSpec, pool: int, seed: int
) -> list[dict[str, Any]]:
    """Train one network, scored on the way."""
    torch.set_num_threads(1)
    config = replace(setup.train, seed=seed, immiscible=Immiscible(pool, scope="global"))
    torch.manual_seed(seed)
    module = FAMILIES["unet"].build(setup.net, data.images.shape[1:], [1.0])
    batches = Batches(data.images, [1.0], AddNoise(get_process(TRAINED)), config)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mark in setup.marks:
            ema = train_supernet(
                module,
                batches,
                config,
                loss=noise_error,
                checkpoint=Path(folder) / "net.training",
                on_step=lambda step, losses: None,
                stop=mark,
            )
            path = Path(folder) / f"{mark}.safetensors"
            card = save_net(path, card_of(setup, data), ema)
            evaluator = Evaluator(replace(spec, nets=(str(path),)))
            rows += [score(evaluator, card, pool, seed, mark, calls) for calls in CALLS]
    return rows


def card_of(setup: Setup, data: Dataset) -> NetCard:
    """Enough of a card to sample."""
    shape = tuple(data.images.shape[1:])
    return NetCard("net", "", "unet", TRAINED, shape, (1.0,), (0.0,), arch=setup.net)


def score(
    evaluator: Evaluator, card: NetCard, pool: int, seed: int, steps: int, calls: int
) -> dict[str, Any]:
    """One row; the sampling noise has the seed of the training."""
    stage = plan_stage(card, solver="ddim", calls=calls, grid="quad")
    result = evaluator.measure(StepSchedule((stage,)), seed)
    return {
        "pool": pool,
        "seed": seed,
        "steps": steps,
        "calls": calls,
        "fid": round(result.values["fid"], 4),
        "fid_se": round(result.values["fid_se"], 4),
        "n_samples": result.n_samples,
        "metric_id": result.metric_id,
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Last step: mean and deviation of the seeds, ratio to pool 1, and Welch's p for a change."""
    last = table[table["steps"] == table["steps"].max()]
    rows = []
    for calls, group in last.groupby("calls"):
        plain = group[group["pool"] == 1]["fid"]
        for pool, own in group.groupby("pool")["fid"]:
            p = np.nan if pool == 1 else ttest_ind(own, plain, equal_var=False).pvalue
            mean = own.mean()
            row = {"calls": calls, "pool": pool, "fid": mean, "sd": own.std(ddof=1)}
            rows.append(row | {"ratio": mean / plain.mean(), "p": p})
    return pd.DataFrame(rows).round(3)


def plot(table: pd.DataFrame, name: str, path: Path) -> None:
    """A panel a number of calls, a line a pool: mean of the seeds, bars from best to worst."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for ax, calls in zip(figure.subplots(1, len(CALLS)), CALLS, strict=True):
        for i, pool in enumerate(POOLS):
            own = table[(table["pool"] == pool) & (table["calls"] == calls)]
            fids = own.groupby("steps")["fid"].agg(["mean", "min", "max"])
            bars = [fids["mean"] - fids["min"], fids["max"] - fids["mean"]]
            at = fids.index * (1 + 0.03 * (i - 1.5))  # side by side
            look = {"marker": ".", "linewidth": 1.2, "capsize": 2}
            label = f"pool {pool}" if pool > 1 else "pool 1 (plain)"
            ax.errorbar(
                at, fids["mean"], bars, label=label, color=colormaps["viridis"](i / 3.5), **look
            )
        ax.set(title=f"DDIM, {calls} calls", xscale="log", yscale="log")
        ax.set_xticks(
            sorted(table["steps"].unique()), [str(s) for s in sorted(table["steps"].unique())]
        )
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(True, color="#E6E6E6")
    images, seeds = int(table["n_samples"].iloc[0]), table["seed"].nunique()
    figure.supxlabel(f"training steps, {name}")
    figure.supylabel(f"FID ({images:,} images, {seeds} seeds)")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(source: str, workers: int) -> None:
    """Train and score what is missing, write the table after every network, draw it at the end."""
    digits = source == "digits"
    setup = DIGITS if digits else CIFAR10
    data = load_dataset("digits") if digits else load_dataset("parquet", Path(source), 16)
    path = HERE.with_name(f"immiscible_{'digits' if digits else 'cifar10'}.csv")
    settings = EvaluationSettings(images=setup.images, device="cpu")
    spec, _ = prepare_evaluation(settings, ("fid",), data)
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(r["pool"], r["seed"]) for r in rows}
    todo = [(pool, seed) for seed in SEEDS for pool in POOLS if (pool, seed) not in done]
    run = functools.partial(job, setup, data, spec)
    with Display() as display, ProcessPoolExecutor(workers) as pool:
        display.stage("networks", len(todo))
        for i, future in enumerate(as_completed([pool.submit(run, *key) for key in todo])):
            rows += future.result()
            table = pd.DataFrame(rows).sort_values(["seed", "pool", "steps", "calls"])
            table.to_csv(path, index=False)
            display.advance("networks", i + 1, len(todo))
    table = pd.read_csv(path)
    name = "digits" if digits else "CIFAR-10 (JPEG), 16x16"
    plot(table, name, path.with_suffix(".png"))
    print(summary(table).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
