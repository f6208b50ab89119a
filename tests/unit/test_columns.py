"""Rows of trials.csv, the texts that are made of them, and files that older versions wrote."""

import json
import zlib
from dataclasses import replace

import pandas as pd
import pytest
from support import CARD, OBJECTIVES, ROOT, SPACE, make_trials, read_csv, score

from stepsearch.build import build_schedule
from stepsearch.core.guidance import Guidance
from stepsearch.core.trial import COLUMNS, Trial
from stepsearch.report import plot_front, plot_schedules
from stepsearch.store import COLUMN_TYPES, JOURNAL, RunStore, load_run
from stepsearch.tables import front_text, grid_text, guidance_text, savings, solver_text

NEW = ["solver_args", "pfdiff_c", "grid_args", "guidance_low", "guidance_high", "guide"]
CARDS = {"net": replace(CARD, classes=10), "judge": replace(CARD, name="judge", classes=10)}
FIRST = SPACE.decode((0,) * len(SPACE.genes))
JUDGE = Guidance("classifier", 1.5, 0.5, 10, "judge")

# candidate, what its row holds in these columns, texts of solver, grid and guidance
CASES = {
    "plain": ({}, {}, "ddim", "uniform", ""),
    "eta": (
        {"solver_args": {"eta": 0.5}},
        {"solver_args": "eta=0.5"},
        "ddim eta=0.5",
        "uniform",
        "",
    ),
    "several arguments": (
        {"solver": "unipc", "solver_args": {"variant": "bh1", "order": 3, "corrector": False}},
        {"solver_args": "corrector=false;order=3;variant=bh1"},
        "unipc corrector=false order=3 variant=bh1",
        "uniform",
        "",
    ),
    "k and l": (
        {"solver": "pfdiff", "solver_args": {"k": 2, "l": 1}},
        {"solver_args": "k=2;l=1", "pfdiff_k": "2", "pfdiff_l": "1"},
        "pfdiff 2_1",
        "uniform",
        "",
    ),
    "k, l and buffer": (
        {"solver": "pfdiff", "solver_args": {"k": 2, "l": 1, "buffer": "x0"}},
        {"solver_args": "buffer=x0;k=2;l=1", "pfdiff_k": "2", "pfdiff_l": "1"},
        "pfdiff 2_1 buffer=x0",
        "uniform",
        "",
    ),
    "c": (
        {"solver": "pfdiff", "solver_args": {"c": 0.45, "k": 2}},
        {"solver_args": "c=0.45;k=2", "pfdiff_k": "2", "pfdiff_c": "0.45"},
        "pfdiff c=0.45 k=2",
        "uniform",
        "",
    ),
    "grid": (
        {"grid": "free", "grid_args": {"spacing": (0, 1.5, 4), "gap": 0.2}},
        {"grid_args": "gap=0.2;spacing=0|1.5|4"},
        "ddim",
        "free gap=0.2 spacing=0|1.5|4",
        "",
    ),
    "cfg": (
        {"guidance": Guidance("cfg", 2)},
        {"guidance": "2.0", "guide": "cfg"},
        "ddim, cfg 2",
        "uniform",
        ", cfg 2",
    ),
    "cfg from 0.5": (
        {"guidance": Guidance("cfg", 2.5, 0.5)},
        {"guidance": "2.5", "guide": "cfg", "guidance_low": "0.5"},
        "ddim, cfg 2.5 at 0.5..",
        "uniform",
        ", cfg 2.5 at 0.5..",
    ),
    "classifier": (
        {"guidance": JUDGE},
        {"guidance": "1.5", "guide": "judge", "guidance_low": "0.5", "guidance_high": "10.0"},
        "ddim, judge 1.5 at 0.5..10",
        "uniform",
        ", judge 1.5 at 0.5..10",
    ),
}
COUNTED = [*NEW, "pfdiff_k", "pfdiff_l", "guidance"]


def trial_of(number, **changes):
    candidate = replace(FIRST, **changes)
    schedule = build_schedule(candidate, CARDS)
    return Trial(
        trial_id=number,
        generation=0,
        key=schedule.key(),
        schedule=schedule.to_json(),
        candidate=candidate,
        call_widths=schedule.widths,
        result=score(schedule),
    )


