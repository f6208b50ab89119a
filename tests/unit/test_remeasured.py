"""Fronts that are measured again: which trials, what the table says, and in which words."""

import json

import numpy as np
import pytest
from made_runs import make_joint_run, make_run
from matplotlib.figure import Figure
from support import OBJECTIVES, make_trials

from stepsearch import report
from stepsearch.core.errors import RunError
from stepsearch.core.pareto import hypervolume, pareto_front
from stepsearch.remeasured import (
    LEAST,
    SUMMARY,
    TABLE,
    Full,
    Remeasured,
    choose,
    front_words,
    load_remeasured,
    remeasured_table,
    sentence,
    summarise,
)
from stepsearch.store import trial_frame


@pytest.fixture(scope="module")
def trials():
    return trial_frame(make_trials(60), OBJECTIVES)


def again_of(trials, chosen, change=lambda fid, i: fid - 1, seeds=3, noise=0.1):
    """Full evaluations of some trials: `change` of their FID, a tenth up and down by seed."""
    rng = np.random.default_rng(0)
    fids = dict(zip(trials["trial_id"], trials["fid"], strict=True))
    spread = np.linspace(-0.1, 0.1, seeds) if seeds > 1 else [0.0]
    return {
        i: Full(
            tuple(change(fids[i], i) + s for s in spread),
            noise * rng.standard_normal((seeds, 50)),
        )
        for i in chosen
    }


def written(trials, folder, **options):
    """A run's two files as `reeval` writes them, of all that `choose` takes."""
    again = again_of(trials, choose(trials, None), **options)
    table = remeasured_table(trials, again, 50_000, OBJECTIVES)
    summary = summarise(trials, table, 50_000, [1000, 1001, 1002], OBJECTIVES)
    (folder / TABLE).write_text(table.to_csv(index=False))
    (folder / SUMMARY).write_text(json.dumps(summary))
    return table, summary


class TestChoice:
    def test_the_whole_front_is_chosen_and_at_least_twenty_in_all(self, trials):
        chosen = choose(trials, None)
        front = set(trials["trial_id"][trials["rank"].eq(0)])
        assert front <= set(chosen)
        assert len(chosen) == len(set(chosen)) == max(LEAST, 2 * len(front))

    def test_a_number_of_neighbours_is_that(self, trials):
        front = int(trials["rank"].eq(0).sum())
        for count in (0, 5, 17):
            assert len(choose(trials, count)) == front + count
        assert len(choose(trials, 10**6)) == 60

    def test_neighbours_are_spread_over_all_of_the_compute(self, trials):
        """The best of each tenth of the logarithm come first, not the best of all."""
        rows = trials.set_index("trial_id").loc[choose(trials, 10)]
        log = np.log(trials["gflops_per_image"].astype(float))
        edges = np.linspace(log.min(), log.max(), 11)
        near = rows[rows["rank"].gt(0)]
        part = np.digitize(np.log(near["gflops_per_image"].astype(float)), edges[1:-1])
        there = trials[trials["rank"].gt(0)]
        parts = np.digitize(np.log(there["gflops_per_image"].astype(float)), edges[1:-1])
        assert set(part) == set(parts)  # every part that has a neighbour
        for p in set(part):
            best = there["rank"][parts == p].min()
            assert best in list(near["rank"][part == p])

    def test_the_dearest_are_first_and_failures_nowhere(self):
        trials = trial_frame(make_trials(30, failed=range(0, 30, 3)), OBJECTIVES)
        chosen = choose(trials, 10**6)
        assert len(chosen) == 20
        assert not set(chosen) & set(range(0, 30, 3))
        costs = trials.set_index("trial_id")["gflops_per_image"][chosen]
        assert costs.is_monotonic_decreasing

    def test_one_trial_is_chosen(self):
        assert choose(trial_frame(make_trials(1), OBJECTIVES), None) == [0]


