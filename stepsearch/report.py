"""Plots of a finished run, drawn from its tables alone and good enough for a paper.

Every function takes the frames of trials.csv, pareto.csv and generations.csv as pandas reads them.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import RunError
from stepsearch.core.kinds import RELAY, SINGLE
from stepsearch.core.schedule import StepSchedule
from stepsearch.drawing import COLORS, SKY, WHOLE, WIDE, note, render
from stepsearch.report_front import plot_front
from stepsearch.tables import (
    calls_of,
    calls_words,
    cell,
    complete_rows,
    counting_text,
    grids_of,
    guidance_text,
    significant,
    solver_name,
    takeover_text,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stepsearch.remeasured import Remeasured

PANELS = 6  # schedules shown by `plot_schedules`
TITLE = 34  # letters that fit above one of three panels


def plot_all(
    trials: pd.DataFrame,
    pareto: pd.DataFrame,
    generations: pd.DataFrame,
    schedules: Mapping[str, StepSchedule],
    folder: Path,
    remeasured: Remeasured | None = None,
) -> list[Path]:
    """All plots of a run into `folder`, each as PNG and PDF; returns the files."""
    return [
        *plot_front(trials, folder / "front", remeasured),
        *plot_schedules(pareto, schedules, folder / "schedules"),
        *plot_hypervolume(generations, folder / "hypervolume"),
    ]


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
    titles = [_panel(row) for row in rows]
    more = max((title.count("\n") for title in titles), default=1) - 1  # lines of the titles

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        axes[0].set(ylim=(0, 1.08), yticks=[0, 0.25, 0.5, 0.75, 1])
        axes[0].set_yticklabels(["0", "", "0.5", "", "1"])
        relays = any(len(schedules[row["key"]].stages) > 1 for row in rows)
        time = "time runs left to right" + " in each stage" * relays
        figure.supxlabel(rf"noise level $\sigma/\alpha$ of the call ({time})")
        figure.supylabel("network width")
        if not rows:
            note(axes[0])
            return
        levels = [c.level for r in rows for s in schedules[r["key"]].stages for c in s.calls]
        end = min(levels) / 2
        axes[0].set(xscale="log", xlim=(max(levels) * 2, end))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].minorticks_off()
        for ax, row, title in zip(axes, rows, titles, strict=False):
            _draw_schedule(ax, schedules[row["key"]], row["kind"], end)
            ax.set_title(title, linespacing=1.25)
        for ax in axes[len(rows) :]:
            ax.set_visible(False)

    return render(path, (WIDE, 0.6 + (1.35 + 0.11 * more) * lines), draw)


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
            note(top)
            return
        top.plot(rows["generation"], rows["hypervolume"], "o-", color=COLORS[SINGLE])
        low.bar(rows["generation"], rows["front_size"], width=0.5, color="#BBBBBB")
        low.xaxis.set_major_locator(MaxNLocator(10, **WHOLE))
        low.yaxis.set_major_locator(MaxNLocator(3, **WHOLE))
        low.set_xlim(rows["generation"].min() - 0.6, rows["generation"].max() + 0.6)
        figure.align_ylabels([top, low])

    return render(path, (WIDE, 2.7), draw)


def _draw_schedule(ax: Axes, schedule: StepSchedule, kind: str, end: float) -> None:
    """A step line per network; a width holds until the next call, the last one to `end`."""
    tones = [SKY, COLORS[RELAY]] if len(schedule.stages) > 1 else [COLORS[kind]]
    for i, stage in enumerate(schedule.stages):
        color = tones[i % len(tones)]
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
    """What a schedule does, every stage from a new line, and what it is worth."""
    grids, calls = grids_of(row), calls_of(row)
    solvers = [solver_name(row) + guidance_text(row), takeover_text(row).strip()]
    counts = map(calls_words, map(str, calls))
    stages = [f"{s}, {n}, {g}" for s, n, g in zip(solvers, counts, grids, strict=False)]
    if row["kind"] == SINGLE:
        lines = [f"{stages[0]} grid"]
    else:
        lines = [line for text in stages for line in textwrap.wrap(_short(text), TITLE)]
    worth = (
        f"{significant(row['gflops_per_image'])} GFLOPs{counting_text([row['counting']])}, "
        f"FID {cell('fid', row['fid'])}"
    )
    return "\n".join([*lines, worth])


def _short(text: str) -> str:
    """Numbers to three significant digits, which is all that a title has room for."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.3g}", text)


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
