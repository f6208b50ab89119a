"""Fixtures of the tests of images on disk."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own, which does not exist yet."""
    folder = tmp_path_factory.mktemp("home") / "cache"
    monkeypatch.setenv("STEPSEARCH_CACHE", str(folder))
    return folder


@pytest.fixture
def rgb(rng):
    """Six colour images, (N, H, W, C)."""
    return rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
