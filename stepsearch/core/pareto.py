"""Non-domination and hypervolume; every objective is minimised."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def _points(points: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(
            f"points must be (number of points, number of objectives), got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("points must be finite; leave failed trials out")
    return array


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask of the non-dominated rows, (N, objectives) -> (N,); equal rows are all kept."""
    array = _points(points)
    if not len(array):
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(array, keep_weakly=True), dtype=bool)


def pareto_rank(points: ArrayLike) -> NDArray[np.int64]:
    """Front number of every row, 0 for the non-dominated ones (Deb et al. 2002, sec. III-A)."""
    array = _points(points)
    if not len(array):
        return np.zeros(0, dtype=np.int64)
    return np.asarray(moocore.pareto_rank(array), dtype=np.int64)


def best_first(points: ArrayLike) -> list[int]:
    """Rows by front number, of one front the least crowded first (Deb et al. 2002, sec. III-B)."""
    array = _points(points)
    if not len(array):
        return []
    rank = pareto_rank(array)
    crowding = np.zeros(len(array))
    for number in np.unique(rank):
        front = np.flatnonzero(rank == number)
        for column in array[front].T:
            order = np.argsort(column, kind="stable")
            sorted_values = column[order]
            gap = np.full(len(front), np.inf)
            gap[1:-1] = (sorted_values[2:] - sorted_values[:-2]) / (np.ptp(column) or 1.0)
            crowding[front[order]] += gap
    return [int(i) for i in np.lexsort((-crowding, rank))]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume dominated by `points` and bounded by `reference`; points beyond it add nothing."""
    array = _points(points)
    bound = np.asarray(reference, dtype=np.float64)
    if array.shape[1:] != bound.shape:
        raise ValueError(f"reference {bound.shape} does not fit points {array.shape}")
    if not np.isfinite(bound).all():
        raise ValueError(f"reference must be finite, got {bound}")
    inside = array[(array < bound).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=bound)) if len(inside) else 0.0
