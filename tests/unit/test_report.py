"""Reports: facts of the tables, files of the plots."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stepsearch import report
from stepsearch.core.errors import RunError
from stepsearch.core.noise import generator
from stepsearch.core.pareto import hypervolume, pareto_rank
from stepsearch.core.process import get_process
from stepsearch.core.schedule import Call, Stage, StepSchedule, parse_run_length
from stepsearch.core.space import Candidate
from stepsearch.core.trial import COLUMNS, Failure, Measurement, Trial
from stepsearch.tables import SAVINGS, front_text, markdown_table, savings

CHOICES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
CALLS = (5, 8, 10, 15, 20)
SOLVERS = [("ddim", {}), ("pfdiff", {"k": 1, "l": 1}), ("pfdiff", {"k": 2, "l": 1})]
PROCESS = get_process("vp-linear-1000")


def make_schedule(solver, args, calls, grid, widths):
    times = np.linspace(0, 1, calls) ** (2 if grid == "quad" else 1)
    levels = [PROCESS.level_at(int(t)) for t in 1 + times[::-1] * (799 if grid == "quad" else 998)]
    made = tuple(Call(level, width) for level, width in zip(levels, widths, strict=True))
    return StepSchedule((Stage("digits@0123abcd", solver, args, (*levels, 0.0), made),))


def make_run(seed=0, population=24, generations=7):
    """A search's tables as read from CSV: baselines first, then widths that improve slowly."""
    rng = generator(seed)
    trials, schedules = [], {}
    for i in range(population * generations):
        generation = i // population
        progress = generation / max(generations - 1, 1)
        (solver, args), grid, calls = SOLVERS[0], "uniform", (20, 10, 5)[i // 7 % 3]
        widths = [CHOICES[i % 7]] * calls
        if generation > 0 or i >= 21:
            odds = [0.4 - 0.3 * progress, 0.3, 0.3 + 0.3 * progress]
            solver, args = SOLVERS[rng.choice(3, p=odds)]
            grid, calls = str(rng.choice(["uniform", "quad"])), int(rng.choice(CALLS))
            late = np.sort(rng.integers(0, 7, 5))[:: 1 if rng.random() < progress else -1]
            widths = [CHOICES[late[j * 5 // calls]] for j in range(calls)]
        schedule = make_schedule(solver, args, calls, grid, widths)
        if schedule.key() in schedules:
            continue
        schedules[schedule.key()] = schedule
        candidate = Candidate("digits", solver, args, calls, grid, (1.0,))
        trials.append((generation, schedule, candidate))
    results = [score(s, c, rng, g > 0 and rng.random() < 0.03) for g, s, c in trials]
    return (*tables(trials, results), schedules)


def score(schedule, candidate, rng, failed):
    if failed:
        return Failure("RuntimeError: worker died", 3)
    widths = np.array(schedule.widths)
    gflops = float((0.012 + 0.11 * widths**2).sum())
    skill = {"ddim": 1.0, "pfdiff": 2.0}[candidate.solver]
    skill *= {"uniform": 1.0, "quad": 1.2}[candidate.grid]
    tail = np.average(widths, weights=np.linspace(0.4, 1.6, len(widths)))
    fid = 3.0 + 60 / (len(widths) * skill) + 14 * (1 - tail) ** 1.5
    fid *= float(np.exp(0.04 * rng.standard_normal()))
    values = {"fid": fid, "fid_se": 0.02 * fid, "gflops_per_image": gflops}
    return Measurement(values, 5000, 0, "classifier-0123456789ab", 1.0, "2026-01-01T00:00:00Z")


def tables(trials, results):
    values = [result.values for result in results if isinstance(result, Measurement)]
    ranks = iter(pareto_rank([(v["fid"], v["gflops_per_image"]) for v in values]))
    rows = []
    for (generation, schedule, candidate), result in zip(trials, results, strict=True):
        key, widths = schedule.key(), schedule.widths
        trial = Trial(len(rows), generation, key, "", candidate, widths, result)
        rows.append(trial.row(int(next(ranks)) if trial.complete else None))
    frame = csv(pd.DataFrame(rows, columns=COLUMNS))
    done = frame[frame["state"].eq("COMPLETE")]
    so_far = [done[done["generation"] <= g] for g in sorted(frame["generation"].unique())]
    pairs = [f[["fid", "gflops_per_image"]].to_numpy() for f in so_far]
    generations = pd.DataFrame(
        {
            "generation": range(len(so_far)),
            "trials": [len(f) for f in so_far],
            "failed": 0,
            "front_size": [int((pareto_rank(p) == 0).sum()) for p in pairs],
            "hypervolume": [hypervolume(p, (60.0, 3.0)) for p in pairs],
            "best_fid": [f["fid"].min() for f in so_far],
            "lowest_gflops": [f["gflops_per_image"].min() for f in so_far],
        }
    )
    front = done[done["is_pareto"]].sort_values("gflops_per_image")
    return frame, csv(front), generations


def csv(frame):
    """As the run directory's reader sees it."""
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)))


@pytest.fixture(scope="module")
def run():
    return make_run()


def frame_of(*rows):
    """trials.csv of (solver, widths, fid, gflops) rows; a trial without FID has failed."""
    records = []
    for i, (solver, widths, fid, gflops) in enumerate(rows):
        record = dict.fromkeys(COLUMNS) | {"trial_id": i, "key": f"s{i}", "generation": 0}
        name, _, k_l = solver.partition(" ")
        k, l = k_l.split("_") if k_l else (None, None)  # noqa: E741
        record |= {"solver": name, "pfdiff_k": k, "pfdiff_l": l, "grid": "quad", "widths": widths}
        made = parse_run_length(widths)
        record |= {"nfe": len(made), "mean_width": sum(made) / len(made), "is_pareto": False}
        record |= {"state": "FAIL" if fid is None else "COMPLETE", "fid": fid}
        record |= {"gflops_per_image": gflops, "n_samples": 500, "metric_id": "classifier-01234567"}
        records.append(record)
    return csv(pd.DataFrame(records, columns=COLUMNS))


# --- plots


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


STEMS = ["front", "hypervolume", "schedules"]
NAMES = [f"{stem}.{kind}" for stem in STEMS for kind in ("pdf", "png")]


def test_plots_are_png_and_pdf_and_equal_for_equal_input(run, tmp_path):
    written = report.plot_all(*run, tmp_path / "a")
    report.plot_all(*(part.copy() for part in run), tmp_path / "b")
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert sorted(path.name for path in written) == list(first) == NAMES
    assert first == second
    for name, data in first.items():
        assert data.startswith(b"\x89PNG\r\n" if name.endswith("png") else b"%PDF-")
        assert b"CreationDate" not in data


def test_bytes_do_not_depend_on_the_users_settings(run, tmp_path):
    report.plot_front(run[0], tmp_path / "plain" / "front.png")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        report.plot_front(run[0], tmp_path / "dark" / "front.pdf")
        assert matplotlib.rcParams["font.size"] == 20  # and ours leave theirs alone
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "dark")


