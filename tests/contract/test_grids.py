"""What every grid must keep to; run over the registry."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walks import GRID_EXAMPLES, each_process

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import PROCESSES, get_process
from stepsearch.solvers.registry import GRIDS

each_grid = pytest.mark.parametrize("grid", GRIDS)
FITTED = ("karras", "logsnr", "cosine", "free")  # take `start` and `end`, and every time once
each_fitted = pytest.mark.parametrize("grid", FITTED)
CONTINUOUS = [name for name, process in PROCESSES.items() if not process.discrete]
VP = get_process("vp-linear-1000")


def example(grid, process, n):
    return GRIDS[grid](process, n, **GRID_EXAMPLES[grid](process, n))


def trained_range(process):
    return process.level_at(process.first_time), process.level_at(process.last_time)


def times_of(levels, process=VP):
    """Trained times; a level that is none of theirs is an error."""
    table = {process.level_at(t): t for t in range(int(process.last_time) + 1)}
    return [table[level] for level in levels]


def test_every_grid_has_an_example():
    assert set(GRID_EXAMPLES) == set(GRIDS), "add arguments for the new grid to tests/walks.py"


@each_process
@each_grid
@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 999])
def test_shape(process, grid, n):
    p = get_process(process)
    levels, (low, high) = example(grid, p, n), trained_range(p)
    assert len(levels) == n
    assert all(type(level) is float for level in levels)
    assert high >= levels[0]
    assert levels[-1] >= low * (1 - 1e-12)
    assert p.time_at(levels[0]) >= 0.75 * p.last_time
    if grid == "explicit":
        return
    if n > 1:
        np.testing.assert_allclose(levels[-1], low, rtol=1e-12)
    if p.discrete:
        times = times_of(levels, p)
        twice = grid == "quad"  # truncated to whole times, as DDIM's code does
        assert all(a >= b if twice else a > b for a, b in itertools.pairwise(times))
    else:
        assert all(a > b for a, b in itertools.pairwise(levels))


@each_process
@pytest.mark.parametrize("grid", [g for g in GRIDS if g != "explicit"])
def test_more_nodes_than_trained_times(process, grid):
    levels = example(grid, get_process(process), 2500)
    assert len(levels) == 2500
    assert all(a >= b for a, b in itertools.pairwise(levels))


@each_process
@each_fitted
def test_start_and_end_are_where_they_are_asked_for(process, grid):
    """To the last bit on a continuous process, at the nearest trained time on a discrete one."""
    p = get_process(process)
    low, high = trained_range(p)
    whole = GRIDS[grid](p, 9)
    assert (whole[0], whole[-1]) == (high, low)
    start, end = 0.4 * high, 3 * low
    levels = GRIDS[grid](p, 9, start=start, end=end)
    if p.discrete:
        start, end = (p.level_at(p.time_at(level)) for level in (start, end))
    assert (levels[0], levels[-1]) == (start, end)


@each_fitted
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_ends_stay_fixed_where_nodes_are_pushed_apart(grid, data):
    """Each trained time once where the part between the ends has room, else some of them twice."""
    end = data.draw(st.integers(0, 990))
    start = data.draw(st.integers(end + 1, min(end + 40, 999)))
    n = data.draw(st.integers(2, 45))
    ends = {"start": VP.level_at(start), "end": VP.level_at(end)}
    times = times_of(GRIDS[grid](VP, n, **ends))
    assert (times[0], times[-1]) == (start, end)
    assert all(a >= b for a, b in itertools.pairwise(times))
    assert len(set(times)) == n or n > start - end + 1


@pytest.mark.parametrize("grid", ["uniform", "quad"])
@pytest.mark.parametrize("process", CONTINUOUS)
def test_even_in_time_or_in_its_root(grid, process):
    p = get_process(process)
    power, top = {"uniform": (1, 1.0), "quad": (0.5, 0.8)}[grid]
    times = np.array([p.time_at(level) for level in GRIDS[grid](p, 11)])
    np.testing.assert_allclose(times[[0, -1]], [top * p.last_time, p.first_time], rtol=1e-9)
    np.testing.assert_allclose(np.diff(times**power, 2), 0, atol=1e-8 * times[0])


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 20.0])
def test_karras(rho):
    """Eq. 5 of Karras et al. 2022 as it stands."""
    n, top, low = 18, 80.0, 0.002
    i = np.arange(n)
    want = (top ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - top ** (1 / rho))) ** rho
    got = GRIDS["karras"](get_process("edm"), n, rho=rho)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    if rho == 7:
        assert GRIDS["karras"](get_process("edm"), n) == got


@pytest.mark.parametrize("process", CONTINUOUS)
def test_logsnr_and_cosine_are_even_in_their_variable(process):
    for grid, variable in (("logsnr", np.log), ("cosine", np.arctan)):
        steps = np.diff(variable(np.array(GRIDS[grid](get_process(process), 12))))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


def test_rho_of_any_size():
    """start ** (1 / rho) leaves the range of floats long before the grid does."""
    for process in PROCESSES.values():
        for rho in (1e-3, 0.1, 999.0):
            levels = GRIDS["karras"](process, 5, rho=rho)
            assert (levels[-1], levels[0]) == trained_range(process)
            assert all(a >= b for a, b in itertools.pairwise(levels))


COORDINATES = {"time": lambda p, level: p.time_at(level), "logsnr": lambda p, r: math.log(r)}
weights = st.lists(st.floats(0, 1e300), min_size=1, max_size=12)


@pytest.mark.parametrize("along", COORDINATES)
@pytest.mark.parametrize("process", CONTINUOUS)
@settings(max_examples=40, deadline=None)
@given(spacing=weights, gap=st.floats(0.001, 1), n=st.integers(2, 40))
def test_free_is_monotone_and_keeps_its_gap(process, along, spacing, gap, n):
    """Whatever a search proposes."""
    p = get_process(process)
    levels = GRIDS["free"](p, n, spacing=spacing, gap=gap, along=along)
    place = np.array([COORDINATES[along](p, level) for level in levels])
    mean = (place[0] - place[-1]) / (n - 1)
    assert (levels[-1], levels[0]) == trained_range(p)
    assert (-np.diff(place)).min() >= gap * mean * (1 - 1e-6)


def free(spacing, n=None, process="edm", **args):
    return GRIDS["free"](get_process(process), n or len(spacing) + 1, spacing=spacing, **args)


@pytest.mark.parametrize("along", COORDINATES)
def test_free_with_equal_spacings_is_even(along):
    even = {"time": "uniform", "logsnr": "logsnr"}[along]
    want = GRIDS[even](get_process("edm"), 9)
    for spacing in ([0], [0, 0, 0], [5] * 8, [1] * 3):
        np.testing.assert_allclose(free(spacing, 9, along=along), want, rtol=1e-9)
    np.testing.assert_allclose(free([7, 0, 1], 9, along=along, gap=1), want, rtol=1e-9)


def test_free_heeds_proportions_alone():
    one = free([1, 2, 0, 4])
    np.testing.assert_allclose(free([0.5, 1, 0, 2]), one, rtol=1e-12)
    np.testing.assert_allclose(free([2.5e307, 5e307, 0, 1e308]), one, rtol=1e-12)
    np.testing.assert_allclose(free([4e307, 8e307, 0, 1.6e308]), one, rtol=1e-12)
    assert free([1, 2, 0, 4.1]) != one


def test_free_gives_each_interval_its_share():
    """(gap + (1 - gap) w / mean w) of the mean interval."""
    spacing, gap = np.array([1.0, 4.0, 0.0, 3.0]), 0.2
    got = -np.diff(free(spacing.tolist(), gap=gap, along="time")) / (80 - 0.002) * 4
    np.testing.assert_allclose(got, gap + (1 - gap) * spacing / spacing.mean(), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(inner=st.sets(st.integers(1, 998), max_size=30))
def test_free_reproduces_any_subset_of_the_trained_times(inner):
    """As AutoDiffusion chooses them: each weight is how many steps are left out."""
    times = sorted(inner | {0, 999}, reverse=True)
    left_out = [a - b - 1 for a, b in itertools.pairwise(times)]
    spacing = left_out if any(left_out) else [1] * len(left_out)
    levels = GRIDS["free"](VP, len(times), spacing=spacing, gap=len(left_out) / 999)
    assert times_of(levels) == times


def test_free_of_zeros_and_ones_leaves_out_and_keeps():
    """At a small gap a 0 is the very next trained time, and the 1s share the rest."""
    spacing = [0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0]
    times = times_of(free(spacing, process="vp-linear-1000", gap=len(spacing) / 999))
    assert times == [999, 998, 997, 749, 748, 500, 252, 251, 250, 2, 1, 0]


def test_explicit_is_as_listed():
    p = get_process("edm")
    listed = [75.0, 3, 0.5]
    assert GRIDS["explicit"](p, 3, levels=listed) == (75.0, 3.0, 0.5)
    assert GRIDS["explicit"](p, 3, levels=[*listed, 0]) == (75.0, 3.0, 0.5)
    assert GRIDS["explicit"](p, 3, times=tuple(listed)) == (75.0, 3.0, 0.5)
    times = [999, 500, 0]
    levels = GRIDS["explicit"](VP, 3, times=times)
    assert levels == tuple(VP.level_at(t) for t in times)
    assert GRIDS["explicit"](VP, 3, levels=list(levels)) == levels


@pytest.mark.parametrize(
    ("grid", "args", "told"),
    [
        ("uniform", {"rho": 7}, ["uniform", "'rho'", "no arguments"]),
        ("karras", {"roh": 7}, ["karras", "did you mean 'rho'"]),
        *(("karras", {"rho": bad}, ["rho", "(0, 1000)", repr(bad)]) for bad in (0, -1, "7", True)),
        ("logsnr", {"start": 1000.0}, ["start 1000", "range", "0.0100005 .. 157.407"]),
        ("cosine", {"end": 1e-4}, ["end 0.0001", "range"]),
        ("karras", {"start": 1.0, "end": 2.0}, ["start 1 must exceed end 2"]),
        ("logsnr", {"start": math.nan}, ["start", "nan"]),
        ("logsnr", {"start": math.inf}, ["start", "inf"]),
        ("explicit", {}, ["levels or times"]),
        ("explicit", {"levels": [3, 2, 1], "times": [3, 2, 1]}, ["levels or times"]),
        ("explicit", {"levels": [3, 3, 1]}, ["descend", "3.0, 3.0, 1.0"]),
        ("explicit", {"levels": [3, 1]}, ["2 levels", "3 are needed"]),
        ("explicit", {"levels": "321"}, ["list of numbers", "'321'"]),
        ("explicit", {"levels": []}, ["list of numbers"]),
        ("explicit", {"levels": [3, "2", 1]}, ["'2'"]),
        ("explicit", {"levels": [math.inf, 2, 1]}, ["inf"]),
        ("explicit", {"times": [1000, 2, 1]}, ["1000", "whole time", "0 .. 999"]),
        ("explicit", {"times": [99, 2.5, 1]}, ["2.5", "whole time"]),
        ("free", {"gap": 0}, ["gap", "[0.001, 1]"]),
        ("free", {"gap": 1.1}, ["gap", "1.1"]),
        ("free", {"along": "level"}, ["time, logsnr", "'level'"]),
        ("free", {"spacing": [1] * 500 + [-1]}, ["spacing", "-1"]),
        ("free", {"spacing": [1, math.inf]}, ["spacing", "inf"]),
        ("free", {"spacing": []}, ["spacing", "list"]),
        ("free", {"spacing": 1}, ["spacing", "list"]),
    ],
    ids=str,
)
def test_bad_arguments_are_told_in_one_line(grid, args, told):
    with pytest.raises(SpaceError) as caught:
        GRIDS[grid](VP, 3, **args)
    message = str(caught.value)
    assert message.startswith(grid)
    assert all(part in message for part in told), message
    assert "\n" not in message
    assert len(message) < 200
