"""What the README shows can be typed."""

import itertools
import re

import pandas as pd
import pytest
import yaml
from support import ROOT, copy_toy

from stepsearch.config import read_space
from stepsearch.core.space import named
from stepsearch.core.trial import COLUMNS
from stepsearch.recipe_config import read_recipe
from stepsearch.run import Resources, start_run
from stepsearch.solvers.registry import GRIDS, SOLVERS
from stepsearch.store import COLUMN_TYPES
from stepsearch.tables import cell, markdown_table, savings
from stepsearch.ties import rank_agreement

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SCHEDULE, SPENDING, RECIPE, STAGES = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("readme")
    space = copy_toy(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPSEARCH_CACHE", str(base / "cache"))
        settings = read_space(space, ["search.population=8", "evaluation.images=200"])
        start_run(settings, base / "out", space.read_text(), Resources(), resume=False)
    return base / "out"


def test_the_pandas_example_runs(run, capsys):
    code = PYTHON[0].replace("results/digits", str(run)).replace("front.fid <= 10", "front.fid > 0")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "gflops_per_image" in printed
    assert "Call(level=" in printed


def test_the_sampling_example_runs(capsys):
    exec(compile(PYTHON[1], "README.md", "exec"), {})
    assert "float64" in capsys.readouterr().out


def test_the_recipe_for_own_images_is_valid(tmp_path):
    (tmp_path / "my_images").mkdir()
    (tmp_path / "supernets").mkdir()
    recipe = tmp_path / "supernets" / "mine.yaml"
    recipe.write_text(f"version: 1\nname: mine\n{RECIPE}")
    read = read_recipe(recipe)
    assert read.data.path == str(tmp_path / "my_images")
    assert read.train.steps == 200_000


def test_the_search_of_the_readme_is_valid(tmp_path):
    toy = yaml.safe_load(copy_toy(tmp_path).read_text())
    kept = {name: toy[name] for name in ("version", "name", "supernets", "schedule")}
    space = tmp_path / "search_spaces" / "readme.yaml"
    space.write_text(yaml.dump(kept) + SPENDING)
    settings = read_space(space)
    assert settings.evaluation.ladder[0].name == "kid_1000"
    assert settings.search.warm_start[1] == str(tmp_path / "search_spaces" / "mine.json")
    assert set(settings.constraints) == {"gflops_per_image", "latency_ms"}


def test_the_table_of_workers_is_that_of_the_simulation():
    table = pd.read_csv(ROOT / "results/reference/scaling.csv")
    table = table[table["case"].isin(["digits", "population"])]
    known = {
        (row.workers, row.population, row.mode): f"{100 * row.utilisation:.1f}%"
        for row in table.itertuples()
    }
    lines = [line.strip("| \n").split(" | ") for line in README.splitlines()]
    quoted = [line for line in lines if len(line) == 4 and line[2].endswith("%")]
    assert len(quoted) == 5
    for workers, population, generational, steady in quoted:
        key = (int(workers), int(population))
        assert known[(*key, "generational")] == generational
        assert known[(*key, "steady")] == steady


def test_the_table_of_algorithms_is_that_of_the_reference():
    table = pd.read_csv(ROOT / "results/reference/search_algorithms_final.csv")
    for row in table.to_dict("records"):
        low, high = (f"{row[f'hypervolume_log_{end}']:.2f}" for end in ("low", "high"))
        line = f"| {row['algorithm']} | {row['hypervolume']:.2f} | {row['hypervolume_log']:.2f} |"
        assert f"{line} {low} to {high} |" in README


def test_how_far_few_images_are_trusted_is_what_was_measured():
    table = pd.read_csv(ROOT / "results/reference/proxy_rank.csv")
    for rung, low, high in (("fid_5000", 0.95, 1.00), ("fid_2000", 0.91, 0.99)):
        found = rank_agreement(table[rung], table["fid_50000"])
        assert (round(found.low, 2), round(found.high, 2)) == (low, high)
        assert f"{found.tau:.2f} (" in README
    assert f"{len(table)} schedules" in README


def test_every_column_is_explained():
    table = README[README.index("| column |") : README.index("```python")]
    assert set(COLUMNS) <= set(re.findall(r"`(\w+)`", table))


def test_the_savings_table_is_that_of_the_reference_run():
    trials = pd.read_csv(ROOT / "results/reference/digits/trials.csv", dtype=COLUMN_TYPES)
    assert markdown_table(savings(trials)) in README


def test_the_table_of_solvers_is_that_of_the_reference():
    words = dict.fromkeys(["solver", "solver_args", "grid", "grid_args"], str)
    table = pd.read_csv(ROOT / "results/reference/solvers_gaussian.csv", dtype=words)
    table = table.fillna(dict.fromkeys(words, ""))
    name = (table["solver"] + " " + table["solver_args"]).str.rstrip()
    lines = [line.strip("| \n").split(" | ") for line in README.splitlines()]
    quoted = [line for line in lines if len(line) == 8 and line[0] in set(name)]
    assert len(quoted) >= 8
    for solver, grid, *errors in quoted:
        rows = table[(name == solver) & (table["grid"] == grid) & (table["grid_args"] == "")]
        want = rows.set_index("calls")["mean_l2"].loc[[4, 6, 8, 10, 15, 20]]
        assert errors == [f"{float(error):.3f}" for error in want], solver


def test_the_schedule_section_is_valid(tmp_path):
    space = copy_toy(tmp_path)
    head, tail = space.read_text().split("schedule:")
    space.write_text(head + SCHEDULE + tail[tail.index("objectives:") :])
    read = read_space(space).space
    assert {name for name, _ in map(named, read.grids)} == {"quad", "cosine", "karras", "free"}
    assert read.monotone == "non-decreasing"


def test_the_section_of_relays_and_students_is_valid(tmp_path):
    text = (ROOT / "search_spaces/digits-joint.yaml").read_text().replace("../", f"{ROOT}/")
    shipped = tmp_path / "joint.yaml"
    shipped.write_text(text)
    parts = yaml.safe_load(text) | yaml.safe_load(STAGES.replace("../", f"{ROOT}/"))
    quoted = tmp_path / "quoted.yaml"
    quoted.write_text(yaml.safe_dump(parts))
    read, whole = read_space(quoted), read_space(shipped)
    assert read.networks == whole.networks
    assert read.space.relay.starts == whole.space.relay.starts
    assert [name for name, _ in read.space.genes][:4] == ["supernet", "calls", "grid", "solver"]
    assert len(read.space.relay.space.solvers) == 2


def test_every_solver_and_grid_is_named():
    for name in (*SOLVERS, *GRIDS):
        assert f"`{name}`" in README


def test_the_digits_table_of_solvers_is_that_of_the_reference():
    table = pd.read_csv(ROOT / "results/reference/solvers_digits.csv")
    assert set(table["seed"]) == {0, 1}
    fids = table[table["grid"] == "quad"].groupby(["label", "calls"])["fid"].mean()
    lines = [line.strip("| \n").split(" | ") for line in README.splitlines()]
    quoted = [line for line in lines if len(line) == 8 and line[0] in set(table["label"])]
    assert len(quoted) >= 8
    for label, *shown in quoted:
        want = [fids.get((label, n)) for n in (4, 5, 6, 8, 10, 15, 20)]
        assert shown == ["" if fid is None else cell("fid", fid) for fid in want], label


def test_the_table_of_immiscible_training_is_that_of_the_reference():
    lines = [line.strip("| \n").split(" | ") for line in README.splitlines()]
    for name, file in (("digits", "immiscible_digits"), ("CIFAR-10", "immiscible_cifar10")):
        table = pd.read_csv(ROOT / f"results/reference/{file}.csv")
        last = table[table["steps"] == table["steps"].max()]
        assert set(last["seed"]) == {0, 1, 2}
        fids = last.groupby(["calls", "pool"])["fid"]
        mean, spread = fids.mean(), fids.std(ddof=1)
        quoted = [line for line in lines if len(line) == 6 and line[0] == name]
        assert [line[1] for line in quoted] == ["5", "10", "20"]
        for _, calls, *shown in quoted:
            keys = [(int(calls), pool) for pool in (1, 64, 256, 1024)]
            assert shown == [f"{mean[key]:.1f} ({spread[key]:.1f})" for key in keys]


def test_the_table_of_sharing_is_that_of_the_reference():
    table = pd.read_csv(ROOT / "results/reference/sharing.csv")
    fids = table.groupby(["way", "width"])["fid"].mean()
    seeds = table.groupby("way")["seed"].nunique()
    text = README[README.index("| width | alone |") :]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines()[:9]]
    assert {row[0] for row in rows} == {f"{width:g}" for width in table["width"].unique()}
    for place, name in enumerate(head[1:], 1):
        way = name.removesuffix(" \\*")
        assert (way == name) == (seeds[way] > 1)
        assert [row[place] for row in rows] == [f"{fids[way, float(row[0])]:.1f}" for row in rows]


