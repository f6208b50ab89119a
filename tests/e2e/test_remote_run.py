"""A run at a URI: the same tables as in a folder, and another machine continues it."""

import shutil

import fsspec
import pytest
from command import call, one_line
from support import copy_toy, timeless

SMALL = ["evaluation.images=20", "search.population=3", "search.generations=2"]
URI = "memory://bucket/toy"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Two generations at a URI, and in a folder; one cache, whose copies of runs are removed."""
    folder = tmp_path_factory.mktemp("toy")
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    space = str(copy_toy(folder))
    done = call(folder, "run", space, *SMALL, "-o", URI)
    assert (done.returncode, done.stdout) == (0, f"{URI}\n"), done.stderr
    assert call(folder, "run", space, *SMALL, "search.generations=3", "-o", "here").returncode == 0
    return folder, space, fs


def test_another_machine_continues_with_the_same_tables(toy):
    folder, _, fs = toy
    shutil.rmtree(folder / "cache" / "runs")
    done = call(folder, "resume", URI, "search.generations=3")
    assert (done.returncode, done.stdout) == (0, f"{URI}\n"), done.stderr
    assert len(fs.ls("/bucket/toy/journal")) == 9
    fs.get("/bucket/toy/trials.csv", str(folder / "fetched.csv"))
    assert timeless(folder / "fetched.csv") == timeless(folder / "here" / "trials.csv")


def test_readers_take_the_uri(toy):
    folder, *_ = toy
    shutil.rmtree(folder / "cache" / "runs")
    front = call(folder, "front", URI, "-f", "csv")
    assert front.returncode == 0, front.stderr
    assert front.stdout.startswith("trial_id,key,")
    assert '"trials": ' in call(folder, "status", URI, "--json").stdout


def test_nothing_is_overwritten_and_nothing_made_up(toy):
    folder, space, _ = toy
    one_line(call(folder, "run", space, *SMALL, "-o", URI), "exists already")
    one_line(call(folder, "front", "memory://bucket/other"), "memory://bucket/other: no run there")
    one_line(call(folder, "front", "nosuch://bucket/x"), "nosuch://")
