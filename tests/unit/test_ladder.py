"""The fidelity ladder: few images say who is measured with more."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from support import CARDS, OBJECTIVES, SETTINGS, StubExecutor, read_csv, score, settings_with

from stepsearch.core.errors import FailureBudgetExceeded, Interrupted
from stepsearch.core.pareto import best_first, pareto_front
from stepsearch.core.settings import Rung
from stepsearch.core.trial import Failure
from stepsearch.ladder import ladder_frame
from stepsearch.search import run_search
from stepsearch.store import RunStore

LADDER = (Rung(50, "kid", 0.5), Rung(100, "kid", 0.5))
POPULATION = 8


def with_ladder(ladder=LADDER, **search):
    settings = settings_with(**{"population": POPULATION, "generations": 3, **search})
    return replace(settings, evaluation=replace(SETTINGS.evaluation, ladder=ladder))


def few(schedule, rung):
    """What a rung finds: the FID with an error that only few images have."""
    full = score(schedule)
    value = full.values["fid"] * (1 + 0.2 / (rung + 1) * (int(schedule.key()[7:9], 16) % 2))
    return replace(full, values={LADDER[rung].name: value}, n_samples=LADDER[rung].images)


class Climbing(StubExecutor):
    """Counts what each rung is asked; `stop` results in all, then it ends early."""

    def __init__(self, stop=None, fails=lambda schedule, rung: False):
        super().__init__()
        self.asked, self.stop, self.fails_at, self.given = [], stop, fails, 0

    def map(self, schedules, rung=None):
        for schedule in schedules:
            if self.given == self.stop:
                return
            self.given += 1
            self.asked.append((rung, schedule.key()))
            if self.fails_at(schedule, rung):
                yield schedule.key(), Failure("E: no", 3)
            else:
                yield schedule.key(), score(schedule) if rung is None else few(schedule, rung)


def search(folder, executor, settings=None):
    if folder.exists():
        store = RunStore(folder, OBJECTIVES)
    else:
        store = RunStore.create(folder, OBJECTIVES, {})
    try:
        run_search(settings or with_ladder(), CARDS, store, executor)
    finally:
        store.close()
    return store.trials


def test_half_of_a_generation_goes_on_at_each_rung(tmp_path):
    executor = Climbing()
    trials = search(tmp_path / "run", executor)
    assert Counter(rung for rung, _ in executor.asked) == {0: 24, 1: 12, None: 6}
    assert Counter(t.state for t in trials) == {"COMPLETE": 6, "SCREENED": 18}
    rows = read_csv(tmp_path / "run" / "trials.csv")
    for row in rows:
        assert (row["fid"] != "") == (row["state"] == "COMPLETE")
        assert row["error"] == row["fail_kind"] == ""
        assert row["n_samples"] in {"COMPLETE": ["200"], "SCREENED": ["50", "100"]}[row["state"]]
        sampled = {"200": "350", "100": "150", "50": "50"}[row["n_samples"]]
        assert row["n_sampled"] == sampled
        assert float(row["gflops_per_image"]) > 0


def test_those_that_go_on_are_the_first_by_rank_of_rung_and_cost(tmp_path):
    trials = search(tmp_path / "run", Climbing(), with_ladder(LADDER[:1]))
    for generation in range(3):
        born = [t for t in trials if t.generation == generation]
        points = {}
        for t in born:
            cost = sum(CARDS["net"].gflops(w) for w in t.call_widths)
            points[t.trial_id] = (t.result.values["kid_50"], cost)
        best = pareto_front(list(points.values()))
        first = {i for i, on in zip(points, best, strict=True) if on}
        gone_on = {t.trial_id for t in born if t.complete}
        assert len(gone_on) == 4
        assert first <= gone_on or gone_on <= first


def test_what_every_rung_said_is_kept(tmp_path):
    trials = search(tmp_path / "run", Climbing())
    for trial in trials:
        values = trial.result.values
        assert "kid_50" in values
        assert ("kid_100" in values) == (trial.complete or trial.result.n_samples == 100)
        if trial.complete:
            assert {"fid", "gflops_per_image", "kid_50", "kid_100"} <= values.keys()


def test_stopped_anywhere_it_resumes_to_the_same_tables(tmp_path):
    whole = Climbing()
    search(tmp_path / "whole", whole)
    tables = [(tmp_path / "whole" / f"{n}.csv").read_bytes() for n in ("trials", "pareto")]
    for stop in range(len(whole.asked)):
        folder, first, second = tmp_path / str(stop), Climbing(stop), Climbing()
        with pytest.raises(Interrupted):
            search(folder, first)
        search(folder, second)
        assert [(folder / f"{n}.csv").read_bytes() for n in ("trials", "pareto")] == tables
        full = [key for rung, key in first.asked + second.asked if rung is None]
        assert len(full) == len(set(full)) == 6


def test_a_failure_at_a_rung_goes_no_further_and_takes_no_place(tmp_path):
    executor = Climbing(fails=lambda s, rung: rung == 0 and s.key()[-1] in "01")
    trials = search(tmp_path / "run", executor)
    failed = {t.key for t in trials if t.failed}
    assert failed
    assert not failed & {key for rung, key in executor.asked if rung != 0}
    for generation in range(3):
        born = [t for t in trials if t.generation == generation]
        alive = sum(not t.failed for t in born)
        kept = math.ceil(math.ceil(alive / 2) / 2)
        assert sum(t.complete for t in born) == kept


def test_a_generation_that_fails_at_a_rung_as_a_whole_ends_with_its_failures(tmp_path):
    settings = with_ladder(population=4, generations=2)
    executor = Climbing(fails=lambda s, rung: len(executor.asked) <= 4)
    trials = search(tmp_path / "run", executor, settings)
    assert [t.failed for t in trials] == [True] * 4 + [False] * 4


def test_screened_trials_are_no_failures_of_the_budget(tmp_path):
    trials = search(tmp_path / "run", Climbing(), with_ladder((Rung(50, "kid", 0.01),)))
    assert sum(t.state == "SCREENED" for t in trials) == 21
    with pytest.raises(FailureBudgetExceeded):
        search(tmp_path / "bad", Climbing(fails=lambda s, rung: rung is None))


def test_the_rank_agreement_of_rungs_is_that_of_the_trials_that_went_on(tmp_path):
    keep = (Rung(50, "kid", 1.0), Rung(100, "kid", 1.0))
    trials = search(tmp_path / "run", Climbing(), with_ladder(keep))
    frame = ladder_frame(trials, keep, "fid")
    assert frame["rung"].tolist() == ["kid_50", "kid_100"]
    assert frame["next"].tolist() == ["kid_100", "fid"]
    assert frame["measured"].tolist() == frame["went_on"].tolist() == [24, 24]
    for _, row in frame.iterrows():
        pairs = [(t.result.values[row["rung"]], t.result.values[row["next"]]) for t in trials]
        signs = [
            math.copysign(1, (a[0] - b[0]) * (a[1] - b[1]))
            for i, a in enumerate(pairs)
            for b in pairs[:i]
        ]
        assert row["tau"] == pytest.approx(sum(signs) / len(signs))
        assert row["tau_low"] <= row["tau"] <= row["tau_high"]
    assert ladder_frame(trials[:2], keep, "fid")["tau"].isna().all()


def test_best_first_is_by_front_and_then_by_room():
    points = [(0, 4), (1, 2.9), (1.1, 2.8), (2, 2), (4, 0), (5, 5), (4, 4)]
    order = best_first(points)
    assert set(order[:5]) == {0, 1, 2, 3, 4}
    assert set(order[:2]) == {0, 4}  # the ends have room without end
    assert order[5:] == [6, 5]
    assert best_first(np.empty((0, 2))) == []
