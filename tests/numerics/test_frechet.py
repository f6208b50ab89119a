"""The Frechet distance against closed forms, and its standard error against the real spread."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from stepsearch.core.errors import ConfigError
from stepsearch.objectives.fid import (
    Fid,
    FidStandardError,
    Reference,
    frechet_distance,
    moments,
)
from stepsearch.objectives.registry import Samples


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


def gaussian(rng, dim):
    """A mean and a well-conditioned covariance."""
    a = rng.standard_normal((dim, dim))
    return rng.standard_normal(dim), a @ a.T / dim + 0.1 * np.eye(dim)


@pytest.mark.parametrize("dim", [1, 2, 8, 64])
def test_commuting_gaussians(rng, dim):
    q, mu = rotation(rng, dim), rng.standard_normal(dim)
    a, b = rng.uniform(0.1, 3, (2, dim))
    got = frechet_distance(np.zeros(dim), q * a @ q.T, mu, q * b @ q.T)
    want = (mu**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize(("s1", "s2"), [(1, 1), (2, 0.5), (1e-3, 7), (0, 3), (0, 0)])
def test_one_dimension(s1, s2):
    """(m1 - m2)^2 + (s1 - s2)^2 of standard deviations s."""
    got = frechet_distance([1.5], [[s1**2]], [-0.5], [[s2**2]])
    np.testing.assert_allclose(got, 4 + (s1 - s2) ** 2, rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 8, 64])
def test_equal_statistics_are_at_distance_zero(rng, dim):
    mean, cov = gaussian(rng, dim)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-10 * np.trace(cov)


def test_symmetric(rng):
    one, two = gaussian(rng, 16), gaussian(rng, 16)
    np.testing.assert_allclose(
        frechet_distance(*one, *two), frechet_distance(*two, *one), rtol=1e-10
    )


def test_common_rotation_and_shift_change_nothing(rng):
    (m1, c1), (m2, c2) = gaussian(rng, 16), gaussian(rng, 16)
    q, shift = rotation(rng, 16), 10 * rng.standard_normal(16)
    moved = [(q @ m + shift, q @ c @ q.T) for m, c in ((m1, c1), (m2, c2))]
    np.testing.assert_allclose(
        frechet_distance(*moved[0], *moved[1]), frechet_distance(m1, c1, m2, c2), rtol=1e-10
    )


def test_scales_as_a_squared_distance(rng):
    (m1, c1), (m2, c2) = gaussian(rng, 8), gaussian(rng, 8)
    np.testing.assert_allclose(
        frechet_distance(3 * m1, 9 * c1, 3 * m2, 9 * c2),
        9 * frechet_distance(m1, c1, m2, c2),
        rtol=1e-10,
    )


@pytest.mark.parametrize("dim", [2, 8, 64, 128])
def test_agrees_with_the_matrix_square_root(rng, dim):
    (m1, c1), (m2, c2) = gaussian(rng, dim), gaussian(rng, dim)
    root = sqrtm(c1 @ c2)
    want = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(m1, c1, m2, c2), want, rtol=1e-8)


@pytest.mark.parametrize("counts", [(5, 7), (5, 200), (200, 5), (2, 2)])
def test_fewer_samples_than_features_stay_finite_and_real(rng, counts):
    """Against tr (c1 c2)^(1/2) = sum of singular values of the centred product, without roots."""
    one, two = (rng.standard_normal((n, 64)) for n in counts)
    got = frechet_distance(*moments(one), *moments(two))
    assert isinstance(got, float)
    centred = [(f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (one, two)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    want = ((one.mean(0) - two.mean(0)) ** 2).sum() - 2 * cross
    want += sum((c**2).sum() for c in centred)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_orthogonal_supports(rng):
    """Covariances that share no direction: the distance is the sum of both traces."""
    a, b = np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0])
    q = rotation(rng, 4)
    got = frechet_distance(np.zeros(4), q @ a @ q.T, np.zeros(4), q @ b @ q.T)
    np.testing.assert_allclose(got, 10, rtol=1e-6)


def test_never_negative(rng):
    """Rounding alone must not give a better-than-perfect distance."""
    for _ in range(50):
        features = rng.standard_normal((20, 16)) * rng.uniform(0, 1e3)
        assert frechet_distance(*moments(features), *moments(features)) >= 0


class TestReference:
    @pytest.mark.parametrize("count", [1, 7, 8])
    def test_too_few_images_are_refused(self, rng, count):
        with pytest.raises(ConfigError, match=f"{count} reference images cannot fit .* of 8"):
            Reference.of(rng.standard_normal((count, 8)))

    def test_one_more_image_than_features_is_enough(self, rng):
        assert Reference.of(rng.standard_normal((9, 8))).cov.shape == (8, 8)

    def test_distance_is_the_function(self, rng):
        features, (mean, cov) = rng.standard_normal((100, 8)), gaussian(rng, 8)
        reference = Reference.of(features)
        assert reference.distance(mean, cov) == frechet_distance(mean, cov, *moments(features))

    def test_float32_features_are_summed_in_float64(self, rng):
        features = (rng.standard_normal((5000, 4)) + 1000).astype(np.float32)
        np.testing.assert_array_equal(
            Reference.of(features).mean, features.astype(np.float64).mean(0)
        )

    def test_hash_follows_the_statistics(self, rng):
        features = rng.standard_normal((20, 4))
        same, other = Reference.of(features.copy()), Reference.of(features + 1e-9)
        assert Reference.of(features).sha256 == same.sha256 != other.sha256


def spread_and_error(dim, count, shift, scale, draws=120):
    """Standard deviation of FID over independent sets, and the rms of what each set says of it."""
    rng = np.random.default_rng(1)
    reference = Reference(np.zeros(dim), np.eye(dim))
    fids, errors = [], []
    for _ in range(draws):
        features = (shift + scale * rng.standard_normal((count, dim))).astype(np.float32)
        samples = Samples(features, reference)
        fids.append(Fid()(None, {}, samples))
        errors.append(FidStandardError()(None, {}, samples))
    return np.std(fids, ddof=1), np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize(
    ("dim", "count", "shift", "scale"),
    [
        (4, 400, 0.5, 1.0),
        (4, 400, 0.0, 0.7),
        (16, 1000, 0.3, 0.9),
        (16, 997, 0.1, 1.2),  # groups of unequal size
        (16, 1000, 0.0, 1.0),  # the bottom of the valley, where the jackknife is known to overstate
    ],
)
def test_jackknife_error_is_the_real_spread(dim, count, shift, scale):
    spread, error = spread_and_error(dim, count, shift, scale)
    assert spread / 1.5 < error < spread * 1.5
