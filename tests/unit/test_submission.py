"""Job files: every value arrives as it was typed, and a search that is warned continues."""

import os
import shlex
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stepsearch.core.errors import ConfigError
from stepsearch.executors.ray_jobs import submit_once, wait_for
from stepsearch.submission import (
    Nodes,
    Pods,
    Search,
    check_output,
    check_words,
    kuberay_manifest,
    slurm_script,
)

# what shells and YAML take for something else
NASTY = [
    "a b",
    "a;b",
    "$(touch x)",
    "`id`",
    "x\ny",
    "'",
    '"',
    "\\",
    "$HOME",
    "&",
    "#",
    "*",
    "-n",
    "",
]
NASTY += ["{a,b}", "~", "!x", "a\tb", "\r", "$'x'", "\u2028", "yes", ": x", "- x", "\u00e9", "%"]
ODD = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
)
SEARCHES = st.builds(
    Search,
    space=ODD.map("/{}".format),
    output=ODD.map("/{}".format),
    workers=st.integers(1, 99),
    gpus_per_worker=st.one_of(st.none(), st.just(0.5)),
    overrides=st.lists(ODD.map("key={}".format), max_size=3).map(tuple),
)
STUBS = {
    "python3": "echo token",
    "srun": '[ "$1" = --export=ALL ] && shift; exec "$@"',
    "ray": 'while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "scontrol": 'case "$1" in show) echo node1; echo node2;; *) echo "$@" >> "$SAID";; esac',
    "stepsearch": 'printf "%s\\0" stepsearch "$@" > "$SAID.args"; exit "${CODE:-0}"',
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Runs a script with commands that stand for SLURM, Ray and stepsearch."""
    folder = tmp_path_factory.mktemp("cluster")
    for name, text in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    said = folder / "said"
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SAID": str(said),
        "SLURM_JOB_ID": "10123",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "TMPDIR": str(folder),
    }

    def run(script, **extra):
        for path in (said, said.with_suffix(".args")):
            path.unlink(missing_ok=True)
        check = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert check.returncode == 0, check.stderr
        done = subprocess.run(["bash", "-c", script], env=environment | extra, timeout=20)
        text = said.with_suffix(".args").read_bytes().decode()
        said_text = said.read_text() if said.exists() else ""
        return done.returncode, text.split("\0")[:-1], said_text

    run.folder, run.environment = folder, environment
    return run


@settings(max_examples=60)
@given(SEARCHES)
def test_slurm_hands_the_search_every_word_as_it_was_typed(cluster, search):
    script = slurm_script(search, "digits", Nodes(2, 8, 1), "24:00:00")
    code, words, _ = cluster(script)
    assert code == 0
    assert words == search.command("node1:20123")


@settings(max_examples=60)
@given(SEARCHES)
def test_kuberay_hands_the_search_every_word_as_it_was_typed(cluster, search):
    text = kuberay_manifest(search, "digits", Nodes(2, 8, 1), Pods("image:1"))
    config, job = yaml.safe_load_all(text)
    code, words, _ = cluster(config["data"]["run.sh"])
    assert code == 0
    assert words == search.command("auto")
    # the only thing that passes through shells that are not ours
    assert shlex.split(job["spec"]["entrypoint"]) == ["bash", "/etc/stepsearch/run.sh"]


@settings(max_examples=60)
@given(SEARCHES)
def test_the_command_of_a_ray_job_is_read_back_by_a_shell(cluster, search):
    code, words, _ = cluster(shlex.join(search.command("auto")))
    assert (code, words) == (0, search.command("auto"))


SEARCH = Search("/s/digits.yaml", "/runs/digits", 16, 0.5, ("search.seed=1",))


def test_a_job_whose_search_is_to_be_continued_is_put_back_into_the_queue(cluster):
    script = slurm_script(SEARCH, "digits", Nodes(2), "1:00:00")
    assert cluster(script, CODE="75")[::2] == (75, "requeue 10123\n")
    for code in ("0", "2", "5"):
        assert cluster(script, CODE=code)[::2] == (int(code), "")


def test_a_warning_reaches_the_search_alone_and_its_status_the_queue(cluster, tmp_path):
    """USR1 would end any process that does not expect it, as those of Ray."""
    ready = tmp_path / "ready"
    stub = cluster.folder / "stepsearch"
    before = stub.read_text()
    stub.write_text(
        f"#!/bin/bash\ntrap 'sleep 0.2; exit 75' USR1\ntouch {ready}\n"
        "while :; do sleep 0.05; done\n"
    )
    try:
        script = slurm_script(SEARCH, "digits", Nodes(1), "1:00:00")
        (cluster.folder / "said").unlink(missing_ok=True)
        job = subprocess.Popen(["bash", "-c", script], env=cluster.environment)
        while not ready.exists():
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == 75
        assert (cluster.folder / "said").read_text() == "requeue 10123\n"
    finally:
        stub.write_text(before)


def test_no_token_is_written_down_and_nothing_listens_everywhere():
    script = slurm_script(SEARCH, "digits", Nodes(2), "1:00:00")
    manifest = kuberay_manifest(SEARCH, "digits", Nodes(2), Pods("image:1"))
    assert "RAY_AUTH_MODE=token" in script
    assert yaml.safe_load_all(manifest)
    _, job = yaml.safe_load_all(manifest)
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for text in (script, manifest):
        assert "0.0.0.0" not in text
        assert "dashboard-host" not in text


def test_a_rayjob_asks_for_what_its_workers_need():
    search = Search("/s/digits.yaml", "/runs/digits", 16, 0.5)
    pods = Pods("image:1", "16Gi", "claim", "/runs")
    config, job = yaml.safe_load_all(kuberay_manifest(search, "digits", Nodes(4, 8, 2), pods))
    cluster_spec = job["spec"]["rayClusterSpec"]
    (workers,) = cluster_spec["workerGroupSpecs"]
    assert [workers[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [4, 4, 4]
    (container,) = workers["template"]["spec"]["containers"]
    asked = {"cpu": 8, "memory": "16Gi", "nvidia.com/gpu": 2}
    assert container["resources"] == {"requests": asked, "limits": asked}
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]
    head = cluster_spec["headGroupSpec"]["template"]["spec"]
    assert {"name": "command", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize(
    "option", ["-p gpu", "--account=a b", "--x=\n#SBATCH --y", "gpu", "--a=$(x)"]
)
def test_sbatch_options_that_would_be_something_else_are_refused(option):
    with pytest.raises(ConfigError, match="sbatch option"):
        slurm_script(SEARCH, "digits", Nodes(), "1:00:00", [option])
    with pytest.raises(ConfigError, match="sbatch option"):
        slurm_script(SEARCH, "digits", Nodes(), f"1:00 {option}")


@pytest.mark.parametrize(
    ("name", "pods"),
    [
        ("Digits", Pods("i")),
        ("digits.1", Pods("i")),
        ("a" * 48, Pods("i")),
        ("digits", Pods("i", memory="much")),
        ("digits", Pods("i", claim="c")),
        ("digits", Pods("i", claim="c", mount="runs")),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(name, pods):
    with pytest.raises(ConfigError):
        kuberay_manifest(SEARCH, name, Nodes(), pods)


@pytest.mark.parametrize("output", [None, "runs/x", "./x", "~/x", ""])
def test_results_in_a_temporary_folder_are_refused(output):
    with pytest.raises(ConfigError, match="a job runs in a temporary folder"):
        check_output(output)


def test_results_by_absolute_path_or_uri_are_taken():
    assert [check_output(o) for o in ("/runs/x", "s3://b/x")] == ["/runs/x", "s3://b/x"]


@pytest.mark.parametrize("word", ["a=\0", "a=\udcff"])
def test_words_that_no_command_can_hold_are_refused(word):
    with pytest.raises(ConfigError, match="no command can"):
        check_words(["fine", word])


class Jobs:
    """Ray's job API in a dictionary; an id is taken once, as Ray does."""

    def __init__(self):
        self.jobs = {}

    def submit_job(self, *, entrypoint, submission_id, runtime_env):
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id,
            status=SimpleNamespace(value="RUNNING"),
            driver_exit_code=None,
            entrypoint=entrypoint,
        )
        return submission_id

    def end(self, name, status, code):
        self.jobs[name].status.value, self.jobs[name].driver_exit_code = status, code

    def list_jobs(self):
        own = SimpleNamespace(submission_id=None, status="RUNNING", driver_exit_code=None)
        return [own, *self.jobs.values()]

    def get_job_info(self, name):
        return self.jobs[name]


