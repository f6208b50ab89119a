"""Images from every source: shapes, values, labels, and one line of error for what is broken."""

import io

import numpy as np
import pytest
from pictures import encode, fails, save_all, stacked
from PIL import Image

from stepsearch.training.data import load_dataset

pytestmark = pytest.mark.usefixtures("cache")


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

    def test_by_boxes_they_become_the_means_of_tiles(self):
        large, small = load_dataset("digits"), load_dataset("digits", None, 4, resample="box")
        tiles = large.images.reshape(-1, 4, 2, 4, 2).mean((2, 4))
        assert abs(small.images[:, 0] - tiles).max() <= 1  # of 255
        lanczos = load_dataset("digits", None, 4).images[:, 0]
        assert abs(lanczos - tiles).max() > 20
        assert np.array_equal(small.labels, large.labels)

    def test_path_and_larger_sizes_do_not_apply(self, tmp_path):
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

    @pytest.mark.parametrize("first", ["grey", "colour"])
    def test_grey_among_colour_is_counted_and_channels_decides(self, tmp_path, rgb, first):
        pictures = [*rgb[:4], rgb[4, :, :, 0], rgb[5, :, :, 0]]
        order = range(6) if first == "colour" else range(5, -1, -1)
        save_all(tmp_path, [pictures[i] for i in order])
        name = "04.png" if first == "colour" else "00.png"
        fails("folder", tmp_path, tmp_path, "2 of 6", f"first: {name}", "channels: 3")
        colour = load_dataset("folder", tmp_path, channels=3).images
        assert np.array_equal(colour[list(order).index(0)], rgb[0].transpose(2, 0, 1))
        assert all(np.array_equal(c, pictures[4]) for c in colour[list(order).index(4)])
        grey = load_dataset("folder", tmp_path, channels=1).images
        assert grey.shape == (6, 1, 8, 8)
        assert np.array_equal(grey[list(order).index(4), 0], pictures[4])
        want = np.asarray(Image.fromarray(rgb[0]).convert("L"))
        assert np.array_equal(grey[list(order).index(0), 0], want)

    def test_grey_alone_is_one_channel(self, tmp_path, rgb):
        (tmp_path / "a.png").write_bytes(encode(rgb[0, :, :, 0]))
        assert load_dataset("folder", tmp_path).images.shape == (1, 1, 8, 8)

    def test_corrupt_images_are_counted_and_named(self, tmp_path, rgb):
        for i, pixels in enumerate(rgb):
            (tmp_path / f"{i}.png").write_bytes(encode(pixels))
        (tmp_path / "2.png").write_bytes(b"not an image")
        (tmp_path / "4.png").write_bytes(encode(rgb[4])[:60])  # cut off
        (tmp_path / "5.jpg").write_bytes(b"")
        fails("folder", tmp_path, f"{tmp_path}: 3 unreadable", "of 7", "2.png (", "corrupt: skip")

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

    def test_exif_orientation_turns_the_image(self, tmp_path, rng):
        pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera lay on its side: a quarter turn clockwise makes it upright
        (tmp_path / "a.png").write_bytes(encode(pixels, exif=exif))
        got = load_dataset("folder", tmp_path).images[0]
        assert np.array_equal(got, np.rot90(pixels, -1).transpose(2, 0, 1))

    @pytest.mark.parametrize(
        ("mode", "kind"), [("P", "PNG"), ("RGBA", "PNG"), ("P", "BMP"), ("CMYK", "JPEG")]
    )
    def test_other_modes_are_colour(self, tmp_path, mode, kind):
        image = Image.new("RGB", (8, 8), (204, 51, 102)).convert(mode)
        (tmp_path / f"a.{kind.lower()}").write_bytes(encode(image, kind))
        got = load_dataset("folder", tmp_path).images.astype(int)
        assert got.shape == (1, 3, 8, 8)
        assert abs(got - np.reshape([204, 51, 102], (1, 3, 1, 1))).max() <= 4

    def test_alpha_is_dropped_not_composited(self, tmp_path, rgb):
        alpha = np.concatenate([rgb[0], np.zeros((8, 8, 1), np.uint8)], axis=2)
        (tmp_path / "a.png").write_bytes(encode(alpha))
        got = load_dataset("folder", tmp_path).images
        assert np.array_equal(got, stacked(rgb[:1]))

    @pytest.mark.parametrize(
        ("name", "kind", "says"),
        [("a.gif", "GIF", ".gif is not read"), ("a.tif", "TIFF", ".tif"), ("a.png", "PNG", "anim")],
    )
    def test_what_is_not_read_is_told(self, tmp_path, rgb, name, kind, says):
        save_all(tmp_path, rgb[1:])
        frames = [Image.fromarray(p) for p in rgb]
        more = {} if kind == "TIFF" else {"save_all": True, "append_images": frames[1:]}
        (tmp_path / name).write_bytes(encode(frames[0], kind, **more))
        fails("folder", tmp_path, "1 unreadable", f"{name} (", says)

    def test_nothing_to_load(self, tmp_path):
        fails("folder", tmp_path, tmp_path, "no images", ".png")
        fails("folder", None, "folder needs a path")

    def test_links_are_followed_but_not_for_ever(self, tmp_path, rgb):
        save_all(tmp_path / "elsewhere" / "cat", rgb[:2])
        save_all(tmp_path / "set" / "dog", rgb[2:3])
        (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
        (tmp_path / "set" / "dog" / "back").symlink_to(tmp_path / "set")
        assert load_dataset("folder", tmp_path / "set").labels.tolist() == [0, 0, 1]

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

    @pytest.mark.parametrize("labels", [np.eye(6), np.array(list("abcdef")), np.ones(6)], ids=str)
    def test_labels_must_be_whole_numbers(self, tmp_path, rgb, labels):
        np.savez(tmp_path / "a.npz", images=rgb, labels=labels)
        fails("npz", tmp_path / "a.npz", "whole number", str(labels.dtype), "argmax")

    def test_channels(self, tmp_path, rgb):
        np.savez(tmp_path / "a.npz", images=rgb, labels=np.arange(6))
        grey = load_dataset("npz", tmp_path / "a.npz", channels=1)
        assert grey.images.shape == (6, 1, 8, 8)
        assert grey.labels.tolist() == [0, 1, 2, 3, 4, 5]

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