class TestTable:
    def test_columns_are_named_by_the_images(self, trials):
        for samples, name in ((50_000, "50k"), (2_500, "2500"), (10_000, "10k")):
            table = remeasured_table(trials, again_of(trials, [0, 1, 2]), samples, OBJECTIVES)
            wanted = ["trial_id", "key", "gflops_per_image", "fid", f"fid_{name}"]
            wanted += [f"fid_{name}_sd", f"fid_{name}_se", "seeds", "rank", f"rank_{name}"]
            assert list(table) == [*wanted, "is_pareto", f"is_pareto_{name}", "tied_with"]

    def test_a_row_is_the_mean_and_the_spread_of_the_seeds(self, trials):
        again = again_of(trials, range(10))
        table = remeasured_table(trials, again, 50_000, OBJECTIVES)
        assert table["gflops_per_image"].is_monotonic_increasing
        for row in table.to_dict("records"):
            one = again[row["trial_id"]]
            assert row["fid_50k"] == pytest.approx(np.mean(one.fids)) == row["fid"] - 1
            assert row["fid_50k_sd"] == pytest.approx(0.1)
            assert row["fid_50k_se"] == pytest.approx(one.deviations.mean(0).std(ddof=1))

    def test_one_seed_has_no_spread(self, trials):
        table = remeasured_table(trials, again_of(trials, range(4), seeds=1), 1000, OBJECTIVES)
        assert table["fid_1k_sd"].isna().all()
        assert table["seeds"].eq(1).all()

    def test_the_front_is_that_of_the_new_values_among_the_rows(self, trials):
        again = again_of(trials, range(40), change=lambda fid, i: fid + (i % 7))
        table = remeasured_table(trials, again, 50_000, OBJECTIVES)
        points = table[["fid_50k", "gflops_per_image"]].to_numpy()
        assert list(table["is_pareto_50k"]) == list(pareto_front(points))
        assert list(table["is_pareto"]) == list(table["rank"].eq(0))

    def test_ties_name_each_other(self, trials):
        wide = remeasured_table(trials, again_of(trials, range(30), noise=1e4), 5000, OBJECTIVES)
        front = wide[wide["is_pareto_5k"]]
        ids = {str(i) for i in front["trial_id"]}
        for i, tied in zip(front["trial_id"], front["tied_with"], strict=True):
            assert ids - {str(i)} <= set(tied.split("|"))
        sure = remeasured_table(trials, again_of(trials, range(30), noise=0), 5000, OBJECTIVES)
        assert sure["tied_with"].eq("").all()


class TestSummary:
    def test_nothing_changes_where_all_are_better_by_as_much(self, trials, tmp_path):
        _, summary = written(trials, tmp_path)
        front = summary["front"]
        assert summary["kendall_tau_b"]["tau"] == pytest.approx(1)
        assert front["proxy"] == front["full"]
        assert (front["left"], front["entered"], front["churn"]) == ([], [], 0)
        assert summary["proxy_images"] == 200

    def test_churn_is_the_part_of_both_fronts_that_is_not_shared(self, trials, tmp_path):
        worst = int(trials["trial_id"][trials["rank"].eq(0)].iloc[0])
        _, summary = written(trials, tmp_path, change=lambda fid, i: 1e6 if i == worst else fid - 1)
        before, after = (set(summary["front"][n]) for n in ("proxy", "full"))
        assert worst in summary["front"]["left"]
        assert summary["front"]["churn"] == 1 - len(before & after) / len(before | after)

    def test_hypervolumes_have_one_bound(self, trials, tmp_path):
        table, summary = written(trials, tmp_path)
        bound = [summary["hypervolume"]["bound"][name] for name in OBJECTIVES]
        for column, name in (("fid", "proxy"), ("fid_50k", "full")):
            points = table[[column, "gflops_per_image"]].to_numpy(float)
            assert (points < bound).all()
            assert summary["hypervolume"][name] == pytest.approx(hypervolume(points, bound))

    def test_the_sentence_is_complete(self, trials, tmp_path):
        _, summary = written(trials, tmp_path)
        text = sentence(summary)
        assert text == summary["sentence"]
        for words in (
            "200 images",
            "50,000 images with fresh noise",
            "mean of 3 seeds",
            "stub-0",
            f"{len(summary['trials'])} schedules",
            "tau-b = 1.00",
            "95 % interval 1.00 to 1.00",
        ):
            assert words in text
        assert text.endswith(".")


