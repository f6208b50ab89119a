"""How well searches spend what they are given: hypervolume against evaluations and compute.

Every function takes frames of trials.csv as pandas reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.errors import ConfigError
from stepsearch.core.pareto import hypervolume, pareto_front
from stepsearch.core.trial import COMPLETE, FAILED

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MARGIN = 1.1  # the bound of the hypervolume over the worst of the common front
POINTS = 1000  # of a curve, at most
CURVE = ["evaluations", "gflops_spent", "hypervolume", "hypervolume_log"]
ALIKE = {"metric_id": None, "n_samples": None, "counting": FULL_COUNT}  # with what stands for none


@dataclass(frozen=True, slots=True)
class Search:
    """A run to compare; those of one label are repeats."""

    label: str
    run: str
    objectives: tuple[str, ...]
    trials: pd.DataFrame


def values_of(trials: pd.DataFrame, objectives: Sequence[str]) -> NDArray[np.float64]:
    """(trials, objectives) in the order of asking; rows of trials without a measurement are NaN."""
    ordered = trials.sort_values("trial_id", kind="stable")
    values = ordered[list(objectives)].astype("Float64").to_numpy(float, na_value=np.nan)
    values[~ordered["state"].eq(COMPLETE).to_numpy(bool)] = np.nan
    return values


def check_comparable(searches: Sequence[Search]) -> None:
    """ConfigError where two runs differ in what they minimise or in how it was measured."""
    first = searches[0]
    for search in searches:
        if search.objectives != first.objectives:
            raise _unlike(search, "objectives", search.objectives, first.objectives, first.run)
    known: dict[str, tuple[object, str]] = {}
    for search in searches:
        done = search.trials[search.trials["state"].eq(COMPLETE)]
        if done.empty:
            raise ConfigError(f"{search.run}: no completed trial; leave the run out")
        for name, absent in ALIKE.items():
            column = done[name] if name in done else done["state"].map(lambda _: None)
            for value in column.astype(object).where(column.notna(), absent).unique():
                other, run = known.setdefault(name, (value, search.run))
                if value != other:
                    raise _unlike(search, name, value, other, run)


def _unlike(search: Search, name: str, value: object, other: object, run: str) -> ConfigError:
    return ConfigError(
        f"{search.run}: {name}: {value} here, {other} in {run}; compare runs that minimise the "
        f"same, measured alike"
    )


def common_front(searches: Sequence[Search]) -> NDArray[np.float64]:
    """The front of all runs together, (points, objectives)."""
    points = np.concatenate([values_of(s.trials, s.objectives) for s in searches])
    return _front(points)


def bound_of(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """What bounds the hypervolume of all: 1.1 times the worst value of the common front.

    What lies beyond it adds nothing, so that a single bad trial does not blur all differences.
    """
    return np.asarray(MARGIN * front.max(axis=0), dtype=np.float64)


def curve(trials: pd.DataFrame, objectives: Sequence[str], bound: Sequence[float]) -> pd.DataFrame:
    """One row after every trial, or after every few of many: columns CURVE.

    `evaluations` counts all trials, `gflops_spent` is what sampling cost those that did not fail:
    GFLOPs per image times images, those of rungs included, empty where that was not measured.
    `hypervolume_log` is taken of the decimal logarithms of values and bound, and empty where a
    value is not positive.
    """
    import pandas as pd

    values = values_of(trials, objectives)
    ordered = trials.sort_values("trial_id", kind="stable")
    done = ~np.isnan(values).any(axis=1)
    images = ordered["n_sampled"] if "n_sampled" in ordered else ordered["n_samples"]
    cost = (ordered["gflops_per_image"] * images).astype("Float64")
    failed = ordered["state"].eq(FAILED).to_numpy(bool)
    spent = np.where(failed, 0.0, cost.to_numpy(float, na_value=np.nan)).cumsum()
    ends = np.unique(np.linspace(1, len(values), min(len(values), POINTS)).round().astype(int))
    limit, front, begin, rows = np.asarray(bound, float), values[:0], 0, []
    log = bool((values[done] > 0).all() and (limit > 0).all())
    for end in ends if len(values) else ():
        front, begin = _front(np.concatenate([front, values[begin:end]])), end
        volume = hypervolume(front, limit)
        logarithmic = hypervolume(np.log10(front), np.log10(limit)) if log else np.nan
        rows.append((end, spent[end - 1], volume, logarithmic))
    return pd.DataFrame(rows, columns=CURVE)


def _front(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-dominated rows; rows with a NaN are left out."""
    known = points[~np.isnan(points).any(axis=1)]
    return known[pareto_front(known)] if len(known) else known


def curves_of(searches: Sequence[Search], bound: Sequence[float]) -> pd.DataFrame:
    """The curves of all runs, each row with its label and run."""
    import pandas as pd

    parts = []
    for search in searches:
        part = curve(search.trials, search.objectives, bound)
        part.insert(0, "run", search.run)
        part.insert(0, "label", search.label)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def results_of(curves: pd.DataFrame, at: int | None = None) -> pd.DataFrame:
    """What every label reached: median and range over its runs, the best median first.

    Args:
        at: after so many evaluations; None takes the end of every run.
    """
    import pandas as pd

    upto = curves if at is None else curves[curves["evaluations"] <= at]
    last = upto.sort_values("evaluations", kind="stable").groupby(["label", "run"], sort=False)
    rows = []
    for label, ends in last.tail(1).groupby("label", sort=False):
        row = {"label": label, "runs": len(ends)}
        row |= {name: ends[name].median() for name in ("evaluations", "gflops_spent")}
        for name in ("hypervolume", "hypervolume_log"):
            low, middle, high = ends[name].min(), ends[name].median(), ends[name].max()
            row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    frame = pd.DataFrame(rows).sort_values("hypervolume", ascending=False, kind="stable")
    return frame.reset_index(drop=True)
