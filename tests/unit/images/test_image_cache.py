"""Images are decoded once, and what is cached is never stale, torn, or left by a failure."""

import json
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import encode, fails, save_all, stacked

from stepsearch.training import image_cache
from stepsearch.training.data import load_dataset
from stepsearch.training.sources import Dataset


@pytest.fixture
def decodes(monkeypatch):
    """Names of the images that are decoded."""
    names, decode = [], image_cache.fit

    def fit(image, size, channels, resample):
        names.append(image.format)
        return decode(image, size, channels, resample)

    monkeypatch.setattr(image_cache, "fit", fit)
    return names


def write(kind, path, pixels):
    """The same images from every kind of source; returns the path that names them."""
    if kind == "folder":
        return save_all(path / "set", pixels)
    if kind == "zip":
        with zipfile.ZipFile(path / "set.zip", "w") as archive:
            for i, image in enumerate(pixels):
                archive.writestr(f"{i:02}.png", encode(image))
        return path / "set.zip"
    if kind == "npz":
        np.savez(path / "set.npz", images=pixels)
        return path / "set.npz"
    pq.write_table(pa.table({"img": [encode(p) for p in pixels]}), path / "set.parquet")
    return path / "set.parquet"


def age(path):
    """Turn times of change back by an hour: a clock's tick may be longer than a test."""
    for p in [path, *path.rglob("*")]:
        os.utime(p, ns=(p.stat().st_atime_ns, p.stat().st_mtime_ns - 3600 * 10**9))


