"""What a front is worth once it is measured with many images: its table, and what it says of the
few that the search had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.errors import RunError
from stepsearch.core.pareto import hypervolume, pareto_rank
from stepsearch.tables import EMPTY

if TYPE_CHECKING:
    import pandas as pd

TABLE, SUMMARY = "reeval.csv", "reeval.json"
LEAST_TAU = 0.8  # below which few images say too little
LEAST = 20  # schedules, for a rank correlation to say something
STRATA = 10  # parts of the GFLOPs' logarithm that neighbours are taken from in turn
BEYOND = 0.1  # of the range, by which the bound of a hypervolume lies beyond the worst


@dataclass(frozen=True, slots=True)
class Full:
    """One trial measured with many images: an FID a seed, and what resampled images make of it."""

    fids: tuple[float, ...]
    deviations: NDArray[np.float64]  # of replicates from their mean, (seeds, replicates)


@dataclass(frozen=True)
class Remeasured:
    """reeval.csv and reeval.json of a run."""

    table: pd.DataFrame
    summary: Mapping[str, Any]

    @property
    def column(self) -> str:
        """The column of FID by many images."""
        return column_of(self.summary["samples"])

    @property
    def front(self) -> pd.DataFrame:
        """Rows of the front by many images; `fid` and `fid_se` are those."""
        name = self.column
        rows = self.table[self.table[f"is_pareto_{_short(self.summary['samples'])}"]]
        return rows.assign(fid=rows[name], fid_se=rows[f"{name}_se"])


def choose(trials: pd.DataFrame, neighbours: int | None) -> list[int]:
    """Numbers of the front's trials and of its neighbours, the dearest first.

    Neighbours are the best by rank of non-domination, then by FID, of every part of the GFLOPs'
    logarithm in turn: a correlation over the front alone would say nothing of the rest.
    """
    done = trials[trials["rank"].notna()]
    front, rest = done[done["rank"].eq(0)], done[done["rank"].gt(0)]
    count = max(len(front), LEAST - len(front)) if neighbours is None else neighbours
    cost = np.log(done["gflops_per_image"].astype(float).clip(lower=1e-12))
    edges = np.linspace(cost.min(), cost.max(), STRATA + 1)[1:-1]
    part = np.digitize(cost[rest.index], edges)
    rest = rest.assign(part=part).sort_values(["rank", "fid", "trial_id"], kind="stable")
    rest = rest.assign(turn=rest.groupby("part").cumcount())
    nearest = rest.sort_values(["turn", "part"], kind="stable").head(count)
    ids = [*front["trial_id"], *nearest["trial_id"]]
    costs = done.set_index("trial_id")["gflops_per_image"]
    return sorted(map(int, ids), key=lambda i: (-costs[i], i))


def _short(samples: int) -> str:
    return f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)


def column_of(samples: int) -> str:
    """Name of FID by so many images: fid_50k, fid_1234."""
    return f"fid_{_short(samples)}"


def remeasured_table(
    trials: pd.DataFrame, full: Mapping[int, Full], samples: int, objectives: Sequence[str]
) -> pd.DataFrame:
    """reeval.csv: a row for every trial of `full`, the cheapest first.

    Args:
        trials: rows of trials.csv, all objectives among their columns.
        full: by trial_id; replicate b of one seed has resampled the same images for all.
    """
    from stepsearch.ties import standard_error, tied_with

    name, short = column_of(samples), _short(samples)
    rows = trials[trials["trial_id"].isin(list(full))]
    rows = rows.sort_values(["gflops_per_image", "trial_id"], ignore_index=True)
    measured = [full[int(i)] for i in rows["trial_id"]]
    deviations = np.array([one.deviations.mean(0) for one in measured])
    table = rows[["trial_id", "key", "gflops_per_image", "fid"]].copy()
    table[name] = [float(np.mean(one.fids)) for one in measured]
    table[f"{name}_sd"] = [_spread(one.fids) for one in measured]
    table[f"{name}_se"] = [standard_error(row) for row in deviations]
    table["seeds"] = [len(one.fids) for one in measured]
    points = rows.assign(fid=table[name])[list(objectives)].to_numpy(np.float64)
    rank = pareto_rank(points)
    table["rank"], table[f"rank_{short}"] = rows["rank"], rank
    table["is_pareto"], table[f"is_pareto_{short}"] = rows["is_pareto"], rank == 0
    tied = tied_with(list(table["gflops_per_image"]), list(table[name]), deviations, rank == 0)
    ids = list(table["trial_id"])
    table["tied_with"] = ["|".join(str(ids[j]) for j in sorted(others)) for others in tied]
    return table


def _spread(fids: Sequence[float]) -> float | None:
    """Standard deviation between seeds; None of a single one."""
    return float(np.std(fids, ddof=1)) if len(fids) > 1 else None


def summarise(
    trials: pd.DataFrame,
    table: pd.DataFrame,
    samples: int,
    seeds: Sequence[int],
    objectives: Sequence[str],
) -> dict[str, Any]:
    """reeval.json: what `table` says of the search's own measurements."""
    from stepsearch.ties import RESAMPLES, rank_agreement

    name, short = column_of(samples), _short(samples)
    rows = trials.set_index("trial_id").loc[table["trial_id"]].reset_index()
    tau = rank_agreement(table["fid"], table[name])
    proxy = rows[list(objectives)].to_numpy(np.float64)
    full = rows.assign(fid=table[name])[list(objectives)].to_numpy(np.float64)
    both = np.concatenate([proxy, full])
    bound = both.max(0) + BEYOND * np.ptp(both, axis=0)
    before, after = (
        {int(i) for i in table["trial_id"][table[column]]}
        for column in ("is_pareto", f"is_pareto_{short}")
    )
    first = rows.iloc[0]
    summary: dict[str, Any] = {
        "samples": samples,
        "seeds": list(seeds),
        "proxy_images": int(first["n_samples"]),
        "proxy_seed": int(first["seed"]),
        "metric_id": str(first["metric_id"]),
        "trials": sorted(int(i) for i in table["trial_id"]),
        "kendall_tau_b": {"tau": tau.tau, "low": tau.low, "high": tau.high, "count": tau.count},
        "interval": f"95 %, percentiles of {RESAMPLES} resamples of the schedules",
        "hypervolume": {
            "proxy": hypervolume(proxy, bound),
            "full": hypervolume(full, bound),
            "bound": dict(zip(objectives, bound.tolist(), strict=True)),
        },
        "front": {
            "proxy": sorted(before),
            "full": sorted(after),
            "left": sorted(before - after),
            "entered": sorted(after - before),
            "churn": 1 - len(before & after) / len(before | after),
        },
        "tied": int(table["tied_with"].ne("").sum()),
    }
    return summary | {"sentence": sentence(summary)}


