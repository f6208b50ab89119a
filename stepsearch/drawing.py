"""How all plots look: style, axes, and files that are equal where their data are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsearch.core.files import write_atomic
from stepsearch.core.kinds import DISTILLED, RELAY, SINGLE
from stepsearch.tables import EMPTY

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = dict[str, Any]  # options of matplotlib
WIDE = 5.5  # inches, one column of a paper
INK, GREY = "#222222", "#777777"
# Of Okabe & Ito (2008); the front of a single kind has the first, too.
COLORS = {SINGLE: "#D55E00", RELAY: "#0072B2", DISTILLED: "#009E73"}
SKY = "#56B4E9"  # of the same, the first stage of a relay
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


def render(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> list[Path]:
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


def scale(ax: Axes, name: str, values: pd.Series[float], ratio: float) -> None:
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


def note(ax: Axes) -> None:
    """Say that there is nothing to draw."""
    ax.text(0.5, 0.5, EMPTY, transform=ax.transAxes, ha="center", va="center", color=GREY)
