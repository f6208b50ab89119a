"""Settings files: what is wrong is told in one line that points at it, what is right comes back."""

import re
from pathlib import Path

import numpy as np
import pytest
from command import files, stepsearch
from malformed import GAUSSIAN, RECIPES, SPACE, SYNTAX, UNET, VALUES, Case
from malformed_schedule import SCHEDULES
from PIL import Image

from stepsearch.cli import main
from stepsearch.config import read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import EvaluationSettings, SearchSettings
from stepsearch.recipe_config import read_recipe


def ids(case):
    return case.name.replace(" ", "-")


def check_message(error, path, case):
    """One printable line: place, then all that the case has to say."""
    text = str(error.value)
    place = f"{path}:{case.line}:{case.column}: " if case.line else f"{path}:"
    assert text.startswith(place)
    assert text.isprintable()
    for words in case.says:
        assert words in text, f"{words!r} is not in {text!r}"


def save_png(folder, name, side):
    image = Image.fromarray(np.zeros((side, side), np.uint8))
    image.save(folder / name)


def save_npz(folder, name, **arrays):
    np.savez(folder / name, **arrays)


def images(count, side=8):
    return np.zeros((count, side, side, 1), np.uint8)


# name, recipe, what writes the images, `data` section, fragments
DATA = [
    ("empty folder", UNET, lambda d: (d / "i").mkdir(), "{folder: i}", ("i: no images", ".png")),
    (
        "corrupt image",
        UNET,
        lambda d: (d / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken"),
        "{folder: .}",
        ("1 unreadable image", "repair", "a.png"),
    ),
    (
        "two sizes",
        UNET,
        lambda d: (save_png(d, "a.png", 8), save_png(d, "b.png", 16)),
        "{folder: .}",
        ("2 different sizes", "set size"),
    ),
    (
        "image side",
        UNET,
        lambda d: save_npz(d, "a.npz", images=images(40, 9)),
        "{npz: a.npz}",
        ("net.yaml: net: unet: mult: 2 levels", "divide by 2", "9x9"),
    ),
    (
        "batch above images",
        UNET,
        lambda d: save_npz(d, "a.npz", images=images(7)),
        "{npz: a.npz}",
        ("net.yaml", "train.batch: 8 exceeds the 7 images"),
    ),
    (
        "components above images",
        GAUSSIAN,
        lambda d: save_npz(d, "a.npz", images=images(3)),
        "{npz: a.npz}",
        ("net.yaml", "the 4 that", "3"),
    ),
    (
        "no image at all",
        GAUSSIAN,
        lambda d: save_npz(d, "a.npz", images=images(0)),
        "{npz: a.npz}",
        ("a.npz",),
    ),
    (
        "object array",
        UNET,
        lambda d: save_npz(d, "a.npz", images=np.array([print], dtype=object)),
        "{npz: a.npz}",
        ("a.npz", "not a readable npz file", "Object arrays"),
    ),
    (
        "truncated zip",
        UNET,
        lambda d: (d / "a.npz").write_bytes(b"PK\x03\x04 and no more"),
        "{npz: a.npz}",
        ("a.npz", "not a readable npz file"),
    ),
    (
        "npz of no bytes",
        UNET,
        lambda d: (d / "a.npz").touch(),
        "{npz: a.npz}",
        ("a.npz", "not a readable npz file"),
    ),
    (
        "one array instead of npz",
        UNET,
        lambda d: np.save(d / "a.npy", images(40)),
        "{npz: a.npy}",
        ("a.npy", "not a readable npz file"),
    ),
    (
        "text as parquet",
        UNET,
        lambda d: (d / "a.parquet").write_text("hello"),
        "{parquet: a.parquet}",
        ("a.parquet", "not a readable parquet file"),
    ),
    (
        "digits larger than they are",
        UNET,
        lambda d: (d / "digits").mkdir(),
        "{digits, size: 16}",
        ("digits are grey, at most 8x8",),
    ),
]


class TestBadFiles:
    """DESIGN promise 2: one line that names the place, the value and the remedy."""

    def test_the_suite_is_large_and_every_case_has_its_own_name(self):
        names = [c.name for c in (*SYNTAX, *VALUES, *SCHEDULES, *RECIPES)]
        assert len(set(names)) == len(names) >= 270

    @pytest.mark.parametrize("case", [*SYNTAX, *VALUES, *SCHEDULES], ids=ids)
    def test_a_bad_space_is_told_in_one_line_at_its_place(self, folder, case: Case):
        path = folder / "space.yaml"
        path.write_bytes(case.data)
        with pytest.raises(ConfigError) as error:
            read_space(path)
        check_message(error, path, case)

    @pytest.mark.parametrize("case", RECIPES, ids=ids)
    def test_a_bad_recipe_is_told_at_its_own_place_whoever_reads_it(self, folder, case: Case):
        path = folder / "net.yaml"
        path.write_bytes(case.data)
        with pytest.raises(ConfigError) as alone:
            read_recipe(path)
        with pytest.raises(ConfigError) as through_space:
            read_space(folder / "space.yaml")
        check_message(alone, path, case)
        assert str(through_space.value) == str(alone.value)

    @pytest.mark.parametrize(
        ("recipe", "prepare", "section", "says"),
        [d[1:] for d in DATA],
        ids=[d[0].replace(" ", "-") for d in DATA],
    )
    def test_images_that_cannot_be_used_are_found_by_validate(
        self, tmp_path, monkeypatch, capsys, recipe, prepare, section, says
    ):
        monkeypatch.chdir(tmp_path)
        Path("net.yaml").write_text(recipe.replace("data: digits", f"data: {section}"))
        prepare(Path())
        before = files(tmp_path)
        assert main(["validate", "net.yaml"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        for words in says:
            assert words in err
        assert files(tmp_path) == before

    @pytest.mark.parametrize("path", ["none.yaml", "folder", "none/none.yaml", "space.yaml/x"])
    def test_a_file_that_is_not_there_is_named(self, folder, path):
        (folder / "folder").mkdir()
        with pytest.raises(ConfigError, match=re.escape(f"{folder / path}: ") + ".*check the path"):
            read_space(folder / path)

    def test_two_recipes_of_one_name_are_refused(self, folder):
        (folder / "other.yaml").write_text(GAUSSIAN)
        (folder / "space.yaml").write_text(SPACE.replace("[net.yaml]", "[net.yaml, other.yaml]"))
        with pytest.raises(ConfigError, match=r"space\.yaml:3:12: .*share a name.*rename one"):
            read_space(folder / "space.yaml")

    def test_a_default_name_that_is_no_folder_name_is_refused(self, folder):
        path = folder / "my space.yaml"
        path.write_text(SPACE.replace("name: toy\n", ""))
        with pytest.raises(ConfigError, match=r"my space\.yaml: name: 'my space' cannot name"):
            read_space(path)


# argv, the file's text (None: the good one), fragments of the one line on stderr
COMMANDS = [
    (["run", "none.yaml"], None, ("none.yaml: No such file", "check the path")),
    (["run", "space.yaml"], SPACE.replace("search:", "serach:"), (":12:", "did you mean 'search'")),
    (["validate", "space.yaml"], "version: [1\n", ("space.yaml:2:1: YAML syntax",)),
    (["run", "space.yaml"], SPACE.replace("[5, 8]", "{min: 20, max: 5}"), (":5:10:", "swap them")),
    (
        ["run", "space.yaml"],
        SPACE.replace("{max: 1}", "{min: 2, max: 1}"),
        (":10:33:", "1; swap"),
    ),
    (["run", "space.yaml"], SPACE.replace("[0.5, 1.0]", "[0.33]"), (":8:35:", "offers 0.5, 1")),
    (["run", "space.yaml"], SPACE.replace("l: 1", "l: 3"), (":7:18:", "1 <= l <= k", "l=3")),
    (["run", "space.yaml"], SPACE.replace("seed: 0", "seed: 0, seed: 1", 1), ("key 'seed'",)),
    (["run", "space.yaml"], SPACE.replace("images: 100", "images: 1e3"), (":11:22:", "1000.0")),
    (["run", "space.yaml"], SPACE.replace("classifier", "clasifier"), (":11:", "'clasifier'")),
    (["run", "space.yaml", "search.population=many"], None, ("'search.population=many'", "whole")),
    (["run", "space.yaml", "--seed", "-1"], None, ("search.seed", "got -1")),
    (["run", "space.yaml", "-o", "taken"], None, ("taken: ", "-o")),
]


@pytest.mark.parametrize(("argv", "text", "says"), COMMANDS, ids=[c[2][-1] for c in COMMANDS])
def test_the_command_ends_in_one_line_and_exit_status_2_and_writes_nothing(
    folder, argv, text, says
):
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("mine")
    if text is not None:
        (folder / "space.yaml").write_text(text)
    before = files(folder)
    done = stepsearch(folder, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"stepsearch: [^\n]+\n", done.stderr)
    for words in says:
        assert words in done.stderr
    assert files(folder) == before


def check_range(space, field, genes):
    """Genes of ranges, all of them at 0, at 1 and at their last, mean these arguments."""
    plain = 4 + space.width_genes
    sizes = [n for _, n in space.genes[plain:]]
    for i, values in enumerate([[0] * len(sizes), [1] * len(sizes), [n - 1 for n in sizes]]):
        candidate = space.decode((*[0] * plain, *values))
        assert getattr(candidate, field) == {name: found[i] for name, found in genes.items()}


def shipped(folder):
    return sorted((Path(__file__).parents[2] / folder).glob("*.yaml"))


class TestGoodFiles:
    @pytest.mark.parametrize("path", shipped("search_spaces"), ids=lambda p: p.name)
    def test_shipped_spaces_are_fine(self, path):
        assert read_space(path).name == path.stem

    @pytest.mark.parametrize("path", shipped("supernets"), ids=lambda p: p.name)
    def test_shipped_recipes_are_fine(self, path):
        """With any file for images that do not come with the package."""
        own = [f"data.parquet={__file__}"] if "{parquet: " in path.read_text() else []
        assert read_recipe(path, own).name == path.stem

    def test_paths_of_the_command_line_start_where_it_is_typed(self, folder, monkeypatch):
        here = folder / "here"
        here.mkdir()
        (here / "own.npz").touch()
        monkeypatch.chdir(here)
        recipe = read_recipe(folder / "net.yaml", ["data={npz: own.npz}"])
        assert recipe.data.path == str(here / "own.npz")
        with pytest.raises(ConfigError, match=r"no such file or folder at other\.npz"):
            read_recipe(folder / "net.yaml", ["data={npz: other.npz}"])

    def test_defaults_fill_what_is_left_out(self, folder):
        text = SPACE[: SPACE.index("constraints")].replace("name: toy\n", "")
        (folder / "space.yaml").write_text(text)
        got = read_space(folder / "space.yaml")
        assert (got.name, got.constraints) == ("space", {})
        assert (got.evaluation, got.search) == (EvaluationSettings(), SearchSettings())

    def test_scalars_are_those_of_yaml_1_2(self, folder):
        text = UNET.replace("name: net", "name: off").replace("seed: 0", "seed: 010")
        (folder / "net.yaml").write_text(text)
        got = read_recipe(folder / "net.yaml")
        assert (got.name, got.train.learning_rate, got.train.seed) == ("off", 1e-3, 10)

    def test_a_byte_order_mark_and_windows_line_ends_are_fine(self, folder):
        want = read_space(folder / "space.yaml")
        (folder / "space.yaml").write_bytes(b"\xef\xbb\xbf" + SPACE.replace("\n", "\r\n").encode())
        assert read_space(folder / "space.yaml") == want

    def test_choices_come_sorted_and_one_value_is_a_list_of_one(self, folder):
        text = SPACE.replace("[5, 8]", "{min: 2, max: 9, step: 3}")
        text = text.replace("[0.5, 1.0]", "[1, 0.5]").replace("[uniform, quad]", "quad")
        (folder / "space.yaml").write_text(text)
        space = read_space(folder / "space.yaml").space
        assert (space.calls, space.width_choices) == ((2, 5, 8), (0.5, 1.0))
        assert space.grids == ("quad",)

    @pytest.mark.parametrize(
        ("typed", "genes"),
        [
            ("{pfdiff: {c: {min: 0.3, max: 0.6, step: 0.05}}}", {"c": (0.3, 0.35, 0.6)}),
            ("{unipc: {order: {min: 1, max: 3, step: 1}}}", {"order": (1, 2, 3)}),
            ("{ddim: {eta: {min: 0, max: 1}}}", {"eta": (0, 0.05, 1)}),
        ],
    )
    def test_a_range_of_a_solver_is_a_gene(self, folder, typed, genes):
        (folder / "space.yaml").write_text(SPACE.replace("[ddim, {pfdiff: {k: 2, l: 1}}]", typed))
        check_range(read_space(folder / "space.yaml").space, "solver_args", genes)

    @pytest.mark.parametrize(
        ("typed", "genes"),
        [
            ("{karras: {rho: {min: 3, max: 9, steps: 7}}}", {"rho": (3, 4, 9)}),
            ("{karras: {rho: {min: 3, max: 9, step: 2}}}", {"rho": (3, 5, 9)}),
            ("{logsnr: {end: {min: 0.1, max: 10, steps: 3, log: true}}}", {"end": (0.1, 1, 10)}),
            (
                "{free: {spacing: {genes: 2}, gap: 0.2}}",
                {"spacing": ((0, 0), (1, 1), (4, 4)), "gap": (0.2, 0.2, 0.2)},
            ),
            (
                "{free: {spacing: {genes: 2, min: 1, max: 2, steps: 5}}}",
                {"spacing": ((1, 1), (1.25, 1.25), (2, 2))},
            ),
        ],
    )
    def test_a_range_of_a_grid_is_a_gene_and_a_vector_several(self, folder, typed, genes):
        text = SPACE.replace("[uniform, quad]", typed).replace(", {pfdiff: {k: 2, l: 1}}", "")
        (folder / "space.yaml").write_text(text)
        check_range(read_space(folder / "space.yaml").space, "grid_args", genes)

    @pytest.mark.parametrize(
        ("typed", "want"),
        [
            ("[[20, 5, 1, 0.2, 0.02]]", {"levels": (20, 5, 1, 0.2, 0.02)}),
            ("{explicit: {times: [900, 600, 300, 100, 0]}}", {"times": (900, 600, 300, 100, 0)}),
        ],
    )
    def test_a_listed_grid_is_explicit(self, folder, typed, want):
        text = SPACE.replace("[uniform, quad]", typed).replace(", {pfdiff: {k: 2, l: 1}}", "")
        (folder / "space.yaml").write_text(text.replace("[5, 8]", "5"))
        space = read_space(folder / "space.yaml").space
        assert space.grids == (("explicit", want),)

    @pytest.mark.parametrize("monotone", ["non-increasing", "non-decreasing"])
    def test_widths_may_be_monotone(self, folder, monotone):
        text = SPACE.replace("segments: 2", f"segments: 2, monotone: {monotone}")
        (folder / "space.yaml").write_text(text)
        assert read_space(folder / "space.yaml").space.monotone == monotone

    def test_guidance_is_a_list_of_settings_or_one(self, folder):
        classes = "{family: unet, classes: 10,"
        (folder / "net.yaml").write_text(UNET.replace("{family: unet,", classes))
        for typed, want in [
            ("[none, {cfg: {scale: 2, low: 0.5}}]", ["none", ("cfg", {"scale": 2, "low": 0.5})]),
            ("{cfg: {scale: 2}}", [("cfg", {"scale": 2})]),
        ]:
            text = SPACE.replace("  widths:", f"  guidance: {typed}\n  widths:")
            (folder / "space.yaml").write_text(text)
            assert list(read_space(folder / "space.yaml").space.guidances) == want

    def test_per_call_has_a_width_for_each_of_the_most_calls(self, folder):
        (folder / "space.yaml").write_text(SPACE.replace("segments: 2", "per_call: true"))
        space = read_space(folder / "space.yaml").space
        assert (space.per_call, space.width_genes) == (True, 8)
