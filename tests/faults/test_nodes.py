"""Nodes of a simulated cluster that are lost, and come back, change nothing of a run."""

import threading

import pytest
from ray_stub import Careful, assert_same_run, search, stub_factory, undisturbed
from support import settings_with

from stepsearch.executors.ray_pool import RayExecutor

pytestmark = [pytest.mark.faults, pytest.mark.ray]

NODES = 3
STORE = {"object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture
def cluster():
    """A head without workers and three nodes of one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **STORE})
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, **STORE)
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
