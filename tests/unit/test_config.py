"""Settings files: what is wrong is told in one line that points at it, what is right comes back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command import files, stepsearch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import GAUSSIAN, RECIPES, SPACE, SYNTAX, UNET, VALUES, Case
from PIL import Image

from stepsearch.cli import main
from stepsearch.config import dump_space, read_recipe, read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import EvaluationSettings, SearchSettings


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


@pytest.fixture
def folder(tmp_path):
    """A folder with a good space file and a good recipe."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "net.yaml").write_text(GAUSSIAN)
    return tmp_path


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
        "digits with a size",
        UNET,
        lambda d: (d / "digits").mkdir(),
        "{digits: digits, size: 8}",
        ("leave path and size out",),
    ),
]


class TestBadFiles:
    """DESIGN promise 2: one line that names the place, the value and the remedy."""

    def test_the_suite_is_large_and_every_case_has_its_own_name(self):
        names = [c.name for c in (*SYNTAX, *VALUES, *RECIPES)]
        assert len(set(names)) == len(names) >= 200

    @pytest.mark.parametrize("case", [*SYNTAX, *VALUES], ids=ids)
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


def shipped(folder):
    return sorted((Path(__file__).parents[2] / folder).glob("*.yaml"))


class TestGoodFiles:
    @pytest.mark.parametrize("path", shipped("search_spaces"), ids=lambda p: p.name)
    def test_shipped_spaces_are_fine(self, path):
        assert read_space(path).name == path.stem

    @pytest.mark.parametrize("path", shipped("supernets"), ids=lambda p: p.name)
    def test_shipped_recipes_are_fine(self, path):
        assert read_recipe(path).name == path.stem

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

    def test_per_call_has_a_width_for_each_of_the_most_calls(self, folder):
        (folder / "space.yaml").write_text(SPACE.replace("segments: 2", "per_call: true"))
        space = read_space(folder / "space.yaml").space
        assert (space.per_call, space.width_genes) == (True, 8)


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "read", "want"),
        [
            ("search.population=16", lambda s: s.search.population, 16),
            ("schedule.calls=[5, 10]", lambda s: s.space.calls, (5, 10)),
            ("schedule.calls={min: 2, max: 4}", lambda s: s.space.calls, (2, 3, 4)),
            (
                "constraints.gflops_per_image.min=0.5",
                lambda s: dict(s.constraints),
                {"gflops_per_image": (0.5, 1.0)},
            ),
            ("name=other", lambda s: s.name, "other"),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_an_override_is_recorded_in_the_settings(self, folder, override, read, want):
        got = read_space(folder / "space.yaml", [override])
        assert read(got) == want
        assert got != read_space(folder / "space.yaml")

    def test_an_override_may_be_a_new_key_in_a_new_section(self, folder):
        text = SPACE[: SPACE.index("constraints")]
        (folder / "space.yaml").write_text(text)
        got = read_space(folder / "space.yaml", ["evaluation.images=7", "evaluation.seed=3"])
        assert got.evaluation == EvaluationSettings(images=7, seed=3)

    def test_the_last_override_counts(self, folder):
        got = read_space(folder / "space.yaml", ["search.seed=1", "search.seed=2"])
        assert got.search.seed == 2

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("search.populaton=8", "did you mean 'population'"),
            ("serach.population=8", "did you mean 'search'"),
            ("search.population=many", "expected a whole number, got 'many'"),
            ("search.population=", "the value is empty"),
            ("search.population", "expected key=value"),
            ("=8", "expected key=value"),
            ("search..seed=8", "search"),
            ("schedule.calls.0=8", "'schedule.calls' has no keys of its own"),
            ("name.x.y=8", "'name' has no keys of its own"),
            ("schedule.calls=[5", "YAML syntax"),
            ("schedule.calls=[5, *a]", "aliases (*a) are not supported"),
            ("schedule.calls={min: 8, max: 5}", "swap them"),
            ("schedule.calls=[5, 5]", "listed twice"),
            ("schedule.solver={pfdiff: {k: 1, l: 2}}", "k=1, l=2"),
        ],
    )
    def test_a_bad_override_is_its_own_place(self, folder, override, says):
        with pytest.raises(ConfigError) as error:
            read_space(folder / "space.yaml", [override])
        text = str(error.value)
        assert text.startswith(f"override '{override}': ")
        assert says in text
        assert text.isprintable()

    def test_a_key_given_twice_in_the_file_stays_an_error_under_an_override(self, folder):
        text = SPACE.replace("seed: 0, crossover", "seed: 0, seed: 1, crossover")
        (folder / "space.yaml").write_text(text)
        with pytest.raises(ConfigError, match="duplicate key 'seed'"):
            read_space(folder / "space.yaml", ["search.population=4"])


