"""A journal that was cut anywhere, or had a bit flipped: no crash, and never a wrong trial."""

import random
import re
import shutil

import pytest
from invariants import journal_of
from support import make_trials

from stepsearch.core.errors import RunError
from stepsearch.journal import checked_lines, journal_line, parse_journal, recover_journal
from stepsearch.store import JOURNAL, RunStore

pytestmark = pytest.mark.faults

LENGTH = 64 * 1024  # bytes of the journal, about


@pytest.fixture(scope="module")
def trials():
    found, length = make_trials(80, failed=range(0, 80, 7)), 0
    for n, trial in enumerate(found):
        length += len(journal_line(trial))
        if length > LENGTH:
            return found[:n]
    raise AssertionError("not enough trials")


@pytest.fixture(scope="module")
def lines(trials):
    return [journal_line(trial) for trial in trials]


def test_a_journal_cut_at_every_byte_keeps_every_whole_line(tmp_path, trials, lines, injected):
    path, data = tmp_path / JOURNAL, b"".join(lines)
    assert 0.9 * LENGTH < len(data) <= LENGTH
    whole = start = 0
    for cut in range(len(data) + 1):
        if whole < len(lines) and cut == start + len(lines[whole]):
            whole, start = whole + 1, cut
            assert parse_journal(path, data[:cut]) == (trials[:whole], cut)
        texts, good = checked_lines(path, data[:cut])
        assert (len(texts), good) == (whole, start)
    assert whole == len(trials)
    injected("journals cut, at every byte", len(data) + 1)


def test_a_run_whose_journal_was_cut_resumes_to_the_same_tables(runs, size, injected):
    data, rng = (runs.whole({}) / JOURNAL).read_bytes(), random.Random(0)
    count = size(10, 200)
    for _ in range(count):
        run = runs.new()
        shutil.copytree(runs.whole({}), run)
        run.with_name("run.told").touch()
        (run / JOURNAL).write_bytes(data[: rng.randrange(len(data))])
        runs.finish(run, {}, journal_of(run))
        shutil.rmtree(run.parent)
    injected("resumes of a cut journal", count)


def recovered(path):
    """Trials, what was set aside, and the error where there is one instead."""
    try:
        return *recover_journal(path), None
    except RunError as error:
        return None, None, error


def test_flipped_bits_are_found_and_named(tmp_path, trials, lines, size, injected):
    """In the last line they set it aside, before it they are an error; in both cases every trial
    that is read is one that was written. A flipped line break joins two lines: nothing is cut."""
    path, good = tmp_path / JOURNAL, b"".join(lines)
    rng, aside = random.Random(0), 0
    count = size(500, 10_000)
    for n in range(count):
        place = rng.randrange(len(good)) if n % 2 else len(good) - 1 - rng.randrange(len(lines[-1]))
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        line = good.count(b"\n", 0, place) + 1
        found, torn, error = recovered(path)
        if error is not None:
            assert str(error).startswith(f"{path}:{line}: damaged line before the end")
            assert error.exit_code == 5
            assert path.read_bytes() == data
            continue
        assert line == len(lines)
        assert found == trials[:-1]
        assert torn.read_bytes() == data[-len(lines[-1]) :]
        torn.unlink()
        aside += 1
    assert 0 < aside < count
    injected("flipped bits", count)


def test_garbage_for_a_journal_is_never_a_crash(tmp_path, lines, size, injected):
    """Blocks of zeros or noise, as a file system leaves them, lines twice, out of order or gone."""
    path, rng = tmp_path / JOURNAL, random.Random(0)
    count = size(100, 2000)
    for _ in range(count):
        data = bytearray(b"".join(rng.choices(lines, k=rng.randrange(4))))
        for _ in range(rng.randrange(3)):
            start = rng.randrange(len(data) + 1)
            noise = bytes(512) if rng.random() < 0.5 else rng.randbytes(rng.randrange(600))
            data[start : start + rng.randrange(512)] = noise
        path.write_bytes(data)
        found, torn, error = recovered(path)
        if error is not None:
            assert re.match(rf"{re.escape(str(path))}:\d+: ", str(error))
            assert path.read_bytes() == data
            continue
        assert b"".join(map(journal_line, found)) == path.read_bytes()
        if torn is not None:
            torn.unlink()
    injected("journals of garbage", count)


def test_a_damaged_table_is_written_again_from_the_journal(runs, injected):
    whole = runs.whole({})
    for name in ("trials.csv", "pareto.csv", "generations.csv", "trials.parquet"):
        run = runs.new()
        shutil.copytree(whole, run)
        run.with_name("run.told").touch()
        (run / name).write_bytes((run / name).read_bytes()[:100])
        runs.finish(run, {}, journal_of(run))
    injected("damaged tables", 4)


def test_what_is_set_aside_is_kept_when_it_happens_again(tmp_path, trials, lines):
    path = tmp_path / JOURNAL
    for n in range(3):
        path.write_bytes(lines[0] + lines[1][: 50 + n])
        store = RunStore(tmp_path, ("fid", "gflops_per_image"))
        assert store.torn == tmp_path / f"journal.torn-{n + 1}"
        assert store.trials == trials[:1]
        store.close()
    kept = [(tmp_path / f"journal.torn-{n + 1}").read_bytes() for n in range(3)]
    assert kept == [lines[1][: 50 + n] for n in range(3)]
