"""What a finished run says in words and numbers, from its tables alone.

Every function takes the frames of trials.csv or pareto.csv as pandas reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.kinds import KINDS, RELAY, SINGLE
from stepsearch.core.schedule import parse_run_length

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "no completed trials"
SAVINGS = ["width", "calls", "grid", "fid", "gflops_per_image"]
SAVINGS += ["answer_trial", "answer_fid", "answer_gflops", "answer", "saving"]
ORDER = ["gflops_per_image", "fid", "trial_id"]
COMPARED = ["metric_id", "n_samples", "counting"]  # only rows that are equal in these are
WINS = ["kind", "trials", "front", "best_at_gflops", "best_fid", "hypervolume_alone"]
NAMES = {  # as papers write them
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpmpp_2m": "DPM++(2M)",
    "dpmpp_2s": "DPM++(2S)",
    "heun": "Heun",
    "pfdiff": "PFDiff",
    "renoise": "Renoise",
    "unipc": "UniPC",
}


def savings(trials: pd.DataFrame) -> pd.DataFrame:
    """What the search saves on every uniform-width DDIM strategy of one stage, the dearest first.

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
            text = f"{solver_text(best)}, {grid_text(best)}, {calls_words(calls_text(best))}"
            text += f", widths {best['widths']}"
            text += f", {nets_text(best)}" if several_nets(trials) else ""
            saving = 1 - least / cost if cost else 0.0
            answer = (int(best["trial_id"]), best["fid"], least, text, saving)
            rows.append((*strategy, *answer, own.get("supernet"), own["counting"]))
    rows.sort(key=lambda row: (-row[4], row[3]))  # GFLOPs, FID
    frame = pd.DataFrame(rows, columns=[*SAVINGS, "supernet", "counting"])
    told = ["supernet"] if several_nets(trials) else []
    told += ["counting"] if counting_text(frame["counting"]) else []
    return frame[[*SAVINGS, *told]]


def kind_wins(trials: pd.DataFrame) -> pd.DataFrame:
    """Where each kind of candidate is the best choice: a row a kind that has completed trials.

    The front is that of FID and compute over all kinds, as `staircase`. `best_at_gflops` are the
    budgets at which the best trial that fits is of the kind, `front` its trials there, and
    `hypervolume_alone` the part of the front's hypervolume that the kind has by itself, bounded as
    in generations.csv. Trials are compared as by `savings`; where they differ in metric, number of
    images or way of counting FLOPs, last columns say in what.
    """
    import pandas as pd

    done, rows = complete_rows(trials), []
    for compared, same in done.groupby(COMPARED, dropna=False):
        front, whole = same[staircase(same)], _volume(same, same)
        for kind in kinds_of(same):
            own = same[same["kind"].eq(kind)]
            share = _volume(own, same) / whole if whole else math.nan
            row = (kind, len(own), int(front["kind"].eq(kind).sum()), _best_at(front, kind))
            rows.append((*row, own["fid"].min(), share, *compared))
    told = [name for name in COMPARED if done[name].nunique() > 1]
    return pd.DataFrame(rows, columns=[*WINS, *COMPARED])[[*WINS, *told]]


def _best_at(front: pd.DataFrame, kind: str) -> str:
    """GFLOPs between which a kind makes the staircase, as '0.1 to 0.5, from 2'; '' for nowhere."""
    kinds, costs = list(front["kind"]), list(front["gflops_per_image"])
    starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    ranges = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        low, high = significant(costs[start]), None if end is None else significant(costs[end])
        if kinds[start] == kind:
            ranges.append(f"from {low}" if high is None else f"{low} to {high}")
    return ", ".join(ranges)


def _volume(trials: pd.DataFrame, everything: pd.DataFrame) -> float:
    """Hypervolume of trials; 1.1 times the worst of the first generation of all bounds it."""
    from stepsearch.core.pareto import hypervolume

    objectives = ["fid", "gflops_per_image"]
    first = everything[everything["generation"].eq(everything["generation"].min())]
    return hypervolume(trials[objectives].to_numpy(), 1.1 * first[objectives].max().to_numpy())


