"""The run directory: nothing finished is lost, and the tables say what the journal says."""

import functools
import math
import shutil
import sys
import time
from dataclasses import replace

import pytest
from support import OBJECTIVES, dominates, make_trials, read_csv, run_python

from stepsearch import store as module
from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.pareto import hypervolume
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import COLUMNS, Failure, Measurement
from stepsearch.journal import recover_journal
from stepsearch.store import JOURNAL, RunStore, load_run

FILES = {"space.yaml": "a: 1\n", "resolved.yaml": "a: 1\nb: 2\n", "env.json": "{}\n"}
NUMBERS = ("fid", "fid_se", "gflops_per_image", "mean_width", "seconds")
NOT_A_VALUE = {"nan", "none", "<na>", "nat", "null", "inf", "-inf"}


def write_run(folder, trials):
    store = RunStore.create(folder, OBJECTIVES, FILES)
    for trial in trials:
        store.append(trial)
    store.write_tables()
    store.close()
    return folder


@pytest.fixture(scope="module")
def trials():
    return make_trials(20, generation=5, failed=(0, 3, 11, 12, 13, 14, 17))


@pytest.fixture(scope="module")
def run(trials, tmp_path_factory):
    """A run of four generations whose trials ended in another order than they were asked."""
    ended = sorted(trials, key=lambda t: (t.generation, t.key))
    assert [t.trial_id for t in ended] != list(range(20))
    return write_run(tmp_path_factory.mktemp("store") / "run", ended)


# --- one driver, nothing overwritten


OPEN = """
import sys
from pathlib import Path
from stepsearch.core.errors import StepsearchError
from stepsearch.store import RunStore
try:
    RunStore(Path(sys.argv[1]), ("fid", "gflops_per_image"))
except StepsearchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_second_driver_is_turned_away_until_the_first_is_done(trials, tmp_path):
    store = RunStore.create(tmp_path / "run", OBJECTIVES, FILES)
    with pytest.raises(RunError, match="another stepsearch") as caught:
        RunStore(store.path, OBJECTIVES)
    assert caught.value.exit_code == 5
    elsewhere = run_python(OPEN, store.path)
    assert elsewhere.returncode == 5
    assert elsewhere.stdout.startswith(f"{store.path}: another stepsearch")
    store.append(trials[0])
    store.close()
    store.close()
    assert run_python(OPEN, store.path).returncode == 0
    assert recover_journal(store.path / JOURNAL) == (trials[:1], None)


@pytest.mark.parametrize("what", ["run", "empty folder", "file"])
def test_nothing_that_exists_is_overwritten(trials, tmp_path, what):
    path = tmp_path / "run"
    if what == "run":
        write_run(path, trials[:2])
    elif what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"exists.*choose another"):
        RunStore.create(path, OBJECTIVES, FILES)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


KILLED = """
import os, sys
from pathlib import Path
from stepsearch.store import RunStore
files = {"space.yaml": "a: 1", "resolved.yaml": "a: 1", "env.json": "{}"}
left, real = int(sys.argv[2]), os.replace
def replace(*args):
    global left
    if not left:
        os._exit(9)
    left -= 1
    return real(*args)
