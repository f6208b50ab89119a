"""Objectives that are no numbers, or numbers that nobody expects: none spoils a search."""

import contextlib
import math
import random
import sys
from dataclasses import replace

import pytest
from invariants import assert_front
from support import CARDS, OBJECTIVES, read_csv, score, settings_with

from stepsearch.core.errors import FailureBudgetExceeded
from stepsearch.core.settings import MODES
from stepsearch.executors.local import LocalExecutor
from stepsearch.search import run_search
from stepsearch.store import RunStore

pytestmark = pytest.mark.faults

NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "complex": 1 + 1j}
NUMBERS = {"negative": -3.5, "huge": sys.float_info.max}
SEARCH = {"population": 10, "generations": 4}
TRIALS = 40


def search(folder, value, rate, mode):
    """A search in which a part `rate` of the trials, at least one, scores `value`; rows, and the
    keys that scored it."""
    rng, keys = random.Random(f"{value} {rate}"), []
    spoilt = set(rng.sample(range(TRIALS), max(1, round(rate * TRIALS))))
    seen = {}

    def spoiling(schedule):
        good, number = score(schedule), seen.setdefault(schedule.key(), len(seen))
        if number not in spoilt:
            return good
        keys.append(schedule.key())
        return replace(good, values={**good.values, "fid": value})

    store = RunStore.create(folder, OBJECTIVES, {"space.yaml": "a: 1"})
    settings = settings_with(**SEARCH, mode=mode)
    with contextlib.closing(store), contextlib.suppress(FailureBudgetExceeded):
        run_search(settings, CARDS, store, LocalExecutor(lambda: spoiling))
    return read_csv(folder / "trials.csv"), set(keys)


@pytest.mark.parametrize(
    ("rate", "mode"), [(0.01, MODES[0]), (0.1, MODES[0]), (0.5, MODES[0]), (0.1, MODES[1])]
)
@pytest.mark.parametrize("name", [*NO_NUMBERS, *NUMBERS])
def test_a_search_survives_what_objectives_say(tmp_path, injected, name, rate, mode):
    value = (NO_NUMBERS | NUMBERS)[name]
    rows, spoilt = search(tmp_path / "run", value, rate, mode)
    assert_front(tmp_path / "run")
    for path in (tmp_path / "run").glob("*.csv"):
        cells = {cell.lower() for row in read_csv(path) for cell in row.values()}
        assert not cells & {"nan", "inf", "-inf", "none"}, path.name
    failed = {row["key"] for row in rows if row["state"] == "FAIL"}
    if name in NO_NUMBERS:
        assert failed == spoilt
        assert all(row["fid"] == "" for row in rows if row["key"] in spoilt)
        # a tenth of 40 and at least 5 may fail: the sixth failure ends the search
        assert len(rows) == TRIALS if rate < 0.5 else len(failed) == 6
    else:
        assert not failed
        assert len(rows) == TRIALS
        assert {float(r["fid"]) for r in rows if r["key"] in spoilt} == {value}
    injected(f"objectives that are {name}", len(spoilt))
