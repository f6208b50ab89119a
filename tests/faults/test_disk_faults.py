"""A disk that is full, fails or takes nothing: exit status 75 or 5, nothing finished is lost."""

import contextlib
import errno
import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from invariants import assert_tables_whole, journal_of
from support import OBJECTIVES, make_trials
from zygote import Zygote

from stepsearch.core.errors import NoSpace, RunError
from stepsearch.journal import read_journal
from stepsearch.store import JOURNAL, RunStore

pytestmark = pytest.mark.faults

SMALL = {"population": 3, "generations": 2}
DEAREST = f"fsync {JOURNAL}"
ERRORS = {"ENOSPC": 75, "EDQUOT": 75, "EIO": 5, "EROFS": 5, "EACCES": 5}  # name -> exit status


def told(run):
    path = Path(f"{run}.told")
    return set(path.read_text().split()) if path.exists() else set()


def assert_orderly(ended, run, code, words):
    """One line that names place and remedy; the journal holds what counted and can be read."""
    assert ended.code == code, ended
    assert len(ended.output.splitlines()) == 1, ended
    assert words in ended.output
    if run.exists():
        assert f"stepsearch resume {run}" in ended.output
        trials, _ = read_journal(run / JOURNAL)
        assert told(run) <= {trial.key for trial in trials}
        assert_tables_whole(run)


def assert_nothing_torn(run):
    """Where a disk lets files shrink and go, nothing half done is left."""
    if run.exists():
        assert journal_of(run) == (run / JOURNAL).read_bytes()
        assert {t.key for t in read_journal(run / JOURNAL)[0]} == told(run)
        assert not list(run.glob(".*.tmp"))
    assert not list(run.parent.glob(".run.*"))


def test_whatever_call_fails_a_run_ends_in_order_and_resumes(zygote, runs, size, injected):
    """Errors raised by the wrapped calls: the first half of a write may be on the disk."""
    run = runs.new()
    zygote.run("search", folder=str(run), settings=SMALL, disk={})
    calls = json.loads(run.with_name("run.disk").read_text())["calls"]
    rng = random.Random(0)
    everything = [(e, lasting) for e in ERRORS for lasting in (False, True)]
    count = size(40, 200)
    for n in range(count):
        error, lasting = everything[n % len(everything)]
        call = rng.randrange(len(calls)) if n >= len(everything) else calls.index(DEAREST)
        run = runs.new()
        fault = {"call": call, "fails": error, "lasting": lasting}
        ended = zygote.run("search", folder=str(run), settings=SMALL, disk=fault)
        if ended.code == 0:  # opening what is not needed, such as a folder that is there
            assert calls[call].startswith(("mkdir", "open .lock")), calls[call]
        else:
            code = 75 if ERRORS[error] == 75 else 5 if run.exists() else 2
            assert_orderly(ended, run, code, os.strerror(getattr(errno, error)))
            if not (lasting and error in ("EIO", "EROFS", "EACCES")):
                assert_nothing_torn(run)
        runs.finish(run, SMALL, journal_of(run))
        shutil.rmtree(run.parent)
    injected("calls to a disk that fail", count)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_trial_that_the_disk_refused_does_not_count_and_is_not_tried_again(
    tmp_path, monkeypatch, call
):
    """After a failed fsync a kernel may have dropped the data, and the next fsync says all is well:
    what the journal holds is what was there before."""
    store = RunStore.create(tmp_path / "run", OBJECTIVES, {"space.yaml": "a: 1"})
    trials, asked = make_trials(3), []
    store.append(trials[0])
    good = (store.path / JOURNAL).read_bytes()
    real = getattr(os, call)

    def fail(descriptor, *args):
        asked.append(descriptor)
        if call == "write":
            real(descriptor, args[0][:100])
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    for trial in trials[1:]:
        with pytest.raises(RunError, match=r"journal\.jsonl: Input/output error; nothing finished"):
            store.append(trial)
        assert store.trials == trials[:1]
        assert (store.path / JOURNAL).read_bytes() == good
    assert len(asked) == 1
    monkeypatch.undo()
    store.close()
    again = RunStore(store.path, OBJECTIVES)
    assert (again.trials, again.torn) == (trials[:1], None)
    again.append(trials[1])
    again.close()


