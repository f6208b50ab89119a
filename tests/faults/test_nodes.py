"""Nodes of a simulated cluster that are lost, and come back, change nothing of a run."""

import contextlib
import hashlib
import os
import signal
import threading

import pytest
from ray_stub import Careful, assert_same_run, search, stub_factory, undisturbed
from support import make_trials, score, settings_with

from stepsearch.core.errors import Interrupted
from stepsearch.core.schedule import StepSchedule
from stepsearch.executors import ray_pool
from stepsearch.executors.ray_pool import RayExecutor

pytestmark = [pytest.mark.faults, pytest.mark.ray]

NODES = 3
STORE = {"object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without workers and three nodes of one CPU, with a cache of their own."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("STEPSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **STORE})
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, **STORE)
    patch.undo()
    yield cluster
    cluster.shutdown()


@pytest.mark.timeout(3600)
def test_nodes_lost_at_random_moments_change_no_table(tmp_path, cluster, size, injected):
    losses = size(10, 200)
    settings = settings_with(population=24, generations=4)
    undisturbed(settings, tmp_path / "whole")
    executor, searches = RayExecutor(stub_factory(0.1), NODES, address=cluster.address), 0
    missing = threading.Event()

    def lose_node(executor, rng):
        if missing.is_set():
            return False
        victim = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
        cluster.remove_node(victim, allow_graceful=False)
        missing.set()
        return True

    def on_trial(progress):
        killer.on_trial(progress)
        if missing.is_set():  # Ray adds nodes in the main thread only
            cluster.add_node(num_cpus=1, **STORE)
            missing.clear()

    try:
        with Careful(executor, lose_node, losses, pause=3.0) as killer:
            while killer.left:
                searches += 1
                killer.new_search()
                folder = tmp_path / f"run-{searches}"
                search(settings, folder, executor, on_trial)
                assert_same_run(folder, tmp_path / "whole")
        injected("node lost", killer.done)
    finally:
        executor.close()


def test_a_worker_whose_node_has_not_the_files_gets_them_from_the_driver(tmp_path, cluster):
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"weights" * 100_000)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def factory(paths):
        from dataclasses import replace
        from pathlib import Path

        here = Path(paths[str(path)])
        result = replace(measured, metric_id=f"{here.is_relative_to(tmp_path)}-{here.name}")
        assert len(here.read_bytes()) == 700_000
        return lambda schedule: result

    schedules = [StepSchedule.from_json(t.schedule) for t in make_trials(2)]
    measured = score(schedules[0])
    executor = RayExecutor(factory, 1, address=cluster.address, files=[(str(path), sha256)])
    with contextlib.closing(executor):
        ((_, before),) = executor.map(schedules[:1])
        path.unlink()  # as it would be on another machine
        os.kill(executor.pids[0], signal.SIGKILL)
        ((_, after),) = executor.map(schedules[1:])
    assert before.metric_id == "True-network.safetensors"
    assert after.metric_id == "False-network.safetensors"


def test_a_head_that_is_gone_interrupts_the_run(cluster, monkeypatch):
    """Last: the cluster does not outlive it."""
    monkeypatch.setattr(ray_pool, "HEAD_SECONDS", 2.0)
    executor = RayExecutor(stub_factory(seconds=1.0), 1, address=cluster.address)
    schedules = [StepSchedule.from_json(t.schedule) for t in make_trials(100)]
    with contextlib.closing(executor):
        results = executor.map(schedules)
        next(results)
        cluster.head_node.kill_gcs_server()
        with pytest.raises(Interrupted, match="head of the cluster") as caught:
            list(results)
    assert caught.value.exit_code == 75
