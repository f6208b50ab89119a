"""Settings files: what is wrong is told in one line that points at it, what is right comes back."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import GAUSSIAN, RECIPES, SPACE, SYNTAX, UNET, VALUES, Case

from stepsearch.config import dump_space, read_recipe, read_space
from stepsearch.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


def ids(case):
    return case.name.replace(" ", "-")


def check_message(error, path, case):
    """One printable line: place, then all that the case has to say."""
    text = str(error.value)
    place = f"{path}:{case.line}:{case.column}: " if case.line else f"{path}:"
    assert text.startswith(place)
    assert text.isprintable()
    for words in case.says:
        assert words in text, f"{words!r} is not in {text!r}"


@pytest.fixture
def folder(tmp_path):
    """A folder with a good space file and a good recipe."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "net.yaml").write_text(GAUSSIAN)
    return tmp_path