def test_a_full_disk_at_a_table_leaves_the_old_one(tmp_path, monkeypatch):
    store = RunStore.create(tmp_path / "run", OBJECTIVES, {"space.yaml": "a: 1"})
    trials = make_trials(2)
    store.append(trials[0])
    store.write_tables()
    before = {path.name: path.read_bytes() for path in store.path.iterdir()}

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpace, match=r"trials\.csv: No space left.*free some, then") as caught:
        store.write_tables()
    assert caught.value.exit_code == 75
    with pytest.raises(NoSpace, match=r"canaries\.json: No space left"):
        store.write_text("canaries.json", "{}")
    assert {path.name: path.read_bytes() for path in store.path.iterdir()} == before
    monkeypatch.undo()
    store.close()


# --- real disks


def private_disk(folder):
    """A command that starts another with a disk of 8 MB at `folder`, seen by nobody else; None
    where this is not permitted."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size=8m stepsearch "{folder}" && exec "$@"'
    prefix = ["unshare", "--mount", *user, "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None:
        return None
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else None


@pytest.fixture
def small_disk(tmp_path):
    """A zygote with a disk of 8 MB, and that disk as this process sees it."""
    prefix = private_disk(tmp_path)
    if prefix is None:
        yield None
        return
    with Zygote(prefix) as zygote:
        yield zygote, Path(f"/proc/{zygote.process.pid}/root{tmp_path}"), tmp_path


@contextlib.contextmanager
def nearly_full(disk, left):
    """Room for `left` more bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    os.truncate(ballast, 0) if ballast.exists() else ballast.touch()
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_bsize - left))
    yield
    ballast.unlink()


def test_a_real_disk_that_is_full_or_read_only_loses_nothing(
    small_disk, runs, zygote, size, injected
):
    """Real tmpfs of 8 MB and a real read-only mount where this is permitted, else a real limit of
    the size of files."""
    count = size(6, 60)
    if small_disk is None:
        kernel_limits(zygote, runs, count)
        injected("files that reach a limit of the kernel", count)
        return
    own, disk, inside = small_disk
    page = os.sysconf("SC_PAGE_SIZE")
    need = sum(math.ceil(p.stat().st_size / page) * page for p in runs.whole({}).iterdir())
    for n in range(count):
        name = f"{n}/run"
        (disk / name).parent.mkdir()
        with nearly_full(disk, need * (n + 1) // (count + 1)):
            ended = own.run("search", folder=str(inside / name))
            assert ended.code == 75, ended
            assert "No space left on device; " in ended.output
            if (disk / name).exists():
                assert journal_of(disk / name) == (disk / name / JOURNAL).read_bytes()
                assert_tables_whole(disk / name)
                assert not list((disk / name).glob(".*.tmp"))
            before = journal_of(disk / name)
        assert own.run("shell", command=["mount", "-o", "remount,ro", str(inside)]).code == 0
        ended = own.run("search", folder=str(inside / name))
        assert ended.code == (5 if (disk / name).exists() else 2), ended
        assert "Read-only file system" in ended.output
        assert own.run("shell", command=["mount", "-o", "remount,rw", str(inside)]).code == 0
        ended = own.run("search", folder=str(inside / name))
        assert ended.code == 0, ended
        assert journal_of(disk / name).startswith(before)
        runs.assert_finished(disk / name, {})
        shutil.rmtree(disk / str(n))
    injected("real full disks", count)
    injected("real read-only disks", count)


def kernel_limits(zygote, runs, count):
    journal = (runs.whole({}) / JOURNAL).stat().st_size
    for n in range(count):
        run = runs.new()
        ended = zygote.run("limited", folder=str(run), size=1000 + n * journal // count)
        assert_orderly(ended, run, 5, "File too large")
        assert_nothing_torn(run)
        runs.finish(run, {}, journal_of(run))


def test_files_that_may_not_grow_lose_nothing(zygote, runs, injected):
    """RLIMIT_FSIZE, the kernel's own refusal, part of the last line written."""
    kernel_limits(zygote, runs, 5)
    injected("files that reach a limit of the kernel", 5)
