"""Reports: files of the plots, and what they show."""

import math
import os
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from made_runs import frame_of, make_run
from matplotlib.figure import Figure

from stepsearch import report
from stepsearch.core.errors import RunError
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.tables import front_text, markdown_table, savings


@pytest.fixture(scope="module")
def run():
    return make_run()


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


def test_importing_the_report_is_light():
    code = "import sys, stepsearch.report; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True
    )
    heavy = {"torch", "ray", "pymoo", "pandas", "matplotlib", "numpy"}
    assert not heavy & set(done.stdout.decode().split())