class TestWords:
    def pareto(self, trials):
        return trials[trials["is_pareto"]]

    def test_a_front_is_a_proxy_until_it_is_measured_again(self, trials, tmp_path):
        words = front_words(tmp_path, self.pareto(trials))
        assert words.startswith("proxy front (200 images); `stepsearch reeval")
        written(trials, tmp_path)
        words = front_words(tmp_path, self.pareto(trials))
        assert not words.startswith("proxy")
        assert "re-measured with 50,000 (3 seeds, Kendall's tau-b 1.00)" in words

    def test_a_front_that_has_grown_since_is_a_proxy_again(self, trials, tmp_path):
        written(trials, tmp_path)
        grown = self.pareto(trials).iloc[:1].assign(trial_id=999)
        assert load_remeasured(tmp_path, grown) is None
        assert front_words(tmp_path, grown).startswith("proxy front")

    def test_an_empty_front_has_words_too(self, trials, tmp_path):
        assert front_words(tmp_path, trials.iloc[:0]) == "no completed trials"

    @pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"trials": 3}'])
    def test_damage_is_told(self, trials, tmp_path, text):
        written(trials, tmp_path)
        (tmp_path / SUMMARY).write_text(text)
        with pytest.raises(RunError, match=r"reeval\.json: missing or damaged .*stepsearch reeval"):
            load_remeasured(tmp_path, self.pareto(trials))


class TestPlots:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """Figures in the order in which they were drawn."""
        found, init = [], Figure.__init__

        def remember(self, *args, **options):
            init(self, *args, **options)
            found.append(self)

        monkeypatch.setattr(Figure, "__init__", remember)
        return found

    @pytest.mark.parametrize("make", [make_run, make_joint_run])
    def test_the_front_that_is_drawn_is_the_one_that_was_measured_last(self, make, drawn, tmp_path):
        trials = make()[0]
        again = again_of(trials, choose(trials, None), change=lambda fid, i: fid - 0.5)
        table = remeasured_table(trials, again, 50_000, OBJECTIVES)
        summary = summarise(trials, table, 50_000, [1000, 1001, 1002], OBJECTIVES)
        found = Remeasured(table, summary)
        report.plot_front(trials, tmp_path / "proxy")
        report.plot_front(trials, tmp_path / "full", found)
        proxy, full = (figure.axes[0] for figure in drawn)
        assert proxy.get_title(loc="left").startswith("proxy front: FID (5,000 images")
        title = full.get_title(loc="left")
        assert title.startswith("front: re-measured with 50,000 images, 3 seeds; bars are one")
        assert "\ntrials: FID (5,000 images" in title
        labels = [ax.get_legend_handles_labels()[1] for ax in (proxy, full)]
        assert "proxy front" in labels[0]
        assert "front, re-measured" in labels[1]
        assert "proxy front" not in labels[1]
        best = table.loc[table["is_pareto_50k"], "fid_50k"].min()
        heights = [float(y) for line in full.get_lines() for y in line.get_ydata()]
        assert any(h == pytest.approx(best) for h in heights)


def test_a_frame_of_one_seed_survives_the_file(trials, tmp_path):
    again = again_of(trials, choose(trials, None), seeds=1)
    table = remeasured_table(trials, again, 50_000, OBJECTIVES)
    summary = summarise(trials, table, 50_000, [1000], OBJECTIVES)
    (tmp_path / TABLE).write_text(table.to_csv(index=False))
    (tmp_path / SUMMARY).write_text(json.dumps(summary))
    found = load_remeasured(tmp_path, trials[trials["is_pareto"]])
    assert list(found.front["fid"]) == pytest.approx(list(found.front["fid_50k"]))
    assert found.summary["seeds"] == [1000]
