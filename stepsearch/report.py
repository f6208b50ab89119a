"""Plots of a finished run, drawn from its tables alone and good enough for a paper.

Every function takes the frames of trials.csv, pareto.csv and generations.csv as pandas reads them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import RunError
from stepsearch.core.files import write_atomic
from stepsearch.core.schedule import StepSchedule, parse_run_length
from stepsearch.tables import (
    EMPTY,
    arguments_text,
    cell,
    complete_rows,
    counting_text,
    grid_text,
    guidance_text,
    k_l,
    significant,
    uniform_rows,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = dict[str, Any]  # options of matplotlib
PANELS = 6  # schedules shown by `plot_schedules`
# Rows that differ in one of these are different strategies even at equal widths.
SETTING = ["solver", "solver_args", "pfdiff_k", "pfdiff_l", "nfe", "grid", "grid_args"]
SETTING += ["supernet", "relay_start", "guide", "guidance", "guidance_low", "guidance_high"]
NAMES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpmpp_2m": "DPM++(2M)",
    "dpmpp_2s": "DPM++(2S)",
    "heun": "Heun",
    "pfdiff": "PFDiff",
    "unipc": "UniPC",
}
WIDE = 5.5  # inches, one column of a paper
INK, GREY = "#222222", "#777777"
COLORS = ["#D55E00", "#0072B2", "#009E73"]  # of Okabe & Ito (2008); the front has the first
# Shape and dashes tell the baselines apart, so that colour is left to generation and front.
MARKERS = "os^DvP"
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2)), (0, (2, 1))]
STYLE: Look = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 7.5,
    "axes.labelsize": 8,
    "figure.labelsize": 8,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 6.5,
    "errorbar.capsize": 1.5,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.8,
    "pdf.fonttype": 42,  # TrueType; publishers refuse type 3
    "savefig.dpi": 200,
}
STYLE |= dict.fromkeys(["axes.spines.top", "axes.spines.right"], False)
STYLE |= dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width"], 0.6)
STYLE |= dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color"], INK)
STYLE |= dict.fromkeys(["xtick.color", "ytick.color"], INK)
TICKS: Look = {"steps": [1, 2, 5, 10]}
WHOLE: Look = TICKS | {"integer": True, "min_n_ticks": 1}


def plot_all(
    trials: pd.DataFrame,
    pareto: pd.DataFrame,
    generations: pd.DataFrame,
    schedules: Mapping[str, StepSchedule],
    folder: Path,
) -> list[Path]:
    """All plots of a run into `folder`, each as PNG and PDF; returns the files."""
    return [
        *plot_front(trials, folder / "front"),
        *plot_schedules(pareto, schedules, folder / "schedules"),
        *plot_hypervolume(generations, folder / "hypervolume"),
    ]


def plot_front(trials: pd.DataFrame, path: Path) -> list[Path]:
    """FID against compute: every trial by generation, uniform-width strategies, and the front."""
    done = complete_rows(trials)

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        ax.set(xlabel=f"compute (GFLOPs per image){counting_text(done['counting'])}", ylabel="FID")
        ax.grid(True)
        if done.empty:
            _note(ax)
            return
        _scale(ax, "x", done["gflops_per_image"], ratio=10)
        _scale(ax, "y", done["fid"], ratio=5)
        _draw_trials(ax, done)
        _draw_front(ax, done[done["is_pareto"].eq(True)])
        _draw_uniform(ax, done[uniform_rows(done)])
        ax.set_title(_measured(done), color=GREY)
        labels = ax.get_legend_handles_labels()[1]
        columns = 2 if max(map(len, labels), default=0) <= 46 else 1  # what fits `WIDE`
        figure.set_figheight(3.4 + 0.16 * math.ceil(len(labels) / columns))
        figure.legend(loc="outside lower center", ncols=columns, handlelength=3)

    return _render(path, (WIDE, 3.8), draw)


def plot_schedules(
    pareto: pd.DataFrame, schedules: Mapping[str, StepSchedule], path: Path
) -> list[Path]:
    """Width over noise level of up to six schedules of the front, evenly spread by cost.

    Raises:
        RunError: a row whose key is not in `schedules`.
    """
    done = complete_rows(pareto)
    rows = done.iloc[_spread(list(done["gflops_per_image"]), PANELS)].to_dict("records")
    for row in rows:
        if row["key"] not in schedules:
            raise RunError(
                f"trial {row['trial_id']}: no schedule is given for its key '{row['key']}'; "
                f"the tables and the schedules must come from the same run"
            )
    columns = 2 if len(rows) == 4 else min(max(len(rows), 1), 3)
    lines = max(1, math.ceil(len(rows) / columns))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        axes[0].set(ylim=(0, 1.08), yticks=[0, 0.25, 0.5, 0.75, 1])
        axes[0].set_yticklabels(["0", "", "0.5", "", "1"])
        figure.supxlabel(r"noise level $\sigma/\alpha$ of the call (time runs left to right)")
        figure.supylabel("network width")
        if not rows:
            _note(axes[0])
            return
        levels = [c.level for r in rows for s in schedules[r["key"]].stages for c in s.calls]
        end = min(levels) / 2
        axes[0].set(xscale="log", xlim=(max(levels) * 2, end))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].minorticks_off()
        for ax, row in zip(axes, rows, strict=False):
            _draw_schedule(ax, schedules[row["key"]], end)
            ax.set_title(_panel(row), linespacing=1.25)
        for ax in axes[len(rows) :]:
            ax.set_visible(False)

    return _render(path, (WIDE, 0.6 + 1.35 * lines), draw)


def plot_hypervolume(generations: pd.DataFrame, path: Path) -> list[Path]:
    """Hypervolume of all trials so far after each generation, and the size of their front."""
    rows = generations.astype({"hypervolume": float}).sort_values("generation")
    rows = rows[rows["hypervolume"].map(math.isfinite).astype(bool)]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.set_ylabel("hypervolume")
        low.set(ylabel="trials\non the front", xlabel="generation")
        for ax in (top, low):
            ax.grid(True, axis="y")
        if rows.empty:
            _note(top)
            return
        top.plot(rows["generation"], rows["hypervolume"], "o-", color=COLORS[0])
        low.bar(rows["generation"], rows["front_size"], width=0.5, color="#BBBBBB")
        low.xaxis.set_major_locator(MaxNLocator(10, **WHOLE))
        low.yaxis.set_major_locator(MaxNLocator(3, **WHOLE))
        low.set_xlim(rows["generation"].min() - 0.6, rows["generation"].max() + 0.6)
        figure.align_ylabels([top, low])

    return _render(path, (WIDE, 2.7), draw)


def _render(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> list[Path]:
    """Draw in our style whatever the user's settings are; equal input gives equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    varying = {"png": ["Software"], "pdf": ["Creator", "Producer", "CreationDate"]}
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for kind, fields in varying.items():
            data = io.BytesIO()
            figure.savefig(data, format=kind, metadata=dict.fromkeys(fields))
            written.append(stem.with_name(f"{stem.name}.{kind}"))
            write_atomic(written[-1], data.getvalue())
    return written


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
        words = [f"uniform width, {_display(row)} {int(row['nfe'])} calls"]
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