def quoted_table(head):
    """Cells of the table with that heading, by row and column."""
    names = [name.strip() for name in head.strip("| ").split("|")]
    _, *lines = README[README.index(head) + len(head) + 1 :].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    cells = ([cell.strip() for cell in line.strip("| ").split("|")] for line in rows)
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cells}


def of_seeds(fids):
    """Mean and sample deviation as the tables show them."""
    assert len(fids) == 3
    digits = 1 if fids.mean() >= 10 else 2
    return f"{fids.mean():.{digits}f} ({fids.std(ddof=1):.{digits}f})"


@pytest.mark.parametrize(
    ("file", "head", "rows", "columns"),
    [
        (
            "few_steps",
            "| calls | student | teacher, renoise | teacher, best solver |",
            "calls",
            "network",
        ),
        ("relay_start", "| `start` | 5 calls, eta 0.2 | 9 calls |", "start", "second"),
        (
            "relay_artefacts",
            "| noise added | enlarged | relay from 0.45 | relay from 0.95 "
            "| one-stage network from 0.45 | one-stage network from 0.95 |",
            "added",
            "way",
        ),
    ],
)
def test_tables_of_stages_are_those_of_the_reference(file, head, rows, columns):
    table = pd.read_csv(ROOT / f"results/reference/{file}.csv")
    quoted = quoted_table(head)
    plain = table[~table[columns].str.startswith("single stage")]
    assert set(quoted) == {f"{value:g}" for value in plain[rows].unique()}
    for row, cells in quoted.items():
        for column, shown in cells.items():
            fids = table[(table[rows] == float(row)) & (table[columns] == column)]["fid"]
            assert shown == of_seeds(fids), (row, column)


def test_the_table_of_kinds_is_that_of_the_reference():
    table = pd.read_csv(ROOT / "results/reference/joint.csv")
    names = {
        "joint search": "joint",
        "its single stages": "joint_single",
        "its relays": "joint_relay",
        "its students": "joint_distilled",
        "single stage alone": "single",
        "relay alone": "relay",
    }
    for budget, cells in quoted_table("| GFLOPs | " + " | ".join(names) + " |").items():
        for name, shown in cells.items():
            found = table[
                (table["gflops_per_image"] == float(budget)) & (table["search"] == names[name])
            ]
            want = [
                f"{f:.{1 if f >= 10 else 2}f} ({s:.{1 if f >= 10 else 2}f})"
                for f, s in zip(found["fid"], found["fid_sd"], strict=True)
            ]
            assert [shown] == (want or [""]), (budget, name)
