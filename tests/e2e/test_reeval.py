"""`stepsearch reeval` as a user runs it: what it writes, that it continues, what it refuses."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from command import call, files, one_line
from filelock import FileLock
from support import copy_toy

from stepsearch import reeval
from stepsearch.core.trial import Failure
from stepsearch.evaluate import replicate_name
from stepsearch.journal import Journal, read_journal
from stepsearch.objectives.bootstrap import REPLICATES

SMALL = ["search.population=5", "search.generations=2", "evaluation.images=100"]
MANY = ("--samples", "150", "--neighbours", "3", "--executor", "local")
PATH = "results/toy"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished search of ten trials by 100 images each."""
    folder = tmp_path_factory.mktemp("reeval")
    space = copy_toy(folder)
    done = call(folder, "run", str(space), *SMALL, "evaluation.device=cpu", "-o", PATH)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def _no_plots(monkeypatch):
    """Drawing takes longer than all else."""
    monkeypatch.setattr(reeval, "plot_all", lambda *args: [])


@pytest.fixture
def run(home, tmp_path, _no_plots):
    """A copy of the run with all that it needs; the path is that of the run directory."""
    for name in ("search_spaces", "supernets", "results", "cache"):
        shutil.copytree(home / name, tmp_path / name)
    resolved = tmp_path / PATH / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(str(home), str(tmp_path)))
    return tmp_path / PATH