def _draw_front(ax: Axes, front: pd.DataFrame) -> None:
    """The staircase of what two objectives dominate; a third one leaves points above it."""
    look: Look = {"color": COLORS[0], "zorder": 4}
    points: Look = {"markeredgecolor": "white", "markeredgewidth": 0.5}
    first = front["fid"] < front["fid"].cummin().shift(fill_value=math.inf)
    x, y = front["gflops_per_image"], front["fid"]
    ax.errorbar(x, y, front["fid_se"], fmt="none", elinewidth=0.8, **look)
    ax.step(x[first], y[first], "o-", where="post", label="Pareto front", **look, **points)
    ax.plot(x[~first], y[~first], "o", **look, **points)


def _draw_schedule(ax: Axes, schedule: StepSchedule, end: float) -> None:
    """A step line per network; a width holds until the next call, the last one to `end`."""
    for i, stage in enumerate(schedule.stages):
        color = COLORS[i % len(COLORS)]
        levels, widths = [c.level for c in stage.calls], [c.width for c in stage.calls]
        stop = max(stage.levels[-1], end)
        ax.step([*levels, stop], [*widths, widths[-1]], where="post", color=color)
        ax.plot(levels, widths, "o", color=color, markersize=3, clip_on=False, zorder=3)
        if len(schedule.stages) > 1:
            name = stage.net.partition("@")[0]
            at = (levels[0], widths[0])
            ax.annotate(name, at, (3, 3), "data", "offset points", color=color, fontsize=5.5)
    ax.grid(True, axis="y")


def _panel(row: Mapping[str, Any]) -> str:
    return (
        f"{_display(row)}, {int(row['nfe'])} calls, {grid_text(row)} grid\n"
        f"{significant(row['gflops_per_image'])} GFLOPs{counting_text([row['counting']])}, "
        f"FID {cell('fid', row['fid'])}"
    )


def _note(ax: Axes) -> None:
    ax.text(0.5, 0.5, EMPTY, transform=ax.transAxes, ha="center", va="center", color=GREY)


def _scale(ax: Axes, name: str, values: pd.Series[float], ratio: float) -> None:
    """Plain numbers, on a logarithmic axis where positive values span more than `ratio`."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    low, high = values.min(), values.max()
    axis = {"x": ax.xaxis, "y": ax.yaxis}[name]
    if 0 < ratio * low < high:
        ax.set(**{f"{name}scale": "log"})
        subs = (1, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(7, **TICKS))
    axis.set_major_formatter("{x:g}")


def _spread(costs: list[float], count: int) -> list[int]:
    """Positions of at most `count` of the ascending `costs`, both ends and evenly between."""
    if len(costs) <= count:
        return list(range(len(costs)))
    log = 0 < 10 * costs[0] < costs[-1]  # as the axis of the front is drawn
    at = [math.log(c) for c in costs] if log else costs
    left = set(range(1, len(costs) - 1))
    chosen = [0, len(costs) - 1]
    for i in range(1, count - 1):
        target = at[0] + (at[-1] - at[0]) * i / (count - 1)
        chosen.append(min(left, key=lambda j: (abs(at[j] - target), j)))
        left.remove(chosen[-1])
    return sorted(chosen)


def _display(row: Mapping[str, Any]) -> str:
    """As papers write it: 'DDIM', 'PFDiff-2_1', 'DEIS order=3'."""
    name = f"{NAMES.get(row['solver'], row['solver'])}-{k_l(row)}".rstrip("-")
    return name + arguments_text(row, "solver_args") + guidance_text(row)


def _measured(done: pd.DataFrame) -> str:
    """How FID was measured, e.g. 'FID (5,000 images, classifier features)'."""
    images = " or ".join(f"{int(n):,}" for n in sorted(done["n_samples"].unique()))
    metrics = " or ".join(sorted({_metric(str(m)) for m in done["metric_id"]}))
    bars = done.loc[done["is_pareto"].eq(True), "fid_se"].notna().any()
    return f"FID ({images} images, {metrics})" + "; bars are one standard error" * bool(bars)


def _metric(metric_id: str) -> str:
    """The extractor's name where the id starts with it, else the id."""
    name = re.sub(r"[-_:@]?[0-9a-f]{8,}$", "", metric_id)
    return f"{name} features" if name else f"metric {metric_id}"
