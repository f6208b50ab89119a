"""The command line as a user runs it, for tests."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepsearch.cli import main

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


def call(folder, *argv):
    """The same in this process, which has torch loaded."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
        code = main(argv)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def one_line(done, *says, status=2):
    """The command printed a single message of the program, which says all of `says`."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("stepsearch: ")
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()
    for words in says:
        assert words in done.stderr


def files(folder):
    """Everything below a folder, with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
