"""Counter-based noise: what image j gets depends on (seed, j) and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def generator(*counter: int) -> np.random.Generator:
    """An independent stream for a tuple of up to four non-negative integers, e.g. (seed, step).

    The last two go to the key of Philox, the others and their number to the high words of its
    counter, so streams never overlap in the first 2**64 draws.
    """
    if not 1 <= len(counter) <= 4 or min(counter) < 0:
        raise ValueError(f"a stream is named by 1 to 4 integers from 0 up, got {counter}")
    words = [0, 0, 0, 0, *counter][-4:]
    start = [0, len(counter), *words[:2]]
    return np.random.Generator(np.random.Philox(key=words[2:], counter=start))


LABELS = (0, 2)  # four words with seed and image; training's streams begin with 0, 0 and 0, 1


def image_labels(seed: int, first_image: int, count: int, classes: int) -> NDArray[np.int64]:
    """Labels 0 .. classes - 1, each as likely, of images first_image .. first_image + count - 1."""
    images = range(first_image, first_image + count)
    return np.array([generator(*LABELS, seed, i).integers(classes) for i in images], np.int64)


def image_noise(
    seed: int, first_image: int, shape: tuple[int, ...], draw: int = 0, again: int = 0
) -> NDArray[np.float32]:
    """Standard normal noise of images first_image .. first_image + shape[0] - 1.

    Args:
        seed: the evaluation's seed.
        first_image: number of the first image of this batch.
        shape: (B, ...), B images of any shape.
        draw: 0 for the starting noise, then one for every call, and for every start of a relay
            stage, in the order of the schedule.
        again: 0 for a draw's first noise, k for the k-th after it; these streams have four words
            of which the first is not 0, as in no other's name.
    """
    words = (again, draw, seed) if again else (draw, seed)
    rows = (generator(*words, first_image + i).standard_normal(shape[1:]) for i in range(shape[0]))
    return np.stack(list(rows)).astype(np.float32)
