"""Steady mode: tell one, ask one. Nothing is lost; the front may be another each time."""

import random
from dataclasses import replace

import pytest
from support import CARDS, OBJECTIVES, SETTINGS, SPACE, StubExecutor, read_csv, score, settings_with

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.core.errors import FailureBudgetExceeded, Interrupted, RunError
from stepsearch.core.trial import Failure
from stepsearch.search import run_search
from stepsearch.store import RunStore

STEADY = [n for n in ALGORITHMS if ALGORITHMS[n].steady and n != "optuna-gp"]  # seconds an ask
BUDGET = SETTINGS.search.population * SETTINGS.search.generations


class Flying:
    """`workers` at a time, finished in an order of their own; ends after `stop` results."""

    def __init__(self, workers=4, stop=None, seed=0, fails=lambda schedule: False):
        self.workers, self.stop, self.rng, self.fails = workers, stop, random.Random(seed), fails
        self.begun, self.most, self.yielded = [], 0, 0

    def map(self, schedules, rung=None):
        source, flying = iter(schedules), []
        while self.yielded != self.stop:
            while len(flying) < self.workers and (s := next(source, None)) is not None:
                self.begun.append((s.key(), self.yielded))
                flying.append(s)
            self.most = max(self.most, len(flying))
            if not flying:
                return
            done = flying.pop(self.rng.randrange(len(flying)))
            self.yielded += 1
            failure = Failure("E: no", 3)
            yield done.key(), failure if self.fails(done) else score(done)


def search(folder, executor, settings):
    if folder.exists():
        store = RunStore(folder, OBJECTIVES)
    else:
        store = RunStore.create(folder, OBJECTIVES, {})
    try:
        run_search(settings, CARDS, store, executor)
        store.write_tables()
    finally:
        store.close()
    return store.trials


def steady(**search):
    return settings_with(mode="steady", **search)


@pytest.mark.parametrize("algorithm", STEADY)
@pytest.mark.parametrize("workers", [1, 5])
def test_the_whole_budget_is_spent_on_different_schedules(tmp_path, algorithm, workers):
    executor = Flying(workers)
    trials = search(tmp_path / "run", executor, steady(algorithm=algorithm))
    assert len({t.key for t in trials}) == len(trials) == BUDGET
    assert sorted(t.trial_id for t in trials) == list(range(BUDGET))
    assert all(t.generation == t.trial_id // SETTINGS.search.population for t in trials)
    assert executor.most == workers


def test_a_free_worker_gets_a_schedule_before_the_next_result_is_waited_for(tmp_path):
    """The n-th schedule is begun as soon as n - workers results are in."""
    executor = Flying(5)
    search(tmp_path / "run", executor, steady())
    assert [after for _, after in executor.begun] == [max(0, n - 4) for n in range(BUDGET)]


def test_with_one_worker_every_ask_knows_every_result(tmp_path):
    trials = [search(tmp_path / str(n), Flying(1, seed=n), steady()) for n in range(2)]
    assert [t.key for t in trials[0]] == [t.key for t in trials[1]]
    other = search(tmp_path / "other", Flying(1), steady(seed=1))
    assert [t.key for t in trials[0]] != [t.key for t in other]


@pytest.mark.parametrize("algorithm", STEADY)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_stopped_again_and_again_loses_nothing_and_pays_nothing_twice(
    tmp_path, algorithm, workers
):
    folder, lines = tmp_path / "run", b""
    settings = steady(algorithm=algorithm)
    while (left := BUDGET - lines.count(b"\n")) > 5:
        with pytest.raises(Interrupted, match="stepsearch resume"):
            search(folder, Flying(workers, stop=5, seed=left), settings)
        journal = (folder / "journal.jsonl").read_bytes()
        assert journal.startswith(lines)
        assert journal.count(b"\n") == lines.count(b"\n") + 5
        lines = journal
    search(folder, Flying(workers), settings)
    rows = read_csv(folder / "trials.csv")
    assert [int(row["trial_id"]) for row in rows] == list(range(BUDGET))
    assert len({row["key"] for row in rows}) == BUDGET
    assert (folder / "journal.jsonl").read_bytes().count(b"\n") == BUDGET


def test_a_finished_search_asks_nothing_more(tmp_path):
    search(tmp_path / "run", Flying(), steady())
    executor = Flying()
    search(tmp_path / "run", executor, steady())
    assert not executor.begun
    more = Flying()
    assert len(search(tmp_path / "run", more, steady(generations=6))) == BUDGET + 12
    assert len(more.begun) == 12


def test_the_journal_of_another_space_is_refused(tmp_path):
    search(tmp_path / "run", Flying(), steady())
    other = replace(steady(), space=replace(SPACE, calls=(3, 4, 5)))
    with pytest.raises(RunError, match="another search"):
        search(tmp_path / "run", Flying(), other)


def test_an_exhausted_space_ends_the_search(tmp_path):
    space = replace(SPACE, calls=(3,), grids=("uniform",), solvers=(("ddim", {}),), width_genes=1)
    trials = search(tmp_path / "run", Flying(), replace(steady(generations=50), space=space))
    assert len(trials) == 4


def test_failures_are_told_and_too_many_end_the_search(tmp_path):
    trials = search(tmp_path / "few", Flying(fails=lambda s: s.key()[-1] == "0"), steady())
    assert len(trials) == BUDGET
    with pytest.raises(FailureBudgetExceeded, match="5 allowed"):
        search(tmp_path / "all", Flying(fails=lambda s: True), steady())


def test_both_modes_end_with_the_same_front_on_an_exhausted_space(tmp_path):
    space = replace(SPACE, calls=(3, 4), grids=("uniform",), solvers=("ddim",), width_genes=2)
    fronts = []
    for mode in ("steady", "generational"):
        settings = replace(settings_with(mode=mode, generations=20), space=space)
        executor = Flying() if mode == "steady" else StubExecutor()
        search(tmp_path / mode, executor, settings)
        rows = read_csv(tmp_path / mode / "pareto.csv")
        fronts.append({row["key"] for row in rows})
    assert fronts[0] == fronts[1]
