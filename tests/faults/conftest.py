"""Sizes of the fault suite, and what it injected, printed at the end."""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from invariants import Runs
from zygote import Zygote

FULL = os.environ.get("STEPSEARCH_FAULTS") == "full"
MEMORY = Path("/dev/shm")  # killing a process takes nothing from a disk, and this one is quick


@pytest.fixture
def size():
    """The smaller count in CI, the larger one with STEPSEARCH_FAULTS=full."""
    return lambda small, large: large if FULL else small


@pytest.fixture
def injected(record_property):
    """Tells how many faults of a kind a test has injected."""
    return lambda kind, count: record_property("faults", (kind, count))


@pytest.fixture(scope="module")
def folder():
    """An empty folder in memory, where there is one."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="stepsearch-faults-", dir=place))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def runs(zygote, folder):
    return Runs(zygote, folder)


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "faults" and report.when == "call":
                    counts[value[0]] += value[1]
    for kind, count in sorted(counts.items()):
        terminalreporter.write_line(f"injected: {count} {kind}")