def test_equal_bytes_in_another_process(tmp_path):
    """Hash randomisation must not reach the files."""
    code = (
        "import sys, pandas as pd; from pathlib import Path; from stepsearch import report;"
        "rows = pd.DataFrame({'generation': [0, 1], 'hypervolume': [1, 2], 'front_size': [2, 3]});"
        "report.plot_hypervolume(rows, Path(sys.argv[1]) / 'h')"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        folder = tmp_path / seed
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def complete(trials):
    return trials[trials["state"].eq("COMPLETE")]


CASES = {
    "no rows": lambda t: t.iloc[:0],
    "all failed": lambda t: t[t["state"].eq("FAIL")],
    "one trial": lambda t: complete(t).iloc[:1],
    "one generation": lambda t: t[t["generation"].eq(0)],
    "no standard error": lambda t: t.drop(columns="fid_se"),
    "some standard errors": lambda t: t.assign(fid_se=t["fid_se"].where(t["trial_id"] % 2 == 0)),
    "zero range": lambda t: complete(t).assign(fid=3.0, gflops_per_image=0.5),
    "zero cost": lambda t: t.assign(gflops_per_image=t["gflops_per_image"] * 0),
    "infinite": lambda t: t.assign(fid=t["fid"].where(t["trial_id"] % 3 > 0, math.inf)),
    "three decades": lambda t: t.assign(
        fid=t["fid"] ** 4, gflops_per_image=t["gflops_per_image"] ** 3
    ),
    "one uniform strategy": lambda t: t[~uniform(t) | t["trial_id"].eq(3)],
    "no uniform strategy": lambda t: t[~uniform(t)],
    "only uniform strategies": lambda t: t[uniform(t)],
    "two networks": lambda t: t.assign(supernet=np.where(t["trial_id"] % 2, "small", "large")),
    "not read from CSV": lambda t: t.astype(object).where(t.notna(), None),
}


def uniform(trials):
    return ~trials["widths"].str.contains("|", regex=False)


@pytest.mark.parametrize("case", CASES)
def test_every_table_can_be_shown(run, tmp_path, monkeypatch, case):
    trials, _, generations, schedules = run
    trials = CASES[case](trials)
    pareto = trials[trials["is_pareto"].eq(True)]
    generations = generations[generations["generation"].isin(trials["generation"])]
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figure.draw_without_rendering())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.plot_all(trials, pareto, generations, schedules, tmp_path)
        markdown_table(savings(trials))
        front_text(pareto)
    assert list(files_of(tmp_path)) == NAMES