def subset(choices):
    return st.lists(st.sampled_from(choices), min_size=1, max_size=3, unique_by=str)


SOLVERS = ["ddim", {"pfdiff": {"k": 1, "l": 1}}, {"pfdiff": {"k": 3, "l": 2}}]
SPACES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z]+[._-][0-9]{1,3}", fullmatch=True),
        "schedule": st.fixed_dictionaries(
            {
                "calls": st.lists(st.integers(1, 200), min_size=1, max_size=4, unique=True),
                "grid": subset(["uniform", "quad", "karras"]),
                "solver": subset(SOLVERS),
                "widths": st.fixed_dictionaries(
                    {"choices": subset([0.5, 1.0])}
                ).flatmap(
                    lambda w: st.sampled_from([{"per_call": True} | w, {"segments": 3} | w])
                ),
            }
        ),
        "constraints": st.dictionaries(
            st.just("gflops_per_image"),
            st.fixed_dictionaries(
                {}, optional={"min": st.floats(0, 1e-3), "max": st.floats(1e-3, 1e12)}
            ),
        ),
        "search": st.fixed_dictionaries(
            {},
            optional={
                "algorithm": st.sampled_from(["nsga2", "random"]),
                "population": st.integers(2, 1000),
                "seed": st.integers(0, 2**32 - 1),
                "crossover": st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
                "mutation": st.floats(1e-12, 1),
            },
        ),
        "evaluation": st.fixed_dictionaries(
            {}, optional={"images": st.integers(2, 10**6), "device": st.sampled_from(["cpu"])}
        ),
    }
)  # fmt: skip
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_resolved(folder, data):
    """What `dump_space` writes is read back to equal settings, from another folder too."""
    fixed = {"version": 1, "supernets": ["net.yaml"], "objectives": ["fid", "gflops_per_image"]}
    # JSON is YAML 1.2: its texts are quoted, so that a name like "08" is text
    (folder / "space.yaml").write_text(json.dumps(fixed | data))
    want = read_space(folder / "space.yaml")
    resolved = folder / "run" / "resolved.yaml"
    resolved.parent.mkdir(exist_ok=True)
    resolved.write_text(dump_space(want))
    assert read_space(resolved) == want


@FIXTURE
@given(data=SPACES)
def test_a_resolved_file_reads_back_to_the_same_settings(folder, data):
    check_resolved(folder, data)


@pytest.mark.parametrize("name", ["08", "1e3", "1", "0.5", "true", "null", "off", "2024-01-01"])
def test_a_name_that_looks_like_something_else_stays_text(folder, name):
    schedule = {"calls": 5, "grid": "quad", "solver": "ddim"}
    schedule["widths"] = {"segments": 2, "choices": [0.5]}
    check_resolved(folder, {"name": name, "schedule": schedule})


PIECES = "\n|\t|:|: |- |{|}|[|]|'|#|&a |*a|!!int |!!float |!!set |!x |---\n|~|null|true|-1|1e999"
PIECES = [*PIECES.split("|"), "", "|", '"', "<<: ", "? ", "\0", "\x85", "\ufeff", '"\\n"']
PIECES += ["9" * 5000, "net.yaml", "0.5"]


class TestFuzz:
    """Whatever a file holds, reading it ends in settings or in a ConfigError of one line."""

    def read(self, folder, data):
        path, message = folder / "space.yaml", f"{folder}/"
        path.write_bytes(data)
        try:
            read_space(path)
        except ConfigError as error:
            message = str(error)
        assert message.isprintable()
        assert message.startswith(f"{folder}/")

    @settings(FIXTURE, max_examples=150)
    @given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def test_arbitrary_bytes(self, folder, data):
        self.read(folder, data)

    @settings(FIXTURE, max_examples=300)
    @given(
        cut=st.integers(0, len(SPACE)),
        length=st.integers(0, 12),
        put=st.sampled_from(PIECES),
    )
    def test_a_good_file_with_something_put_into_it(self, folder, cut, length, put):
        self.read(folder, (SPACE[:cut] + put + SPACE[cut + length :]).encode())
