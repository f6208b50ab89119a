import threading

import fsspec
import pytest
from support import OBJECTIVES, make_trials

from stepsearch.core.errors import ConfigError, Interrupted, RunError, StepsearchError
from stepsearch.journal import journal_line, read_journal
from stepsearch.remote import MARK, Mirror, open_place, run_folder
from stepsearch.store import JOURNAL, RunStore

FILES = {"env.json": "{}\n", "space.yaml": "name: x\n", "resolved.yaml": "name: x\n"}
TRIALS = make_trials(6)


@pytest.fixture(params=["memory", "file"])
def uri(request, tmp_path, monkeypatch):
    """A place nobody has written to, seen from a machine with an empty cache."""
    monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / "one"))
    if request.param == "file":
        return f"file://{tmp_path}/store/run"
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return "memory://bucket/run"


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
    return lambda: monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / "two"))


def objects(uri):
    """Every object below a URI with its content."""
    fs, root = fsspec.core.url_to_fs(uri)
    return {name[len(root) + 1 :]: fs.cat_file(name) for name in fs.find(root)}


class Driver:
    """Writes a run as a search does: a line is remote before it is in the local journal."""

    def __init__(self, uri):
        self.folder, self.mirror = open_place(uri)
        if (self.folder / JOURNAL).is_file():
            self.store = RunStore(self.folder, OBJECTIVES)
        else:
            self.store = RunStore.create(self.folder, OBJECTIVES, FILES)
            self.mirror.create([self.folder / name for name in FILES])

    def write(self, *trials):
        for trial in trials:
            self.mirror.append(journal_line(trial))
            self.store.append(trial)

    def tables(self):
        self.store.write_tables()
        self.mirror.push(self.folder.glob("*.csv"))

    def close(self):
        self.store.close()


def test_a_run_is_remote_line_by_line_and_with_its_files(uri):
    driver = Driver(uri)
    driver.write(*TRIALS[:2])
    found = objects(uri)
    assert found["journal/000001.jsonl"] == journal_line(TRIALS[1])
    assert set(found) == {*FILES, "journal/000000.jsonl", "journal/000001.jsonl"}
    driver.tables()
    assert objects(uri)["trials.csv"] == (driver.folder / "trials.csv").read_bytes()
    driver.close()


def test_another_machine_continues_where_the_first_one_ended(uri, other_machine):
    first = Driver(uri)
    first.write(*TRIALS[:3])
    first.tables()
    first.close()
    other_machine()
    second = Driver(uri)
    assert second.folder != first.folder
    assert second.store.trials == TRIALS[:3]
    assert (second.folder / "trials.csv").read_bytes() == (first.folder / "trials.csv").read_bytes()
    second.write(*TRIALS[3:])
    second.close()
    assert read_journal(second.folder / JOURNAL)[0] == TRIALS


def test_the_first_machine_fetches_what_the_second_one_added(uri, tmp_path, monkeypatch):
    for machine, trials in (("one", TRIALS[:2]), ("two", TRIALS[2:5]), ("one", TRIALS[5:])):
        monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / machine))
        driver = Driver(uri)
        driver.write(*trials)
        driver.close()
    assert read_journal(driver.folder / JOURNAL)[0] == TRIALS


def test_a_torn_local_line_comes_whole_from_the_store(uri):
    """The driver was killed after the line was remote and before it was local as a whole."""
    driver = Driver(uri)
    driver.write(*TRIALS[:2])
    driver.mirror.append(journal_line(TRIALS[2]))
    driver.close()
    with (driver.folder / JOURNAL).open("ab") as file:
        file.write(journal_line(TRIALS[2])[:50])
    again = Driver(uri)
    assert again.store.trials == TRIALS[:3]
    again.write(TRIALS[3])
    again.close()


def test_of_two_drivers_the_later_one_stops_and_nothing_is_written_over(uri, other_machine):
    first = Driver(uri)
    first.write(*TRIALS[:2])
    other_machine()
    second = Driver(uri)
    first.write(TRIALS[2])
    with pytest.raises(RunError, match="another stepsearch is writing there"):
        second.write(TRIALS[3])
    assert second.store.trials == TRIALS[:2]
    assert objects(uri)["journal/000002.jsonl"] == journal_line(TRIALS[2])
    first.write(TRIALS[4])
    for driver in (first, second):
        driver.close()


def test_of_two_drivers_that_start_at_once_one_gets_the_place(uri, other_machine):
    first, second = Mirror(uri), None
    other_machine()
    second = Mirror(uri)
    for mirror, text in ((first, "{1}"), (second, "{2}")):
        assert not mirror.fetch(writing=True)
        mirror.folder.mkdir(parents=True)
        (mirror.folder / "env.json").write_text(text)
    first.create([first.folder / "env.json"])
    with pytest.raises(RunError, match=r"env\.json is there already"):
        second.create([second.folder / "env.json"])
    assert objects(uri)["env.json"] == b"{1}"


def test_a_second_driver_on_the_same_machine_is_refused_at_once(uri):
    driver = Driver(uri)
    with pytest.raises(RunError, match="another stepsearch is writing here"):
        open_place(uri)
    assert run_folder(uri) == driver.folder  # a reader is not
    driver.close()


