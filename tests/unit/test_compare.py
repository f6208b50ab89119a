"""What searches reached for what they spent."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support import OBJECTIVES, make_trials

from stepsearch.cli import main
from stepsearch.comparing import Search, bound_of, common_front, curve, curves_of, results_of
from stepsearch.core.pareto import hypervolume
from stepsearch.store import RunStore, trial_frame


def table(values, states=None, images=100):
    """Trials of (fid, gflops), in order."""
    return pd.DataFrame(
        {
            "trial_id": range(len(values)),
            "state": states or ["COMPLETE"] * len(values),
            "fid": [v[0] for v in values],
            "gflops_per_image": [v[1] for v in values],
            "n_samples": images,
            "n_sampled": images,
            "metric_id": "m",
        }
    )


def test_the_curve_is_the_hypervolume_of_all_trials_so_far():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, (40, 2))
    frame = curve(table(values), OBJECTIVES, (1.0, 1.0))
    for n, row in enumerate(frame.itertuples(), 1):
        assert row.evaluations == n
        assert row.hypervolume == pytest.approx(hypervolume(values[:n], (1.0, 1.0)))
        logs = hypervolume(np.log10(values[:n]), (0.0, 0.0))
        assert row.hypervolume_log == pytest.approx(logs)
        assert row.gflops_spent == pytest.approx(100 * values[:n, 1].sum())


def test_a_staircase_has_the_area_of_its_steps():
    frame = curve(table([(3, 1), (2, 2), (1, 3)]), OBJECTIVES, (4.0, 4.0))
    assert frame["hypervolume"].tolist() == [3, 5, 6]


def test_failed_trials_are_evaluations_that_cost_and_bring_nothing():
    frame = table([(3, 1), (1, 1), (2, 1)], ["COMPLETE", "FAIL", "COMPLETE"])
    found = curve(frame, OBJECTIVES, (4.0, 4.0))
    assert found["hypervolume"].tolist() == [3, 3, 6]
    assert found["gflops_spent"].tolist() == [100, 100, 200]


def test_what_a_ladder_screened_out_has_cost_its_few_images():
    frame = table([(3, 1), (1, 2), (2, 1)], ["COMPLETE", "SCREENED", "COMPLETE"])
    frame["n_sampled"] = [150, 50, 150]
    found = curve(frame, OBJECTIVES, (4.0, 4.0))
    assert found["hypervolume"].tolist() == [3, 3, 6]
    assert found["gflops_spent"].tolist() == [150, 250, 400]


def test_many_trials_give_a_curve_of_a_thousand_points_that_ends_alike():
    values = np.random.default_rng(1).uniform(0.1, 1, (5000, 2))
    frame = curve(table(values), OBJECTIVES, (1.0, 1.0))
    assert len(frame) == 1000
    assert frame["evaluations"].iloc[-1] == 5000
    assert frame["hypervolume"].iloc[-1] == pytest.approx(hypervolume(values, (1.0, 1.0)))


def test_repeats_are_told_by_median_and_range_the_best_first():
    runs = {"a": [(3, 1), (2, 2), (1, 3)], "b": [(1, 1), (3, 3)]}
    searches = [Search(name[0], name, OBJECTIVES, table(v)) for name, v in runs.items()]
    searches += [Search("a", f"a{n}", OBJECTIVES, table([(n, 1)])) for n in (2, 3)]
    found = results_of(curves_of(searches, (4.0, 4.0))).set_index("label")
    assert list(found.index) == ["b", "a"]
    assert found.loc["a", ["hypervolume", "hypervolume_low", "hypervolume_high"]].tolist() == (
        [6, 3, 6]
    )
    assert found.loc["a", "runs"] == 3
    assert found.loc["b", "hypervolume"] == 9


def test_the_bound_lies_a_tenth_beyond_the_common_front():
    searches = [
        Search("a", "a", OBJECTIVES, table([(3, 1), (9, 9)])),
        Search("b", "b", OBJECTIVES, table([(1, 2)])),
    ]
    assert bound_of(common_front(searches)) == pytest.approx([3.3, 2.2])


class TestCommand:
    @pytest.fixture
    def runs(self, tmp_path):
        for n, name in enumerate(("one", "two")):
            env = json.dumps({"objectives": OBJECTIVES})
            store = RunStore.create(tmp_path / name, OBJECTIVES, {"env.json": env})
            for trial in make_trials(12)[n : 8 + n]:
                store.append(trial)
            store.write_tables()
            store.close()
        return tmp_path / "one", tmp_path / "two"

    def test_table_csv_and_picture_agree(self, runs, tmp_path, capsys):
        words = ["compare", *map(str, runs), "-o", str(tmp_path / "out"), "-f", "json"]
        assert main(words) == 0
        told = {row["label"]: row for row in json.loads(capsys.readouterr().out)}
        curves = pd.read_csv(tmp_path / "out" / "compare.csv")
        assert set(told) == {"one", "two"}
        for label, row in told.items():
            own = curves[curves["label"] == label]
            assert row["evaluations"] == own["evaluations"].max() == 8
            assert row["hypervolume"] == pytest.approx(own["hypervolume"].iloc[-1])
        assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000
        assert main(["compare", *map(str, runs), "--label", "same", "same"]) == 0
        shown = capsys.readouterr().out
        assert "| same | 2 |" in shown
        assert "hypervolume within fid" in shown

    def test_runs_that_measured_otherwise_are_refused(self, runs, tmp_path, capsys):
        trials = [replace(t, result=replace(t.result, metric_id="other")) for t in make_trials(4)]
        env = json.dumps({"objectives": OBJECTIVES})
        store = RunStore.create(tmp_path / "other", OBJECTIVES, {"env.json": env})
        for trial in trials:
            store.append(trial)
        store.write_tables()
        store.close()
        assert main(["compare", str(runs[0]), str(tmp_path / "other")]) == 2
        err = capsys.readouterr().err
        assert "metric_id" in err
        assert err.count("\n") == 1

    def test_labels_are_one_each(self, runs, capsys):
        assert main(["compare", *map(str, runs), "--label", "a"]) == 2
        assert "1 labels for 2 runs" in capsys.readouterr().err


def test_real_tables_are_read(tmp_path):
    frame = trial_frame(make_trials(10, failed=[3]), OBJECTIVES)
    found = curve(frame, OBJECTIVES, (1e9, 1e9))
    assert len(found) == 10
    assert found["gflops_spent"].iloc[3] == found["gflops_spent"].iloc[2]
