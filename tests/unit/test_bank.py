"""A bank of supernets: what a space file says of training, and the networks that genomes choose."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed import GAUSSIAN, UNET, edits
from malformed import SPACE as TEXT
from support import CARD, SETTINGS, SPACE, score

from stepsearch.build import build_schedule, coupling_warning
from stepsearch.config import dump_space, read_space
from stepsearch.core.bank import Bank
from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.settings import content_hash
from stepsearch.core.space import Range
from stepsearch.core.trial import Trial
from stepsearch.recipe_config import read_recipe

POOLS = "supernets: [net.yaml]\ntrain: {immiscible.pool: [1, 64, 256]}\n"
SIZES = st.tuples(st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3))


def banked(supernets, sizes):
    """SPACE with a bank of so many values per key; names tell what was chosen."""
    nets = tuple("abc"[:supernets])
    settings = tuple((f"part.{i}", tuple(range(10, 10 + n))) for i, n in enumerate(sizes))
    combinations = itertools.product(nets, *(values for _, values in settings))
    networks = tuple("-".join(map(str, chosen)) for chosen in combinations)
    return replace(SPACE, supernets=nets, bank=Bank(settings, networks))


def genomes_of(space):
    return st.tuples(*(st.integers(0, n - 1) for _, n in space.genes))


# --- genomes


@given(SIZES, st.data())
def test_the_genes_of_a_bank_choose_the_network_of_their_values(sizes, data):
    space = banked(*sizes)
    genome = data.draw(genomes_of(space))
    chosen = dict(zip((name for name, _ in space.genes), genome, strict=True))
    words = [space.supernets[chosen["supernet"]]]
    words += [str(10 + chosen.get(f"part_{i}", 0)) for i in range(len(sizes[1]))]
    network = space.decode(genome).supernet
    assert network == "-".join(words)
    told = space.bank.values(network)
    assert {f"part_{i}" for i, n in enumerate(sizes[1]) if n > 1} == {
        key.replace(".", "_") for key in told
    }
    assert all(told[key] == 10 + chosen[key.replace(".", "_")] for key in told)


@given(SIZES, st.data())
def test_a_bank_changes_nothing_but_the_network(sizes, data):
    space = banked(*sizes)
    bank = {name for name, _ in space.bank.genes}
    genome = data.draw(genomes_of(space))
    rest = [g for g, (name, _) in zip(genome, space.genes, strict=True) if name not in bank]
    plain = replace(space, bank=None).decode(tuple(rest))
    assert replace(space.decode(genome), supernet=plain.supernet) == plain


@given(SIZES, st.integers(0, 60))
def test_every_network_of_a_bank_is_tried_before_other_settings(sizes, limit):
    space = banked(*sizes)
    found = [space.decode(genome) for genome in space.setting_genomes(limit)]
    others = set(space.bank.members) - {space.bank.networks[0]}
    settings = len(space.grids) * len(space.solvers) - 1
    assert len(found) == min(limit, len(others) + settings)
    first = found[: len(others)]
    assert len({c.supernet for c in first}) == len(first)
    assert {c.supernet for c in first} <= others
    assert {(c.grid, c.solver) for c in first} <= {("uniform", "ddim")}
    assert {c.supernet for c in found[len(others) :]} <= {space.bank.networks[0]}
    assert {c.widths for c in found} <= {(0.75,) * 3}


@given(SIZES, st.integers(1, 30))
def test_uniform_strategies_use_the_first_network(sizes, limit):
    space = banked(*sizes)
    found = [space.decode(genome) for genome in space.uniform_genomes(limit)]
    assert {c.supernet for c in found} == {space.bank.networks[0]}


def test_values_that_train_the_same_network_are_one_schedule():
    bank = Bank((("pool", (1, 2)), ("scope", ("x", "y"))), ("net", "net", "net-x", "net-y"))
    space = replace(SPACE, bank=bank)
    genome = [0] * len(space.genes)
    cards = {name: replace(CARD, name=name) for name in bank.members}
    keys = set()
    for genome[-2], genome[-1] in itertools.product(range(2), range(2)):
        keys.add(build_schedule(space.decode(tuple(genome)), cards).key())
    assert len(keys) == len(bank.members) == 3
    assert bank.values("net") == {"pool": 1, "scope": "x"}


@pytest.mark.parametrize("networks", [(), ("a",), ("a", "b", "c")])
def test_a_bank_that_does_not_fit_its_values_is_refused(networks):
    with pytest.raises(SpaceError, match="networks"):
        Bank((("pool", (1, 2)),), networks)
    with pytest.raises(SpaceError, match=r"2 networks, 4 are needed"):
        replace(SPACE, supernets=("a", "b"), bank=Bank((("pool", (1, 2)),), ("a", "b")))


# --- files


@pytest.fixture
def read(tmp_path):
    """Reads TEXT with something else in place of its supernets."""

    def read(head=POOLS, overrides=(), net=UNET):
        (tmp_path / "net.yaml").write_text(net)
        (tmp_path / "other.yaml").write_text(net.replace("name: net", "name: other"))
        (tmp_path / "space.yaml").write_text(TEXT.replace("supernets: [net.yaml]\n", head))
        return read_space(tmp_path / "space.yaml", list(overrides))

    return read


def head(train, supernets="net.yaml"):
    return f"supernets: [{supernets}]\n{train}\n"


def test_there_is_a_network_for_every_value_and_the_plain_one_is_itself(read, tmp_path):
    settings = read()
    assert [r.train.pool for r in settings.recipes] == [1, 64, 256]
    names = [r.name for r in settings.recipes]
    assert names == ["net", "net-immiscible.pool-64", "net-immiscible.pool-256"]
    assert settings.recipes[0] == read_recipe(tmp_path / "net.yaml")
    assert ("immiscible_pool", 3) in settings.space.genes
    assert len({content_hash(r.content()) for r in settings.recipes}) == 3


@pytest.mark.parametrize(
    ("first", "overrides"),
    [
        (head("train: {immiscible: {pool: [1, 64, 256]}}"), ()),
        (head("immiscible.pool: [1, 64, 256]"), ()),
        (head("immiscible: {pool: [1, 64, 256]}"), ()),
        (head("train: {immiscible.pool: [8, 9]}"), ["train.immiscible.pool=[1, 64, 256]"]),
        (head("train: {immiscible.pool: 8}"), ["immiscible.pool=[1, 64, 256]"]),
        ("supernets: [net.yaml]\n", ["train.immiscible={pool: [1, 64, 256]}"]),
    ],
)
def test_every_spelling_means_the_same(read, first, overrides):
    assert read(first, overrides) == read()


@pytest.mark.parametrize(
    ("train", "count", "genes"),
    [
        ("steps: 9, immiscible.pool: [1, 2]", 2, {"immiscible_pool": 2}),
        ("steps: 9", 1, {}),
        ("seed: [3]", 1, {}),
        ("learning_rate: [1e-2, 1e-3], ema: [0.5, 0]", 4, {"learning_rate": 2, "ema": 2}),
        ("immiscible: {pool: [1, 4], scope: [global, within_class]}", 3, {"immiscible_scope": 2}),
        ("trunk: 1, flip: [true, false]", 2, {"flip": 2}),
        ("seed: [0, 1], width_weight: [-1, 2]", 4, {"seed": 2, "width_weight": 2}),
    ],
)
@pytest.mark.parametrize("supernets", ["net.yaml", "net.yaml, other.yaml"])
def test_a_resolved_file_holds_the_bank(read, tmp_path, train, count, genes, supernets):
    settings = read(head(f"train: {{{train}}}", supernets))
    assert len(settings.recipes) == count * len(supernets.split())
    assert len({r.name for r in settings.recipes}) == len(settings.recipes)
    assert genes.items() <= dict(settings.space.genes).items()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved.yaml").write_text(dump_space(settings))
    assert read_space(tmp_path / "run" / "resolved.yaml") == settings


def test_one_value_is_an_override_of_every_recipe(read):
    settings = read(head("train: {steps: 9, immiscible.pool: 32}", "net.yaml, other.yaml"))
    assert [r.name for r in settings.recipes] == ["net", "other"]
    assert {(r.train.steps, r.train.pool) for r in settings.recipes} == {(9, 32)}


def test_long_names_are_cut_and_stay_different(read):
    net = UNET.replace("name: net", f"name: {'n' * 60}")
    names = [r.name for r in read(head("train: {seed: [1, 2, 3]}"), net=net).recipes]
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 64


def test_a_space_that_says_nothing_of_training_keeps_its_content(read):
    content = read("supernets: [net.yaml]\n").content()
    assert "bank" not in content["space"]
    assert not {"plain", "trunk"} & (content["recipes"][0].keys())
    assert "trunk" not in content["recipes"][0]["train"]


REFUSED = [
    ("0", "{immiscible.pool: [1, §0]}", "between 1 and 65536, got 0"),
    ("half", "{immiscible.pool: [§2.5, 4]}", "expected a whole number, got 2.5"),
    ("alone", "{immiscible: {pool: §0}}", "between 1 and 65536, got 0"),
    ("twice", "{immiscible.pool: [64, §64]}", "64 is listed twice", "remove one"),
    ("twice in words", "{ema: [0.5, §5e-1]}", "0.5 is listed twice"),
    ("in two ways", "{immiscible: {pool: 1}, immiscible.pool: §2}", "is given twice"),
    ("none", "{immiscible.pool: §[]}", "at least one entry"),
    ("a list in a list", "{immiscible.pool: [1, §[2]]}", "expected a single value, got a list"),
    ("no keys", "§{}", "at least one key", "immiscible.pool"),
    ("no section", "§5", "a mapping of keys, got 5"),
    ("no immiscible section", "{immiscible: §5}", "a mapping of keys, got 5"),
    ("misspelt", "{imiscible.pool: [§1, 2]}", "unknown key 'imiscible' (did you mean 'immiscible'"),
    ("misspelt below", "{immiscible.pol: [§1, 2]}", "unknown key 'pol' (did you mean 'pool'?)"),
    ("unknown word", "{immiscible.method: [assignment, §nn]}", "unknown value 'nn'", "knn"),
    ("contradiction", "{immiscible: {method: [assignment, knn], scope: §global}}", "leave scope"),
    ("too many", f"{{seed: §{list(range(300))}}}", "300 networks are more than 256"),
    ("trunk of all", "{trunk: §2}", "below the 2 steps", "got 2"),
    ("trunks", "{trunk: §[1, 2]}", "one number"),
    ("steps after a trunk", "{trunk: 1, steps: §[8, 9]}", "first 1 steps", "steps", "ema"),
    ("seeds after a trunk", "{trunk: 1, seed: §[8, 9]}", "cannot differ in seed"),
]
CASES = edits(
    TEXT.replace("supernets: [net.yaml]\n", "supernets: [net.yaml]\ntrain: HERE\n"),
    [(name, "HERE", train, *says) for name, train, *says in REFUSED],
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_no_recipe_could_say_is_refused_at_its_place(tmp_path, case):
    (tmp_path / "net.yaml").write_text(UNET)
    (tmp_path / "space.yaml").write_bytes(case.data)
    with pytest.raises(ConfigError) as error:
        read_space(tmp_path / "space.yaml")
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/space.yaml:{case.line}:{case.column}: ")
    for words in case.says:
        assert words in text


def test_a_fitted_network_has_no_training_to_vary(read):
    with pytest.raises(ConfigError, match=r"space\.yaml:4.*family 'gaussian' is fitted, not"):
        read(net=GAUSSIAN)


def test_a_value_of_the_command_line_is_its_own_place(read):
    with pytest.raises(ConfigError, match=r"^override 'train\.ema=\[0, 2\]': .*\[0, 1\], got 2"):
        read(overrides=["train.ema=[0, 2]"])


def test_networks_of_one_name_are_refused(read, tmp_path):
    (tmp_path / "same.yaml").write_text(UNET.replace("name: net", "name: net-immiscible.pool-64"))
    with pytest.raises(ConfigError, match=r"share the name 'net-immiscible\.pool-64'"):
        read(head("train: {immiscible.pool: [1, 64]}", "net.yaml, same.yaml"))


# --- identity of what shares its first steps


def test_a_trunk_is_part_of_what_branches_off_and_of_nothing_else(read):
    def contents(train):
        return [r.content() for r in read(head(f"train: {{{train}}}")).recipes]

    pools = "immiscible.pool: [1, 64, 256]"
    plain, *others = contents(pools)
    rooted, *branches = contents(f"trunk: 1, {pools}")
    assert rooted == plain
    assert [*contents("trunk: 1"), plain] == [plain, plain]
    for other, branch in zip(others, branches, strict=True):
        assert branch != other
        assert branch["train"] == other["train"]
    slow = contents(f"trunk: 1, {pools}, learning_rate: 1e-4")
    assert all(content not in slow for content in branches)


def test_a_bank_has_one_trunk_whatever_its_recipe_is_called(read):
    def trunks(train):
        return {r.trunk_sha256("data") for r in read(head(f"train: {{{train}}}")).recipes}

    bank = trunks("trunk: 1, immiscible.pool: [1, 64]")
    assert len(bank) == 1
    assert trunks("trunk: 1, ema: [0.5, 0.6]") == bank
    assert trunks("trunk: 1, immiscible.pool: [1, 64], steps: 9") != bank


# --- tables


@pytest.mark.parametrize(
    ("train", "want"),
    [
        ("immiscible.pool: [1, 64]", {("1", None), ("64", None)}),
        ("learning_rate: [0.1, 1e-2]", {("1", "learning_rate=0.1"), ("1", "learning_rate=0.01")}),
        ("immiscible.pool: 8, seed: [1, 2]", {("8", "seed=1"), ("8", "seed=2")}),
        (
            "immiscible.pool: 8, flip: [true, false], ema: [0, 1]",
            {("8", f"ema={e};flip={f}") for e in ("0.0", "1.0") for f in ("true", "false")},
        ),
        ("immiscible.pool: 8", {("8", None)}),
        ("steps: 7", {("None", None)}),
    ],
)
def test_a_row_says_how_its_network_was_trained(read, train, want):
    settings = read(head(f"train: {{{train}}}"))
    told = set()
    for recipe in settings.recipes:
        candidate = replace(SPACE.decode((0,) * len(SPACE.genes)), supernet=recipe.name)
        schedule = build_schedule(candidate, {recipe.name: replace(CARD, name=recipe.name)})
        trained = settings.trained(recipe.name)
        key, text = schedule.key(), schedule.to_json()
        trial = Trial(0, 0, key, text, candidate, schedule.widths, score(schedule), trained)
        again = Trial.from_dict(trial.to_dict())
        assert again == trial
        row = again.row(0)
        told.add((str(row["immiscible_batch"]), row["train"]))
    assert told == want


def test_rows_of_plain_networks_and_of_older_journals_stay_empty():
    assert SETTINGS.trained("net") == {}
    candidate = SPACE.decode((0,) * len(SPACE.genes))
    schedule = build_schedule(candidate, {"net": CARD})
    trial = Trial(0, 0, "k", "{}", candidate, schedule.widths, score(schedule))
    old = trial.to_dict()
    del old["trained"]
    row = Trial.from_dict(old).row(None)
    assert (row["immiscible_batch"], row["train"]) == (None, None)


# --- coupled noise


@pytest.mark.parametrize(
    ("solver", "args", "noisy"),
    [
        ("ddim", {}, False),
        ("ddim", {"eta": 0}, False),
        ("ddim", {"eta": 0.5}, True),
        ("ddim", {"eta": Range(0, 1, 3)}, True),
        ("ddpm", {}, True),
        ("heun", {}, False),
        ("heun", {"churn": 0.3}, True),
        ("unipc", {"order": Range(1, 3, 3)}, False),
    ],
)
def test_fresh_noise_is_warned_of_where_noise_was_coupled(solver, args, noisy):
    said = coupling_warning({"a": 1, "b": 64}, [("ddim", {}), (solver, args)])
    assert (said is not None) == noisy
    if noisy:
        assert said.isprintable()
        assert all(words in said for words in ("warning: 'b'", "64", solver, "coupled"))
        assert "'a'" not in said
    assert coupling_warning({"a": 1}, [(solver, args)]) is None
