"""Fixtures of the tests of settings files."""

import pytest
from malformed import GAUSSIAN, SPACE


@pytest.fixture
def folder(tmp_path):
    """A folder with a good space file and a good recipe."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "net.yaml").write_text(GAUSSIAN)
    return tmp_path
