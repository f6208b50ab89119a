"""The command line as a user runs it, for tests."""

import os
import subprocess
import sys
from pathlib import Path

STEPSEARCH = Path(sys.executable).with_name("stepsearch")


def stepsearch(folder, *argv):
    """Run the real command in `folder`; the user's own cache is neither read nor written."""
    return subprocess.run(
        [STEPSEARCH, *map(str, argv)],
        cwd=folder,
        env=os.environ | {"STEPSEARCH_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def files(folder):
    """Everything below a folder, with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
