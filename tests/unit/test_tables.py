"""What the tables of a run are turned into: savings, and texts to print."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_runs import CALLS, CHOICES, frame_of, make_joint_run, make_run

from stepsearch.cli import main
from stepsearch.core.noise import generator
from stepsearch.core.pareto import hypervolume
from stepsearch.tables import (
    SAVINGS,
    WINS,
    calls_text,
    front_text,
    grid_text,
    kind_wins,
    markdown_table,
    savings,
    solver_text,
)


@pytest.fixture(scope="module")
def run():
    return make_run()


# --- savings


def test_savings_of_a_small_table_by_hand():
    frame = frame_of(
        ("ddim", "1.0x8", 10.0, 8.0),  # answered by trial 3: no worse, cheapest
        ("ddim", "0.5x8", 20.0, 2.0),  # answered by trial 4
        ("ddim", "0.25x8", 40.0, 1.0),  # nothing is cheaper
        ("pfdiff 2_1", "0.5x3|1.0x2", 10.0, 3.0),
        ("pfdiff 1_1", "0.5x6", 15.0, 1.5),  # uniform, but not DDIM: an answer, not a question
        ("ddim", "0.75x8", None, None),  # failed
        ("ddim", "0.5x2|1.0x6", 10.0, 3.0),  # as good and as cheap as trial 3, but later
    )
    got = savings(frame)
    assert list(got.columns) == SAVINGS
    assert list(got.itertuples(index=False, name=None)) == [
        (
            1.0,
            8,
            "quad",
            10.0,
            8.0,
            3,
            10.0,
            3.0,
            "pfdiff 2_1, quad, 5 calls, widths 0.5x3|1.0x2",
            0.625,
        ),
        (0.5, 8, "quad", 20.0, 2.0, 4, 15.0, 1.5, "pfdiff 1_1, quad, 6 calls, widths 0.5x6", 0.25),
        (0.25, 8, "quad", 40.0, 1.0, 2, 40.0, 1.0, "ddim, quad, 8 calls, widths 0.25x8", 0.0),
    ]


def test_savings_compare_nothing_across_metrics_or_numbers_of_images():
    frame = frame_of(*[("ddim", f"{w}x4", 10.0, w * 4) for w in (1.0, 0.75, 0.5)])
    assert set(savings(frame)["answer_trial"]) == {2}
    assert list(savings(frame.assign(n_samples=[500, 500, 100]))["answer_trial"]) == [
        1,
        1,
        2,
    ]
    ids = frame.assign(metric_id=["a", "b", "b"])
    assert list(savings(ids)["answer_trial"]) == [0, 2, 2]


def test_savings_without_completed_trials_keep_their_columns(run):
    empty = savings(run[0].iloc[:0])
    assert len(empty) == 0
    assert list(empty.columns) == SAVINGS


@pytest.mark.parametrize("seed", range(5))
def test_savings_agree_with_brute_force(seed):
    rng = generator(seed)
    rows = []
    for _ in range(60):
        widths = [f"{rng.choice(CHOICES)}x{rng.choice(CALLS)}", "0.5x3|1.0x5"][
            int(rng.random() < 0.4)
        ]
        solver = str(rng.choice(["ddim", "pfdiff 2_1"]))
        numbers = (None, None) if rng.random() < 0.1 else rng.integers(1, 12, 2) / 4
        rows.append((solver, widths, *numbers))  # few values, so that there are ties
    got = savings(frame_of(*rows))
    done = [(gflops, fid, i) for i, (_, _, fid, gflops) in enumerate(rows) if fid is not None]
    want = [
        (gflops, fid, *min(other for other in done if other[1] <= fid))
        for gflops, fid, i in done
        if rows[i][0] == "ddim" and "|" not in rows[i][1]
    ]
    columns = ["gflops_per_image", "fid", "answer_gflops", "answer_fid", "answer_trial"]
    pairs = list(got[columns].itertuples(index=False, name=None))
    assert sorted(pairs) == sorted(want)
    assert list(got["gflops_per_image"]) == sorted(got["gflops_per_image"], reverse=True)
    assert ((got["saving"] >= 0) & (got["saving"] < 1)).all()
    np.testing.assert_allclose(got["saving"], 1 - got["answer_gflops"] / got["gflops_per_image"])


# --- kinds


@pytest.fixture(scope="module")
def joint():
    return make_joint_run()


KINDS = ["single", "relay", "distilled"]
MIXED = frame_of(
    ("renoise", "1.0x1", 16.0, 1.0),
    ("unipc", "0.5x5", 8.0, 2.0),
    ("renoise", "1.0x4", 9.0, 4.0),  # dearer and worse than the relay before it
    ("renoise", "1.0x6", 6.0, 6.0),
    ("renoise", "1.0x7", 5.0, 7.0),
    ("ddim", "1.0x16", 2.0, 16.0),
    ("ddim", "1.0x8", 20.0, 20.0),
    ("ddim", "0.5x8", None, None),  # failed
).assign(kind=["distilled", "relay"] + ["distilled"] * 3 + ["single"] * 3)


def test_where_each_kind_wins_by_hand():
    """Hypervolumes are sums of rectangles up to the reference, (22, 22)."""
    found = kind_wins(MIXED)
    assert list(found.columns) == WINS
    whole = 1 * 6 + 4 * 14 + 1 * 16 + 9 * 17 + 6 * 20
    alone = [6 * 20, 20 * 14, 3 * 6 + 2 * 13 + 1 * 16 + 15 * 17]
    assert list(found.drop(columns="hypervolume_alone").itertuples(index=False, name=None)) == [
        ("single", 2, 1, "from 16.0", 2.0),
        ("relay", 1, 1, "2.00 to 6.00", 8.0),
        ("distilled", 4, 3, "1.00 to 2.00, 6.00 to 16.0", 5.0),
    ]
    np.testing.assert_allclose(found["hypervolume_alone"], [a / whole for a in alone])


def test_the_best_kind_at_every_budget_is_the_one_whose_range_holds_it():
    for budget in np.arange(1.0, 24.0, 0.5):
        done = MIXED[MIXED["gflops_per_image"].le(budget)]
        best = done.loc[done["fid"].idxmin(), "kind"]
        holds = [
            row["kind"]
            for row in kind_wins(MIXED).to_dict("records")
            for low, high in re.findall(r"([\d.]+)(?: to ([\d.]+))?", row["best_at_gflops"])
            if float(low) <= budget < float(high or "inf")
        ]
        assert holds == [best]


def test_each_kind_alone_has_the_volume_of_its_own_trials(joint):
    trials = joint[0]
    points = ["fid", "gflops_per_image"]
    first = trials[trials["generation"].eq(0)]
    volume = {
        kind: hypervolume(trials[trials["kind"].isin(kinds)][points], 1.1 * first[points].max())
        for kind, kinds in [("all", KINDS), *((kind, [kind]) for kind in KINDS)]
    }
    found = kind_wins(trials).set_index("kind")
    assert list(found.index) == KINDS
    for kind, share in found["hypervolume_alone"].items():
        assert 0 < share < 1
        assert share == pytest.approx(volume[kind] / volume["all"])
    assert found["front"].sum() == len(joint[1])


def test_a_kind_that_is_never_the_best_has_no_range():
    frame = frame_of(("ddim", "1.0x4", 5.0, 1.0), ("renoise", "1.0x8", 6.0, 2.0))
    found = kind_wins(frame.assign(kind=["single", "distilled"]))
    assert list(found["best_at_gflops"]) == ["from 1.00", ""]
    assert list(found["front"]) == [1, 0]


def test_kinds_are_compared_within_a_metric_alone():
    ids = ["a", "b"] * 4
    found = kind_wins(MIXED.assign(metric_id=ids, state="COMPLETE", fid=5.0, gflops_per_image=1.0))
    assert list(found.columns) == [*WINS, "metric_id"]
    assert list(zip(found["kind"], found["metric_id"], strict=True)) == [
        ("single", "a"),
        ("distilled", "a"),
        ("single", "b"),
        ("relay", "b"),
        ("distilled", "b"),
    ]


def test_tables_older_than_kinds_are_of_one_stage(run):
    frame = run[0].drop(columns="kind")
    (found,) = kind_wins(frame).to_dict("records")
    cheapest = run[1]["gflops_per_image"].min()
    assert (found["kind"], found["front"]) == ("single", len(run[1]))
    assert found["hypervolume_alone"] == 1
    assert float(found["best_at_gflops"].removeprefix("from ")) == pytest.approx(cheapest, rel=0.01)
    assert front_text(run[1].drop(columns="kind")) == front_text(run[1])
    assert list(kind_wins(frame.iloc[:0]).columns) == WINS


def test_the_command_prints_where_kinds_win(joint, monkeypatch, capsys, tmp_path):
    found = SimpleNamespace(trials=joint[0], pareto=joint[1])
    monkeypatch.setattr("stepsearch.store.load_run", lambda path: found)
    assert main(["front", str(tmp_path), "--kinds"]) == 0
    assert capsys.readouterr().out == markdown_table(kind_wins(joint[0]))
    assert main(["front", str(tmp_path), "--kinds", "-f", "csv"]) == 0
    assert capsys.readouterr().out == kind_wins(joint[0]).to_csv(index=False)
    assert main(["front", str(tmp_path), "--kinds", "--savings"]) == 2
    assert "--savings" in capsys.readouterr().err


def test_a_relay_of_one_width_is_an_answer_and_no_baseline():
    frame = frame_of(("ddim", "1.0x8", 10.0, 8.0), ("ddim", "1.0x8", 9.0, 4.0))
    relay = {"relay_start": 0.45, "relay_supernet": "large", "relay_calls": 3}
    relay |= {"relay_solver_args": "step=first", "relay_grid": "karras", "supernet": "small"}
    frame = frame.assign(kind=["single", "relay"], supernet="digits")
    frame = frame.astype(object).where(frame.notna(), None)
    frame.loc[1, list(relay)] = list(relay.values())
    (found,) = savings(frame).to_dict("records")
    assert found["answer"] == (
        "ddim > relay step=first from 0.45, quad > karras, 5+3 calls, widths 1.0x8, small > large"
    )
    assert found["saving"] == 0.5


# --- texts


def test_a_relay_is_told_stage_by_stage(joint):
    rows = joint[0][joint[0]["kind"].eq("relay")].to_dict("records")
    assert len(rows) > 50
    for row in rows:
        start, calls = row["relay_start"], row["relay_calls"]
        want = f"unipc order=2 > relay eta=0.1 step=trapezoid from {start:g}"
        assert solver_text(row) == want
        assert solver_text(row | {"guidance": 2.0, "guide": "cfg"}) == f"{want}, cfg 2"
        assert grid_text(row) == "quad > karras end=0.0223607"
        assert calls_text(row) == f"{row['nfe'] - calls:.0f}+{calls:.0f}"
        text = {"relay_calls": f"{calls:.1f}"}  # as a reader of text columns has it
        assert calls_text(row | text) == calls_text(row)


def test_a_front_of_several_kinds_names_them_and_their_networks(joint):
    head, *lines = front_text(joint[1]).splitlines()
    rows = joint[1].to_dict("records")
    assert {row["kind"] for row in rows} == set(KINDS)
    nets = {"single": "digits", "relay": "small > large", "distilled": "few"}
    for line, row in zip(lines, rows, strict=True):
        assert line[head.index("kind") :].split()[0] == row["kind"]
        assert line[head.index("supernet") :] == nets[row["kind"]]
        assert line[head.index("solver") :].startswith(solver_text(row) + " ")


def parse_markdown(text):
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    return [[cell.strip().replace(r"\|", "|") for cell in line] for line in lines]


def test_markdown_parses_back(run):
    frame = savings(run[0])
    head, rule, *rows = parse_markdown(markdown_table(frame))
    assert head == SAVINGS
    assert set(rule) == {"---:", ":---"}
    assert len(rows) == len(frame) > 10
    for cells, row in zip(rows, frame.to_dict("records"), strict=True):
        got = dict(zip(head, cells, strict=True))
        assert got["answer"] == row["answer"]
        assert float(got["fid"]) == pytest.approx(row["fid"], abs=0.051)
        assert float(got["gflops_per_image"]) == pytest.approx(row["gflops_per_image"], rel=0.006)
        assert float(got["saving"].rstrip("%")) == pytest.approx(100 * row["saving"], abs=0.051)


def test_markdown_rounds_by_what_a_column_holds():
    frame = pd.DataFrame(
        {
            "fid": [9.994, 9.996, 123.46],
            "gflops_per_image": [0.09996, 1234.4, 0.001234],
            "saving": [0.386, 0.0, 0.9996],
            "pfdiff_k": [2, math.nan, 1],
            "hypervolume": [math.inf, 1.23456, 3.0],
            "error": ["a|b", "two\nlines", None],
        }
    )
    assert parse_markdown(markdown_table(frame))[2:] == [
        ["9.99", "0.100", "38.6%", "2", "inf", "a|b"],
        ["10.0", "1234", "0.0%", "", "1.235", "two lines"],
        ["123.5", "0.00123", "100.0%", "1", "3", ""],
    ]


def test_front_text_has_every_row_aligned_and_cheap_first(run):
    pareto = run[1].sample(frac=1, random_state=0)
    head, *lines = front_text(pareto).splitlines()
    rows = pareto.sort_values("gflops_per_image").to_dict("records")
    start = head.index("widths")
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[0] == str(row["trial_id"])
        assert f"{row['fid']:.2f} ± {row['fid_se']:.2f}" in line
        assert line[start:] == row["widths"]
        solver = (
            "ddim"
            if row["solver"] == "ddim"
            else f"pfdiff {row['pfdiff_k']:.0f}_{row['pfdiff_l']:.0f}"
        )
        assert f" {row['nfe']}  {solver} " in line
        assert f" {row['grid']} " in line
    assert "±" not in front_text(pareto.drop(columns="fid_se")).split("\n", 1)[1]
    assert front_text(pareto.iloc[:0]) == "no completed trials\n"
