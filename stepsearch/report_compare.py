"""The plot of a comparison: what searches have reached for what they spent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepsearch.drawing import GREY, INK, WIDE, note, render, scale

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Of Okabe & Ito (2008); a label beyond them is dashed in the same colours.
COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, INK]
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2))]
POINTS = 400  # of a drawn line, at most
ACROSS = {"evaluations": "evaluations", "gflops_spent": "GFLOPs spent on sampling"}
UP = {"hypervolume": "hypervolume", "hypervolume_log": "hypervolume of\nthe logarithms"}


def plot_curves(curves: pd.DataFrame, path: Path) -> list[Path]:
    """Hypervolume over evaluations and over GFLOPs, of the values and of their logarithms.

    Runs of one label are one line, their median, in a band from the worst of them to the best; it
    ends where the first of them does. A panel of which nothing is known is left out.

    Args:
        curves: label, run and the columns of a curve; see `comparing.curves_of`.
    """
    columns = [name for name in ACROSS if curves[name].notna().all()]
    rows = [name for name in UP if curves[name].notna().all()]
    labels = list(dict.fromkeys(curves["label"]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(rows), len(columns), sharex="col", sharey="row", squeeze=False)
        for (i, up), (j, across) in itertools.product(enumerate(rows), enumerate(columns)):
            _draw(axes[i, j], curves, labels, across, up)
            if i == len(rows) - 1:
                axes[i, j].set_xlabel(ACROSS[across])
            if j == 0:
                axes[i, j].set_ylabel(UP[up])
        if curves.empty:
            note(axes[0, 0])
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=4)

    lines = -(-len(labels) // 4)
    return render(path, (WIDE, 0.5 + 0.16 * lines + 1.75 * len(rows)), draw)


def _draw(ax: Axes, curves: pd.DataFrame, labels: list[str], across: str, up: str) -> None:
    """One panel, the runs of every label together."""
    for n, label in enumerate(labels):
        own = curves[curves["label"].eq(label)]
        x, y = together(own, across, up)
        color, dash = COLORS[n % len(COLORS)], DASHES[n // len(COLORS) % len(DASHES)]
        look = {"color": color, "linestyle": dash, "drawstyle": "steps-post"}
        ax.plot(x, np.median(y, axis=0), label=label, **look)
        if len(y) > 1:
            band = {"color": color, "alpha": 0.1, "linewidth": 0, "step": "post"}
            ax.fill_between(x, y.min(axis=0), y.max(axis=0), **band)
    if len(curves):
        scale(ax, "x", curves[across], np.inf)
        reached = curves.groupby(["label", "run"])[up].max()  # beginnings are low: most are cut off
        ax.set_ylim(bottom=max(0.0, reached.min() - 1.2 * (reached.max() - reached.min())))
    ax.grid(True)


def together(
    runs: pd.DataFrame, across: str, up: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Runs on common places: (places,) and (runs, places), each as it was at the latest then.

    From the place where the last of them has begun to the one where the first has ended.
    """
    parts = [part.sort_values("evaluations") for _, part in runs.groupby("run", sort=False)]
    begin = max(float(part[across].iloc[0]) for part in parts)
    end = min(float(part[across].iloc[-1]) for part in parts)
    places = np.unique(np.concatenate([part[across].to_numpy(float) for part in parts]))
    places = places[(places >= begin) & (places <= max(begin, end))]
    if len(places) > POINTS:
        places = places[np.linspace(0, len(places) - 1, POINTS).round().astype(int)]
    found = []
    for part in parts:
        at = np.searchsorted(part[across].to_numpy(float), places, side="right") - 1
        found.append(part[up].to_numpy(float)[at])
    return places, np.array(found)