class TestOnce:
    @pytest.mark.parametrize("kind", ["folder", "zip", "parquet", "npz"])
    def test_what_was_decoded_is_not_decoded_again_until_it_changes(
        self, tmp_path, rgb, decodes, kind
    ):
        path, loader = write(kind, tmp_path, rgb), "folder" if kind == "zip" else kind
        age(path)
        first = load_dataset(loader, path, 4)
        assert len(decodes) == 6
        again = load_dataset(loader, path, 4)
        assert len(decodes) == 6
        assert np.array_equal(first.images, again.images)
        assert (first.name, first.sha256) == (again.name, again.sha256)
        write(kind, tmp_path, rgb[::-1])  # as many bytes of the same names
        assert load_dataset(loader, path, 4).sha256 != first.sha256
        assert len(decodes) == 12

    def test_a_file_that_is_added_or_removed_is_noticed(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        load_dataset("folder", folder)
        (folder / "00.png").unlink()
        assert np.array_equal(load_dataset("folder", folder).images, stacked(rgb[1:]))
        (folder / "00.png").write_bytes(encode(rgb[0]))
        assert np.array_equal(load_dataset("folder", folder).images, stacked(rgb))

    def test_sizes_and_channels_are_kept_apart(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        for _ in range(2):
            for size, channels in [(None, None), (4, None), (4, 1), (6, 1)]:
                shape = load_dataset("folder", folder, size, channels=channels).images.shape
                assert shape == (6, channels or 3, size or 8, size or 8)

    def test_progress_counts_up_to_all_and_a_cached_set_has_none(self, tmp_path, rng):
        folder = save_all(tmp_path / "set", rng.integers(0, 256, (300, 4, 4), dtype=np.uint8))
        seen = []
        load_dataset("folder", folder, on_progress=lambda *a: seen.append(a))
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1] == (300, 300)
        assert len(seen) > 1
        seen.clear()
        load_dataset("folder", folder, on_progress=lambda *a: seen.append(a))
        assert seen == []

    def test_two_at_once_decode_once(self, tmp_path, rgb, decodes):
        folder, found = save_all(tmp_path / "set", rgb), []
        threads = [
            threading.Thread(target=lambda: found.append(load_dataset("folder", folder).sha256))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(decodes) == 6
        assert len(set(found)) == 1
        assert len(found) == 4


class TestMapped:
    def test_images_are_mapped_and_can_be_changed_in_memory_alone(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        data = load_dataset("folder", folder)
        assert isinstance(data.images, np.memmap)
        torch.from_numpy(data.images)[:] = 0  # torch wants memory that can be written to
        assert np.array_equal(load_dataset("folder", folder).images, stacked(rgb))

    def test_the_hash_is_that_of_the_images_however_they_came(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        cached = load_dataset("folder", folder)
        plain = Dataset("other", stacked(rgb).copy(), None)
        assert cached.sha256 == plain.sha256
        assert Dataset("x", cached.images, np.arange(6)).sha256 != cached.sha256

    def test_the_hash_has_the_value_that_recipes_were_trained_under(self):
        images = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
        assert Dataset("x", images, np.array([1, 0])).sha256 == (
            "ae3fae8adaeee5d9522747659725cfd391c45f405b4d31c6ba4c2cecda12d0e8"
        )


class TestTorn:
    @pytest.mark.parametrize("name", ["images.npy", "labels.npy", "facts.json"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
    def test_a_cache_that_has_lost_bytes_is_made_again(self, tmp_path, rgb, cache, name, damage):
        save_all(tmp_path / "set" / "a", rgb[:3])
        save_all(tmp_path / "set" / "b", rgb[3:])
        whole = load_dataset("folder", tmp_path / "set")
        (file,) = cache.rglob(name)
        data = file.read_bytes()
        file.unlink() if damage == "gone" else file.write_bytes(
            data[: len(data) - 1] if damage == "cut" else b""
        )
        again = load_dataset("folder", tmp_path / "set")
        assert np.array_equal(again.images, stacked(rgb))
        assert again.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert again.sha256 == whole.sha256
        assert file.read_bytes() == data or name == "facts.json"

    def test_what_a_killed_process_left_is_not_read_and_goes(self, tmp_path, rgb, cache):
        folder = save_all(tmp_path / "set", rgb)
        load_dataset("folder", folder)
        (facts,) = cache.rglob("facts.json")
        half = facts.parent.with_name(f".{facts.parent.name}.99999.new")
        facts.parent.rename(half)
        (half / "images.npy").write_bytes(b"half")
        assert np.array_equal(load_dataset("folder", folder).images, stacked(rgb))
        assert not half.exists()

    def test_stopping_while_decoding_leaves_nothing(self, tmp_path, rgb, cache):
        folder = save_all(tmp_path / "set", rgb)

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load_dataset("folder", folder, on_progress=stop)
        assert not cache.exists()
        assert np.array_equal(load_dataset("folder", folder).images, stacked(rgb))


class TestCorrupt:
    @pytest.fixture
    def spoilt(self, tmp_path, rgb):
        """Two classes of images, two of which are no images."""
        for i, name in enumerate(["a/0", "a/1", "a/2", "b/3", "b/4", "b/5"]):
            file = tmp_path / "set" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no" if i in (1, 3) else encode(rgb[i]))
        return tmp_path / "set"

    def test_by_default_nothing_is_written(self, spoilt, cache):
        fails("folder", spoilt, "2 unreadable images of 6", "a/1.png (", "b/3.png (")
        assert not cache.exists()

    def test_skipped_ones_are_named_and_labels_stay_with_their_images(self, spoilt, rgb):
        for _ in range(2):
            data = load_dataset("folder", spoilt, corrupt="skip")
            assert data.corrupt == ("a/1.png", "b/3.png")
            assert np.array_equal(data.images, stacked(rgb[[0, 2, 4, 5]]))
            assert data.labels.tolist() == [0, 0, 1, 1]

    def test_the_file_itself_holds_no_more_than_the_good_ones(self, spoilt, rgb, cache):
        load_dataset("folder", spoilt, corrupt="skip")
        (file,) = cache.rglob("images.npy")
        assert np.array_equal(np.load(file), stacked(rgb[[0, 2, 4, 5]]))

    def test_a_set_cached_without_them_is_still_refused_by_default(self, spoilt, decodes):
        load_dataset("folder", spoilt, corrupt="skip")
        decodes.clear()
        fails("folder", spoilt, "2 unreadable images of 6", "a/1.png (", "skip")
        assert decodes == []

    def test_the_hash_is_that_of_the_good_images(self, spoilt, rgb, tmp_path):
        good = Dataset("x", stacked(rgb[[0, 2, 4, 5]]).copy(), np.array([0, 0, 1, 1]))
        assert load_dataset("folder", spoilt, corrupt="skip").sha256 == good.sha256

    def test_three_are_named_and_the_others_counted(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        for i in range(1, 6):
            (folder / f"{i:02}.png").write_bytes(b"")
        fails("folder", folder, "5 unreadable", "01.png", "02.png", "03.png", "and 2 more")
        assert len(load_dataset("folder", folder, corrupt="skip").corrupt) == 5

    def test_a_set_of_corrupt_images_alone_is_refused_even_so(self, tmp_path, cache):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "a.png").write_bytes(b"no")
        fails("folder", tmp_path / "set", "1 unreadable image of 1", "a.png", corrupt="skip")
        assert not cache.exists()

    @pytest.mark.parametrize("where", ["first", "chunk end"])
    def test_of_many_images_each_keeps_its_row(self, tmp_path, where):
        bad = {"first": [0], "chunk end": [image_cache.CHUNK - 1, image_cache.CHUNK]}[where]
        count = 2 * image_cache.CHUNK + 5
        pixels = [encode(np.full((2, 2), i % 251, np.uint8)) for i in range(count)]
        cells = [b"no" if i in bad else p for i, p in enumerate(pixels)]
        pq.write_table(pa.table({"img": cells, "label": range(count)}), tmp_path / "a.parquet")
        data = load_dataset("parquet", tmp_path / "a.parquet", corrupt="skip")
        assert data.corrupt == tuple(f"row {i}" for i in bad)
        assert data.labels.tolist() == [i for i in range(count) if i not in bad]
        assert np.array_equal(data.images[:, 0, 0, 0], data.labels % 251)


def test_a_failure_leaves_the_cache_of_others_alone(tmp_path, rgb, cache):
    load_dataset("folder", save_all(tmp_path / "good", rgb))
    before = sorted(Path(cache).rglob("*"))
    save_all(tmp_path / "mixed", [rgb[0], rgb[1, :4]])
    fails("folder", tmp_path / "mixed", "2 different sizes", "00.png is 8x8", "01.png is 8x4")
    assert sorted(Path(cache).rglob("*")) == before


def test_what_is_cached_says_where_it_is_from(tmp_path, rgb, cache):
    load_dataset("folder", save_all(tmp_path / "set", rgb))
    (facts,) = cache.rglob("facts.json")
    assert json.loads(facts.read_text())["where"] == str(tmp_path / "set")