def staircase(done: pd.DataFrame) -> pd.Series[bool]:
    """Mask of the complete rows that are better than every cheaper one; ties go to the earlier."""
    return done["fid"] < done["fid"].cummin().shift(fill_value=math.inf)


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
    columns: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
        ("trial", ">", lambda row: str(int(row["trial_id"]))),
        ("fid ± se", ">", _fid_text),
        (
            f"gflops{counting_text(done['counting'])}",
            ">",
            lambda row: significant(row["gflops_per_image"]),
        ),
        ("nfe", ">", calls_text),
        ("kind", "<", lambda row: row["kind"]),
        ("solver", "<", solver_text),
        ("grid", "<", grid_text),
        ("mean width", ">", lambda row: f"{row['mean_width']:.2f}"),
        ("widths", "<", lambda row: str(row["widths"])),
        ("supernet", "<", nets_text),
    ]
    hidden = {"kind": len(kinds_of(done)) < 2, "supernet": not several_nets(done)}
    columns = [column for column in columns if not hidden.get(column[0])]
    lines = [[name for name, _, _ in columns]]
    lines += [[text(row) for *_, text in columns] for row in done.to_dict("records")]
    size = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    form = [f"{align}{n}" for (_, align, _), n in zip(columns, size, strict=True)]
    padded = ["  ".join(map(format, line, form)).rstrip() for line in lines]
    return "\n".join(padded) + "\n"


def _fid_text(row: Mapping[str, Any]) -> str:
    error = f" ± {row['fid_se']:.2f}" if is_known(row, "fid_se") else ""
    return f"{row['fid']:.2f}{error}"


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
    if name in ("saving", "hypervolume_alone"):
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
    kind = done["kind"].astype("string").fillna(SINGLE) if "kind" in done else SINGLE
    done = done.assign(kind=kind)
    finite = (done["fid"] + done["gflops_per_image"]).map(math.isfinite).astype(bool)
    return done[finite].sort_values(ORDER, ignore_index=True)


def counting_text(names: Iterable[str]) -> str:
    """The column `counting` of complete rows as ' (ddsm-paper)'; empty where FLOPs are in full."""
    found = sorted(set(names))
    return "" if found in ([], [FULL_COUNT]) else f" ({' or '.join(found)})"


def several_nets(trials: pd.DataFrame) -> bool:
    """Whether rows have to say which network they are of."""
    return any(trials[n].nunique() > 1 for n in ("supernet", "relay_supernet") if n in trials)


def kinds_of(done: pd.DataFrame) -> list[str]:
    """Kinds of complete rows, in the order of KINDS."""
    found = set(done["kind"])
    return [kind for kind in KINDS if kind in found]


def uniform_rows(done: pd.DataFrame) -> pd.Series[bool]:
    """Mask of the complete rows of one stage, not distilled, that use one width throughout."""
    same = done["widths"].map(lambda text: len(set(parse_run_length(text))) == 1).astype(bool)
    return same & done["kind"].eq(SINGLE)


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
    """As the tables write it: 'ddim', 'pfdiff 2_1', 'deis order=3', 'ddim, cfg 2'.

    Of a relay 'ddim > relay step=first from 0.45'; guidance, told last, is of both stages.
    """
    name = " ".join(f"{row['solver']} {k_l(row)}".split())
    return name + arguments_text(row, "solver_args") + takeover_text(row) + guidance_text(row)


def solver_name(row: Mapping[str, Any]) -> str:
    """Solver of the first stage as papers write it: 'DDIM', 'PFDiff-2_1', 'DEIS order=3'."""
    name = f"{NAMES.get(row['solver'], row['solver'])}-{k_l(row)}".rstrip("-")
    return name + arguments_text(row, "solver_args")


def takeover_text(row: Mapping[str, Any]) -> str:
    """What follows the first stage of a relay, as ' > relay step=first from 0.45'; else empty."""
    if not is_relay(row):
        return ""
    return f" > {RELAY}{arguments_text(row, 'relay_solver_args')} from {row['relay_start']:g}"


def grid_text(row: Mapping[str, Any]) -> str:
    """As the tables write it: 'quad', 'karras rho=5', of a relay 'quad > karras end=0.02'."""
    return " > ".join(grids_of(row))


def grids_of(row: Mapping[str, Any]) -> list[str]:
    """Grid of every stage with its arguments."""
    stages = ["", "relay_"] if is_relay(row) else [""]
    return [f"{row[f'{s}grid']}{arguments_text(row, f'{s}grid_args')}" for s in stages]


def calls_of(row: Mapping[str, Any]) -> list[int]:
    """Network calls of every stage."""
    second = int(float(row["relay_calls"])) if is_relay(row) else 0  # a text in some tables
    return [int(row["nfe"]) - second, second] if second else [int(row["nfe"])]


def calls_text(row: Mapping[str, Any]) -> str:
    """Network calls as '10', of a relay '6+3'."""
    return "+".join(map(str, calls_of(row)))


def calls_words(count: str) -> str:
    """'1 call', '6+3 calls'."""
    return f"{count} call{'s' * (count != '1')}"


def nets_text(row: Mapping[str, Any]) -> str:
    """The supernet, of a relay 'small > large'."""
    second = f" > {row['relay_supernet']}" if is_relay(row) else ""
    return f"{row['supernet']}{second}"


def is_relay(row: Mapping[str, Any]) -> bool:
    """Whether a row has a second stage."""
    return bool(row.get("kind") == RELAY)
