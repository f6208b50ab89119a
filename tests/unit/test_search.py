"""The loop of a search with stub scores: budget, order, resume, constraints, failures."""

from dataclasses import replace

import pytest
from support import (
    CARD,
    CARDS,
    OBJECTIVES,
    SETTINGS,
    SPACE,
    StubExecutor,
    read_csv,
    score,
    settings_with,
)

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.core.errors import FailureBudgetExceeded, NoFeasibleCandidate, RunError
from stepsearch.core.schedule import StepSchedule
from stepsearch.search import run_search
from stepsearch.store import RunStore

TABLES = ("trials.csv", "pareto.csv", "generations.csv", "trials.parquet")
SEARCH = SETTINGS.search
QUICK = [n for n in ALGORITHMS if not n.startswith("optuna-")] + ["optuna-nsga2"]  # of a kind
BUDGET = SEARCH.population * SEARCH.generations


class Stop(Exception):
    """Stands for whatever ends a driver."""


def open_store(folder):
    if folder.exists():
        return RunStore(folder, OBJECTIVES)
    return RunStore.create(folder, OBJECTIVES, {"space.yaml": "version: 1"})


def search(folder, settings=SETTINGS, executor=None, on_trial=lambda progress: None):
    """Start or continue a search; tables and the executor that was asked."""
    executor = executor or StubExecutor()
    store = open_store(folder)
    try:
        run_search(settings, CARDS, store, executor, on_trial)
    finally:
        store.close()
    return {name: (folder / name).read_bytes() for name in TABLES}, executor


def rows_of(folder):
    return read_csv(folder / "trials.csv")


def bad(schedule):
    """An eighth of all schedules."""
    return int(schedule.key()[-1], 16) < 2


def rarely(schedule):
    """A sixteenth of all schedules, so that no algorithm spends the failure budget."""
    return schedule.key()[-1] == "0"


# --- budget and order


