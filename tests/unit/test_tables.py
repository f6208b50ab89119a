"""What the tables of a run are turned into: savings, and texts to print."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from made_runs import CALLS, CHOICES, frame_of, make_run

from stepsearch.core.noise import generator
from stepsearch.tables import SAVINGS, front_text, markdown_table, savings


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


# --- texts


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
