"""The journal: one checksummed line a trial, and nothing read that was not written."""

import json
import math
import os
from dataclasses import replace

import pytest
from support import OBJECTIVES, make_trials

from stepsearch.core.errors import RunError
from stepsearch.core.trial import Trial
from stepsearch.journal import journal_line, read_journal, recover_journal
from stepsearch.store import JOURNAL, RunStore

FILES = {"space.yaml": "a: 1\n"}


@pytest.fixture
def fast_disk(monkeypatch):
    """Thousands of journals are written here, and none has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def trials():
    return make_trials(20, generation=5, failed=(0, 3, 11, 12, 13, 14, 17))


@pytest.fixture(scope="module")
def short(trials):
    """Those with the shortest lines, for tests that try every byte."""
    return sorted(trials, key=lambda t: len(journal_line(t)))[:4]


def write_run(folder, trials):
    store = RunStore.create(folder, OBJECTIVES, FILES)
    for trial in trials:
        store.append(trial)
    store.close()
    return folder


def test_a_journal_line_reads_back_equal(trials):
    for trial in trials:
        line = journal_line(trial)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        data = json.loads(line)["trial"]
        assert Trial.from_dict(data) == trial
        assert Trial.from_dict(data).result == trial.result


def test_what_is_appended_is_there_before_the_run_is_closed(trials, tmp_path):
    store = RunStore.create(tmp_path / "run", OBJECTIVES, FILES)
    for n, trial in enumerate(trials, 1):
        store.append(trial)
        assert (store.path / JOURNAL).read_bytes().count(b"\n") == n
    store.close()
    again = RunStore(store.path, OBJECTIVES)
    assert (again.trials, again.torn) == (trials, None)
    again.close()


def test_a_journal_cut_at_any_byte_loses_at_most_the_cut_trial(short, tmp_path, fast_disk):
    lines = [journal_line(t) for t in short[:2]]
    data, ends = b"".join(lines), [0, len(lines[0]), len(lines[0] + lines[1])]
    path = tmp_path / JOURNAL
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        found, torn = recover_journal(path)
        assert found == short[:whole]
        if cut == ends[whole]:
            assert torn is None
        else:
            assert torn.read_bytes() == data[ends[whole] : cut]
            torn.unlink()
        assert recover_journal(path) == (found, None)
        with path.open("ab") as file:
            file.write(journal_line(short[2]))
        assert recover_journal(path) == ([*found, short[2]], None)


def test_a_store_goes_on_after_a_torn_line_and_keeps_every_torn_one(trials, tmp_path):
    folder = write_run(tmp_path / "run", trials[:2])
    torn = []
    for trial in trials[2:4]:
        with (folder / JOURNAL).open("ab") as file:
            file.write(journal_line(trial)[:-9])
        store = RunStore(folder, OBJECTIVES)
        torn.append(store.torn)
        store.append(trial)
        store.close()
    assert [path.read_bytes() for path in torn] == [journal_line(t)[:-9] for t in trials[2:4]]
    assert recover_journal(folder / JOURNAL) == (trials[:4], None)


def flips(line):
    """The line with one bit of one byte changed, for every byte of it."""
    for i in range(len(line)):
        yield bytes([*line[:i], line[i] ^ (1 << i % 3), *line[i + 1 :]])


def test_a_flipped_bit_in_the_last_line_sets_it_aside(short, tmp_path, fast_disk):
    first, last = (journal_line(t) for t in short[:2])
    path = tmp_path / JOURNAL
    for damaged in flips(last):
        path.write_bytes(first + damaged)
        found, torn = recover_journal(path)
        assert found == short[:1]
        assert torn.read_bytes() == damaged
        assert path.read_bytes() == first
        torn.unlink()


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_flipped_bit_before_the_last_line_is_an_error_that_names_the_line(
    short, tmp_path, damaged
):
    lines = [journal_line(t) for t in short]
    path = tmp_path / JOURNAL
    for bad in flips(lines[damaged]):
        data = b"".join([*lines[:damaged], bad, *lines[damaged + 1 :]])
        path.write_bytes(data)
        with pytest.raises(RunError) as caught:
            recover_journal(path)
        assert str(caught.value).startswith(f"{path}:{damaged + 1}: ")
        assert caught.value.exit_code == 5
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == [JOURNAL]  # nothing was set aside


def test_a_store_that_cannot_be_opened_leaves_the_directory_unlocked(trials, tmp_path):
    folder = write_run(tmp_path / "run", trials[:3])
    good = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"x" + good)
    with pytest.raises(RunError, match=":1: "):
        RunStore(folder, OBJECTIVES)
    (folder / JOURNAL).write_bytes(good)
    RunStore(folder, OBJECTIVES).close()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_is_refused(trials, bad, tmp_path):
    good = trials[1]
    with pytest.raises(ValueError, match="finite"):
        replace(good.result, values={"fid": bad, "gflops_per_image": 1.0})
    forged = json.loads(journal_line(good))
    forged["trial"]["result"]["values"]["fid"] = bad
    with pytest.raises(ValueError, match="finite"):
        Trial.from_dict(forged["trial"])


def test_a_line_break_that_is_lost_cuts_no_trial_off(short, tmp_path):
    """The last two lines are one, and damaged: both trials are there, so nothing is set aside."""
    lines = [journal_line(t) for t in short]
    path = tmp_path / JOURNAL
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:-1] + b"\x0b" + lines[-1])
    with pytest.raises(RunError, match=rf":{len(lines) - 1}: damaged line before the end"):
        recover_journal(path)


@pytest.mark.parametrize("change", [{}, {"key": "s0"}, {"trial_id": 77}])
def test_a_trial_that_is_there_twice_is_an_error_that_names_both_lines(trials, tmp_path, change):
    path = tmp_path / JOURNAL
    twice = [*trials[:4], replace(trials[1], **change)]
    path.write_bytes(b"".join(map(journal_line, twice)))
    with pytest.raises(RunError, match=r":5: trial \d+ \(s\w+\) is in line 2 already") as caught:
        read_journal(path)
    assert caught.value.exit_code == 5


def test_a_line_of_another_version_is_no_torn_line(trials, tmp_path, monkeypatch):
    """Its checksum is right, so it is kept: it may be all that a newer version wrote."""
    path, known = tmp_path / JOURNAL, Trial.to_dict
    monkeypatch.setattr(Trial, "to_dict", lambda trial: known(trial) | {"colour": "blue"})
    data = journal_line(trials[1])
    monkeypatch.undo()
    path.write_bytes(journal_line(trials[0]) + data)
    with pytest.raises(RunError, match=r":2: no trial of this version of stepsearch .*colour"):
        recover_journal(path)
    assert path.read_bytes().endswith(data)


def test_the_journal_holds_trials_in_the_order_in_which_they_ended(trials, tmp_path):
    ended = [trials[i] for i in (3, 0, 2, 1)]
    folder = write_run(tmp_path / "run", ended)
    assert read_journal(folder / JOURNAL)[0] == ended
    store = RunStore(folder, OBJECTIVES)
    assert store.trials == ended
    store.close()
