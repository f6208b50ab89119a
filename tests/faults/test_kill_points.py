"""A driver that is killed before, within or after anything that it does to its disk."""

import itertools
import json
import shutil

import pytest
from invariants import journal_of

from stepsearch.core.settings import MODES
from stepsearch.store import JOURNAL, TABLES

pytestmark = pytest.mark.faults

SMALL = {"population": 2, "generations": 2}


def points_of(zygote, run, settings):
    """Every point of a driver that is not killed."""
    ended = zygote.run("search", folder=str(run), settings=settings, disk={})
    assert ended.code == 0, ended
    return json.loads(run.with_name("run.disk").read_text())["points"]


def kill_at(zygote, run, settings, point):
    ended = zygote.run("search", folder=str(run), settings=settings, disk={"kill": point})
    assert ended.code == -9, ended
    return journal_of(run)


def assert_everything_is_hit(points):
    kinds = {(when, call) for when, call, _ in (point.split() for point in points)}
    assert {("within", "write")} | {
        (when, call)
        for when in ("before", "after")
        for call in ("write", "fsync", "replace", "rename", "open")
    } <= kinds
    for name in ("space.yaml", *TABLES):
        assert f"before replace {name}" in points
        assert f"after replace {name}" in points
    assert points.count(f"after fsync {JOURNAL}") == 1 + 4  # when it is opened, and a trial each


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_point_a_run_ends_as_if_undisturbed(zygote, runs, size, injected, mode):
    """In CI once between two calls, after the one being before the next, and a quarter of that for
    the second mode, which writes alike."""
    settings = SMALL | {"mode": mode}
    points = points_of(zygote, runs.new(), settings)
    assert_everything_is_hit(points)
    kills = 0
    apart = [n for n, point in enumerate(points[:-1]) if not point.startswith("after")]
    killed = size([*apart, len(points) - 1], range(len(points)))
    for point in killed[:: 1 if mode == MODES[0] else size(4, 1)]:
        run = runs.new()
        before = kill_at(zygote, run, settings, point)
        runs.finish(run, settings, before)
        shutil.rmtree(run.parent)
        kills += 1
    injected("kills before, within and after calls to the disk", kills)


def test_killed_at_any_point_of_setting_a_torn_line_aside_nothing_is_lost(zygote, runs, injected):
    whole = runs.whole(SMALL)

    def torn():
        run = runs.new()
        shutil.copytree(whole, run)
        (run.parent / "run.told").touch()
        data = (whole / JOURNAL).read_bytes()
        (run / JOURNAL).write_bytes(data[:-7])
        return run, data[: data.rfind(b"\n", 0, -1) + 1]

    points = points_of(zygote, torn()[0], SMALL)
    recovery = [*itertools.takewhile(lambda point: ".trials.csv" not in point, points)]
    for call in ("replace journal.torn-1", "truncate journal.jsonl", "fsync journal.jsonl"):
        assert {f"before {call}", f"after {call}"} <= set(recovery)
    for point in range(len(recovery)):
        run, good = torn()
        assert kill_at(zygote, run, SMALL, point) == good
        runs.finish(run, SMALL, good)
        aside = [path.read_bytes() for path in run.glob("journal.torn-*")]
        assert set(aside) == {(whole / JOURNAL).read_bytes()[len(good) : -7]}
        shutil.rmtree(run.parent)
    injected("kills before, within and after calls to the disk", len(recovery))
