"""`submit` and `export` as they are typed; Ray's job API is a dictionary."""

import json
import shlex
import sys
from types import SimpleNamespace

import optuna
import pytest
import yaml
from command import call, one_line, stepsearch
from support import OBJECTIVES, ROOT, copy_toy, make_trials, read_csv

from stepsearch.executors import ray_jobs
from stepsearch.store import RunStore

URL = "http://127.0.0.1:1"


class Jobs:
    """What was submitted, with the files that were sent."""

    def __init__(self, address):
        assert address == URL
        self.jobs = JOBS

    def submit_job(self, *, entrypoint, submission_id, runtime_env):
        job = SimpleNamespace(
            submission_id=submission_id,
            entrypoint=entrypoint,
            sent="working_dir" in runtime_env,
            status=SimpleNamespace(value="FAILED"),
            driver_exit_code=75,
        )
        self.jobs.append(job)

    def list_jobs(self):
        return self.jobs

    def get_job_info(self, name):
        return next(job for job in self.jobs if job.submission_id == name)

    def get_job_logs(self, name):
        return "the last words"


JOBS = []


@pytest.fixture
def jobs(monkeypatch):
    JOBS.clear()
    monkeypatch.setattr(ray_jobs, "open_client", Jobs)
    return JOBS


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return folder, str(copy_toy(folder))


def test_a_job_runs_the_space_that_is_sent_with_it(toy, jobs):
    folder, space = toy
    words = ["submit", "ray", space, "search.seed=3", "--address", URL, "-o", "s3://b/run"]
    done = call(folder, *words, "--workers", "64", "--gpus-per-worker", "0.5")
    assert done.returncode == 0, done.stderr
    (job,) = jobs
    assert done.stdout == f"{job.submission_id}\n"
    assert shlex.split(job.entrypoint) == [
        *("stepsearch", "run", "space.yaml", "--resume", "-o", "s3://b/run"),
        *("--address", "auto", "--workers", "64", "--gpus-per-worker", "0.5"),
    ]
    assert job.sent


def test_in_place_the_space_is_named_where_it_lies(toy, jobs):
    folder, space = toy
    words = ["submit", "ray", space, "search.seed=3", "--address", URL, "-o", "/runs/x"]
    assert call(folder, *words, "--in-place", "--run-id", "mine").returncode == 0
    (job,) = jobs
    assert (job.submission_id, job.sent) == ("mine", False)
    command = shlex.split(job.entrypoint)
    assert command[2] == space
    assert command[-1] == "search.seed=3"


def test_the_same_search_has_the_same_id_and_another_has_another(toy, jobs):
    folder, space = toy
    words = ["submit", "ray", space, "--address", URL, "-o", "/runs/x"]
    for more in ([], [], ["search.seed=1"], ["-o", "/runs/y"]):
        assert call(folder, *words, *more).returncode == 0
    first, again, seed, place = (job.submission_id for job in jobs)
    assert again == f"{first}-again-2"  # the stub's jobs fail at once
    assert len({first, seed, place}) == 3


def test_waiting_gives_the_status_and_the_last_words_of_the_search(toy, jobs):
    folder, space = toy
    done = call(folder, "submit", "ray", space, "--address", URL, "-o", "/runs/x", "--wait")
    assert done.returncode == 75
    assert "the last words" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ray", "-o", "/x"], "--address is missing"),
        (["ray", "--address", URL], "-o: missing"),
        (["ray", "--address", URL, "-o", "runs/x"], "a job runs in a temporary folder"),
        (["slurm", "-o", "runs/x"], "a job runs in a temporary folder"),
        (["slurm", "-o", "/x", "--run-id", "a b"], "--run-id: 'a b'"),
        (["slurm", "-o", "/x", "--nodes", "0"], "--nodes: must be at least 1"),
        (["slurm", "-o", "/x", "--sbatch", "x"], "sbatch option 'x'"),
        (["kuberay", "-o", "/x"], "--image is missing"),
        (["ray", "-o", "/x", "--address", URL, "search.seed=x"], "search.seed"),
    ],
)
def test_what_cannot_be_submitted_is_said_in_a_line(toy, jobs, words, says):
    folder, space = toy
    one_line(call(folder, "submit", *words, space), says)
    assert jobs == []


def test_without_rays_job_api_the_remedy_is_named(toy, monkeypatch):
    folder, space = toy
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    words = ["submit", "ray", space, "--address", URL, "-o", "/x"]
    one_line(call(folder, *words), "pip install 'stepsearch[cluster]'")


def test_job_files_are_printed_and_nothing_else(toy):
    folder, space = toy
    done = call(folder, "submit", "slurm", space, "-o", "/runs/x", "--nodes", "2")
    assert done.returncode == 0
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=toy\n#SBATCH --nodes=2\n")
    words = ["--image", "registry/stepsearch:1", "-o", "/runs/x", "--volume", "claim:/runs"]
    done = call(folder, "submit", "kuberay", "/runs/toy space.yaml", *words)
    assert done.returncode == 0, done.stderr
    config, job = yaml.safe_load_all(done.stdout)
    assert (config["kind"], job["metadata"]["name"]) == ("ConfigMap", "toy-space")


def test_a_run_is_exported_as_a_study(tmp_path):
    resolved = "schedule: {calls: [3, 6], grid: [uniform, quad], solver: [ddim, pfdiff]}"
    env = json.dumps({"objectives": list(OBJECTIVES), "supernets": {"net": {}}})
    store = RunStore.create(
        tmp_path / "run", OBJECTIVES, {"resolved.yaml": resolved, "env.json": env}
    )
    for trial in make_trials(12):
        store.append(trial)
    store.write_tables()
    store.close()
    done = call(tmp_path, "export", "run", "--to", "optuna", "sqlite:///study.db")
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    study = optuna.load_study(study_name="run", storage=f"sqlite:///{tmp_path}/study.db")
    front = {int(row["trial_id"]) for row in read_csv(tmp_path / "run" / "pareto.csv")}
    assert {t.user_attrs["trial_id"] for t in study.best_trials} == front
    one_line(call(tmp_path, "export", "run", "--to", "csv", "x"), "unknown format 'csv'")
    one_line(call(tmp_path, "export", "nothing", "--to", "optuna", "sqlite:///x.db"), "no run")


def test_help_needs_no_cluster():
    for command in ("plan", "submit", "export"):
        done = stepsearch(ROOT, command, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: stepsearch {command}")
