"""Kernel distance: closed forms, a reference of a few lines, and no bias at any size."""

import numpy as np
import pytest
import torch
from torchvision_shim import ensure_torchvision

from stepsearch.objectives.fid import MOST, Reference, chosen
from stepsearch.objectives.kid import Kid, mean_within, polynomial_mmd2
from stepsearch.objectives.registry import Samples


def by_loops(x, y):
    """Eq. 4 of Binkowski et al. 2018, word for word."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def within(z):
        n = len(z)
        return sum(k(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    between = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between


@pytest.mark.parametrize(("n", "m", "dim"), [(2, 2, 1), (5, 9, 3), (30, 17, 8)])
def test_is_the_estimator_of_the_paper(rng, n, m, dim):
    x, y = rng.standard_normal((n, dim)), 2 * rng.standard_normal((m, dim)) + 1
    np.testing.assert_allclose(polynomial_mmd2(x, y), by_loops(x, y), rtol=1e-12)


def test_agrees_with_torch_fidelity(rng):
    ensure_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_kid", reason="an optional dependency")
    x, y = rng.standard_normal((60, 16)), rng.standard_normal((60, 16)) + 0.3
    whole = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    out = theirs.kid_features_to_metric(*map(torch.from_numpy, (x, y)), **whole)
    want = out[theirs.KEY_METRIC_KID_MEAN]
    np.testing.assert_allclose(polynomial_mmd2(x, y), want, rtol=1e-10)


def test_two_constant_sets_are_at_the_kernels_own_distance():
    """k(a, a) + k(b, b) - 2 k(a, b) for points a, b that never vary."""
    a, b = np.full((4, 2), 1.0), np.full((7, 2), -2.0)
    want = (1 + 1) ** 3 + (4 + 1) ** 3 - 2 * (-2 + 1) ** 3
    np.testing.assert_allclose(polynomial_mmd2(a, b), want, rtol=1e-12)


def test_blocks_change_memory_alone(rng):
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((33, 4))
    whole = polynomial_mmd2(x, y)
    for block in (1, 7, 32, 1000):
        np.testing.assert_allclose(polynomial_mmd2(x, y, block), whole, rtol=1e-9)


def exact(shift):
    """MMD^2 of N(0, 1) and N(shift, 1) in one dimension.

    E (xy + 1)^3 = 1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3 of independent x and y.
    """
    moments = {s: (s, s**2 + 1, s**3 + 3 * s) for s in (0.0, shift)}

    def k(s, t):
        (a, b, c), (d, e, f) = moments[s], moments[t]
        return 1 + 3 * a * d + 3 * b * e + c * f

    return k(0.0, 0.0) + k(shift, shift) - 2 * k(0.0, shift)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [5, 20, 80])
def test_is_unbiased_at_every_size(n, shift):
    """The mean over many sets is the distance of the distributions: no trend with n."""
    rng = np.random.default_rng(n)
    found = [
        polynomial_mmd2(rng.standard_normal((n, 1)), rng.standard_normal((n, 1)) + shift)
        for _ in range(4000)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - exact(shift)) < 4 * error


class TestObjective:
    def test_is_the_distance_to_the_real_features(self, rng):
        real, made = (rng.standard_normal((n, 4)).astype(np.float32) for n in (60, 40))
        found = Kid()(None, {}, Samples(made, Reference.of(real)))
        np.testing.assert_allclose(found, by_loops(*map(np.float64, (made, real))), rtol=1e-9)

    def test_the_real_half_is_computed_once(self, rng):
        reference = Reference.of(rng.standard_normal((60, 4)).astype(np.float32))
        assert reference.kernel_mean == mean_within(reference.features.astype(np.float64))
        assert "kernel_mean" in vars(reference)

    def test_thousands_of_features_of_real_images_are_kept_and_always_the_same(self, rng):
        features = np.arange(2 * (MOST + 700), dtype=np.float32).reshape(-1, 2)
        kept = chosen(features)
        assert len(kept) == MOST
        assert np.array_equal(kept, chosen(features))
        assert (np.diff(kept[:, 0]) > 0).all()  # in their order, none twice
        assert kept[-1, 0] > features[MOST, 0]  # from all of them, not the first
        assert np.array_equal(chosen(features[:100]), features[:100])
