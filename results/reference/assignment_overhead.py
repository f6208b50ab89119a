"""What noise assignment costs a training step: plain against Immiscible Diffusion at pool 256.

    python results/reference/assignment_overhead.py

One process, one torch thread. `assign` is the loader's extra work, for all widths of a step;
`ratio` divides it by a plain step, and `wall_ratio` is the time of a whole step with assignment in
the loader's thread, by that of a plain one, measured in turns. Writes assignment_overhead.csv.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.settings import Immiscible, TrainConfig
from stepsearch.nets.families import FAMILIES, noise_error
from stepsearch.training.batches import Batches
from stepsearch.training.loop import train_supernet
from stepsearch.training.noising import AddNoise

STEPS, TURNS = 16, 3
WIDTHS = (0.25, 0.5, 0.75, 1.0)
CASES: dict[str, tuple[tuple[int, ...], Mapping[str, Any], int]] = {
    "digits, 1x8x8": ((1, 8, 8), {"base": 16, "mult": [1, 2], "groups": 2}, 128),
    "3x16x16": ((3, 16, 16), {"base": 16, "mult": [1, 2, 2], "groups": 4}, 64),
    "3x32x32": ((3, 32, 32), {"base": 32, "mult": [1, 2, 2], "groups": 8}, 32),
}


def timed(images: np.ndarray, net: Mapping[str, Any], config: TrainConfig) -> tuple[float, float]:
    """Milliseconds of the loader and of a whole step, per step."""
    module = FAMILIES["unet"].build(net, images.shape[1:], WIDTHS)
    batches = Batches(images, WIDTHS, AddNoise(get_process(TRAINED)), config)
    start = time.perf_counter()
    for step in range(config.steps):
        batches(step)
    loader = time.perf_counter() - start
    batches = Batches(images, WIDTHS, AddNoise(get_process(TRAINED)), config)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_supernet(
            module,
            batches,
            config,
            loss=noise_error,
            checkpoint=Path(folder) / "net.training",
            on_step=lambda step, losses: None,
        )
        whole = time.perf_counter() - start
    return 1e3 * loader / config.steps, 1e3 * whole / config.steps


def main() -> None:
    """A row a case; medians over the turns."""
    torch.set_num_threads(1)
    rows = []
    for name, (shape, net, batch) in CASES.items():
        images = np.random.default_rng(0).integers(0, 256, (2048, *shape)).astype(np.uint8)
        plain = TrainConfig(steps=STEPS, batch=batch)
        pooled = replace(plain, immiscible=Immiscible(256, scope="global"))
        turns = [(*timed(images, net, plain), *timed(images, net, pooled)) for _ in range(TURNS)]
        assign = statistics.median(t[2] - t[0] for t in turns)
        step = statistics.median(t[1] for t in turns)
        row = {
            "images": name,
            "batch": batch,
            "pool": 256,
            "widths_per_step": 3,
            "step_ms": step,
            "assign_ms": assign,
            "ratio": assign / step,
            "wall_ratio": statistics.median(t[3] / t[1] for t in turns),
        }
        rows.append(row)
        print(pd.DataFrame([row]).round(3).to_string(index=False), flush=True)
    pd.DataFrame(rows).round(4).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