def test_local_files_are_created_by_one_of_many_at_once(tmp_path, monkeypatch):
    """fsspec's own creation looks first and writes afterwards."""
    monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / "one"))
    mirrors = [Mirror(f"file://{tmp_path}/store/run") for _ in range(8)]
    won, gate = [], threading.Barrier(len(mirrors))

    def run(i):
        gate.wait()
        for n in range(20):
            mirrors[i]._lines = n
            try:
                mirrors[i].append(b'{"writer": %d}\n' % i)
            except RunError:
                continue
            won.append((n, i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(mirrors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in won) == list(range(20))
    found = objects(f"file://{tmp_path}/store/run")
    assert found == {f"journal/{n:06}.jsonl": b'{"writer": %d}\n' % i for n, i in won}


def test_an_answer_that_was_lost_is_no_other_driver(uri, monkeypatch):
    """The object was created, and the store's client tried again."""
    driver = Driver(uri)
    driver.mirror.append(journal_line(TRIALS[0]))
    driver.mirror._lines = 0
    driver.mirror.append(journal_line(TRIALS[0]))
    assert driver.mirror._lines == 1
    driver.close()


def test_a_local_copy_that_says_something_else_is_refused(uri):
    driver = Driver(uri)
    driver.write(*TRIALS[:2])
    driver.close()
    fs, root = fsspec.core.url_to_fs(uri)
    fs.rm(f"{root}/journal/000001.jsonl")
    with pytest.raises(RunError, match="holds trials that are not there"):
        open_place(uri)
    fs.pipe_file(f"{root}/journal/000001.jsonl", journal_line(TRIALS[5]))
    with pytest.raises(RunError, match="holds trials that are not there"):
        run_folder(uri)
    fs.rm(root, recursive=True)
    with pytest.raises(RunError, match="holds trials that are not there"):
        open_place(uri)


def test_a_missing_line_is_reported(uri, other_machine):
    driver = Driver(uri)
    driver.write(*TRIALS[:4])
    driver.close()
    fs, root = fsspec.core.url_to_fs(uri)
    fs.rm(f"{root}/journal/000001.jsonl")
    other_machine()
    with pytest.raises(RunError, match=r"journal/000001\.jsonl is missing"):
        run_folder(uri)


def test_a_start_that_ended_before_it_was_remote_is_begun_anew(uri):
    folder, _ = open_place(uri)
    RunStore.create(folder, OBJECTIVES, FILES).close()
    driver = Driver(uri)
    assert set(objects(uri)) == set(FILES)
    driver.close()


def test_the_local_folder_of_a_uri_is_mirrored_when_it_is_continued_by_its_path(uri):
    driver = Driver(uri)
    driver.write(TRIALS[0])
    driver.close()
    again = Driver(str(driver.folder))
    again.write(TRIALS[1])
    again.close()
    assert objects(uri)["journal/000001.jsonl"] == journal_line(TRIALS[1])
    assert (driver.folder / MARK).is_file()
    assert MARK not in objects(uri)


def test_readers_get_what_is_remote_and_paths_stay_paths(uri, other_machine, tmp_path):
    with pytest.raises(ConfigError, match="no run there"):
        run_folder(uri)
    driver = Driver(uri)
    driver.write(*TRIALS)
    driver.tables()
    driver.close()
    other_machine()
    folder = run_folder(uri)
    assert folder.name == "run"
    assert read_journal(folder / JOURNAL)[0] == TRIALS
    assert run_folder("results/x").as_posix() == "results/x"
    assert open_place(str(tmp_path / "new")) == (tmp_path / "new", None)


def test_an_object_that_would_leave_the_folder_is_refused(uri, monkeypatch):
    driver = Driver(uri)
    driver.close()
    fs = driver.mirror._fs
    bad = f"{driver.mirror._root}/../../evil.txt"
    monkeypatch.setattr(type(fs), "find", lambda self, path, **kwargs: [bad])
    with pytest.raises(RunError, match="no file of a run"):
        run_folder(uri)


def test_a_store_that_cannot_be_written_interrupts_the_run(uri, monkeypatch):
    driver = Driver(uri)

    def no(*args, **kwargs):
        raise OSError("no route\nto host")

    for name in ("pipe_file", "makedirs", "exists"):
        monkeypatch.setattr(type(driver.mirror._fs), name, no)
    driver.mirror._made.clear()
    with pytest.raises(Interrupted, match=r"cannot be written \(OSError: no route\)"):
        driver.write(TRIALS[0])
    assert driver.store.trials == []
    driver.close()
    monkeypatch.setattr(type(driver.mirror._fs), "find", no)
    with pytest.raises(StepsearchError, match="cannot be read"):
        open_place(uri)


def test_unknown_backends_and_passwords_are_bad_input():
    with pytest.raises(ConfigError, match="nosuch://"):
        Mirror("nosuch://bucket/run")
    with pytest.raises(ConfigError, match="password") as error:
        Mirror("sftp://me:secret@host/run")
    assert "secret" not in str(error.value)