def again(run, *argv, seeds=2):
    folder = run.parents[1]
    return call(folder, "reeval", PATH, *MANY, "--seeds", str(seeds), *argv)


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory):
    """The run after two seeds: what was said, and the folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("search_spaces", "supernets", "results", "cache"):
        shutil.copytree(home / name, folder / name)
    resolved = folder / PATH / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(str(home), str(folder)))
    done = again(folder / PATH)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(done=done, run=folder / PATH)


def journals(run):
    return {p.name: p.read_bytes() for p in run.glob("reeval-*.jsonl")}


def table_of(run):
    return (run / "reeval.csv").read_text()


class TestWhatIsWritten:
    def test_the_table_is_what_the_journals_hold(self, undisturbed):
        table = pd.read_csv(undisturbed.run / "reeval.csv").set_index("trial_id")
        trials = pd.read_csv(undisturbed.run / "trials.csv").set_index("trial_id")
        front = trials.index[trials["is_pareto"]]
        assert len(table) == len(front) + 3
        assert set(front) <= set(table.index)
        names = [f"reeval-150-seed{seed}.jsonl" for seed in (1000, 1001)]
        assert sorted(journals(undisturbed.run)) == names
        found = [read_journal(undisturbed.run / name)[0] for name in names]
        for one, seed in zip(found, (1000, 1001), strict=True):
            assert {t.trial_id for t in one} == set(table.index)
            assert {(t.result.seed, t.result.n_samples) for t in one} == {(seed, 150)}
        for i, row in table.iterrows():
            both = [next(t.result.values for t in one if t.trial_id == i) for one in found]
            assert row["fid_150"] == pytest.approx(np.mean([v["fid"] for v in both]))
            assert row["fid_150_sd"] == pytest.approx(np.std([v["fid"] for v in both], ddof=1))
            deviations = [[v[replicate_name(b)] for b in range(REPLICATES)] for v in both]
            error = np.std(np.mean(deviations, axis=0), ddof=1)
            assert row["fid_150_se"] == pytest.approx(error)
            assert row["fid"] == trials["fid"][i]

    def test_the_noise_is_new(self, undisturbed):
        table = pd.read_csv(undisturbed.run / "reeval.csv")
        assert (table["fid"] != table["fid_150"]).all()
        assert json.loads((undisturbed.run / "reeval.json").read_text())["seeds"] == [1000, 1001]

    def test_the_sentence_is_all_of_stdout(self, undisturbed):
        summary = json.loads((undisturbed.run / "reeval.json").read_text())
        assert undisturbed.done.stdout == summary["sentence"] + "\n"
        assert "warning" in undisturbed.done.stderr or summary["kendall_tau_b"]["tau"] >= 0.8

    def test_a_front_is_a_proxy_until_then(self, home, undisturbed):
        before = call(home, "front", PATH)
        after = call(undisturbed.run.parents[1], "front", PATH)
        assert before.stderr.startswith("proxy front (100 images); `stepsearch reeval ")
        assert "re-measured with 150 (2 seeds" in after.stderr
        assert before.stdout == after.stdout  # data stay data

    def test_plots_are_drawn_again(self, home, undisturbed):
        before, after = (r / "plots" / "front.png" for r in (home / PATH, undisturbed.run))
        assert before.read_bytes() != after.read_bytes()
        drawn = after.read_bytes()
        after.unlink()
        done = call(undisturbed.run.parents[1], "plot", PATH)
        assert done.returncode == 0
        assert after.read_bytes() == drawn  # the new front, not the proxy

    def test_what_the_search_wrote_stays(self, home, undisturbed):
        for name in ("journal.jsonl", "trials.csv", "pareto.csv", "resolved.yaml", "env.json"):
            old = (home / PATH / name).read_text().replace(str(home), "")
            new = (undisturbed.run / name).read_text()
            assert new.replace(str(undisturbed.run.parents[1]), "") == old


class TestContinuing:
    @pytest.fixture
    def measured(self, undisturbed, tmp_path, _no_plots):
        """A copy that has two seeds already."""
        shutil.copytree(undisturbed.run.parents[1], tmp_path / "copy")
        run = tmp_path / "copy" / PATH
        text = (run / "resolved.yaml").read_text()
        text = text.replace(str(undisturbed.run.parents[1]), str(tmp_path / "copy"))
        (run / "resolved.yaml").write_text(text)
        return run

    def test_nothing_is_measured_twice(self, measured, monkeypatch):
        table, known = table_of(measured), journals(measured)
        monkeypatch.setattr(reeval, "_executor", None)  # nothing asks for one
        assert again(measured).returncode == 0
        assert (table_of(measured), journals(measured)) == (table, known)

    def test_more_seeds_are_added(self, measured):
        known = journals(measured)
        done = again(measured, seeds=3)
        assert done.returncode == 0, done.stderr
        new = journals(measured)
        assert new.keys() - known.keys() == {"reeval-150-seed1002.jsonl"}
        assert known.items() <= new.items()
        assert pd.read_csv(measured / "reeval.csv")["seeds"].eq(3).all()
        assert "mean of 3 seeds" in done.stdout

    def test_a_torn_line_is_set_aside_and_measured_again(self, measured):
        table, path = table_of(measured), measured / "reeval-150-seed1001.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        done = again(measured)
        assert done.returncode == 0
        assert "torn; set aside as" in done.stderr
        assert table_of(measured) == table
        assert len(path.read_bytes().splitlines()) == len(whole.splitlines())

    def test_damage_before_the_end_is_exit_5(self, measured):
        path = measured / "reeval-150-seed1000.jsonl"
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.write_bytes(data)
        one_line(again(measured), "reeval-150-seed1000.jsonl:1: damaged line", status=5)

    def test_a_signal_drains_and_the_same_command_continues(self, run, undisturbed, monkeypatch):
        append = Journal.append

        def then_stop(self, trial):
            append(self, trial)
            if len(read_journal(self.path)[0]) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Journal, "append", then_stop)
        done = again(run)
        assert (done.returncode, done.stdout) == (75, "")
        assert "continue with `stepsearch reeval results/toy --samples 150 --seeds 2" in done.stderr
        assert not (run / "reeval.csv").exists()
        (path,) = run.glob("reeval-*.jsonl")
        assert len(read_journal(path)[0]) == 2
        monkeypatch.undo()
        assert again(run).returncode == 0
        assert table_of(run) == table_of(undisturbed.run)


class Failing:
    """An executor that fails some schedules; the others are measured as ever."""

    def __init__(self, executor, count):
        self.executor, self.left = executor, count

    def map(self, schedules, rung=None):
        for key, result in self.executor.map(schedules):
            self.left -= 1
            yield key, Failure("E: lost", 3) if self.left >= 0 else result

    def close(self):
        self.executor.close()


class TestFailures:
    @pytest.fixture
    def failing(self, monkeypatch):
        make = reeval._executor

        def failing(count):
            monkeypatch.setattr(reeval, "_executor", lambda *args: Failing(make(*args), count))

        return failing

    def test_one_is_left_out_and_tried_again_next_time(self, run, undisturbed, failing):
        failing(1)
        done = again(run, seeds=1)
        assert done.returncode == 0, done.stderr
        assert "failed: E: lost" in done.stderr
        whole = pd.read_csv(undisturbed.run / "reeval.csv")
        assert len(pd.read_csv(run / "reeval.csv")) == len(whole) - 1
        failing(0)
        assert again(run).returncode == 0
        assert table_of(run) == table_of(undisturbed.run)

    def test_too_many_are_exit_3(self, run, failing):
        failing(100)
        done = again(run, "--neighbours", "10")
        assert (done.returncode, done.stdout) == (3, "")
        assert "6 evaluations failed, more than the 5 allowed" in done.stderr


class TestRefusals:
    def refused(self, run, *argv, says, status=2, seeds=2):
        before = files(run)
        done = again(run, *argv, seeds=seeds)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("stepsearch: ")
        assert says in last
        now = files(run)
        for path in (run / ".lock", run / "log.txt", run):
            before.pop(path, None)
            now.pop(path, None)
        assert now == before

    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (("--samples", "99"), "--samples: 99 images are fewer than the 100 of the search"),
            (("--neighbours", "-1"), "--neighbours: must not be negative, got -1"),
            (("--workers", "0"), "--workers: must be at least 1, got 0"),
            (("--workers", "2"), "--executor local: runs 1 worker, got 2"),
            (("--seeds", "0"), "--seeds: must be at least 1, got 0"),
        ],
        ids=lambda v: " ".join(v),
    )
    def test_arguments(self, run, argv, says):
        self.refused(run, *argv, says=says)

    def test_no_run(self, run):
        one_line(call(run.parents[1], "reeval", "search_spaces"), "search_spaces: no run directory")

    def test_a_run_that_another_driver_holds(self, run):
        with FileLock(run / ".lock"):
            self.refused(run, says="another stepsearch is writing here", status=5)

    def test_a_network_that_was_trained_again(self, run):
        env = json.loads((run / "env.json").read_text())
        env["supernets"]["toy"] = {"key": "toy@00000000", "sha256": "0" * 64}
        (run / "env.json").write_text(json.dumps(env))
        self.refused(run, says="supernets changed", status=5)

    def test_a_network_that_is_gone(self, run):
        for path in (run.parents[1] / "supernets").glob("*.safetensors"):
            path.unlink()
        self.refused(run, says="no such weights; train them with `stepsearch train")

    def test_a_run_without_fid(self, run):
        text = (run / "resolved.yaml").read_text()
        (run / "resolved.yaml").write_text(text.replace("- fid\n", "- nfe\n"))
        self.refused(run, says="fid is none of its objectives")


@pytest.mark.ray
def test_two_workers_measure_what_one_does(run, undisturbed):
    argv = ("--samples", "150", "--neighbours", "3", "--seeds", "1", "--workers", "2")
    done = call(run.parents[1], "reeval", PATH, *argv)
    assert done.returncode == 0, done.stderr
    both = (read_journal(r / "reeval-150-seed1000.jsonl")[0] for r in (run, undisturbed.run))
    one, other = ({t.key: t.result.values for t in trials} for trials in both)
    assert one == other
