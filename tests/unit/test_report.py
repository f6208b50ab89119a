"""Reports: files of the plots, and what they show."""

import math
import os
import re
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from made_runs import frame_of, make_joint_run, make_run
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from stepsearch import report
from stepsearch.core.errors import RunError
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.tables import front_text, kind_wins, markdown_table, savings


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
    "two kinds": lambda t: t.assign(kind=np.where(t["trial_id"] % 2, "single", "distilled")),
    "a kind that all failed": lambda t: t.assign(
        kind=np.where(t["state"].eq("FAIL"), "distilled", "single")
    ),
    "a kind off the front": lambda t: t.assign(
        kind=np.where(t["is_pareto"].eq(True), "single", "distilled")
    ),
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
        markdown_table(kind_wins(trials))
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
    assert labels[0] == "proxy front"
    assert labels[1:] == [f"uniform width, DDIM {n} calls (0.25 to 1)" for n in (5, 10, 20)]
    assert ax.get_title(loc="left").startswith(
        "proxy front: FID (5,000 images, classifier features)"
    )
    assert bar.get_ylabel() == "trials, by generation"
    line = next(line for line in ax.get_lines() if line.get_label() == "proxy front")
    want = trials[trials["is_pareto"]].sort_values("gflops_per_image")
    np.testing.assert_array_equal(line.get_xdata(), want["gflops_per_image"])
    np.testing.assert_array_equal(line.get_ydata(), want["fid"])
    assert line.get_drawstyle() == "steps-post"  # a trial's FID is had at every higher cost
    assert len(ax.collections[0].get_offsets()) == trials["state"].eq("COMPLETE").sum()
    assert ax.get_xscale() == "log"  # the run spans more than a decade of compute


KINDS = {  # name and colour, of Okabe & Ito (2008)
    "single": ("single stage", "#d55e00"),
    "relay": ("relay", "#0072b2"),
    "distilled": ("distilled", "#009e73"),
}


@pytest.fixture(scope="module")
def joint():
    return make_joint_run()


@pytest.fixture
def mixed(joint, tmp_path, monkeypatch):
    """Trials of three kinds, and their drawn front."""
    figures = drawn(monkeypatch)
    report.plot_front(joint[0], tmp_path / "front")
    return joint[0], figures[0]


def test_points_of_the_front_are_told_apart_by_kind(mixed):
    trials, figure = mixed
    (ax,) = figure.axes  # no bar of generations
    lines = {line.get_label(): line for line in ax.get_lines()}
    shapes = set()
    for kind, (label, color) in KINDS.items():
        want = trials[trials["kind"].eq(kind) & trials["is_pareto"].eq(True)]
        found = sorted(zip(*lines[label].get_data(), strict=True))
        assert found == sorted(zip(want["gflops_per_image"], want["fid"], strict=True))
        assert to_hex(lines[label].get_color()) == color
        shapes.add(lines[label].get_marker())
    assert len(shapes) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["single stage", "relay", "distilled"]
    assert labels[3:5] == ["proxy front", "front of one kind alone"]


def test_every_trial_has_the_light_tone_of_its_kind(mixed):
    trials, figure = mixed
    seen = {}
    for points in figure.axes[0].collections:
        if len(points.get_facecolors()) == 1:  # not error bars
            assert points.get_alpha() < 0.5
            seen[to_hex(points.get_facecolors()[0])] = len(points.get_offsets())
    assert seen == {KINDS[kind][1]: n for kind, n in trials["kind"].value_counts().items()}


