"""The bootstrap of FID: against resampling by hand, and against the real spread."""

import numpy as np
import pytest

from stepsearch.objectives.bootstrap import fid_replicates, resampled_counts
from stepsearch.objectives.fid import Reference, moments
from stepsearch.ties import standard_error


def reference_of(rng, dim, count=500):
    return Reference.of(rng.standard_normal((count, dim)).astype(np.float32))


@pytest.mark.parametrize(("count", "dim"), [(50, 3), (9000, 4)])  # one block, and two
def test_a_replicate_is_the_fid_of_the_images_that_were_drawn(rng, count, dim):
    reference = reference_of(rng, dim)
    features = (1.3 * rng.standard_normal((count, dim)) + 0.2).astype(np.float32)
    found = fid_replicates(features, reference, seed=7, replicates=5)
    want = []
    for b in range(5):
        drawn = np.repeat(features, resampled_counts(count, 7, b), axis=0).astype(np.float64)
        want.append(reference.distance(*moments(drawn)))
    np.testing.assert_allclose(found, np.array(want) - np.mean(want), rtol=1e-7, atol=1e-10)


def test_replicates_are_about_their_mean(rng):
    """Resampled sets are more alike than the images are: their FID is higher, and that is no news.

    A set of N drawn from N has about N / e different images fewer.
    """
    reference = reference_of(rng, 8)
    features = rng.standard_normal((200, 8)).astype(np.float32)
    found = fid_replicates(features, reference, seed=0)
    assert abs(found.mean()) < 1e-12
    own = reference.distance(*moments(features.astype(np.float64)))
    drawn = [
        reference.distance(
            *moments(np.repeat(features, resampled_counts(200, 0, b), axis=0).astype(np.float64))
        )
        for b in range(50)
    ]
    assert np.mean(drawn) > 1.3 * own


def test_the_same_images_are_drawn_of_every_schedule_and_others_with_another_seed():
    for b in (0, 1, 199):
        counts = resampled_counts(1000, 3, b)
        assert counts.sum() == 1000
        assert np.array_equal(counts, resampled_counts(1000, 3, b))
        assert not np.array_equal(counts, resampled_counts(1000, 4, b))
        assert not np.array_equal(counts, resampled_counts(1000, 3, b + 1))


def spread_and_error(dim, count, shift, scale, draws=60):
    """Standard deviation of FID over independent sets, and the rms of what each set says of it."""
    rng = np.random.default_rng(1)
    reference = Reference(np.zeros(dim), np.eye(dim))
    fids, errors = [], []
    for _ in range(draws):
        features = (shift + scale * rng.standard_normal((count, dim))).astype(np.float32)
        fids.append(reference.distance(*moments(features.astype(np.float64))))
        errors.append(standard_error(fid_replicates(features, reference, 0, 60)))
    return np.std(fids, ddof=1), np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize(
    ("dim", "count", "shift", "scale"), [(4, 400, 0.5, 1.0), (4, 400, 0.0, 0.7), (16, 800, 0.3, 1)]
)
def test_the_error_is_the_real_spread(dim, count, shift, scale):
    spread, error = spread_and_error(dim, count, shift, scale)
    assert spread / 1.4 < error < spread * 1.4


def test_pairs_are_told_apart_that_share_their_noise():
    """Image j of two schedules starts from the same noise: what they share is not their error."""
    rng = np.random.default_rng(0)
    reference = Reference(np.zeros(4), np.eye(4))
    differences, paired, apart = [], [], []
    for _ in range(60):
        shared = rng.standard_normal((400, 4))
        pair = [(shared + 0.1 * rng.standard_normal((400, 4)) + s) for s in (0.4, 0.45)]
        one, two = (
            (
                reference.distance(*moments(x)),
                fid_replicates(x.astype(np.float32), reference, 0, 60),
            )
            for x in pair
        )
        differences.append(two[0] - one[0])
        paired.append(standard_error(two[1] - one[1]))
        apart.append(np.hypot(standard_error(one[1]), standard_error(two[1])))
    spread = np.std(differences, ddof=1)
    assert spread / 1.4 < np.sqrt(np.mean(np.square(paired))) < 1.4 * spread
    assert np.mean(apart) > 2.5 * np.mean(paired)