@pytest.fixture
def jobs():
    return Jobs()


def submit(jobs, name="run"):
    return submit_once(jobs, name, "true", {})


def test_a_job_that_runs_is_not_submitted_twice(jobs):
    first, second = submit(jobs), submit(jobs)
    assert (first.job_id, first.submitted) == ("run", True)
    assert (second.job_id, second.submitted, second.status) == ("run", False, "RUNNING")
    assert list(jobs.jobs) == ["run"]


def test_a_job_that_succeeded_is_done(jobs):
    submit(jobs)
    jobs.end("run", "SUCCEEDED", 0)
    assert submit(jobs).status == "SUCCEEDED"
    assert list(jobs.jobs) == ["run"]


@pytest.mark.parametrize(("status", "code"), [("FAILED", 75), ("STOPPED", None), ("FAILED", 1)])
def test_a_job_that_ended_unfinished_is_continued_under_a_new_id(jobs, status, code):
    for expected in ("run", "run-again-2", "run-again-3"):
        assert submit(jobs).job_id == expected
        assert submit(jobs).job_id == expected  # while it runs
        jobs.end(expected, status, code)
    assert submit(jobs, "run-again").job_id == "run-again"  # a name of its own


def test_of_two_who_submit_at_once_one_does(jobs, monkeypatch):
    """Both have seen that there is no such job."""
    first = Jobs.submit_job

    def slower(self, **job):
        monkeypatch.setattr(Jobs, "submit_job", first)
        first(self, **job)
        return first(self, **job)

    monkeypatch.setattr(Jobs, "submit_job", slower)
    assert submit(jobs).submitted is False
    assert list(jobs.jobs) == ["run"]


def test_what_ray_refuses_is_said(jobs, monkeypatch):
    def refuse(self, **job):
        raise RuntimeError("no room\nTraceback")

    monkeypatch.setattr(Jobs, "submit_job", refuse)
    with pytest.raises(ConfigError, match=r"submit ray: no room$"):
        submit(jobs)


def test_waiting_ends_with_the_status_of_the_command(jobs):
    job, asked = submit(jobs), []

    def check():
        asked.append(1)
        if len(asked) == 3:
            jobs.end("run", "FAILED", 75)

    ended = wait_for(jobs, job, check, 0.0)
    assert (ended.exit_code, ended.status, len(asked)) == (75, "FAILED", 3)