def steps_of(figure):
    """Staircases as (colour, is dashed, points)."""
    lines = [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
    return [
        (to_hex(line.get_color()), line.is_dashed(), list(zip(*line.get_data(), strict=True)))
        for line in lines
    ]


def falls(frame):
    """(GFLOPs, FID) of what is better than all that is as cheap."""
    points = sorted(zip(frame["gflops_per_image"], frame["fid"], strict=True))
    return [p for i, p in enumerate(points) if all(p[1] < other for _, other in points[:i])]


def test_the_front_has_the_colour_of_the_kind_that_is_best_there(mixed):
    trials, figure = mixed
    kinds = dict(zip(trials["gflops_per_image"], trials["kind"], strict=True))
    pieces = [(color, points) for color, dashed, points in steps_of(figure) if not dashed]
    want = falls(trials)
    assert [points[0] for _, points in pieces] == want
    assert [points[-1] for _, points in pieces] == [*want[1:], want[-1]]
    assert [color for color, _ in pieces] == [KINDS[kinds[x]][1] for x, _ in want]


def test_every_kind_has_its_own_front_up_to_the_dearest_trial(mixed):
    trials, figure = mixed
    dashed = {color: points for color, dashed, points in steps_of(figure) if dashed}
    dearest = trials["gflops_per_image"].max()
    for kind, (_, color) in KINDS.items():
        own = falls(trials[trials["kind"].eq(kind)])
        assert dashed[color] == [*own, (dearest, own[-1][1])]


def test_relays_and_students_of_one_width_are_no_baselines(joint, tmp_path, monkeypatch):
    trials = joint[0]
    uniform = trials[trials["kind"].ne("single") | ~trials["widths"].str.contains("|", regex=False)]
    assert {"relay", "distilled"} < set(uniform["kind"])
    figures = drawn(monkeypatch)
    report.plot_front(uniform.assign(widths="0.5x4"), tmp_path / "front")
    hollow = [line for line in figures[0].axes[0].get_lines() if line.get_color() == "#222222"]
    costs = np.concatenate([line.get_xdata() for line in hollow])
    want = uniform.loc[uniform["kind"].eq("single"), "gflops_per_image"]
    np.testing.assert_array_equal(np.sort(costs), np.sort(want))


def test_tables_older_than_kinds_are_drawn_as_before(run, tmp_path):
    trials = run[0]
    report.plot_front(trials, tmp_path / "new" / "front")
    older = trials.drop(columns=[n for n in trials if n.startswith("relay_") or n == "kind"])
    report.plot_front(older, tmp_path / "old" / "front")
    assert files_of(tmp_path / "new") == files_of(tmp_path / "old")


def test_points_that_a_third_objective_keeps_are_not_on_the_staircase(tmp_path, monkeypatch):
    frame = frame_of(
        ("ddim", "0.5x4", 9.0, 1.0), ("ddim", "1.0x4", 9.5, 2.0), ("ddim", "1.0x8", 5.0, 4.0)
    )
    figures = drawn(monkeypatch)
    report.plot_front(frame.assign(is_pareto=True), tmp_path / "front")
    line = next(x for x in figures[0].axes[0].get_lines() if x.get_label() == "proxy front")
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


def test_panels_say_both_stages_and_fit(joint, tmp_path, monkeypatch):
    _, pareto, _, schedules = joint
    figures = drawn(monkeypatch)
    report.plot_schedules(pareto, schedules, tmp_path / "schedules")
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    relays = [title for title in titles if "relay" in title]
    assert relays
    for title in relays:
        first, *second, worth = title.splitlines()
        assert re.fullmatch(r"UniPC order=2, \d calls, quad", first)
        told = " ".join(second)
        start = r"> relay eta=0\.1 step=trapezoid from (0\.2|0\.583|1\.7)"
        assert re.fullmatch(start + r", [35] calls, karras end=0\.0224", told)
        assert re.fullmatch(r"[\d.]+ GFLOPs, FID [\d.]+", worth)
    assert any(re.match(r"Renoise, \d calls?, karras end=(0\.1|0\.316|1\.0)\n", t) for t in titles)
    assert max(len(line) for title in titles for line in title.splitlines()) <= report.TITLE
    assert "in each stage" in figures[0].get_supxlabel()


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
