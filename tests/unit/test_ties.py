"""Rank correlation with its interval, and what cannot be told apart."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from stepsearch.ties import rank_agreement, standard_error, tied_with


class TestAgreement:
    def test_counts_pairs(self):
        """tau-b = (C - D) / sqrt((P - X)(P - Y)) with X, Y the pairs tied in one measurement."""
        one, other = [1, 2, 3, 4, 4], [1, 3, 2, 5, 4]
        # 10 pairs: (2, 3) discordant, (4, 5) tied in the first, 8 concordant
        found = rank_agreement(one, other)
        assert found.tau == pytest.approx((8 - 1) / np.sqrt((10 - 1) * 10))
        assert found.tau == pytest.approx(kendalltau(one, other).statistic)
        assert found.count == 5

    def test_at_its_limits(self):
        x = np.arange(20.0)
        for other, tau in ((3 * x + 1, 1.0), (-(x**3), -1.0)):
            found = rank_agreement(x, other)
            assert (found.tau, found.low, found.high) == pytest.approx((tau, tau, tau))

    def test_drawing_a_thing_twice_does_not_pull_tau_down(self):
        """With tau-a the resamples of a perfect order would lie near 1 - 1/n."""
        found = rank_agreement(np.arange(5.0), np.arange(5.0))
        assert found.low == pytest.approx(1)

    def test_the_same_numbers_give_the_same_interval(self, rng):
        x = rng.standard_normal(30)
        y = x + 0.3 * rng.standard_normal(30)
        assert rank_agreement(x, y) == rank_agreement(x, y)
        assert rank_agreement(x, y).low < rank_agreement(x, y).tau < rank_agreement(x, y).high

    def test_the_interval_holds_the_truth_about_as_often_as_it_says(self, rng):
        """tau of a bivariate Gaussian is 2 / pi asin(rho); 95 % of 200 intervals are 190 +- 3."""
        rho, held = 0.9, 0
        for _ in range(200):
            x = rng.standard_normal(40)
            y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(40)
            found = rank_agreement(x, y, resamples=200)
            held += found.low <= 2 / np.pi * np.arcsin(rho) <= found.high
        assert 0.88 <= held / 200 <= 0.99

    @pytest.mark.parametrize(
        ("one", "other"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 1, 1], [1, 2, 3])]
    )
    def test_what_ranks_nothing_is_refused(self, one, other):
        with pytest.raises(ValueError, match=r"things"):
            rank_agreement(one, other)

    def test_is_said_in_words(self):
        assert str(rank_agreement(range(4), range(4))) == "1.00 (95 % interval 1.00 to 1.00)"


def test_the_error_is_the_deviation_of_replicates():
    assert standard_error([1, -1, 1, -1]) == pytest.approx(np.sqrt(4 / 3))


class TestTies:
    """Rows at costs 1, 2, ..., replicates with a standard error of about 1 each."""

    @pytest.fixture
    def noise(self, rng):
        return rng.standard_normal((4, 2000))

    def test_members_of_the_front_nearer_than_two_errors_are_tied(self, noise):
        """Independent replicates: the difference has error sqrt 2, and 2.8 is the threshold."""
        found = tied_with([1, 2, 3, 4], [10, 8, 4, 0], noise, [True] * 4)
        assert found == [[1], [0], [], []]

    def test_what_replicates_share_is_no_error(self, noise):
        shared = np.tile(noise[:1], (4, 1)) + 0.01 * noise
        assert tied_with([1, 2, 3, 4], [10, 8, 4, 1], shared, [True] * 4) == [[], [], [], []]

    def test_a_member_is_compared_with_its_next_cheaper_one(self, noise):
        """Row 1 is dominated; 2 could do as well with less compute, 3 is far better."""
        found = tied_with([1, 2, 3, 4], [20, 10.5, 10, 1], noise, [True, False, True, True])
        assert found == [[], [2], [1], []]

    def test_dominated_rows_are_not_compared_with_each_other(self, noise):
        front = [True, False, False, False]
        assert tied_with([1, 2, 3, 4], [1, 10, 10, 10], noise, front) == [[], [], [], []]

    def test_the_order_of_rows_says_nothing(self, noise):
        costs, values = [4, 3, 2, 1], [1, 10, 10.5, 20]
        found = tied_with(costs, values, noise[::-1], [True, True, False, True])
        assert found == [[], [2], [1], []]
