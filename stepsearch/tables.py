"""What a finished run says in words and numbers, from its tables alone.

Every function takes the frames of trials.csv or pareto.csv as pandas reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.schedule import parse_run_length

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "no completed trials"
SAVINGS = ["width", "calls", "grid", "fid", "gflops_per_image"]
SAVINGS += ["answer_trial", "answer_fid", "answer_gflops", "answer", "saving"]
ORDER = ["gflops_per_image", "fid", "trial_id"]
COMPARED = ["metric_id", "n_samples", "counting"]  # only rows that are equal in these are


def savings(trials: pd.DataFrame) -> pd.DataFrame:
    """What the search saves on every uniform-width DDIM strategy, the dearest first.

    The answer to a strategy is the cheapest completed trial whose FID is no higher, the strategy
    itself included; ties go to the lower FID and then to the earlier trial. Only trials of the
    same metric, number of images and way of counting FLOPs are compared. `saving` is the part of
    the strategy's compute that the answer does without. Where there are several supernets, or
    where FLOPs are not counted in full, last columns say which and how.
    """
    import pandas as pd

    rows = []
    for _, same in complete_rows(trials).groupby(COMPARED, dropna=False):
        for own in same[uniform_rows(same) & _plain_ddim(same)].to_dict("records"):
            best = same[same["fid"] <= own["fid"]].iloc[0].to_dict()
            cost, least = own["gflops_per_image"], best["gflops_per_image"]
            width, calls = parse_run_length(own["widths"])[0], int(own["nfe"])
            strategy = (width, calls, grid_text(own), own["fid"], cost)
            text = f"{solver_text(best)}, {grid_text(best)}, {int(best['nfe'])} calls"
            text += f", widths {best['widths']}"
            text += f", {best['supernet']}" if several_nets(trials) else ""
            saving = 1 - least / cost if cost else 0.0
            answer = (int(best["trial_id"]), best["fid"], least, text, saving)
            rows.append((*strategy, *answer, own.get("supernet"), own["counting"]))
    rows.sort(key=lambda row: (-row[4], row[3]))  # GFLOPs, FID
    frame = pd.DataFrame(rows, columns=[*SAVINGS, "supernet", "counting"])
    told = ["supernet"] if several_nets(trials) else []
    told += ["counting"] if counting_text(frame["counting"]) else []
    return frame[[*SAVINGS, *told]]


def markdown_table(frame: pd.DataFrame) -> str:
    """A GitHub table of `frame`, rounded by what each column holds."""
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    lines = [list(frame), ["---:" if n else ":---" for n in numeric]]
    for row in frame.itertuples(index=False, name=None):
        lines.append([cell(str(name), value) for name, value in zip(frame, row, strict=True)])
    escaped = [
        [str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def front_text(pareto: pd.DataFrame) -> str:
    """The front as aligned plain text for a terminal, cheap first."""
    done = complete_rows(pareto)
    if done.empty:
        return EMPTY + "\n"
    head = ["trial", "fid ± se", f"gflops{counting_text(done['counting'])}", "nfe"]
    head += ["solver", "grid", "mean width", "widths"]
    align = ">>>><<><"
    if several := several_nets(done):
        head, align = [*head, "supernet"], align + "<"
    rows = [
        [
            str(int(row["trial_id"])),
            f"{row['fid']:.2f}" + (f" ± {row['fid_se']:.2f}" if is_known(row, "fid_se") else ""),
            significant(row["gflops_per_image"]),
            str(int(row["nfe"])),
            solver_text(row),
            grid_text(row),
            f"{row['mean_width']:.2f}",
            str(row["widths"]),
            *([str(row["supernet"])] if several else []),
        ]
        for row in done.to_dict("records")
    ]
    size = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(f"{c:{a}{n}}" for c, a, n in zip(line, align, size, strict=True)).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join(lines) + "\n"


def significant(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits without an exponent; whole digits are all kept."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def cell(name: str, value: Any) -> str:
    """A value rounded as its column asks for; empty where nothing is known."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):
        return str(value)
    if "fid" in name:
        return f"{value:.{1 if round(value, 2) >= 10 else 2}f}"
    if "gflops" in name:
        return significant(value)
    if name == "saving":
        return f"{100 * value:.1f}%"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def complete_rows(trials: pd.DataFrame) -> pd.DataFrame:
    """Rows with a measurement, cheap first; whatever is not finite was never one."""
    done = trials[trials["state"].eq("COMPLETE")]
    numbers = {name: done.get(name, math.nan) for name in ("fid", "fid_se", "gflops_per_image")}
    done = done.assign(**numbers).astype(dict.fromkeys(numbers, float))
    if "counting" not in done:  # an older table
        done = done.assign(counting=FULL_COUNT)
    done = done.assign(counting=done["counting"].astype("string").fillna(FULL_COUNT))
    finite = (done["fid"] + done["gflops_per_image"]).map(math.isfinite).astype(bool)
    return done[finite].sort_values(ORDER, ignore_index=True)


