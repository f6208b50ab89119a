"""Data sets in code: run where that is allowed and nowhere else, and held to what they give."""

import sys

import numpy as np
import pytest
import torch
from pictures import stacked
from PIL import Image
from torchvision_shim import ensure_torchvision

from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import DataSettings
from stepsearch.training.data import load_dataset

MODULE = """\
import pathlib
import numpy as np, torch
from PIL import Image
pathlib.Path("imported").touch()
PIXELS = np.load(pathlib.Path(__file__).with_name("pixels.npy"))
FORMS = {
    "pillow": lambda p: Image.fromarray(p),
    "array": lambda p: p,
    "array first": lambda p: p.transpose(2, 0, 1),
    "tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1),
    "tensor last": lambda p: torch.from_numpy(p),
}
ITEMS = {
    "pair": lambda image, i: (image, i),
    "numpy label": lambda image, i: (image, np.int64(i)),
    "tensor label": lambda image, i: (image, torch.tensor(i)),
    "image": lambda image, i: image,
    "mapping": lambda image, i: {"image": image, "label": i},
    "img": lambda image, i: {"img": image},
}
class Set(torch.utils.data.Dataset):
    def __init__(self, form="array", item="pair", bad=()):
        self.form, self.item, self.bad = form, item, bad
    def __len__(self):
        return len(PIXELS)
    def __getitem__(self, i):
        if i in self.bad:
            raise OSError("lost")
        return ITEMS[self.item](FORMS[self.form](PIXELS[i]), i)
class Floats(Set):
    def __getitem__(self, i):
        return torch.rand(3, 8, 8), 0
class Random(Set):
    def __getitem__(self, i):
        return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)
class Labels(Set):
    def __init__(self, labels):
        self.labels = labels
    def __getitem__(self, i):
        return PIXELS[i], self.labels[i]
class Four(Set):
    def __getitem__(self, i):
        return PIXELS[i, :4, :, 0].reshape(2, 4, 4)
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield PIXELS[0]
class Empty(Set):
    def __len__(self):
        return 0
def make():
    return Set(item="image")
def broken():
    raise RuntimeError("Dataset not found.\\nYou can use download=True")
number = 3
"""


@pytest.fixture
def code(tmp_path, rgb, monkeypatch, request):
    """A current folder with a module of its own name; returns the name."""
    folder = tmp_path / "here"
    folder.mkdir()
    name = "mine_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (folder / f"{name}.py").write_text(MODULE)
    np.save(folder / "pixels.npy", rgb)
    monkeypatch.chdir(folder)
    path = list(sys.path)
    yield name
    assert sys.path == path
    sys.modules.pop(name, None)


def load(target, args=None, **options):
    return load_dataset("dataset", target, args=args, allow_code=True, **options)


def refused(target, *says, args=None):
    with pytest.raises(ConfigError) as caught:
        load(target, args)
    assert str(caught.value).isprintable()
    assert all(words in str(caught.value) for words in (target, *says)), str(caught.value)


class TestAllowed:
    def test_without_leave_nothing_is_imported(self, code, tmp_path):
        with pytest.raises(ConfigError, match=f"'{code}:Set' is code.*--allow-code"):
            load_dataset("dataset", f"{code}:Set")
        assert not (tmp_path / "here" / "imported").exists()
        load(f"{code}:Set")
        assert (tmp_path / "here" / "imported").exists()

    def test_path_and_arguments_are_part_of_what_a_recipe_is(self):
        contents = [
            DataSettings("dataset", "a:b").content(),
            DataSettings("dataset", "a:c").content(),
            DataSettings("dataset", "a:b", args={"split": "train"}).content(),
        ]
        assert len({str(c) for c in contents}) == 3