os.replace = replace
RunStore.create(Path(sys.argv[1]), (), files).close()
"""


def test_a_kill_while_a_run_is_created_leaves_all_of_it_or_nothing_in_its_way(tmp_path):
    for n in range(4):
        path = tmp_path / f"run-{n}"
        code = run_python(KILLED, path, n).returncode
        assert code in (0, 9)
        there = {p.name for p in path.iterdir()} if path.exists() else set()
        assert not there or set(FILES) <= there
        if not path.exists():
            RunStore.create(path, OBJECTIVES, FILES).close()


def test_a_run_directory_is_data(run):
    for path in run.rglob("*"):
        assert path.name in {*FILES, JOURNAL, ".lock"} or path.suffix in {".csv", ".parquet"}
        head = path.read_bytes()[:4]
        assert not head.startswith((b"\x80", b"PK")), f"{path.name} looks like a pickle"
        assert path.suffix != ".parquet" or head == b"PAR1"
    for name, text in FILES.items():
        assert (run / name).read_text() == text


# --- the tables


def test_trials_are_one_row_each_in_the_order_of_asking(run, trials):
    rows = read_csv(run / "trials.csv")
    assert (run / "trials.csv").read_text().splitlines()[0].split(",") == COLUMNS
    assert [row["trial_id"] for row in rows] == [str(i) for i in range(20)]
    for row, trial in zip(rows, trials, strict=True):
        assert row["key"] == trial.key
        assert row["state"] == ("COMPLETE" if trial.complete else "FAIL")
        assert not NOT_A_VALUE & {value.lower() for value in row.values()}
        if isinstance(trial.result, Measurement):
            for name, value in trial.result.values.items():
                assert float(row[name]) == value
            assert row["error"] == ""
            assert (row["n_samples"], row["seed"], row["metric_id"]) == ("200", "0", "stub-0")
        else:
            assert row["error"] == trial.result.error
            assert row["is_pareto"] == "False"
            assert not any(row[c] for c in ("fid", "fid_se", "gflops_per_image", "rank"))


def test_what_does_not_apply_is_empty(run):
    for row in read_csv(run / "trials.csv"):
        by_solver = (row["pfdiff_k"], row["pfdiff_l"])
        assert by_solver == ("", "") if row["solver"] == "ddim" else "" not in by_solver
        assert not any(row[c] for c in ("immiscible_batch", "relay_start", "guidance"))


def point(row):
    return tuple(float(row[name]) for name in OBJECTIVES)


def test_pareto_is_what_no_other_trial_dominates_cheapest_first(run):
    complete = [row for row in read_csv(run / "trials.csv") if row["state"] == "COMPLETE"]
    want = [r for r in complete if not any(dominates(point(o), point(r)) for o in complete)]
    want.sort(key=lambda row: float(row["gflops_per_image"]))
    assert 1 < len(want) < len(complete)
    assert read_csv(run / "pareto.csv") == want
    assert all((row["is_pareto"] == "True") == (row in want) for row in complete)
    assert all((row["rank"] == "0") == (row in want) for row in complete)


def test_equal_trials_on_the_front_are_all_kept(trials, tmp_path):
    twins = [replace(t, result=trials[1].result) for t in trials[:3]]
    rows = read_csv(write_run(tmp_path / "run", reversed(twins)) / "pareto.csv")
    assert [row["trial_id"] for row in rows] == ["0", "1", "2"]


def test_generations_count_trials_and_the_volume_of_all_so_far(run, trials):
    rows = read_csv(run / "generations.csv")
    first = [point_of(t) for t in trials if t.generation == 0 and t.complete]
    bound = [1.1 * max(column) for column in zip(*first, strict=True)]
    volumes = []
    for generation, row in enumerate(rows):
        born = [t for t in trials if t.generation == generation]
        so_far = [point_of(t) for t in trials if t.generation <= generation and t.complete]
        front = {p for p in so_far if not any(dominates(q, p) for q in so_far)}
        assert (row["generation"], row["trials"]) == (str(generation), str(len(born)))
        assert row["failed"] == str(sum(not t.complete for t in born))
        assert row["front_size"] == str(len(front))
        volumes.append(float(row["hypervolume"]))
        assert volumes[-1] == pytest.approx(hypervolume(sorted(front), bound), rel=1e-12)
        for i, name in enumerate(OBJECTIVES):
            assert float(row[f"best_{name}"]) == min(p[i] for p in so_far)
    assert len(rows) == 4
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]


def point_of(trial):
    return tuple(trial.result.values[name] for name in OBJECTIVES)


def test_tables_do_not_depend_on_the_order_in_which_trials_ended(run, trials, tmp_path):
    other = write_run(tmp_path / "run", reversed(trials))
    for name in ("trials.csv", "pareto.csv", "generations.csv", "trials.parquet"):
        assert (other / name).read_bytes() == (run / name).read_bytes(), name


def test_parquet_holds_what_the_csv_holds(run):
    import pandas as pd

    parquet, csv = pd.read_parquet(run / "trials.parquet"), load_run(run).trials
    assert list(parquet.columns) == COLUMNS
    pd.testing.assert_frame_equal(parquet, csv, check_exact=True, check_dtype=False)


def test_numbers_are_read_as_they_were_measured(trials, tmp_path):
    """A number needs 17 digits and a reader that rounds correctly."""
    values = [{"fid": math.pi**n, "gflops_per_image": math.e**-n} for n in range(1, 9)]
    done = [t for t in trials if t.complete][:8]
    exact = [
        replace(t, result=replace(t.result, values=v)) for t, v in zip(done, values, strict=True)
    ]
    found = load_run(write_run(tmp_path / "run", exact)).trials
    assert found["fid"].to_list() == [v["fid"] for v in values]
    assert found["gflops_per_image"].to_list() == [v["gflops_per_image"] for v in values]


@pytest.mark.parametrize("failed", [0, 4])
def test_a_run_without_completed_trials_has_all_tables(tmp_path, failed):
    folder = write_run(tmp_path / "run", make_trials(failed, generation=2, failed=range(failed)))
    found = load_run(folder)
    assert (len(found.trials), len(found.pareto), len(found.generations)) == (
        failed,
        0,
        failed // 2,
    )
    assert list(found.pareto.columns) == list(found.trials.columns) == COLUMNS
    for row in read_csv(folder / "generations.csv"):
        assert (row["failed"], row["front_size"], float(row["hypervolume"])) == ("2", "0", 0.0)
        assert row["best_fid"] == row["best_gflops_per_image"] == ""


def test_a_run_gives_back_the_schedule_of_every_trial(run, trials):
    schedules = load_run(run).schedules
    assert schedules == {t.key: StepSchedule.from_json(t.schedule) for t in trials}
    assert all(schedule.key() == key for key, schedule in schedules.items())


def test_reading_writes_nothing_and_needs_no_lock(run, trials, tmp_path):
    store = RunStore.create(tmp_path / "run", OBJECTIVES, FILES)
    with pytest.raises(ConfigError, match="no generation is finished"):
        load_run(store.path)
    store.append(trials[1])
    store.write_tables()
    before = {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()}
    assert len(load_run(store.path).trials) == 1
    assert {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()} == before
    store.close()
    with pytest.raises(ConfigError, match="no run directory"):
        load_run(tmp_path)


def test_a_failure_needs_no_objectives():
    assert not replace(make_trials(1)[0], result=Failure("E: no", 3)).complete


# --- tables cost little of a search's time


def test_tables_that_nobody_asked_for_take_a_twentieth_of_the_time_at_most(
    trials, tmp_path, monkeypatch
):
    """A clock on which a table takes a second to write."""
    store = RunStore.create(tmp_path / "run", OBJECTIVES, FILES)
    now, written = [0.0], []

    def write(frame_of, *args):
        written.append(now[0])
        now[0] += 1.0
        return frame_of(*args)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "trial_frame", functools.partial(write, module.trial_frame))
    for n, trial in enumerate(trials):
        store.append(trial)
        store.write_tables(final=False)
        now[0] = 7.0 * (n + 1)
    assert written == [0.0, 21.0, 42.0, 63.0, 84.0, 105.0, 126.0]
    assert len(read_csv(store.path / "trials.csv")) == 19
    store.write_tables()
    assert len(read_csv(store.path / "trials.csv")) == len(trials)
    store.close()


def test_what_a_killed_driver_had_begun_to_write_is_removed(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    names = {path.name for path in folder.iterdir()}
    for name in ("trials.csv", "trials.parquet", "journal.torn-1"):
        (folder / f".{name}.4242.tmp").write_text("half")
    RunStore(folder, OBJECTIVES).close()
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("worst", [-2.0, 1.7e308])
def test_a_bound_lies_beyond_the_worst_value_and_is_finite(trials, tmp_path, worst):
    done = [t for t in trials if t.complete][:3]
    values = [{"fid": worst, "gflops_per_image": 2.0}, {"fid": -5.0, "gflops_per_image": 3.0}]
    results = [replace(t.result, values=v) for t, v in zip(done, values, strict=False)]
    scored = [replace(t, result=r, generation=0) for t, r in zip(done, results, strict=False)]
    (row,) = read_csv(write_run(tmp_path / "run", scored) / "generations.csv")
    bound = 0.9 * worst if worst < 0 else sys.float_info.max
    volume = (bound - worst) * (3.3 - 2.0) + (worst + 5.0) * (3.3 - 3.0)
    assert float(row["hypervolume"]) == pytest.approx(volume, rel=1e-12)
