"""Runs that go on: with a larger budget, from another run, with measured times, in steady mode."""

import json

import pandas as pd
import pytest
from support import copy_toy, read_csv, timeless

from stepsearch.cli import main
from stepsearch.nets.load import load_card
from stepsearch.store import load_run

SMALL = ["search.population=4", "search.generations=2", "evaluation.images=200"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy space, its network and its statistics made."""
    base = tmp_path_factory.mktemp("continued")
    space = copy_toy(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPSEARCH_CACHE", str(base / "cache"))
        assert main(["run", str(space), "-o", str(base / "first"), *SMALL]) == 0
        yield space


@pytest.fixture
def first(toy):
    return toy.parents[1] / "first"


def run(capsys, *words):
    """Exit status and stderr."""
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err


def test_a_larger_budget_goes_on_like_a_run_that_had_it_from_the_start(toy, tmp_path, capsys):
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    assert run(capsys, "run", toy, "-o", grown, *SMALL)[0] == 0
    before = (grown / "journal.jsonl").read_bytes()
    assert run(capsys, "resume", grown, "search.generations=4")[0] == 0
    assert (grown / "journal.jsonl").read_bytes().startswith(before)
    assert run(capsys, "run", toy, "-o", whole, *SMALL, "search.generations=4")[0] == 0
    for name in ("trials.csv", "pareto.csv"):
        assert timeless(grown / name) == timeless(whole / name)
    done = (grown / "journal.jsonl").read_bytes()
    assert run(capsys, "resume", grown)[0] == 0  # the budget is remembered
    assert run(capsys, "run", toy, "-o", grown, *SMALL, "--resume")[0] == 0  # as typed at first
    assert (grown / "journal.jsonl").read_bytes() == done


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("search.generations=1", 2, "a budget can only grow"),
        ("search.seed=1", 2, "stepsearch fork"),
        ("search.generations=many", 2, "whole number"),
    ],
)
def test_nothing_but_a_larger_budget_may_change(first, capsys, word, code, says):
    before = {p.name: p.read_bytes() for p in first.iterdir() if p.suffix in (".yaml", ".jsonl")}
    assert run(capsys, "resume", first, word)[0] == code
    main(["resume", str(first), word])
    assert says in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in first.iterdir() if p.name in before}


def test_another_space_in_the_same_folder_names_fork(toy, first, capsys):
    code, err = run(capsys, "run", toy, "-o", first, *SMALL, "search.seed=7", "--resume")
    assert code == 5
    assert f"stepsearch fork {first}" in err


def test_a_fork_begins_with_the_front_and_pays_for_nothing_twice(toy, first, tmp_path, capsys):
    forked = tmp_path / "forked"
    code, err = run(capsys, "fork", first, toy, "-o", forked, *SMALL, "search.seed=3")
    assert code == 0
    assert "8 measurements" in err
    known = {row["key"]: row for row in read_csv(first / "trials.csv")}
    rows = read_csv(forked / "trials.csv")
    front = [row["key"] for row in read_csv(first / "pareto.csv")]
    assert {row["key"] for row in rows[:2]} <= set(front)
    shared = [row for row in rows if row["key"] in known]
    assert shared
    for row in shared:
        assert row["started_at"] == known[row["key"]]["started_at"]
    begun = json.loads((forked / "warm_start.json").read_text())
    assert len(begun) == min(4, len(front))
    assert run(capsys, "resume", forked, "search.generations=3")[0] == 0
    assert len(read_csv(forked / "trials.csv")) == 12


def test_a_fork_goes_on_when_what_it_began_from_is_gone(toy, first, tmp_path, capsys):
    source, forked = tmp_path / "source", tmp_path / "forked"
    assert run(capsys, "fork", first, "-o", source, "search.seed=5")[0] == 0
    assert run(capsys, "fork", source, "-o", forked, "search.seed=6")[0] == 0
    source.rename(tmp_path / "elsewhere")
    assert run(capsys, "resume", forked, "search.generations=3")[0] == 0


@pytest.mark.parametrize("words", [(), ("a", "b", "c"), ("nowhere",)])
def test_a_fork_of_nothing_is_refused(tmp_path, capsys, words):
    code, err = run(capsys, "fork", *words, "-o", tmp_path / "new")
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_latency_is_a_sum_over_calls_of_times_that_the_run_keeps(toy, tmp_path, capsys):
    out = tmp_path / "timed"
    words = ["objectives=[fid,gflops_per_image,latency_ms]", "search.algorithm=nsga3"]
    assert run(capsys, "run", toy, "-o", out, *SMALL, *words)[0] == 0
    table = json.loads((out / "latency.json").read_text())
    (times,) = table["milliseconds"].values()
    (weights,) = (toy.parents[1] / "supernets").glob("toy-*.safetensors")
    widths = load_card(weights).widths
    trials = load_run(out)
    for key, row in trials.trials.set_index("key").iterrows():
        calls = trials.schedules[key].stages[0].calls
        want = sum(times[widths.index(call.width)] for call in calls)
        assert row["latency_ms"] == pytest.approx(want)
    assert run(capsys, "resume", out, "search.generations=3")[0] == 0
    assert json.loads((out / "latency.json").read_text()) == table


def test_a_limit_on_latency_is_kept_before_anything_is_sampled(toy, tmp_path, capsys):
    free, bound = tmp_path / "free", tmp_path / "bound"
    report = "evaluation.report=[latency_ms]"
    assert run(capsys, "run", toy, "-o", free, *SMALL, report)[0] == 0
    limit = float(pd.read_csv(free / "trials.csv")["latency_ms"].median())
    constraint = f"constraints.latency_ms.max={limit}"
    assert run(capsys, "run", toy, "-o", bound, *SMALL, report, constraint)[0] == 0
    found = pd.read_csv(bound / "trials.csv")
    assert len(found) == 8
    assert (found["latency_ms"] <= limit).all()


def test_a_ladder_is_climbed_and_its_rungs_are_compared(toy, tmp_path, capsys):
    out = tmp_path / "ladder"
    ladder = "evaluation.ladder=[{images: 100, objective: kid, keep: 0.75}]"
    code, err = run(capsys, "run", toy, "-o", out, *SMALL, ladder)
    assert code == 0
    assert "6 of 8 went on from kid_100" in err
    states = pd.read_csv(out / "trials.csv")["state"].value_counts()
    assert states.to_dict() == {"COMPLETE": 6, "SCREENED": 2}
    frame = pd.read_csv(out / "ladder.csv")
    assert frame[["rung", "next", "measured", "went_on"]].to_numpy().tolist() == [
        ["kid_100", "fid", 8, 6]
    ]
    assert not (out / "ladder.csv").read_bytes().count(b"nan")


def test_steady_mode_spends_the_whole_budget_and_resumes(toy, tmp_path, capsys):
    out = tmp_path / "steady"
    assert run(capsys, "run", toy, "-o", out, *SMALL, "search.mode=steady")[0] == 0
    assert run(capsys, "resume", out, "search.generations=3")[0] == 0
    rows = read_csv(out / "trials.csv")
    assert [int(row["trial_id"]) for row in rows] == list(range(12))
    assert len({row["key"] for row in rows}) == 12
