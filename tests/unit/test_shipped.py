"""Files that are sent to nodes: written once, checked by sha256, and never over the user's own."""

import hashlib
import threading

import pytest

from stepsearch.core.errors import ConfigError
from stepsearch.executors.shipped import place_files, read_files


def named(path):
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def net(tmp_path, monkeypatch):
    """Weights and card of a network on the driver, and an empty cache on the node."""
    monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "net.safetensors").write_bytes(b"weights" * 1000)
    (folder / "net.json").write_text("{}")
    return [folder / "net.safetensors", folder / "net.json"]


class Store:
    """Keeps bytes, and counts who asks for them."""

    def __init__(self, change=lambda data: data):
        self.kept, self.fetched, self.change = [], 0, change

    def put(self, data):
        self.kept.append(data)
        return len(self.kept) - 1

    def fetch(self, number):
        self.fetched += 1
        return self.change(self.kept[number])


def ship(paths, store):
    return read_files(map(named, paths), store.put)


def away(paths):
    """As on another machine: the paths lead nowhere."""
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    return contents


def test_files_that_are_there_are_used_as_they_are(net):
    store = Store()
    assert place_files(ship(net, store), store.fetch) == {str(p): str(p) for p in net}
    assert store.fetched == 0


def test_files_that_are_not_there_are_written_once_and_stay_together(net, tmp_path):
    store = Store()
    files = ship(net, store)
    contents = away(net)
    placed = place_files(files, store.fetch)
    found = [tmp_path.joinpath(placed[str(path)]) for path in net]
    assert [path.read_bytes() for path in found] == contents
    assert found[1] == found[0].with_suffix(".json")
    assert found[0].is_relative_to(tmp_path / "cache" / "shipped")
    assert place_files(files, store.fetch) == placed
    assert store.fetched == 2


def test_another_file_of_that_name_is_left_alone(net):
    store = Store()
    files = ship(net, store)
    net[0].write_bytes(b"of this machine")
    placed = place_files(files, store.fetch)
    assert placed[str(net[0])] != str(net[0])
    assert net[0].read_bytes() == b"of this machine"


def test_a_damaged_copy_is_written_again(net, tmp_path):
    store = Store()
    files = ship(net, store)
    contents = away(net)
    here = tmp_path.joinpath(place_files(files, store.fetch)[str(net[0])])
    here.write_bytes(contents[0][:-1])
    place_files(files, store.fetch)
    assert here.read_bytes() == contents[0]
    assert store.fetched == 3


def test_what_arrives_damaged_is_an_error(net):
    store = Store(change=lambda data: data[:-1])
    files = ship(net, store)
    away(net)
    with pytest.raises(OSError, match="is not what was sent"):
        place_files(files, store.fetch)


def test_workers_of_one_node_that_start_together_fetch_once(net):
    store, placed = Store(), []
    files = ship(net, store)
    away(net)
    threads = [
        threading.Thread(target=lambda: placed.append(place_files(files, store.fetch)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(placed) == 8
    assert all(found == placed[0] for found in placed)
    assert store.fetched == 2


def test_a_file_that_changed_since_it_was_hashed_is_named(net):
    names = [named(path) for path in net]
    net[0].write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"net\.safetensors: sha256 is .* restore the file"):
        read_files(names, Store().put)
    net[0].unlink()
    with pytest.raises(ConfigError, match=r"net\.safetensors: cannot be sent to workers"):
        read_files(names, Store().put)