@pytest.mark.parametrize("algorithm", QUICK)
def test_every_generation_brings_a_population_of_new_schedules(tmp_path, algorithm):
    _, executor = search(tmp_path / "run", settings_with(algorithm=algorithm))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == BUDGET == len({row["key"] for row in rows})
    assert [int(row["trial_id"]) for row in rows] == list(range(BUDGET))
    assert [int(row["generation"]) for row in rows] == [i // 6 for i in range(BUDGET)]
    assert set(executor.seen.values()) == {1}
    assert set(executor.seen) == {row["key"] for row in rows}


@pytest.mark.parametrize("algorithm", QUICK)
@pytest.mark.parametrize("shuffle", range(3))
def test_the_order_in_which_results_arrive_changes_nothing(tmp_path, algorithm, shuffle):
    settings, fails = settings_with(algorithm=algorithm), rarely
    in_order, _ = search(tmp_path / "a", settings, StubExecutor(fails))
    shuffled, _ = search(tmp_path / "b", settings, StubExecutor(fails, shuffle))
    lines = [(tmp_path / name / "journal.jsonl").read_bytes().splitlines() for name in "ab"]
    assert sorted(lines[0]) == sorted(lines[1])
    assert lines[0] != lines[1]
    assert in_order == shuffled


@pytest.mark.parametrize("algorithm", ["nsga2", "random"])
def test_within_a_generation_the_dearest_schedule_runs_first(tmp_path, algorithm):
    """So that no worker begins a long one when the others have nothing left to do."""
    _, executor = search(tmp_path / "run", settings_with(algorithm=algorithm))
    costs = [sum(map(CARD.gflops, schedule.widths)) for schedule in executor.schedules]
    generations = [costs[i : i + 6] for i in range(0, BUDGET, 6)]
    assert generations == [sorted(g, reverse=True) for g in generations]
    assert any(g[0] > g[-1] for g in generations)


def test_an_algorithm_that_learns_nothing_waits_for_no_generation(tmp_path):
    class Once(StubExecutor):
        calls = 0

        def map(self, schedules, rung=None):
            self.calls += 1
            return super().map(schedules, rung)

    for algorithm, calls in (("random", 1), ("best-uniform", 1), ("nsga2", 4)):
        executor = Once()
        search(tmp_path / algorithm, settings_with(algorithm=algorithm), executor)
        assert executor.calls == calls


def test_another_seed_is_another_search(tmp_path):
    found = {search(tmp_path / str(s), settings_with(seed=s))[0]["trials.csv"] for s in range(3)}
    assert len(found) == 3


@pytest.mark.parametrize(("population", "uniform"), [(6, 4), (12, 8), (16, 12), (3, 2), (2, 1)])
def test_the_first_generation_holds_the_uniform_strategies(tmp_path, population, uniform):
    """Up to 3/4 of it: widths with the first setting, and in up to half of these one strategy of
    the middle width for the other solvers and grids."""
    search(tmp_path / "run", settings_with(population=population, generations=1))
    rows = rows_of(tmp_path / "run")
    others = SPACE.setting_genomes(uniform // 2)
    genomes = [*SPACE.uniform_genomes(uniform - len(others)), *others]
    found = [row["widths"] for row in rows[: len(genomes)]]
    assert found == [f"{c.widths[0]}x{c.calls}" for c in map(SPACE.decode, genomes)]
    assert len(genomes) <= uniform
    assert len(others) == min(uniform // 2, 5)
    baselines = rows[: len(genomes) - len(others)]
    assert {(row["solver"], row["grid"]) for row in baselines} == {("ddim", "uniform")}
    assert len(rows) == population


def test_progress_tells_of_every_measured_trial(tmp_path):
    seen = []
    _, executor = search(tmp_path / "run", executor=StubExecutor(bad), on_trial=seen.append)
    rows = rows_of(tmp_path / "run")
    assert [p.done for p in seen] == list(range(1, BUDGET + 1))
    assert [p.latest.key for p in seen] == [schedule.key() for schedule in executor.schedules]
    assert {p.latest.key for p in seen} == {row["key"] for row in rows}
    assert {(p.planned, p.generations, p.replayed) for p in seen} == {(BUDGET, 4, 0)}
    assert seen[-1].failed == sum(row["state"] == "FAIL" for row in rows) > 0


# --- stop and resume


@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("algorithm", QUICK)
def test_a_search_stopped_after_any_trial_resumes_to_the_same_tables(tmp_path, algorithm, shuffle):
    settings = settings_with(algorithm=algorithm, generations=3)
    fails = rarely
    whole, once = search(tmp_path / "whole", settings, StubExecutor(fails))
    for k in range(1, len(once.seen) + 1):
        folder = tmp_path / str(k)

        def stop(progress, k=k):
            if progress.done == k:
                raise Stop

        first, second = StubExecutor(fails, shuffle), StubExecutor(fails, shuffle)
        with pytest.raises(Stop):
            search(folder, settings, first, stop)
        tables, _ = search(folder, settings, second)
        assert tables == whole
        assert first.seen + second.seen == once.seen
        assert sum(first.seen.values()) == k


def test_a_search_stopped_after_every_trial_ends_the_same(tmp_path):
    def stop(progress):
        raise Stop

    whole, _ = search(tmp_path / "whole")
    for k in range(BUDGET):
        executor = StubExecutor(shuffle=k)
        with pytest.raises(Stop):
            search(tmp_path / "run", executor=executor, on_trial=stop)
        assert sum(executor.seen.values()) == 1
    tables, executor = search(tmp_path / "run")
    assert tables == whole
    assert not executor.seen


def test_a_finished_search_is_left_as_it_is(tmp_path):
    tables, _ = search(tmp_path / "run")
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again, executor = search(tmp_path / "run", on_trial=pytest.fail)
    assert (again, executor.seen) == (tables, {})
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize("done", [5, 6, BUDGET])
def test_the_journal_of_another_seed_is_refused_and_left_alone(tmp_path, done):
    """The uniform strategies are the same for every seed, the fifth trial is not."""

    def stop(progress):
        if progress.done == done:
            raise Stop

    with pytest.raises(Stop):
        search(tmp_path / "run", on_trial=stop)
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    executor = StubExecutor()
    with pytest.raises(RunError, match="another search") as caught:
        search(tmp_path / "run", settings_with(seed=1), executor)
    assert caught.value.exit_code == 5
    assert not executor.seen
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal


# --- constraints


@pytest.mark.parametrize("algorithm", QUICK)
@pytest.mark.parametrize(
    "constraints",
    [
        {"gflops_per_image": (0.0, 20.0)},
        {"gflops_per_image": (15.0, float("inf"))},
        {"gflops_per_image": (10.0, 40.0), "nfe": (4.0, 4.0)},
    ],
)
def test_what_breaks_a_constraint_is_never_evaluated(tmp_path, algorithm, constraints):
    settings = replace(settings_with(algorithm=algorithm), constraints=constraints)
    _, executor = search(tmp_path / "run", settings)
    done = len(rows_of(tmp_path / "run"))
    assert len(executor.schedules) == done
    # of one width throughout, few schedules of one number of calls lie between two limits
    assert done == BUDGET or (algorithm == "best-uniform" and 0 < done < BUDGET)
    for schedule in executor.schedules:
        found = {
            "gflops_per_image": sum(CARD.gflops(w) for w in schedule.widths),
            "nfe": len(schedule.widths),
        }
        assert all(low <= found[name] <= high for name, (low, high) in constraints.items())


def test_constraints_that_nothing_meets_end_the_search(tmp_path):
    settings = replace(SETTINGS, constraints={"nfe": (5.0, 5.0)})
    executor = StubExecutor()
    with pytest.raises(NoFeasibleCandidate) as caught:
        search(tmp_path / "run", settings, executor)
    assert caught.value.exit_code == 4
    assert not executor.seen


# --- failures


def test_failed_trials_are_rows_and_the_search_goes_on(tmp_path):
    failed = []

    def fails(schedule):
        if len(failed) < 5 and bad(schedule):
            failed.append(schedule.key())
        return schedule.key() in failed

    search(tmp_path / "run", executor=StubExecutor(fails))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == BUDGET
    assert len(failed) >= 2
    assert [row["key"] for row in rows if row["state"] == "FAIL"] == failed
    for row in rows:
        assert (row["error"] == "E: no") == (row["state"] == "FAIL") == (row["fid"] == "")


@pytest.mark.parametrize(("population", "allowed"), [(6, 5), (20, 8)])
def test_more_failures_than_a_tenth_and_five_end_the_search(tmp_path, population, allowed):
    settings = settings_with(population=population)
    executor = StubExecutor(lambda schedule: True)
    with pytest.raises(FailureBudgetExceeded, match=rf"{allowed} allowed.*E: no") as caught:
        search(tmp_path / "run", settings, executor)
    assert caught.value.exit_code == 3
    assert len(executor.seen) == allowed + 1
    assert [row["state"] for row in rows_of(tmp_path / "run")] == ["FAIL"] * (allowed + 1)


def test_a_search_without_any_completed_trial_says_so(tmp_path):
    settings = settings_with(population=2, generations=2)
    with pytest.raises(NoFeasibleCandidate, match="log") as caught:
        search(tmp_path / "run", settings, StubExecutor(lambda schedule: True))
    assert caught.value.exit_code == 4
    assert len(rows_of(tmp_path / "run")) == 4


# --- the end of a space


def test_an_exhausted_space_ends_the_search_early(tmp_path):
    space = replace(SPACE, calls=(3,), grids=("uniform",), solvers=(("ddim", {}),), width_genes=1)
    settings = replace(settings_with(generations=50), space=space)
    tables, executor = search(tmp_path / "run", settings)
    rows = rows_of(tmp_path / "run")
    assert sorted(row["widths"] for row in rows) == ["0.25x3", "0.5x3", "0.75x3", "1.0x3"]
    assert sum(executor.seen.values()) == 4
    assert search(tmp_path / "run", settings)[0] == tables


def test_the_schedule_that_is_filed_is_the_one_that_was_scored(tmp_path):
    _, executor = search(tmp_path / "run")
    scored = {schedule.key(): schedule for schedule in executor.schedules}
    store = open_store(tmp_path / "run")
    store.close()
    for trial in store.trials:
        schedule = StepSchedule.from_json(trial.schedule)
        assert schedule == scored[trial.key]
        assert trial.result == score(schedule)
        assert trial.call_widths == schedule.widths