def counting_text(names: Iterable[str]) -> str:
    """The column `counting` of complete rows as ' (ddsm-paper)'; empty where FLOPs are in full."""
    found = sorted(set(names))
    return "" if found in ([], [FULL_COUNT]) else f" ({' or '.join(found)})"


def several_nets(trials: pd.DataFrame) -> bool:
    """Whether rows have to say which network they are of."""
    return "supernet" in trials and trials["supernet"].nunique() > 1


def uniform_rows(trials: pd.DataFrame) -> pd.Series[bool]:
    """Mask of the rows that use one width throughout."""
    return trials["widths"].map(lambda text: len(set(parse_run_length(text))) == 1).astype(bool)


def _plain_ddim(trials: pd.DataFrame) -> pd.Series[bool]:
    """Mask of deterministic DDIM without guidance, the baseline of every table."""
    mask = trials["solver"].eq("ddim")
    if "solver_args" in trials:
        mask &= trials["solver_args"].isna() | trials["solver_args"].isin(["eta=0", "eta=0.0"])
    if "guidance" in trials:
        mask &= trials["guidance"].isna()
    return mask


def is_known(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a value in a column."""
    value = row.get(name)
    return value is not None and value == value


def k_l(row: Mapping[str, Any]) -> str:
    """PFDiff's k and l as '2_1', empty for other solvers and where c is given."""
    return f"{int(row['pfdiff_k'])}_{int(row['pfdiff_l'])}" if is_known(row, "pfdiff_l") else ""


def arguments_text(row: Mapping[str, Any], name: str) -> str:
    """Arguments of solver or grid as ' order=3 variant=bh2'; without PFDiff's k and l."""
    if not is_known(row, name):
        return ""
    parts = str(row[name]).split(";")
    if is_known(row, "pfdiff_l"):
        parts = [p for p in parts if p.partition("=")[0] not in ("k", "l")]
    return "".join(f" {part}" for part in parts)


def guidance_text(row: Mapping[str, Any]) -> str:
    """Guidance as ', cfg 2 at 0.5..10'; empty where there is none."""
    if not is_known(row, "guidance"):
        return ""
    ends = [f"{row[n]:g}" if is_known(row, n) else "" for n in ("guidance_low", "guidance_high")]
    interval = f" at {'..'.join(ends)}" if any(ends) else ""
    return f", {row['guide']} {row['guidance']:g}{interval}"


def solver_text(row: Mapping[str, Any]) -> str:
    """As the tables write it: 'ddim', 'pfdiff 2_1', 'deis order=3', 'ddim, cfg 2'."""
    args = arguments_text(row, "solver_args")
    return " ".join(f"{row['solver']} {k_l(row)}".split()) + args + guidance_text(row)


def grid_text(row: Mapping[str, Any]) -> str:
    """As the tables write it: 'quad', 'karras rho=5'."""
    return f"{row['grid']}{arguments_text(row, 'grid_args')}"
