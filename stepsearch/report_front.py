"""The front of a run as a plot: FID against compute, and what the front is compared with."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsearch.core.kinds import DISTILLED, RELAY, SINGLE
from stepsearch.core.schedule import parse_run_length
from stepsearch.drawing import COLORS, GREY, INK, WHOLE, WIDE, Look, note, render, scale
from stepsearch.tables import (
    calls_text,
    calls_words,
    complete_rows,
    counting_text,
    grid_text,
    guidance_text,
    kinds_of,
    solver_name,
    staircase,
    uniform_rows,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stepsearch.remeasured import Remeasured

# Rows that differ in one of these are different strategies even at equal widths.
SETTING = ["solver", "solver_args", "pfdiff_k", "pfdiff_l", "nfe", "grid", "grid_args"]
SETTING += ["supernet", "guide", "guidance", "guidance_low", "guidance_high"]
SETTING += ["kind", "relay_start", "relay_supernet", "relay_calls", "relay_solver_args"]
SETTING += ["relay_grid", "relay_grid_args"]
LABELS = {SINGLE: "single stage", RELAY: "relay", DISTILLED: "distilled"}
SHAPES = {SINGLE: "o", RELAY: "s", DISTILLED: "^"}  # of the kinds, filled
ALONE = (0, (3, 1.5))  # dashes of the front of one kind
EDGE: Look = {"markeredgecolor": "white", "markeredgewidth": 0.5}
# Shape and dashes tell the baselines apart, so that colour is left to generation and front.
MARKERS = "os^DvP"
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2)), (0, (2, 1))]


def plot_front(
    trials: pd.DataFrame, path: Path, remeasured: Remeasured | None = None
) -> list[Path]:
    """FID against compute: every trial, uniform-width strategies, and the front.

    The front is a proxy, by as few images as all trials, unless it was measured again. Trials are
    told apart by generation, or where there are several kinds of candidates, by kind.
    """
    done = complete_rows(trials)
    front = _front_rows(done, remeasured)
    label = "proxy front" if remeasured is None else "front, re-measured"

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        ax.set(xlabel=f"compute (GFLOPs per image){counting_text(done['counting'])}", ylabel="FID")
        ax.grid(True)
        if done.empty:
            note(ax)
            return
        scale(ax, "x", done["gflops_per_image"], ratio=10)
        scale(ax, "y", done["fid"], ratio=5)
        if len(kinds_of(done)) > 1:
            _draw_kinds(ax, done, front, label)
        else:
            _draw_trials(ax, done)
            _draw_front(ax, front, label)
        _draw_uniform(ax, done[uniform_rows(done)])
        ax.set_title(_measured(done, remeasured), color=GREY)
        labels = ax.get_legend_handles_labels()[1]
        columns = 2 if max(map(len, labels), default=0) <= 46 else 1  # what fits `WIDE`
        figure.set_figheight(3.4 + 0.16 * math.ceil(len(labels) / columns))
        figure.legend(loc="outside lower center", ncols=columns, handlelength=3)

    return render(path, (WIDE, 3.8), draw)


def _draw_trials(ax: Axes, done: pd.DataFrame) -> None:
    """Small points; late generations are the dark ones."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    first, last = int(done["generation"].min()), int(done["generation"].max())
    shades = [0.1 + 0.9 * i / (last - first) for i in range(last - first)] + [1.0]
    look: Look = {"linewidths": 0, "alpha": 0.75, "label": None if last > first else "trials"}
    cmap = ListedColormap(colormaps["viridis_r"](shades))
    x, y, norm = done["gflops_per_image"], done["fid"], Normalize(first - 0.5, last + 0.5)
    points = ax.scatter(x, y, 9, done["generation"], cmap=cmap, norm=norm, **look)
    if last > first:
        bar = ax.figure.colorbar(points, ax=ax, shrink=0.6, anchor=(0, 1), pad=0.02, aspect=20)
        bar.set_label("trials, by generation")
        bar.solids.set_alpha(1)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(8, **WHOLE))
        bar.ax.tick_params(length=0)


def _draw_uniform(ax: Axes, uniform: pd.DataFrame) -> None:
    """A line per setting that was tried at two widths or more; what is left shares one label."""
    setting = [name for name in SETTING if name in uniform]
    groups = [group for _, group in uniform.groupby(setting, dropna=False)]
    groups.sort(key=lambda group: -group["widths"].nunique())
    several = [group for group in groups if group["widths"].nunique() > 1]
    named = (several or groups)[: len(MARKERS)]
    told = [{"grid": grid_text(r), "supernet": str(r["supernet"])} for r in map(_first, named)]
    varied = [n for n in ("grid", "supernet") if len({words[n] for words in told}) > 1]
    look: Look = {"color": INK, "linewidth": 0.8, "markerfacecolor": "white"}
    for group, tell, marker, dashes in zip(named, told, MARKERS, DASHES, strict=False):
        row, x, y = _first(group), group["gflops_per_image"], group["fid"]
        calls = calls_words(calls_text(row))
        words = [f"uniform width, {solver_name(row)}{guidance_text(row)} {calls}"]
        words += [tell[name] for name in varied]
        widths = sorted({parse_run_length(text)[0] for text in group["widths"]})
        ends = " to ".join(f"{width:g}" for width in dict.fromkeys([widths[0], widths[-1]]))
        label = f"{', '.join(words)} ({ends})"
        ax.plot(x, y, marker=marker, linestyle=dashes, label=label, **look)
    rest = uniform.drop([i for group in named for i in group.index])
    if len(rest):
        x, y, label = rest["gflops_per_image"], rest["fid"], "uniform width, other settings"
        ax.plot(x, y, "x", markersize=3.5, label=label, **look)


