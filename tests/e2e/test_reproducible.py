"""The same search gives the same tables, whoever runs it and on how many workers."""

import pytest
from support import copy_toy, read_csv, timeless

from stepsearch.config import read_space
from stepsearch.run import Resources, start_run

BUDGET = ["search.population=8", "search.generations=3", "evaluation.images=200"]
PARTS = {".csv", ".json", ".jsonl", ".parquet", ".yaml", ".txt", ".png", ".pdf", ".svg"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the toy space once per name; networks and statistics are shared between runs."""
    base = tmp_path_factory.mktemp("toy")
    space, patch = copy_toy(base), pytest.MonkeyPatch()
    patch.setenv("STEPSEARCH_CACHE", str(base / "cache"))

    def start(name, seed=0, **resources):
        folder = base / "results" / name
        if not folder.exists():
            settings = read_space(space, [*BUDGET, f"search.seed={seed}"])
            start_run(settings, folder, space.read_text(), Resources(**resources), resume=False)
        return folder

    yield start
    patch.undo()


def stable_bytes(folder):
    """Every byte of the tables but those of the columns that hold times."""
    return {name: timeless(folder / name) for name in ("trials.csv", "pareto.csv")} | {
        "generations.csv": (folder / "generations.csv").read_bytes()
    }


def test_the_same_seed_gives_the_same_tables(run):
    one, same = run("one"), run("same")
    assert stable_bytes(one) == stable_bytes(same)
    rows = read_csv(one / "trials.csv")
    assert len(rows) == 24
    assert {row["state"] for row in rows} == {"COMPLETE"}
    assert 1 < len(read_csv(one / "pareto.csv")) < 24
    assert all(row[c] for row in rows for c in ("seconds", "started_at"))


def test_another_seed_gives_other_trials(run):
    one, other = (read_csv(run(name, seed) / "trials.csv") for name, seed in (("one", 0), ("b", 1)))
    assert [row["key"] for row in one] != [row["key"] for row in other]
    shared = {row["key"]: row["fid"] for row in one}
    both = [row for row in other if row["key"] in shared]
    assert len(both) >= 4  # the uniform strategies
    assert all(row["fid"] == shared[row["key"]] for row in both)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_but_times(run, workers):
    local = run("one")
    ray = run(f"ray-{workers}", workers=workers, executor="ray")
    assert stable_bytes(ray) == stable_bytes(local)


def test_a_finished_run_directory_is_data_and_says_how_it_was_measured(run):
    folder = run("one")
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert path.suffix in PARTS, path.name
            head = path.read_bytes()[:4]
            assert not head.startswith((b"\x80", b"PK")), f"{path.name} looks like a pickle"
    for row in read_csv(folder / "trials.csv"):
        assert (row["n_samples"], row["seed"]) == ("200", "0")
        assert row["metric_id"].startswith("classifier-")
        assert float(row["fid_se"]) > 0
