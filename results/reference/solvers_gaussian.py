"""End-point error of every solver on every grid, on a Gaussian mixture whose flow is known.

    python results/reference/solvers_gaussian.py ../shared/golden/pfdiff.json

writes solvers_gaussian.csv beside this file. 2,048 starts, seed 0, float64, network exact.
`mean_l2` is the mean distance to the end of the exact flow from the same start (data have root mean
square norm 1.7), `mean_l2_se` its standard error; both are empty for solvers that draw noise.
`sliced_w2` is the sliced Wasserstein-2 distance of the end points to as many fresh data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp

from stepsearch.build import plan_stage
from stepsearch.core.noise import generator, image_noise
from stepsearch.core.schedule import StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.progress import Display
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS

STARTS, SEED, PROJECTIONS = 2048, 0, 256
CALLS = (4, 6, 8, 10, 15, 20)
ODD = (5, 7, 9, 11, 15, 19)  # for Heun, whose N steps are 2 N - 1 calls
GRIDS: tuple[dict[str, dict[str, Any]], ...] = (
    {"uniform": {}},
    {"quad": {}},
    {"karras": {}},
    {"karras": {"rho": 3}},
    {"logsnr": {}},
    {"cosine": {}},
    {"free": {"spacing": (1, 3, 3, 2, 2, 1), "gap": 0.1}},
)
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddim", {}),
    ("heun", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_2s", {}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("unipc", {"order": 3, "variant": "bh1"}),
    ("deis", {"order": 2}),
    ("deis", {"order": 3}),
    ("deis", {"order": 3, "variable": "log-rho"}),
    *(("pfdiff", {"k": k, "l": l}) for k in (1, 2, 3) for l in range(1, k + 1)),  # noqa: E741
    *(("pfdiff", {"c": c}) for c in (0.3, 0.4, 0.45, 0.5, 0.6)),
    ("pfdiff", {"k": 2, "l": 1, "buffer": "x0"}),
    ("ddim", {"eta": 0.5}),
    ("ddpm", {"variance": "small"}),
    ("ddpm", {"variance": "large"}),
    ("heun", {"churn": 2.0}),
)


def exact_flow(net: GaussianMixture, x: torch.Tensor, level: float) -> torch.Tensor:
    """End of d(x / alpha) = eps d(level) from `level` to 0."""
    alpha, shape = net.card.diffusion.alpha, x.shape

    def gradient(at: float, flat: np.ndarray) -> np.ndarray:
        return net.eps(torch.from_numpy(flat.reshape(shape)) * alpha(at), at).numpy().ravel()

    start = (x / alpha(level)).numpy().ravel()
    solved = solve_ivp(gradient, (level, 0.0), start, method="DOP853", rtol=1e-7, atol=1e-8)
    assert solved.success, solved.message
    return torch.from_numpy(solved.y[:, -1].reshape(shape))


def sliced_w2(a: np.ndarray, b: np.ndarray) -> float:
    """Over fixed random directions, from sorted projections of equally many points."""
    directions = generator(SEED, 1).standard_normal((a.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    gaps = np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)
    return float(np.sqrt((gaps**2).mean()))


def data(gmm: Mapping[str, Any]) -> np.ndarray:
    """Fresh points of the mixture."""
    rng = generator(SEED, 2)
    which = rng.choice(len(gmm["weights"]), STARTS, p=gmm["weights"])
    means, deviations = np.array(gmm["means"]), np.sqrt(gmm["variances_isotropic"])
    noise = rng.standard_normal((STARTS, means.shape[1]))
    return means[which] + deviations[which, None] * noise


def main(golden: Path) -> None:
    """Measure and write the table."""
    gmm = json.loads(golden.read_text(encoding="utf-8"))["meta"]["gmm"]
    net = GaussianMixture(gmm["weights"], gmm["means"], gmm["variances_isotropic"])
    noise = torch.from_numpy(image_noise(SEED, 0, (STARTS, *net.card.image_shape))).double()
    real, exact, rows = data(gmm), dict[float, torch.Tensor](), []
    todo = [(s, g, n) for s in SETTINGS for g in GRIDS for n in (ODD if s[0] == "heun" else CALLS)]
    with Display() as display:
        display.stage("solvers on a mixture", len(todo))
        for i, ((solver, args), grid, calls) in enumerate(todo):
            display.advance("schedules", i, len(todo))
            stage = plan_stage(net.card, solver=solver, calls=calls, grid=grid, **args)
            top = stage.levels[0]
            x = noise * net.card.diffusion.start_scale(top)
            end = integrate(StepSchedule((stage,)), {stage.net: net}, x, seed=SEED)
            errors = None
            if SOLVERS[stage.solver].order(**stage.args) is not None:
                if top not in exact:
                    exact[top] = exact_flow(net, x, top)
                errors = (end - exact[top]).norm(dim=1)
            rows.append(
                {
                    "solver": solver,
                    "solver_args": text(args),
                    "grid": next(iter(grid)),
                    "grid_args": text(next(iter(grid.values()))),
                    "calls": calls,
                    "mean_l2": None if errors is None else round(float(errors.mean()), 5),
                    "mean_l2_se": None
                    if errors is None
                    else round(float(errors.std()) / STARTS**0.5, 5),
                    "sliced_w2": round(sliced_w2(end.numpy(), real), 5),
                    "n_samples": STARTS,
                    "seed": SEED,
                }
            )
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False)


def text(args: Mapping[str, Any]) -> str | None:
    """As the column solver_args of a run writes arguments."""
    return ";".join(f"{name}={value}" for name, value in args.items()) or None


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(f"usage: python {sys.argv[0]} GOLDEN_PFDIFF_JSON")
    main(Path(sys.argv[1]))
