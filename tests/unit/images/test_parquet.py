"""Parquet in the layout of the Hugging Face hub: files, shards, and what is broken in them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encode, fails, stacked

from stepsearch.training.data import load_dataset


@pytest.fixture
def write(tmp_path):
    def write(cells, column="img", **columns):
        pq.write_table(pa.table({column: cells, **columns}), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return write


@pytest.mark.parametrize("column", ["img", "image"])
def test_made_up_table(write, rgb, column):
    cells = [{"bytes": encode(pixels), "path": None} for pixels in rgb]
    data = load_dataset("parquet", write(cells, column, label=[3, 1, 4, 1, 5, 9]))
    assert np.array_equal(data.images, rgb.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [3, 1, 4, 1, 5, 9]


def test_labels_may_be_missing(write, rgb):
    assert load_dataset("parquet", write([{"bytes": encode(rgb[0])}])).labels is None


def test_corrupt_images_are_counted_and_named(write, rgb):
    cells = [{"bytes": data} for data in (encode(rgb[0]), b"no", encode(rgb[1]), None)]
    file = write(cells)
    fails("parquet", file, f"{file}: 2 unreadable", "row 1 (", "row 3 (")


def test_encoded_images_without_a_struct(write, rgb):
    data = load_dataset("parquet", write([encode(p) for p in rgb], "image", label=range(6)))
    assert np.array_equal(data.images, stacked(rgb))
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_line(write, rgb, part):
    file = write([{"bytes": encode(p)} for p in rgb])
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])
    fails("parquet", file, file, "not a readable parquet file")


def test_damage_in_the_middle_is_one_line(write, rgb):
    file = write([{"bytes": encode(p)} for p in rgb])
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # the first page's header; the footer is whole
    file.write_bytes(data)
    fails("parquet", file, file)


def test_other_columns(write, rgb):
    fails("parquet", write([{"bytes": encode(rgb[0])}], "picture"), "'img'", "picture")


@pytest.mark.parametrize("data", [b"", b"hello", b"PAR1xxxx"])
def test_damaged_files(tmp_path, data):
    file = tmp_path / "a.parquet"
    file.write_bytes(data)
    fails("parquet", file, file)


@pytest.mark.parametrize(
    "content",
    [
        "no row",
        "null row",
        "text",
        "other struct",
    ],
)
def test_cells_of_another_kind(write, rgb, content):
    data = encode(rgb[0])
    none = pa.array([], pa.struct([("bytes", pa.binary())]))
    cells = {
        "no row": none,
        "null row": [{"bytes": data}, None],
        "text": ["a.png"],
        "other struct": [{"path": "a.png"}],
    }[content]
    file = write(cells)
    fails("parquet", file, file)


@pytest.mark.parametrize("labels", [["cat", "dog"], [0, None], [0.5, 1.0]], ids=str)
def test_labels_must_be_whole_numbers(write, rgb, labels):
    cells = [{"bytes": encode(pixels)} for pixels in rgb[:2]]
    fails("parquet", write(cells, label=labels), "label")


def shards(folder, rgb, names, label="label"):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        cells = [{"bytes": encode(p)} for p in rgb[2 * i : 2 * i + 2]]
        table = pa.table({label: [2 * i, 2 * i + 1], "img": cells})
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def test_a_folder_of_shards_is_read_in_sorted_order(tmp_path, rgb):
    names = [f"train-0000{i}-of-00003" for i in range(3)]
    data = load_dataset("parquet", shards(tmp_path / "set", rgb, names))
    assert data.name == "set"
    assert np.array_equal(data.images, stacked(rgb))
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train-00000-of-00002", "test-00000-of-00001"], ["several splits", "test, train"]),
        (["train-00000-of-00003", "train-00002-of-00003"], ["2 of 3 shards", "'train'"]),
        ([], ["no *.parquet"]),
    ],
    ids=["two-splits", "a-shard-missing", "no-shard"],
)
def test_a_folder_that_is_no_one_set_is_refused(tmp_path, rgb, names, says):
    fails("parquet", shards(tmp_path / "set", rgb, names), tmp_path / "set", *says)


def test_shards_must_agree(tmp_path, rgb):
    shards(tmp_path / "set", rgb, ["a"], label="other")
    shards(tmp_path / "set", rgb, ["b"])
    fails("parquet", tmp_path / "set", "different columns")


def test_cifar10(data):
    file = data / "cifar10-jpeg-test.parquet"
    if not file.is_file():
        pytest.skip(f"{file}: no such file; set STEPSEARCH_DATA to the folder that holds it")
    cifar = load_dataset("parquet", file, 8)
    assert (cifar.images.shape, cifar.images.dtype) == ((10_000, 3, 8, 8), np.uint8)
    assert cifar.labels.shape == (10_000,)
    assert np.bincount(cifar.labels).tolist() == [1000] * 10
    assert 100 < cifar.images.mean() < 140  # CIFAR-10's mean pixel is about 121
