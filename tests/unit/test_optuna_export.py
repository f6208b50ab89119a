"""A run as an Optuna study: the same front, few parameters, and safe to repeat."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import optuna
import pytest
from support import OBJECTIVES, make_trials, read_csv

from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.trial import Failure, Screened
from stepsearch.optuna_export import export_optuna
from stepsearch.store import RunStore

RESOLVED = """
schedule:
  calls: [3, 4, 6]
  grid: [uniform, quad]
  solver: [ddim, {pfdiff: {k: 1, l: 1}}]
"""
ENV = {"objectives": list(OBJECTIVES), "supernets": {"net": {}}}
FILES = {"env.json": json.dumps(ENV), "resolved.yaml": RESOLVED}


def run_of(trials, folder, **files):
    store = RunStore.create(folder, OBJECTIVES, FILES | files)
    for trial in trials:
        store.append(trial)
    store.write_tables()
    store.close()
    return folder


def add(folder, trials):
    store = RunStore(folder, OBJECTIVES)
    for trial in trials:
        store.append(trial)
    store.close()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def study_of(url, name="run"):
    return optuna.load_study(study_name=name, storage=url)


def test_the_study_has_the_front_of_the_run(tmp_path, url):
    run = run_of(make_trials(40, failed=[3, 17]), tmp_path / "run")
    done = export_optuna(run, url)
    assert (done.study, done.added, done.total) == ("run", 40, 40)
    study = study_of(url)
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.metric_names == list(OBJECTIVES)
    front = {int(row["trial_id"]) for row in read_csv(run / "pareto.csv")}
    assert {t.user_attrs["trial_id"] for t in study.best_trials} == front
    assert len(front) > 1


def test_a_trial_says_all_that_the_journal_says_with_few_parameters(tmp_path, url):
    trials = make_trials(6)
    export_optuna(run_of(trials, tmp_path / "run"), url)
    for got, trial in zip(study_of(url).trials, trials, strict=True):
        attributes, result = got.user_attrs, trial.result
        assert got.values == [result.values[name] for name in OBJECTIVES]
        assert attributes["widths"] == list(trial.call_widths)
        assert attributes["schedule"] == trial.schedule
        assert (attributes["key"], attributes["fid_se"]) == (trial.key, 0.25)
        assert [attributes[k] for k in ("metric_id", "n_samples", "seed")] == ["stub-0", 200, 0]
        assert got.params["calls"] == trial.candidate.calls
        assert got.params["solver"] == trial.candidate.solver
        assert got.params["mean_width"] == sum(trial.call_widths) / len(trial.call_widths)
        assert ("pfdiff_k" in got.params) == (trial.candidate.solver == "pfdiff")
        assert not [name for name in got.params if name.startswith("width")]
        assert got.duration == timedelta(seconds=0.125)
        assert got.datetime_start.astimezone() == datetime.fromisoformat(result.started_at)


def test_failed_trials_fail_and_those_a_ladder_left_are_pruned(tmp_path, url):
    trials = make_trials(4, failed=[1])
    left = Screened({"kid_100": 0.5}, n_samples=100, seconds=1.0, started_at="")
    trials[2] = replace(trials[2], result=left)
    export_optuna(run_of(trials, tmp_path / "run"), url)
    found = study_of(url).trials
    assert [t.state.name for t in found] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert found[1].values is None
    assert found[1].user_attrs["error"] == 'E: "bad", quoted'
    assert found[2].user_attrs["kid_100"] == 0.5


def test_repeating_adds_what_is_new_and_nothing_twice(tmp_path, url):
    trials = make_trials(10)
    run = run_of(trials[:6], tmp_path / "run")
    assert export_optuna(run, url).added == 6
    assert export_optuna(run, url).added == 0
    add(run, trials[6:])
    done = export_optuna(run, url)
    assert (done.added, done.total) == (4, 10)
    assert [t.user_attrs["trial_id"] for t in study_of(url).trials] == list(range(10))


def test_an_export_that_was_killed_is_finished_by_the_next(tmp_path, url, monkeypatch):
    run, made = run_of(make_trials(5), tmp_path / "run"), []
    add_trial = optuna.Study.add_trial

    def dies(study, trial):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(trial)
        add_trial(study, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", dies)
        with pytest.raises(KeyboardInterrupt):
            export_optuna(run, url)
    assert export_optuna(run, url).added == 2


def test_a_study_of_something_else_is_left_alone(tmp_path, url):
    optuna.create_study(study_name="run", storage=url)
    run = run_of(make_trials(3), tmp_path / "run")
    with pytest.raises(ConfigError, match="not of this run; name another with --study"):
        export_optuna(run, url)
    assert study_of(url).trials == []
    assert export_optuna(run, url, "other").added == 3


def test_another_run_of_the_same_name_is_not_mixed_in(tmp_path, url):
    trials = make_trials(3)
    export_optuna(run_of(trials, tmp_path / "a" / "run"), url)
    later = replace(trials[0].result, started_at="2026-01-02T04:00:00+00:00")
    again = [replace(trials[0], result=later), *trials[1:]]
    with pytest.raises(ConfigError, match="not of this run"):
        export_optuna(run_of(again, tmp_path / "b" / "run"), url)
    assert len(study_of(url).trials) == 3


@pytest.mark.parametrize(
    "bad", ["nonsense", "sqlite:////no/such/folder/x.db", "nodialect://u:secret@host/x"]
)
def test_a_storage_that_cannot_be_opened_is_bad_input(tmp_path, bad):
    run = run_of(make_trials(2), tmp_path / "run")
    with pytest.raises(ConfigError, match="--to optuna") as error:
        export_optuna(run, bad)
    assert "secret" not in str(error.value)


def test_no_run_and_a_damaged_one_are_said(tmp_path, url):
    with pytest.raises(ConfigError, match="no run directory"):
        export_optuna(tmp_path, url)
    run = run_of(make_trials(2), tmp_path / "run", **{"env.json": "{"})
    with pytest.raises(RunError, match="restore the file"):
        export_optuna(run, url)


def test_the_front_can_be_drawn(tmp_path, url):
    pytest.importorskip("plotly", reason="optuna.visualization needs plotly, no dependency of ours")
    trials = make_trials(12, failed=[2])
    export_optuna(run_of(trials, tmp_path / "run"), url)
    figure = optuna.visualization.plot_pareto_front(study_of(url))
    drawn = sum(len(trace.x) for trace in figure.data)
    assert drawn == 11
    assert {a.title.text for a in (figure.layout.xaxis, figure.layout.yaxis)} == set(OBJECTIVES)


def test_optuna_takes_failures_without_a_time(tmp_path, url):
    trial = replace(make_trials(1)[0], result=Failure("E", 1))
    export_optuna(run_of([trial], tmp_path / "run"), url)
    (got,) = study_of(url).trials
    assert got.user_attrs["started_at"] == ""
