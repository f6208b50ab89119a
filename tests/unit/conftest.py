"""Fixtures of the tests of settings files and of images."""

import numpy as np
import pytest
from malformed import GAUSSIAN, SPACE


@pytest.fixture
def folder(tmp_path):
    """A folder with a good space file and a good recipe."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "net.yaml").write_text(GAUSSIAN)
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own, which does not exist yet."""
    folder = tmp_path_factory.mktemp("home") / "cache"
    monkeypatch.setenv("STEPSEARCH_CACHE", str(folder))
    return folder


@pytest.fixture
def rgb(rng):
    """Six colour images, (N, H, W, C)."""
    return rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