def write_run(folder, trials):
    store = RunStore.create(folder, OBJECTIVES, {"env.json": "{}"})
    for trial in trials:
        store.append(trial)
    store.write_tables()
    store.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trial of every case, in the order of the cases."""
    trials = [trial_of(i, **changes) for i, (changes, *_) in enumerate(CASES.values())]
    return write_run(tmp_path_factory.mktemp("columns") / "run", trials)


@pytest.mark.parametrize("name", CASES)
def test_settings_are_columns_and_what_does_not_apply_is_empty(run, name):
    row = read_csv(run / "trials.csv")[list(CASES).index(name)]
    assert {c: row[c] for c in COUNTED if row[c]} == CASES[name][1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("typed", [True, False], ids=["load_run", "read_csv"])
def test_texts_say_the_settings_in_full(run, name, typed):
    frame = load_run(run).trials if typed else pd.read_csv(run / "trials.csv")
    row = frame.to_dict("records")[list(CASES).index(name)]
    assert (solver_text(row), grid_text(row), guidance_text(row)) == CASES[name][2:]


@pytest.mark.parametrize("name", CASES)
def test_a_journal_line_is_strict_json_and_reads_back_equal(name):
    trial = trial_of(0, **CASES[name][0])
    text = json.dumps(trial.to_dict(), allow_nan=False)
    assert Trial.from_dict(json.loads(text)) == trial


def test_the_front_tells_every_setting(run):
    text = front_text(load_run(run).trials)
    for _, _, solver, grid, _ in CASES.values():
        assert f" {solver} " in text
        assert f" {grid} " in text


def test_plots_tell_uniform_strategies_of_different_settings_apart(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    widths = [(w,) * 3 for w in (0.5, 1.0)]
    grids = [{"rho": 3}, {"rho": 9}]
    rows = [{"grid": "karras", "grid_args": g, "widths": w} for g in grids for w in widths]
    found = load_run(write_run(tmp_path / "run", [trial_of(i, **r) for i, r in enumerate(rows)]))
    plot_front(found.trials, tmp_path / "front")
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    lines = [label for label in labels if label.startswith("uniform width")]
    assert len(set(lines)) == len(lines) == 2
    assert all("rho=" in line for line in lines)
    plot_schedules(found.pareto, found.schedules, tmp_path / "schedules")
    titles = [ax.get_title(loc="left") for ax in figures[-1].axes]
    assert titles
    assert all("karras rho=" in title for title in titles)


@pytest.mark.parametrize("args", [{}, {"eta": 0}, {"eta": 0.0}])
def test_the_baseline_is_deterministic_ddim_without_guidance(tmp_path, args):
    changes = [{"solver_args": args}, {"solver_args": {"eta": 0.5}}]
    changes += [{"guidance": Guidance("cfg", 2)}, {"solver": "deis"}]
    trials = [trial_of(i, **c) for i, c in enumerate(changes)]
    found = savings(load_run(write_run(tmp_path / "run", trials)).trials)
    assert list(found["fid"]) == [trials[0].result.values["fid"]]


# --- what older versions wrote

REFERENCE = ROOT / "results" / "reference" / "digits"


@pytest.mark.parametrize("name", ["trials", "pareto", "uniform_trials"])
def test_tables_without_the_new_columns_are_still_told(name, tmp_path):
    frame = pd.read_csv(REFERENCE / f"{name}.csv", dtype=COLUMN_TYPES).drop(columns=NEW)
    assert len(front_text(frame).splitlines()) == 1 + len(frame)
    assert "<NA>" not in front_text(frame)
    assert (
        len(savings(frame))
        == (frame["solver"].eq("ddim") & ~frame["widths"].str.contains("|", regex=False)).sum()
    )
    plot_front(frame, tmp_path / "front")


def old_line(trial):
    """A journal line as version 0.1 wrote it first: no grid arguments, no guidance."""
    data = trial.to_dict()
    for name in ("grid_args", "guidance"):
        del data["candidate"][name]
    text = json.dumps(data, sort_keys=True)
    return f'{{"crc": {zlib.crc32(text.encode())}, "trial": {text}}}\n'


def test_a_run_of_an_older_version_loads_and_continues(tmp_path):
    trials = make_trials(8)
    run = write_run(tmp_path / "run", trials)
    (run / JOURNAL).write_text("".join(map(old_line, trials[:6])))
    for name in ("trials.csv", "pareto.csv"):
        pd.read_csv(run / name).drop(columns=NEW).to_csv(run / name, index=False)
    found = load_run(run)
    assert found.schedules.keys() == {t.key for t in trials[:6]}
    assert set(COLUMNS) - set(found.trials) == set(NEW)
    store = RunStore(run, OBJECTIVES)
    assert (store.trials, store.torn) == (trials[:6], None)
    for trial in trials[6:]:
        store.append(trial)
    store.write_tables()
    store.close()
    assert list(load_run(run).trials) == COLUMNS
    assert load_run(run).trials["key"].to_list() == [t.key for t in trials]
