"""Run directories of earlier versions, kept as they were written: they open, and go on."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from support import OBJECTIVES, make_trials

from stepsearch.cli import main
from stepsearch.journal import read_journal
from stepsearch.store import JOURNAL, RunStore, load_run

ASSETS = Path(__file__).parents[1] / "assets"
OLD = {  # trials and points on the front; what the format lacked then
    "run-1": (12, 5),  # arguments of grids, guidance, ways of counting, genomes
    "run-2": (24, 4),  # genomes; relays and distilled networks are there
}


@pytest.fixture(params=OLD)
def old(request, tmp_path):
    """A copy of an old run."""
    return shutil.copytree(ASSETS / request.param, tmp_path / request.param)


def test_every_kept_run_is_tested():
    assert {path.name for path in ASSETS.glob("run-*")} == set(OLD)


def test_an_old_run_is_read(old, capsys):
    run, (count, front) = load_run(old), OLD[old.name]
    assert (len(run.trials), len(run.pareto)) == (count, front)
    assert len(run.schedules) == count
    assert all(schedule.key() == key for key, schedule in run.schedules.items())
    for command in ("front", "status"):
        assert main([command, str(old)]) == 0
    assert f"trials       {count}" in capsys.readouterr().out


def test_an_old_run_goes_on_with_tables_that_say_the_same(old):
    """Every value of its own columns is as it was; newer columns are added."""
    before = load_run(old)
    trials, _ = read_journal(old / JOURNAL)
    store = RunStore(old, OBJECTIVES)
    assert (store.trials, store.torn) == (trials, None)
    store.write_tables()
    after = load_run(old)
    for name in ("trials", "pareto", "generations"):
        then, now = getattr(before, name), getattr(after, name)
        pd.testing.assert_frame_equal(now[list(then.columns)], then)
    store.append(make_trials(1 + len(trials))[-1])
    store.close()
    assert len(read_journal(old / JOURNAL)[0]) == len(trials) + 1
