"""Overrides, resolved files, and arbitrary text as input."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import SPACE, UNET

from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import EvaluationSettings


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
SOLVERS += [{"pfdiff": {"c": {"min": 0.3, "max": 0.6, "step": 0.05}}}, {"ddim": {"eta": 0.5}}]
GRIDS = ["uniform", "quad", "karras", {"karras": {"rho": {"min": 3, "max": 9, "steps": 7}}}]
GRIDS += [{"logsnr": {"end": {"min": 0.02, "max": 0.5, "log": True}}}]
GRIDS += [{"free": {"spacing": {"genes": 8}, "gap": 0.2, "along": "logsnr"}}]
SPACES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z]+[._-][0-9]{1,3}", fullmatch=True),
        "schedule": st.fixed_dictionaries(
            {
                "calls": st.lists(st.integers(1, 200), min_size=1, max_size=4, unique=True),
                "grid": subset(GRIDS),
                "solver": subset(SOLVERS),
                "widths": st.fixed_dictionaries(
                    {"choices": subset([0.5, 1.0])},
                    optional={"monotone": st.sampled_from(["non-increasing", "non-decreasing"])},
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
            {}, optional={"images": st.integers(4, 10**6), "device": st.sampled_from(["cpu"])}
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


LEVELS = [20.0, 5.5, 1, 0.25, 0.02]
CFG = {"scale": {"min": 1, "max": 4, "step": 0.5}, "low": 0.5, "high": {"min": 2, "max": 9}}


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": [LEVELS, "quad"]},
        {"grid": {"explicit": {"levels": [*LEVELS, 0]}}},
        {"grid": [{"explicit": {"times": [900, 600, 300, 100, 0]}}]},
        {"grid": {"free": {"spacing": [1, 2.5, 4]}}},
        {"solver": ["heun", {"unipc": {"order": {"min": 1, "max": 3, "step": 1}}}]},
        {"solver": [{"unipc": {"variant": "bh1", "corrector": False}}, {"ddim": {}}]},
        {"grid": [{"karras": {}}, "uniform"]},
        {"grid": {"free": {"spacing": {"genes": 4, "min": 1, "max": 9, "steps": 3}}}},
        {"guidance": ["none", {"cfg": CFG}, {"cfg": {"scale": 1.5}}]},
        {"guidance": {"cfg": {"scale": 2, "high": 5}}},
    ],
    ids=json.dumps,
)
def test_every_form_of_a_setting_reads_back_to_the_same_settings(folder, settings):
    (folder / "net.yaml").write_text(UNET.replace("{family: unet,", "{family: unet, classes: 10,"))
    schedule = {"calls": 5, "grid": "quad", "solver": "ddim"} | settings
    schedule["widths"] = {"segments": 2, "choices": [0.5]}
    check_resolved(folder, {"schedule": schedule})


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