def sentence(summary: Mapping[str, Any]) -> str:
    """The summary as a paper would put it."""
    tau, front, seeds = summary["kendall_tau_b"], summary["front"], len(summary["seeds"])
    stayed, new = len(front["proxy"]) - len(front["left"]), len(front["entered"])
    return (
        f"FID of {summary['proxy_images']:,} images, as searched, and of {summary['samples']:,} "
        f"images with fresh noise (mean of {seeds} seed{'s' * (seeds != 1)}; "
        f"{summary['metric_id']}) rank {tau['count']} schedules with Kendall's tau-b = "
        f"{tau['tau']:.2f} (95 % interval {tau['low']:.2f} to {tau['high']:.2f}, bootstrap over "
        f"schedules). Of {len(front['proxy'])} schedules of the front {stayed} stay on it, {new} "
        f"enter it, and {summary['tied']} cannot be told apart from another by two standard "
        f"errors (paired bootstrap over images)."
    )


def load_remeasured(run: Path, pareto: pd.DataFrame) -> Remeasured | None:
    """What `stepsearch reeval` wrote of a run; None where it did not measure the front of today.

    Raises:
        RunError: damaged files.
    """
    import pandas as pd

    if not (run / SUMMARY).is_file():
        return None
    try:
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
        table = pd.read_csv(run / TABLE, dtype={"tied_with": "string"})
        found = Remeasured(table, summary)
        if not set(pareto["trial_id"]) <= set(summary["trials"]) or not len(found.front):
            return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run / SUMMARY}: missing or damaged ({error}); write it again with "
            f"`stepsearch reeval {run}`"
        ) from None
    return found


def front_words(run: Path, pareto: pd.DataFrame) -> str:
    """What the front of a run is: a proxy, or re-measured."""
    if pareto.empty:
        return EMPTY
    found = load_remeasured(run, pareto)
    images = " or ".join(f"{int(n):,}" for n in sorted(pareto["n_samples"].dropna().unique()))
    if found is None:
        return f"proxy front ({images} images); `stepsearch reeval {run}` measures it with more"
    tau = found.summary["kendall_tau_b"]
    seeds = len(found.summary["seeds"])
    return (
        f"front by {images} images; re-measured with {found.summary['samples']:,} "
        f"({seeds} seed{'s' * (seeds != 1)}, Kendall's tau-b {tau['tau']:.2f}) in {run / TABLE}"
    )
