"""The command line as a user runs it, for tests."""

import os
import subprocess
import sys
from pathlib import Path

STEPSEARCH = Path(sys.executable).with_name("stepsearch")


def stepsearch(folder, *argv):
    """Run the real command in `folder`; the user's own cache is neither read nor written."""
    done = subprocess.run(
        [STEPSEARCH, *argv],
        cwd=folder,
        env=os.environ | {"STEPSEARCH_CACHE": str(folder / "cache")},
        capture_output=True,
        timeout=120,
    )
    # text mode would turn every carriage return, which moves a cursor, into a line break
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def files(folder):
    """Everything below a folder, with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
