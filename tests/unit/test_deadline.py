"""Time limits of candidates: seconds = a + b * cost is found again, whatever a few outliers say."""

import pytest

from stepsearch.executors.deadline import WINDOW, Limits, Rates

LIMITS = Limits(first=1000.0, least=0.5, factor=8.0, patience=1.5, enough=5)


def measured(pairs, rung=None):
    rates = Rates(LIMITS)
    for cost, seconds in pairs:
        rates.note(rung, cost, seconds)
    return rates


def line(costs, base=3.0, slope=2.0):
    return [(cost, base + slope * cost) for cost in costs]


def test_the_first_limit_holds_until_enough_have_finished():
    few = line(range(1, 5))
    assert measured(few).limit(None, 1.0, 1) == LIMITS.first
    assert measured([*few, (5, 13.0)]).limit(None, 1.0, 1) < LIMITS.first


@pytest.mark.parametrize(("tries", "factor"), [(1, 8.0), (2, 12.0), (3, 18.0)])
def test_the_limit_is_a_factor_of_the_line_and_grows_with_the_attempts(tries, factor):
    rates = measured(line(range(1, 21)))
    assert rates.limit(None, 10.0, tries) == pytest.approx(factor * 23.0)
    assert factor < 20  # a node that is 20 times slower never keeps to it


def test_beyond_the_dearest_the_limit_grows_with_the_cost():
    rates = measured(line(range(1, 11)))
    assert rates.limit(None, 100.0, 1) == pytest.approx(8 * 10 * 23.0)
    assert rates.limit(None, 100.0, 1) >= 8 * (3.0 + 2.0 * 100)  # more than the line itself


def test_where_costs_are_equal_the_limit_is_a_factor_of_the_median():
    rates = measured([(1.0, s) for s in (2.0, 2.0, 3.0, 4.0, 90.0)])
    assert rates.limit(None, 1.0, 1) == pytest.approx(8 * 3.0)


def test_times_that_fall_with_cost_give_no_negative_limit():
    rates = measured([(c, 30.0 - c) for c in range(1, 21)])
    assert rates.limit(None, 1000.0, 1) >= 8 * 10.0


def test_a_quarter_of_attempts_on_a_slow_node_moves_no_limit():
    honest = line(range(1, 31))
    slow = [(cost, 20 * seconds) for cost, seconds in honest[::4]]
    assert measured(honest + slow).limit(None, 15.0, 1) == pytest.approx(8 * 33.0, rel=0.35)


def test_machines_that_all_become_slower_are_followed():
    rates = measured(line(range(1, 31)))
    before = rates.limit(None, 10.0, 1)
    for cost, seconds in line([1 + n % 30 for n in range(WINDOW)]):
        rates.note(None, cost, 20 * seconds)
    assert rates.limit(None, 10.0, 1) == pytest.approx(20 * before)


def test_no_limit_is_shorter_than_the_least():
    assert measured([(1.0, 1e-4)] * 9).limit(None, 1.0, 1) == LIMITS.least


def test_every_rung_has_its_own_rate():
    rates = measured(line(range(1, 11)), rung=0)
    assert rates.limit(0, 5.0, 1) == pytest.approx(8 * 13.0)
    assert rates.limit(None, 5.0, 1) == LIMITS.first