def drawn(monkeypatch):
    """Figures as they were when written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_front_tells_pfdiff_settings_apart_in_tables_older_than_solver_args(tmp_path, monkeypatch):
    rows = [(f"pfdiff {kl}", f"{w}x4", 9.0 - w, w) for kl in ("1_1", "2_1") for w in (0.5, 1.0)]
    figures = drawn(monkeypatch)
    report.plot_front(frame_of(*rows).drop(columns="solver_args"), tmp_path / "front")
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert {f"uniform width, PFDiff-{kl} 4 calls (0.5 to 1)" for kl in ("1_1", "2_1")} <= set(
        labels
    )


def test_front_shows_uniform_settings_the_front_and_how_fid_was_measured(
    run, tmp_path, monkeypatch
):
    trials = run[0]
    figures = drawn(monkeypatch)
    report.plot_front(trials, tmp_path / "front")
    ax, bar = figures[0].axes
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels[0] == "Pareto front"
    assert labels[1:] == [f"uniform width, DDIM {n} calls (0.25 to 1)" for n in (5, 10, 20)]
    assert ax.get_title(loc="left").startswith("FID (5,000 images, classifier features)")
    assert bar.get_ylabel() == "trials, by generation"
    line = next(line for line in ax.get_lines() if line.get_label() == "Pareto front")
    want = trials[trials["is_pareto"]].sort_values("gflops_per_image")
    np.testing.assert_array_equal(line.get_xdata(), want["gflops_per_image"])
    np.testing.assert_array_equal(line.get_ydata(), want["fid"])
    assert line.get_drawstyle() == "steps-post"  # a trial's FID is had at every higher cost
    assert len(ax.collections[0].get_offsets()) == trials["state"].eq("COMPLETE").sum()
    assert ax.get_xscale() == "log"  # the run spans more than a decade of compute


def test_points_that_a_third_objective_keeps_are_not_on_the_staircase(tmp_path, monkeypatch):
    frame = frame_of(
        ("ddim", "0.5x4", 9.0, 1.0), ("ddim", "1.0x4", 9.5, 2.0), ("ddim", "1.0x8", 5.0, 4.0)
    )
    figures = drawn(monkeypatch)
    report.plot_front(frame.assign(is_pareto=True), tmp_path / "front")
    line = next(x for x in figures[0].axes[0].get_lines() if x.get_label() == "Pareto front")
    assert list(line.get_ydata()) == [9.0, 5.0]


def test_schedules_show_both_ends_of_the_front_and_every_call(run, tmp_path, monkeypatch):
    _, pareto, _, schedules = run
    figures = drawn(monkeypatch)
    report.plot_schedules(pareto, schedules, tmp_path / "schedules")
    axes = figures[0].axes
    assert len(pareto) > len(axes) == report.PANELS
    by_title = {report._panel(row): schedules[row["key"]] for row in pareto.to_dict("records")}
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles[0] == report._panel(pareto.iloc[0])
    assert titles[-1] == report._panel(pareto.iloc[-1])
    for ax, title in zip(axes, titles, strict=True):
        step, calls = ax.get_lines()
        made = by_title[title].stages[0].calls
        assert list(zip(*calls.get_data(), strict=True)) == [(c.level, c.width) for c in made]
        assert step.get_drawstyle() == "steps-post"
        left, right = ax.get_xlim()
        assert left > made[0].level
        assert right < made[-1].level  # time runs left to right


def test_a_relay_is_drawn_network_by_network(run, tmp_path, monkeypatch):
    pareto = run[1].iloc[:1]
    big = Stage("big@01", "ddim", {}, (80.0, 20.0, 1.0), (Call(80.0, 1.0), Call(20.0, 0.5)))
    small = Stage("small@23", "ddim", {}, (1.0, 0.0), (Call(1.0, 0.25),))
    figures = drawn(monkeypatch)
    report.plot_schedules(pareto, {pareto["key"][0]: StepSchedule((big, small))}, tmp_path / "s")
    (ax,) = figures[0].axes
    assert [text.get_text() for text in ax.texts] == ["big", "small"]
    assert list(ax.get_lines()[0].get_xdata()) == [80.0, 20.0, 1.0]


def test_a_schedule_that_is_not_given_is_named(run, tmp_path):
    pareto = run[1]
    with pytest.raises(RunError, match=str(pareto["key"][0])):
        report.plot_schedules(pareto, {}, tmp_path / "schedules")
    assert not list(tmp_path.iterdir())


def test_spread_is_even_by_cost_with_both_ends():
    assert report._spread([10, 10.1, 10.2, 10.3, 10.4, 12, 14, 16, 18, 20], 6) == [0, 5, 6, 7, 8, 9]
    assert report._spread([2.0**i for i in range(11)], 6) == [0, 2, 4, 6, 8, 10]
    assert report._spread([0.0] * 7 + [9.0], 6) == [0, 1, 2, 3, 4, 7]


# --- savings


def test_savings_of_a_small_table_by_hand():
    frame = frame_of(
        ("ddim", "1.0x8", 10.0, 8.0),  # answered by trial 3: no worse, cheapest
        ("ddim", "0.5x8", 20.0, 2.0),  # answered by trial 4
        ("ddim", "0.25x8", 40.0, 1.0),  # nothing is cheaper
        ("pfdiff 2_1", "0.5x3|1.0x2", 10.0, 3.0),
        ("pfdiff 1_1", "0.5x6", 15.0, 1.5),  # uniform, but not DDIM: an answer, not a question
        ("ddim", "0.75x8", None, None),  # failed
        ("ddim", "0.5x2|1.0x6", 10.0, 3.0),  # as good and as cheap as trial 3, but later
    )
    got = savings(frame)
    assert list(got.columns) == SAVINGS
    assert list(got.itertuples(index=False, name=None)) == [
        (
            1.0,
            8,
            "quad",
            10.0,
            8.0,
            3,
            10.0,
            3.0,
            "pfdiff 2_1, quad, 5 calls, widths 0.5x3|1.0x2",
            0.625,
        ),
        (0.5, 8, "quad", 20.0, 2.0, 4, 15.0, 1.5, "pfdiff 1_1, quad, 6 calls, widths 0.5x6", 0.25),
        (0.25, 8, "quad", 40.0, 1.0, 2, 40.0, 1.0, "ddim, quad, 8 calls, widths 0.25x8", 0.0),
    ]


def test_savings_compare_nothing_across_metrics_or_numbers_of_images():
    frame = frame_of(*[("ddim", f"{w}x4", 10.0, w * 4) for w in (1.0, 0.75, 0.5)])
    assert set(savings(frame)["answer_trial"]) == {2}
    assert list(savings(frame.assign(n_samples=[500, 500, 100]))["answer_trial"]) == [
        1,
        1,
        2,
    ]
    ids = frame.assign(metric_id=["a", "b", "b"])
    assert list(savings(ids)["answer_trial"]) == [0, 2, 2]


def test_savings_without_completed_trials_keep_their_columns(run):
    empty = savings(run[0].iloc[:0])
    assert len(empty) == 0
    assert list(empty.columns) == SAVINGS


@pytest.mark.parametrize("seed", range(5))
def test_savings_agree_with_brute_force(seed):
    rng = generator(seed)
    rows = []
    for _ in range(60):
        widths = [f"{rng.choice(CHOICES)}x{rng.choice(CALLS)}", "0.5x3|1.0x5"][
            int(rng.random() < 0.4)
        ]
        solver = str(rng.choice(["ddim", "pfdiff 2_1"]))
        numbers = (None, None) if rng.random() < 0.1 else rng.integers(1, 12, 2) / 4
        rows.append((solver, widths, *numbers))  # few values, so that there are ties
    got = savings(frame_of(*rows))
    done = [(gflops, fid, i) for i, (_, _, fid, gflops) in enumerate(rows) if fid is not None]
    want = [
        (gflops, fid, *min(other for other in done if other[1] <= fid))
        for gflops, fid, i in done
        if rows[i][0] == "ddim" and "|" not in rows[i][1]
    ]
    columns = ["gflops_per_image", "fid", "answer_gflops", "answer_fid", "answer_trial"]
    pairs = list(got[columns].itertuples(index=False, name=None))
    assert sorted(pairs) == sorted(want)
    assert list(got["gflops_per_image"]) == sorted(got["gflops_per_image"], reverse=True)
    assert ((got["saving"] >= 0) & (got["saving"] < 1)).all()
    np.testing.assert_allclose(got["saving"], 1 - got["answer_gflops"] / got["gflops_per_image"])


# --- texts


def parse_markdown(text):
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    return [[cell.strip().replace(r"\|", "|") for cell in line] for line in lines]


def test_markdown_parses_back(run):
    frame = savings(run[0])
    head, rule, *rows = parse_markdown(markdown_table(frame))
    assert head == SAVINGS
    assert set(rule) == {"---:", ":---"}
    assert len(rows) == len(frame) > 10
    for cells, row in zip(rows, frame.to_dict("records"), strict=True):
        got = dict(zip(head, cells, strict=True))
        assert got["answer"] == row["answer"]
        assert float(got["fid"]) == pytest.approx(row["fid"], abs=0.051)
        assert float(got["gflops_per_image"]) == pytest.approx(row["gflops_per_image"], rel=0.006)
        assert float(got["saving"].rstrip("%")) == pytest.approx(100 * row["saving"], abs=0.051)


def test_markdown_rounds_by_what_a_column_holds():
    frame = pd.DataFrame(
        {
            "fid": [9.994, 9.996, 123.46],
            "gflops_per_image": [0.09996, 1234.4, 0.001234],
            "saving": [0.386, 0.0, 0.9996],
            "pfdiff_k": [2, math.nan, 1],
            "hypervolume": [math.inf, 1.23456, 3.0],
            "error": ["a|b", "two\nlines", None],
        }
    )
    assert parse_markdown(markdown_table(frame))[2:] == [
        ["9.99", "0.100", "38.6%", "2", "inf", "a|b"],
        ["10.0", "1234", "0.0%", "", "1.235", "two lines"],
        ["123.5", "0.00123", "100.0%", "1", "3", ""],
    ]


def test_front_text_has_every_row_aligned_and_cheap_first(run):
    pareto = run[1].sample(frac=1, random_state=0)
    head, *lines = front_text(pareto).splitlines()
    rows = pareto.sort_values("gflops_per_image").to_dict("records")
    start = head.index("widths")
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[0] == str(row["trial_id"])
        assert f"{row['fid']:.2f} ± {row['fid_se']:.2f}" in line
        assert line[start:] == row["widths"]
        solver = (
            "ddim"
            if row["solver"] == "ddim"
            else f"pfdiff {row['pfdiff_k']:.0f}_{row['pfdiff_l']:.0f}"
        )
        assert f" {row['nfe']}  {solver} " in line
        assert f" {row['grid']} " in line
    assert "±" not in front_text(pareto.drop(columns="fid_se")).split("\n", 1)[1]
    assert front_text(pareto.iloc[:0]) == "no completed trials\n"


def test_importing_the_report_is_light():
    code = "import sys, stepsearch.report; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True
    )
    heavy = {"torch", "ray", "pymoo", "pandas", "matplotlib", "numpy"}
    assert not heavy & set(done.stdout.decode().split())
