"""What image j gets depends on (seed, j) and on nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsearch.core.noise import LABELS, generator, image_labels, image_noise
from stepsearch.training.batches import CANDIDATES, EPOCHS, FLIPS, STEPS

TRAINING = (EPOCHS, STEPS, FLIPS, CANDIDATES)
SHAPE = (2, 3)
STREAMS = st.lists(st.integers(0, 2**32), min_size=3, max_size=4).map(tuple)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10**9))
def test_batches_do_not_matter(sizes, first):
    whole = image_noise(5, first, (sum(sizes), *SHAPE))
    starts = itertools.accumulate(sizes, initial=first)
    parts = [image_noise(5, s, (n, *SHAPE)) for s, n in zip(starts, sizes, strict=False)]
    assert (np.concatenate(parts) == whole).all()


def test_it_is_the_same_every_time():
    assert (image_noise(1, 2, (3, *SHAPE), 4) == image_noise(1, 2, (3, *SHAPE), 4)).all()


def test_every_part_of_the_name_matters():
    names = list(itertools.product(range(5), range(5), range(5)))  # seed, image, draw
    rows = {image_noise(s, j, (1, *SHAPE), d).tobytes() for s, j, d in names}
    assert len(rows) == len(names)


def test_it_is_standard_normal():
    noise = image_noise(0, 0, (2000, 4, 4)).astype(np.float64)
    n = noise.size
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5


@pytest.mark.parametrize("other", [(0, 1, 0), (1, 0, 0), (0, 0, 1)])
def test_neighbours_are_uncorrelated(other):
    """Another image, another seed, another draw."""
    seed, image, draw = other
    a = image_noise(0, 0, (1, 200, 200)).ravel()
    b = image_noise(seed, image, (1, 200, 200), draw).ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / a.size**0.5


def test_shape_and_type():
    noise = image_noise(0, 7, (3, 1, 8, 8))
    assert (noise.shape, noise.dtype) == ((3, 1, 8, 8), np.float32)


@given(STREAMS, STREAMS)
def test_streams_are_their_names(a, b):
    same = (generator(*a).random(4) == generator(*b).random(4)).all()
    assert bool(same) == (a == b)


@pytest.mark.parametrize("longer", [(0, 5), (0, 0, 5), (0, 0, 0, 5)])
def test_names_of_different_lengths_differ(longer):
    assert generator(5).random() != generator(*longer).random()


@pytest.mark.parametrize("stream", TRAINING)
def test_training_and_sampling_share_no_stream(stream):
    """Training names (*stream, seed, step); sampling names (draw, seed, image)."""
    trained = generator(*stream, 3, 4).standard_normal(6).astype(np.float32)
    for draw in range(4):
        assert not np.array_equal(image_noise(3, 4, (1, 6), draw)[0], trained)


@pytest.mark.parametrize("name", [(), (1, 2, 3, 4, 5)])
def test_too_short_or_too_long_a_name(name):
    with pytest.raises(ValueError, match="1 to 4"):
        generator(*name)


def test_negative_names():
    with pytest.raises(ValueError, match="-1"):
        generator(-1)


# --- labels


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10**9))
def test_batches_do_not_matter_to_labels(sizes, first):
    starts = itertools.accumulate(sizes, initial=first)
    parts = [image_labels(5, s, n, 10) for s, n in zip(starts, sizes, strict=False)]
    assert np.concatenate(parts).tolist() == image_labels(5, first, sum(sizes), 10).tolist()


def test_every_label_is_as_likely_and_another_seed_draws_others():
    labels = image_labels(0, 0, 5000, 10)
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert ((counts - 500) ** 2 / 500).sum() < 28  # chi-square of 9, exceeded once in a thousand
    again = image_labels(1, 0, 5000, 10)
    assert abs((labels == again).mean() - 0.1) < 0.02
    assert abs((labels[1:] == labels[:-1]).mean() - 0.1) < 0.02


def test_labels_share_no_stream_with_noise_and_training():
    streams = [(*kind, 3, 4) for kind in (LABELS, *TRAINING)] + [(d, 3, 4) for d in range(4)]
    drawn = {generator(*stream).random(4).tobytes() for stream in streams}
    assert len(drawn) == len(streams)
