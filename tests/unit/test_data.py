"""Images from every source: shapes, values, labels, and one line of error for what is broken."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.training.data import load_dataset


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def rgb(rng):
    """Six colour images, (N, H, W, C)."""
    return rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def fails(kind, path, *named, size=None):
    with pytest.raises(ConfigError) as caught:
        load_dataset(kind, path, size)
    message = str(caught.value)
    assert all(str(part) in message for part in named), message
    assert "\n" not in message


class TestDigits:
    def test_shape_and_labels(self):
        data = load_dataset("digits")
        assert (data.images.shape, data.images.dtype) == ((1797, 1, 8, 8), np.uint8)
        assert (data.labels.shape, data.labels.dtype) == ((1797,), np.int64)
        assert set(data.labels) == set(range(10))

    def test_all_17_grey_levels_map_in_order(self):
        from sklearn.datasets import load_digits

        source, got = load_digits().images, load_dataset("digits").images[:, 0]
        values = [set(got[source == level].tolist()) for level in range(17)]
        assert all(len(v) == 1 for v in values)
        ordered = [v.pop() for v in values]
        assert ordered == sorted(set(ordered))
        assert (ordered[0], ordered[-1]) == (0, 255)
        assert set(np.diff(ordered)) <= {15, 16, 17}

    def test_size_and_path_do_not_apply(self, tmp_path):
        assert load_dataset("digits", None, 8).images.shape[2:] == (8, 8)
        fails("digits", None, "8x8", size=16)
        fails("digits", tmp_path, "leave path")

    def test_hash(self):
        a, b = load_dataset("digits"), load_dataset("digits")
        assert a.sha256 == b.sha256
        b.images[0, 0, 0, 0] ^= 1
        assert a.sha256 != b.sha256


class TestFolder:
    def test_sub_folders_are_labels(self, tmp_path, rgb):
        names = ["cat/1.png", "cat/2.PNG", "ant/x.png", "dog/deep/1.png"]
        for name, pixels in zip(names, rgb, strict=False):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(encode(pixels))
        (tmp_path / "cat" / "notes.txt").write_text("not an image")
        data = load_dataset("folder", tmp_path)
        assert data.name == tmp_path.name
        assert data.labels.tolist() == [0, 1, 1, 2]  # ant, cat, cat, dog
        want = rgb[[2, 0, 1, 3]].transpose(0, 3, 1, 2)
        assert np.array_equal(data.images, want)
        assert data.images.flags.c_contiguous

    def test_without_sub_folders_there_are_no_labels(self, tmp_path, rgb):
        for i, pixels in enumerate(rgb):
            (tmp_path / f"{i}.png").write_bytes(encode(pixels))
        data = load_dataset("folder", tmp_path)
        assert data.labels is None
        assert np.array_equal(data.images, rgb.transpose(0, 3, 1, 2))

    def test_mixed_sizes_need_a_size(self, tmp_path, rng):
        for i, shape in enumerate([(8, 8), (8, 12), (20, 10)]):
            pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
            (tmp_path / f"{i}.png").write_bytes(encode(pixels))
        fails("folder", tmp_path, "3 different sizes", "size: 32")
        assert load_dataset("folder", tmp_path, 6).images.shape == (3, 3, 6, 6)

    def test_resizing_crops_the_centre(self, tmp_path):
        pixels = np.zeros((8, 16), np.uint8)
        pixels[:, 4:12] = 200
        (tmp_path / "a.png").write_bytes(encode(pixels))
        assert abs(load_dataset("folder", tmp_path, 4).images.astype(int) - 200).max() < 20

    def test_what_is_cropped_off_does_not_matter(self, tmp_path):
        for i, outside in enumerate((0, 100, 255)):
            pixels = np.full((8, 16), outside, np.uint8)
            pixels[:, 4:12] = 200
            (tmp_path / f"{i}.png").write_bytes(encode(pixels))
        assert (load_dataset("folder", tmp_path, 4).images == 200).all()

    def test_grey_and_colour_together_are_colour(self, tmp_path, rgb):
        (tmp_path / "a.png").write_bytes(encode(rgb[0, :, :, 0]))
        (tmp_path / "b.png").write_bytes(encode(rgb[1]))
        images = load_dataset("folder", tmp_path).images
        assert images.shape == (2, 3, 8, 8)
        assert all(np.array_equal(channel, rgb[0, :, :, 0]) for channel in images[0])
        assert np.array_equal(images[1], rgb[1].transpose(2, 0, 1))

    def test_grey_alone_is_one_channel(self, tmp_path, rgb):
        (tmp_path / "a.png").write_bytes(encode(rgb[0, :, :, 0]))
        assert load_dataset("folder", tmp_path).images.shape == (1, 1, 8, 8)

    def test_corrupt_images_are_counted_and_named(self, tmp_path, rgb):
        for i, pixels in enumerate(rgb):
            (tmp_path / f"{i}.png").write_bytes(encode(pixels))
        (tmp_path / "2.png").write_bytes(b"not an image")
        (tmp_path / "4.png").write_bytes(encode(rgb[4])[:60])  # cut off
        (tmp_path / "5.jpg").write_bytes(b"")
        fails("folder", tmp_path, "3 unreadable", tmp_path / "2.png")

    def test_broken_chunk(self, tmp_path, rgb):
        data = bytearray(encode(rgb[0]))
        data[data.index(b"IDAT") - 1] ^= 0x55  # the length of the chunk
        (tmp_path / "a.png").write_bytes(data)
        fails("folder", tmp_path, "1 unreadable", "a.png")

    def test_image_that_claims_to_be_huge(self, tmp_path, rgb):
        data = bytearray(encode(rgb[0], "BMP"))
        data[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
        (tmp_path / "a.bmp").write_bytes(data)
        fails("folder", tmp_path, "1 unreadable", "a.bmp")

    def test_folder_named_like_an_image(self, tmp_path, rgb):
        (tmp_path / "set.png").mkdir()
        (tmp_path / "set.png" / "a.png").write_bytes(encode(rgb[0]))
        assert len(load_dataset("folder", tmp_path).images) == 1

    def test_sixteen_bit_grey(self, tmp_path):
        pixels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
        (tmp_path / "a.png").write_bytes(encode(pixels))
        got = load_dataset("folder", tmp_path).images.ravel().astype(int)
        assert abs(got - pixels.ravel() / 257).max() <= 1

    def test_nothing_to_load(self, tmp_path):
        fails("folder", tmp_path, tmp_path, "no images", ".png")
        fails("folder", None, "folder needs a path")

    @pytest.mark.parametrize("size", [0, -1])
    def test_size_must_be_positive(self, tmp_path, rgb, size):
        (tmp_path / "a.png").write_bytes(encode(rgb[0]))
        fails("folder", tmp_path, f"size: {size}", size=size)


class TestNpz:
    @pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
    def test_both_layouts(self, tmp_path, rgb, names):
        file, labels = tmp_path / "set.npz", np.arange(6)
        np.savez(file, **dict(zip(names, (rgb, labels), strict=True)))
        data = load_dataset("npz", file)
        assert data.name == "set"
        assert np.array_equal(data.images, rgb.transpose(0, 3, 1, 2))
        assert data.images.flags.c_contiguous
        assert np.array_equal(data.labels, labels)

    def test_labels_may_be_missing(self, tmp_path, rgb):
        np.savez(tmp_path / "a.npz", images=rgb)
        assert load_dataset("npz", tmp_path / "a.npz").labels is None

    @pytest.mark.parametrize("channels", [1, 3])
    def test_size(self, tmp_path, rgb, channels):
        np.savez(tmp_path / "a.npz", images=rgb[..., :channels])
        assert load_dataset("npz", tmp_path / "a.npz", 4).images.shape == (6, channels, 4, 4)

    @pytest.mark.parametrize("name", ["images", "labels"])
    def test_object_arrays_are_refused(self, tmp_path, rgb, name):
        arrays = {"images": rgb, name: np.array([{"a": 1}] * 6, dtype=object)}
        np.savez(tmp_path / "a.npz", **arrays)
        fails("npz", tmp_path / "a.npz", tmp_path / "a.npz", "allow_pickle=False")

    @pytest.mark.parametrize("change", ["float", "three axes", "other names"])
    def test_wrong_arrays(self, tmp_path, rgb, change):
        arrays = {
            "float": {"images": rgb / 255},
            "three axes": {"images": rgb[0]},
            "other names": {"pictures": rgb},
        }[change]
        np.savez(tmp_path / "a.npz", **arrays)
        fails("npz", tmp_path / "a.npz", tmp_path / "a.npz", "uint8 (N, H, W, C)")

    def test_labels_must_fit_the_images(self, tmp_path, rgb):
        np.savez(tmp_path / "a.npz", images=rgb, labels=np.arange(9))
        fails("npz", tmp_path / "a.npz", "9", "6")

    def test_channels_must_come_last(self, tmp_path, rgb):
        np.savez(tmp_path / "a.npz", images=rgb.transpose(0, 3, 1, 2))
        fails("npz", tmp_path / "a.npz", "(N, H, W, C)")

    @pytest.mark.parametrize(
        "damage",
        [
            "text",
            "cut",
            "flip",
            "empty",
            "npy",
        ],
    )
    def test_damaged_files(self, tmp_path, rgb, damage):
        file = tmp_path / "a.npz"
        np.savez(file, images=rgb)
        data = file.read_bytes()
        if damage == "npy":
            buffer = io.BytesIO()
            np.save(buffer, rgb)
            data = buffer.getvalue()
        flipped = bytearray(data)
        flipped[300] ^= 255
        file.write_bytes(
            {
                "text": b"hello",
                "cut": data[: len(data) // 2],
                "flip": bytes(flipped),
                "empty": b"",
                "npy": data,
            }[damage]
        )
        fails("npz", file, file)


class TestParquet:
    @pytest.fixture
    def write(self, tmp_path):
        def write(cells, column="img", **columns):
            pq.write_table(pa.table({column: cells, **columns}), tmp_path / "a.parquet")
            return tmp_path / "a.parquet"

        return write

    @pytest.mark.parametrize("column", ["img", "image"])
    def test_made_up_table(self, write, rgb, column):
        cells = [{"bytes": encode(pixels), "path": None} for pixels in rgb]
        data = load_dataset("parquet", write(cells, column, label=[3, 1, 4, 1, 5, 9]))
        assert np.array_equal(data.images, rgb.transpose(0, 3, 1, 2))
        assert data.labels.tolist() == [3, 1, 4, 1, 5, 9]

    def test_labels_may_be_missing(self, write, rgb):
        assert load_dataset("parquet", write([{"bytes": encode(rgb[0])}])).labels is None

    def test_corrupt_images_are_counted_and_named(self, write, rgb):
        cells = [{"bytes": data} for data in (encode(rgb[0]), b"no", encode(rgb[1]), None)]
        file = write(cells)
        fails("parquet", file, "2 unreadable", f"{file}: row 1")

    def test_other_columns(self, write, rgb):
        fails("parquet", write([{"bytes": encode(rgb[0])}], "picture"), "'img'", "picture")

    @pytest.mark.parametrize("data", [b"", b"hello", b"PAR1xxxx"])
    def test_damaged_files(self, tmp_path, data):
        file = tmp_path / "a.parquet"
        file.write_bytes(data)
        fails("parquet", file, file)

    @pytest.mark.parametrize(
        "content",
        [
            "no row",
            "null row",
            "plain bytes",
            "other struct",
        ],
    )
    def test_cells_of_another_kind(self, write, rgb, content):
        data = encode(rgb[0])
        none = pa.array([], pa.struct([("bytes", pa.binary())]))
        cells = {
            "no row": none,
            "null row": [{"bytes": data}, None],
            "plain bytes": [data],
            "other struct": [{"path": "a.png"}],
        }[content]
        file = write(cells)
        fails("parquet", file, file)

    @pytest.mark.parametrize("labels", [["cat", "dog"], [0, None], [0.5, 1.0]], ids=str)
    def test_labels_must_be_whole_numbers(self, write, rgb, labels):
        cells = [{"bytes": encode(pixels)} for pixels in rgb[:2]]
        fails("parquet", write(cells, label=labels), "label")

    def test_cifar10(self, data):
        file = data / "cifar10-jpeg-test.parquet"
        if not file.is_file():
            pytest.skip(f"{file}: no such file; set STEPSEARCH_DATA to the folder that holds it")
        cifar = load_dataset("parquet", file, 8)
        assert (cifar.images.shape, cifar.images.dtype) == ((10_000, 3, 8, 8), np.uint8)
        assert cifar.labels.shape == (10_000,)
        assert np.bincount(cifar.labels).tolist() == [1000] * 10
        assert 100 < cifar.images.mean() < 140  # CIFAR-10's mean pixel is about 121


class TestLoadDataset:
    @pytest.mark.parametrize("kind", ["folder", "npz", "parquet"])
    def test_missing_path(self, tmp_path, kind):
        fails(kind, tmp_path / "nowhere", tmp_path / "nowhere", "no such file or folder")
        fails(kind, None, f"{kind} needs a path")

    def test_unknown_kind(self):
        fails("foldr", None, "'foldr'", "did you mean 'folder'", "digits, folder, npz, parquet")

    def test_hash_sees_pixels_and_labels(self, tmp_path, rgb):
        hashes = set()
        for i, arrays in enumerate(
            [
                {"images": rgb},
                {"images": rgb, "labels": np.arange(6)},
                {"images": rgb, "labels": np.arange(6)[::-1]},
                {"images": rgb[::-1], "labels": np.arange(6)},
                {"images": rgb.reshape(6, 4, 16, 3)},
            ]
        ):
            np.savez(tmp_path / f"{i}.npz", **arrays)
            hashes.add(load_dataset("npz", tmp_path / f"{i}.npz").sha256)
        assert len(hashes) == 5