class TestItems:
    @pytest.mark.parametrize("form", ["pillow", "array", "array first", "tensor", "tensor last"])
    def test_every_form_of_an_image(self, code, rgb, form):
        assert np.array_equal(load(f"{code}:Set", {"form": form}).images, stacked(rgb))

    @pytest.mark.parametrize("item", ["pair", "numpy label", "tensor label", "mapping"])
    def test_labels(self, code, item):
        data = load(f"{code}:Set", {"item": item})
        assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
        assert data.name == "Set"

    @pytest.mark.parametrize("item", ["image", "img"])
    def test_no_labels(self, code, item):
        assert load(f"{code}:Set", {"item": item}).labels is None

    def test_a_function_may_make_it(self, code, rgb):
        assert np.array_equal(load(f"{code}:make").images, stacked(rgb))

    def test_size_and_channels_apply(self, code):
        assert load(f"{code}:Set", size=4, channels=1).images.shape == (6, 1, 4, 4)

    def test_items_that_cannot_be_read_are_counted_and_labels_stay(self, code, rgb):
        refused(f"{code}:Set", "2 unreadable images of 6", "item 1 (lost)", args={"bad": [1, 4]})
        data = load(f"{code}:Set", {"bad": [1, 4]}, corrupt="skip")
        assert data.corrupt == ("item 1", "item 4")
        assert data.labels.tolist() == [0, 2, 3, 5]
        assert np.array_equal(data.images, stacked(rgb[[0, 2, 3, 5]]))

    def test_a_changed_set_is_read_again(self, code, rgb, tmp_path):
        first = load(f"{code}:Set")
        sys.modules.pop(code)
        np.save(tmp_path / "here" / "pixels.npy", rgb[::-1])
        again = load(f"{code}:Set")
        assert again.sha256 != first.sha256
        assert np.array_equal(again.images, stacked(rgb[::-1]))

    def test_a_grey_tensor_of_three_rows_is_no_colour_image(self, tmp_path, monkeypatch):
        (tmp_path / "thin.py").write_text(
            "import torch\ndef make():\n    return [torch.zeros(1, 4, 3, dtype=torch.uint8)]\n"
        )
        monkeypatch.chdir(tmp_path)
        assert load("thin:make").images.shape == (1, 1, 4, 3)
        sys.modules.pop("thin")


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "args", "says"),
        [
            ("Sett", None, ("no name 'Sett'", "did you mean 'Set'")),
            ("number", None, ("no class or function but a int",)),
            ("Set", {"from": 3}, ("args: ", "'from'")),
            ("Labels", None, ("args: ", "'labels'")),
            ("broken", None, ("RuntimeError: Dataset not found.", "download=True")),
            ("Floats", None, ("item 0", "float32", "PILToTensor")),
            ("Random", None, ("differs each time", "flips are an option of training")),
            ("Four", None, ("shape (2, 4, 4)", "1 or 3 channels")),
            ("Stream", None, ("map-style",)),
            ("Empty", None, ("holds no images",)),
            ("Labels", {"labels": [0, 1, 2, 3, 4, "cat"]}, ("item 5", "label 'cat'", "number")),
            ("Labels", {"labels": [True] * 6}, ("label True",)),
            ("Labels", {"labels": [0, 1, None, 3, 4, 5]}, ("item 0 and item 2", "all or none")),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_what_cannot_be_used_is_one_line(self, code, cache, name, args, says):
        refused(f"{code}:{name}", *says, args=args)
        assert not cache.exists()

    def test_a_module_that_is_not_here(self, code):
        refused("nowhere.at_all:Set", "no module 'nowhere'", "the folder that holds it")

    def test_a_module_that_fails(self, code, tmp_path):
        (tmp_path / "here" / "bad_module.py").write_text("1 / 0\n")
        refused("bad_module:Set", "ZeroDivisionError: division by zero")
        (tmp_path / "here" / "needy.py").write_text("import not_installed_here\n")
        refused("needy:Set", "ModuleNotFoundError", "not_installed_here")


def test_torchvision_sets_work(tmp_path, monkeypatch, rgb):
    ensure_torchvision()
    for i, pixels in enumerate(rgb):
        (tmp_path / "set" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / str(i % 2) / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    data = load("torchvision.datasets:ImageFolder", {"root": "set"})
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.images, stacked(rgb[[0, 2, 4, 1, 3, 5]]))
    assert torch.from_numpy(data.images).dtype == torch.uint8