def _first(group: pd.DataFrame) -> dict[str, Any]:
    return group.iloc[0].to_dict()


def _front_rows(done: pd.DataFrame, remeasured: Remeasured | None) -> pd.DataFrame:
    """Complete rows of the front, the cheapest first, with what was measured last of them."""
    if remeasured is None:
        return done[done["is_pareto"].eq(True)]
    again = remeasured.front.set_index("trial_id")
    rows = done[done["trial_id"].isin(again.index)].reset_index(drop=True)
    own = again.loc[rows["trial_id"]]
    return rows.assign(fid=own["fid"].to_numpy(), fid_se=own["fid_se"].to_numpy())


def _draw_front(ax: Axes, front: pd.DataFrame, label: str) -> None:
    """The staircase of what two objectives dominate; a third one leaves points above it."""
    look: Look = {"color": COLORS[SINGLE], "zorder": 4}
    first = staircase(front)
    x, y = front["gflops_per_image"], front["fid"]
    ax.errorbar(x, y, front["fid_se"], fmt="none", elinewidth=0.8, **look)
    ax.step(x[first], y[first], "o-", where="post", label=label, **look, **EDGE)
    ax.plot(x[~first], y[~first], "o", **look, **EDGE)


def _draw_kinds(ax: Axes, done: pd.DataFrame, front: pd.DataFrame, label: str) -> None:
    """Trials and own front of every kind, and the front of all in the colour of its best kind.

    An own front goes on to the dearest trial of all, so that one reads there what the kind loses.
    """
    stairs, dearest = front[staircase(front)], done["gflops_per_image"].max()
    steps = stairs[["gflops_per_image", "fid"]].to_numpy()
    for i, kind in enumerate(stairs["kind"]):
        x, y = steps[i : i + 2].T
        ax.step(x, y, where="post", color=COLORS[kind], linewidth=1.6, zorder=4)
    for kind in kinds_of(done):
        color, shape = COLORS[kind], SHAPES[kind]
        own = done[done["kind"].eq(kind)]
        light: Look = {"color": color, "marker": shape, "linewidths": 0, "alpha": 0.25}
        ax.scatter(own["gflops_per_image"], own["fid"], 9, **light)
        best = own[staircase(own)]
        x, y = [*best["gflops_per_image"], dearest], [*best["fid"], best["fid"].iloc[-1]]
        ax.step(x, y, where="post", color=color, linestyle=ALONE, linewidth=0.7, zorder=3)
        points = front[front["kind"].eq(kind)]
        x, y, look = points["gflops_per_image"], points["fid"], {"color": color, "zorder": 5}
        ax.errorbar(x, y, points["fid_se"], fmt="none", elinewidth=0.8, **look)
        ax.plot(x, y, shape, label=LABELS[kind], **look, **EDGE)
    ax.plot([], [], color=GREY, linewidth=1.6, label=label)
    ax.plot([], [], color=GREY, linestyle=ALONE, linewidth=0.7, label="front of one kind alone")


def _measured(done: pd.DataFrame, remeasured: Remeasured | None) -> str:
    """How FID was measured, e.g. 'proxy front: FID (5,000 images, classifier features)'."""
    images = " or ".join(f"{int(n):,}" for n in sorted(done["n_samples"].unique()))
    metrics = " or ".join(sorted({_metric(str(m)) for m in done["metric_id"]}))
    text, bars = f"FID ({images} images, {metrics})", "; bars are one standard error"
    if remeasured is None:
        known = done.loc[done["is_pareto"].eq(True), "fid_se"].notna().any()
        return f"proxy front: {text}{bars * bool(known)}"
    seeds, many = len(remeasured.summary["seeds"]), remeasured.summary["samples"]
    front = f"front: re-measured with {many:,} images, {seeds} seed{'s' * (seeds != 1)}"
    return f"{front}{bars}\ntrials: {text}"


def _metric(metric_id: str) -> str:
    """The extractor's name where the id starts with it, else the id."""
    name = re.sub(r"[-_:@]?[0-9a-f]{8,}$", "", metric_id)
    return f"{name} features" if name else f"metric {metric_id}"
