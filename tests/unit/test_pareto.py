"""Non-domination, ranks and hypervolume against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stepsearch.core.pareto import hypervolume, pareto_front, pareto_rank

# few distinct values, so that ties and duplicates are common
POINTS = st.integers(1, 4).flatmap(
    lambda m: arrays(
        np.int64, st.tuples(st.integers(1, 12), st.just(m)), elements=st.integers(0, 4)
    )
)
BAD = [float("nan"), float("inf"), -float("inf")]


def dominates(a, b):
    return bool((a <= b).all() and (a < b).any())


def brute_front(points):
    return [not any(dominates(q, p) for q in points) for p in points]


@given(POINTS)
def test_front_is_what_nothing_dominates(points):
    assert pareto_front(points).tolist() == brute_front(points)


@given(POINTS)
def test_ranks_peel_front_by_front(points):
    want, left, rank = np.full(len(points), -1), np.arange(len(points)), 0
    while len(left):
        front = left[brute_front(points[left])]
        want[front] = rank
        left, rank = np.setdiff1d(left, front), rank + 1
    assert pareto_rank(points).tolist() == want.tolist()


@given(POINTS)
def test_rank_zero_is_the_front(points):
    assert ((pareto_rank(points) == 0) == pareto_front(points)).all()


@given(POINTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    assert (pareto_front(points)[order] == pareto_front(points[order])).all()
    assert (pareto_rank(points)[order] == pareto_rank(points[order])).all()


def test_duplicates_are_all_kept():
    points = [[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    assert pareto_front(points).tolist() == [True, True, True, False, False]
    assert pareto_rank(points).tolist() == [0, 0, 0, 1, 1]


def test_equal_in_one_objective():
    assert pareto_front([[1.0, 2.0], [1.0, 1.0]]).tolist() == [False, True]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_points(objectives):
    none = np.zeros((0, objectives))
    assert pareto_front(none).shape == pareto_rank(none).shape == (0,)
    assert pareto_front(none).dtype == bool
    assert hypervolume(none, [1.0] * objectives) == 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_hypervolume_of_a_staircase(n):
    points = [(i, n - 1 - i) for i in range(n)]
    assert hypervolume(points, (n, n)) == n * n - n * (n - 1) // 2


@given(POINTS)
def test_hypervolume_counts_unit_cells(points):
    m = points.shape[1]
    cells = np.array(list(itertools.product(range(4), repeat=m)))  # lower corners below (4, .., 4)
    want = (points[None] <= cells[:, None]).all(2).any(1).sum()
    np.testing.assert_allclose(hypervolume(points, [4.0] * m), want, rtol=1e-12)


@given(POINTS)
def test_points_beyond_the_reference_add_nothing(points):
    m = points.shape[1]
    beyond = np.vstack([points, np.eye(m) * 9, np.full((1, m), 3.0)])  # on or over the bound
    assert hypervolume(beyond, [3.0] * m) == hypervolume(points, [3.0] * m)


def test_one_point():
    assert hypervolume([[1.0, 2.0, 3.0]], [2.0, 4.0, 6.0]) == 1 * 2 * 3
    assert hypervolume([[2.0, 2.0]], [2.0, 4.0]) == 0.0


@pytest.mark.parametrize("bad", BAD)
def test_points_must_be_finite(bad):
    points = [[1.0, 2.0], [bad, 0.0]]
    for call in (pareto_front, pareto_rank, lambda p: hypervolume(p, [3.0, 3.0])):
        with pytest.raises(ValueError, match="finite"):
            call(points)


@pytest.mark.parametrize("bad", BAD)
def test_reference_must_be_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[1.0, 2.0]], [bad, 3.0])


def test_shapes():
    for call in (pareto_front, pareto_rank, lambda p: hypervolume(p, [1.0])):
        with pytest.raises(ValueError, match=r"\(3,\)"):
            call([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"\(3,\).*\(1, 2\)"):
        hypervolume([[1.0, 2.0]], [3.0, 3.0, 3.0])
