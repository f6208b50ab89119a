"""EDM's layout, a folder or a zip with dataset.json, and zips without it."""

import json
import zipfile

import numpy as np
import pytest
from pictures import encode, fails, save_all, stacked

from stepsearch.training.data import load_dataset

NAMES = [f"00000/img{i:08}.png" for i in range(4)] + ["00001/img00000004.png"]
NAMES += ["00001/img00000005.png"]


@pytest.fixture(params=["folder", "zip"])
def edm(request, tmp_path, rgb):
    """Writes EDM's layout with the given dataset.json, or without one; returns its path."""

    def write(labels=None, names=NAMES):
        files = {name: encode(p) for name, p in zip(names, rgb, strict=True)}
        if labels is not None:
            files["dataset.json"] = json.dumps(labels).encode()
        if request.param == "folder":
            for name, data in files.items():
                (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "set" / name).write_bytes(data)
            return tmp_path / "set"
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name in sorted(files, reverse=True):  # order in the zip says nothing
                archive.writestr(name, files[name])
        return tmp_path / "set.zip"

    return write


def listed(labels):
    return {"labels": [[name, label] for name, label in zip(NAMES, labels, strict=True)]}


class TestEdm:
    def test_labels_are_those_of_the_list_whatever_its_order(self, edm, rgb):
        labels = listed([5, 0, 3, 3, 1, 2])
        labels["labels"].reverse()
        data = load_dataset("folder", edm(labels))
        assert data.name == "set"
        assert np.array_equal(data.images, stacked(rgb))
        assert data.labels.tolist() == [5, 0, 3, 3, 1, 2]

    def test_null_means_no_labels_whatever_the_folders(self, edm):
        assert load_dataset("folder", edm({"labels": None})).labels is None

    def test_without_a_list_the_folders_are_labels(self, edm):
        assert load_dataset("folder", edm()).labels.tolist() == [0, 0, 0, 0, 1, 1]

    def test_windows_separators_are_fine(self, edm):
        rows = [[n.replace("/", "\\"), i] for i, n in enumerate(NAMES)]
        assert load_dataset("folder", edm({"labels": rows})).labels.tolist() == list(range(6))

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            ({"labels": listed(range(6))["labels"][2:]}, ("2 images without a label", NAMES[0])),
            (
                {"labels": [*listed(range(6))["labels"], ["gone.png", 1]]},
                ("1 labels of images that are not there", "gone.png"),
            ),
            (listed([0, 1, [0, 1], 0.5, "2", True]), ("4 labels that are no whole number",)),
            ({"label": []}, ("KeyError",)),
            ({"labels": 3}, ('{"labels": [[file, label], ...]}',)),
            ([], ("TypeError",)),
        ],
        ids=["missing", "too many", "types", "key", "number", "list"],
    )
    def test_a_list_that_does_not_fit_is_one_line(self, edm, labels, says):
        path = edm(labels)
        fails("folder", path, path, "dataset.json", *says)

    def test_a_changed_list_changes_the_labels(self, edm):
        load_dataset("folder", edm(listed([0, 1, 2, 3, 4, 5])))
        assert load_dataset("folder", edm(listed([0, 1, 2, 3, 4, 10]))).labels[-1] == 10


class TestZip:
    def test_other_files_are_told(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
        fails("folder", tmp_path / "a.zip", "neither a folder nor a readable zip")
        (tmp_path / "a.png").write_bytes(b"hello")
        fails("folder", tmp_path / "a.png", "neither a folder nor a readable zip")

    def test_damage_inside_is_counted_and_named(self, tmp_path, rgb):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for i, pixels in enumerate(rgb):
                archive.writestr(f"{i}.png", encode(pixels))
        data = bytearray((tmp_path / "a.zip").read_bytes())
        data[data.index(b"IDAT") + 8] ^= 1  # of 0.png
        (tmp_path / "a.zip").write_bytes(data)
        fails("folder", tmp_path / "a.zip", "1 unreadable", "0.png (", "CRC")

    def test_a_zip_and_its_folder_are_the_same_data(self, tmp_path, rgb):
        folder = save_all(tmp_path / "set", rgb)
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        both = [load_dataset("folder", p) for p in (folder, tmp_path / "set.zip")]
        assert both[0].sha256 == both[1].sha256
