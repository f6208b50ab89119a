"""Diffusion processes against the formulas of their papers, and as coordinates."""

import math

import numpy as np
import pytest

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import PROCESSES, LinearVP, Table, get_process

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=lambda p: p.name)
TABLES = [p for p in PROCESSES.values() if p.discrete]
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda p: p.name)
CONTINUOUS = [p for p in PROCESSES.values() if not p.discrete]


def times_of(process):
    """Times that a network may be asked at, from the least noise to the most."""
    if process.discrete:
        return np.arange(process.last_time + 1)
    return np.linspace(process.first_time, process.last_time, 1001)


@each_process
def test_level_and_time_are_inverse(process):
    times = times_of(process)
    levels = [process.level_at(float(t)) for t in times]
    assert all(type(level) is float and level > 0 for level in levels)
    for there in (process.time_at, process.continuous_time):
        np.testing.assert_allclose([there(r) for r in levels], times, rtol=1e-9, atol=1e-12)


@each_process
def test_noise_grows_with_time(process):
    assert (np.diff([process.level_at(float(t)) for t in times_of(process)]) > 0).all()


@each_process
def test_scales(process):
    """Variance preserving: alpha^2 + (alpha r)^2 = 1 and the start is of variance 1; exploding:
    alpha = 1 and the start is of the level."""
    for level in (0.01, 1.0, 42.0):
        alpha, begin = process.alpha(level), process.start_scale(level)
        if process.name.startswith("vp"):
            assert alpha**2 * (1 + level**2) == pytest.approx(1, rel=1e-14)
            assert begin == 1
        else:
            assert (alpha, begin) == (1, level)


@each_process
def test_a_level_outside_the_range_is_asked_at_its_end(process):
    """Of a table; a formula has no end."""
    if not isinstance(process, Table):
        for level in (0.5 * process.level_at(process.first_time), 60.0):
            time = process.time_at(level)
            assert process.level_at(time) == pytest.approx(level, rel=1e-9)
        return
    for twin in (process, get_process(process.name, continuous=True)):
        assert [twin.time_at(level) for level in (0.0, 1e-5, 1e9)] == [0, 0, twin.last_time]


def alpha_bar(process, times):
    return np.array([process.alpha(process.level_at(float(t))) ** 2 for t in times])


def test_table_of_ddpm():
    """Ho et al. 2020: beta linear from 1e-4 to 0.02 in 1000 steps, alpha_bar their product."""
    product, want = 1.0, []
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        want.append(product)
    np.testing.assert_allclose(alpha_bar(TABLES[0], range(1000)), want, rtol=1e-12)


def test_table_of_iddpm():
    """Nichol & Dhariwal 2021, eq. 17: alpha_bar(t) = f(t) / f(0), f = cos^2 with s = 0.008, beta
    at most 0.999, which only the last step feels."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    got = alpha_bar(get_process("vp-cosine-1000"), range(1000))
    np.testing.assert_allclose(got[:-1], (f[1:] / f[0])[:-1], rtol=1e-9)
    np.testing.assert_allclose(got[-1] / got[-2], 1 - 0.999, rtol=1e-9)


@pytest.mark.parametrize("time", [1e-3, 0.1, 0.5, 0.99])
def test_formulas_of_continuous_time(time):
    """Song et al. 2021, eq. 33, and Nichol & Dhariwal 2021, eq. 17."""
    integral = 0.1 * time + (20 - 0.1) * time**2 / 2
    got = alpha_bar(get_process("vp-linear"), [time])[0]
    assert got == pytest.approx(math.exp(-integral), rel=1e-11)
    f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (time, 0)]
    got = alpha_bar(get_process("vp-cosine"), [time])[0]
    assert got == pytest.approx(f[0] / f[1], rel=1e-11)


def test_continuous_linear_is_the_limit_of_ddpms_table():
    """Betas 0.1 / T .. 20 / T, time (t + 1) / T; the error falls as 1 / T."""
    errors, limit = [], LinearVP()
    for steps in (500, 1000, 2000, 4000):
        table = Table.of_betas("a", np.linspace(0.1 / steps, 20 / steps, steps))
        for part in (0.1, 0.5, 1.0):
            ratio = table.level_at(round(part * steps) - 1) / limit.level_at(part)
            errors.append(abs(ratio - 1))
    errors = np.array(errors).reshape(4, 3)
    assert errors[0].max() < 0.1
    np.testing.assert_allclose(errors[1:] / errors[:-1], 0.5, atol=0.05)


def test_continuous_cosine_is_iddpms_table():
    table, limit = get_process("vp-cosine-1000"), get_process("vp-cosine")
    for t in range(0, 990, 30):
        assert table.level_at(t) == pytest.approx(limit.level_at((t + 1) / 1000), rel=1e-9)


@each_table
def test_nearest_is_in_log_noise_level(table):
    for t in (0, 1, 400, 998):
        low, high = math.log(table.level_at(t)), math.log(table.level_at(t + 1))
        for part, want in ((0.01, t), (0.49, t), (0.51, t + 1), (0.99, t + 1)):
            level = math.exp(low + part * (high - low))
            assert table.time_at(level) == want
            assert table.continuous_time(level) == pytest.approx(t + part, abs=1e-9)


@each_table
def test_a_table_in_continuous_time(table):
    """The same levels at whole times, between them even in log noise level."""
    twin = get_process(table.name, continuous=True)
    assert (twin.discrete, twin.name) == (False, table.name)
    assert (twin.first_time, twin.last_time) == (table.first_time, table.last_time)
    for t in (0, 17, 998):
        a, b = table.level_at(t), table.level_at(t + 1)
        assert [twin.level_at(t), twin.level_at(t + 1)] == [a, b]
        assert twin.level_at(t + 0.25) == pytest.approx(a**0.75 * b**0.25, rel=1e-9)
        assert twin.time_at(twin.level_at(t + 0.25)) == pytest.approx(t + 0.25, abs=1e-9)


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.name)
def test_a_continuous_process_is_its_own_twin(process):
    assert get_process(process.name, continuous=True) is process


def test_ranges_of_the_papers():
    ranges = {p.name: (p.first_time, p.last_time) for p in PROCESSES.values()}
    assert ranges["edm"] == (0.002, 80)  # Karras et al. 2022, table 1
    assert ranges["ve"] == (0.01, 50)  # Song et al. 2021, for CIFAR-10
    assert ranges["vp-linear"] == (1e-3, 1)
    assert ranges["vp-linear-1000"] == ranges["vp-cosine-1000"] == (0, 999)


def test_an_unknown_process_is_told_with_the_known_ones():
    with pytest.raises(SpaceError, match=r"unknown process 'vp'; known: edm, .*vp-linear-1000"):
        get_process("vp")
