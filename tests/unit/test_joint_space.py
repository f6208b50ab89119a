"""A space of one stage, relays and students: its genes, and what each genome means."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint import FEW, JOINT_CARDS, JOINT_SPACE, RELAYING
from malformed import SPACE as TEXT
from malformed import UNET
from support import SPACE

from stepsearch.build import build_schedule
from stepsearch.config import read_space
from stepsearch.core.bank import Bank
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.kinds import KINDS
from stepsearch.core.settings import content_hash
from stepsearch.core.space import Candidate

NAMES = [name for name, _ in JOINT_SPACE.genes]
GENOMES = st.tuples(*(st.integers(0, n - 1) for _, n in JOINT_SPACE.genes))
NETWORKS = dict(zip(KINDS, JOINT_SPACE.supernets, strict=True))
BANK = Bank((("pool", (1, 2)),), ("net", "net-2", "low", "low-2", "student", "student"))
BANKED = replace(JOINT_SPACE, bank=BANK, relay=replace(RELAYING, firsts=("low", "low-2")))


def put(genome, space=JOINT_SPACE, **values):
    """The genome with other values of the genes of those names."""
    names = [name for name, _ in space.genes]
    changed = list(genome)
    for name, value in values.items():
        changed[names.index(name)] = value
    return tuple(changed)


def of_kind(genome, kind):
    return put(genome, supernet=KINDS.index(kind))


def middle(**values):
    return put([n // 2 for _, n in JOINT_SPACE.genes], **values)


# --- genes


def test_genes_of_a_second_stage_and_of_students_follow_those_of_one_stage():
    plain = replace(SPACE, supernets=JOINT_SPACE.supernets)
    relay = [("relay_start", 3)] + [(f"relay_{name}", n) for name, n in RELAYING.space.genes]
    few = [(f"distilled_{name}", n) for name, n in FEW.genes if name != "supernet"]
    assert list(JOINT_SPACE.genes) == [*plain.genes, *relay, *few]
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("sections", [{"relay": None}, {"distilled": None}])
def test_a_section_that_is_left_out_takes_its_genes_with_it(sections):
    (left_out,) = sections
    names = [name for name, _ in replace(JOINT_SPACE, **sections).genes]
    assert names == [name for name in NAMES if not name.startswith(f"{left_out}_")]


SECOND = [
    ("relay_start", lambda c: c.grid_args["start"], (0.3, 0.6, 1.2)),
    ("relay_calls", lambda c: c.calls, (1, 3, 5)),
    ("relay_grid", lambda c: c.grid, ("karras", "logsnr")),
    ("relay_solver", lambda c: c.solver_args["step"], ("trapezoid", "first")),
    ("relay_width_1", lambda c: c.widths[1], RELAYING.space.width_choices),
    ("relay_grid_0_karras_end", lambda c: c.grid_args["end"], (0.02, 0.06, 0.1)),
    ("relay_solver_0_relay_eta", lambda c: c.solver_args["eta"], (0, 0.2, 0.4)),
]
STUDENT = [
    ("distilled_calls", lambda c: c.calls, (1, 2, 4)),
    ("distilled_grid", lambda c: c.grid, ("karras", "logsnr")),
]


@pytest.mark.parametrize(("gene", "read", "choices"), SECOND, ids=[row[0] for row in SECOND])
def test_every_value_of_a_gene_of_the_second_stage_is_the_choice_at_that_place(gene, read, choices):
    genome = [0] * len(NAMES)
    found = [put(of_kind(genome, "relay"), **{gene: i}) for i in range(len(choices))]
    assert dict(JOINT_SPACE.genes)[gene] == len(choices)
    assert tuple(read(JOINT_SPACE.decode(g).second) for g in found) == choices


@pytest.mark.parametrize(("gene", "read", "choices"), STUDENT, ids=[row[0] for row in STUDENT])
def test_every_value_of_a_gene_of_a_student_is_the_choice_at_that_place(gene, read, choices):
    genome = of_kind([0] * len(NAMES), "distilled")
    found = [put(genome, **{gene: i}) for i in range(len(choices))]
    assert tuple(read(JOINT_SPACE.decode(g)) for g in found) == choices


# --- candidates


@given(GENOMES)
def test_the_network_says_how_a_candidate_samples(genome):
    plain = SPACE.decode(put(genome[: len(SPACE.genes)], SPACE, supernet=0))
    for kind, network in NETWORKS.items():
        candidate = JOINT_SPACE.decode(of_kind(genome, kind))
        assert (candidate.kind, candidate.supernet) == (kind, network)
        assert candidate.distilled == (kind == "distilled")
        assert (candidate.second is not None) == (kind == "relay")
        if kind != "distilled":
            assert replace(candidate, supernet="net", second=None) == plain
        else:
            assert (candidate.solver, candidate.guidance) == ("renoise", None)
            assert candidate.calls in FEW.calls


@given(GENOMES)
def test_the_second_stage_is_a_candidate_of_its_own_space_at_a_start(genome):
    second = JOINT_SPACE.decode(of_kind(genome, "relay")).second
    assert (second.kind, second.supernet, second.solver) == ("single", "high", "relay")
    assert second.grid_args["start"] in RELAYING.starts
    assert second.calls in RELAYING.space.calls
    assert set(second.widths) <= set(RELAYING.space.width_choices)


def test_what_guides_the_first_stage_guides_the_second():
    space = replace(JOINT_SPACE, guidances=("none", ("cfg", {"scale": 2})))
    genome = put([0] * len(space.genes), space, supernet=1, guidance=1)
    candidate = space.decode(genome)
    assert candidate.guidance == candidate.second.guidance == Guidance("cfg", 2)
    assert space.decode(put(genome, space, guidance=0)).second.guidance is None
    assert space.decode(put(genome, space, supernet=2)).guidance is None


@given(GENOMES, GENOMES)
def test_genes_that_are_not_in_effect_change_no_schedule(genome, other):
    """A single stage reads no gene of a relay or of a student, and so on for each kind."""
    counts = [len(part) for part in JOINT_SPACE._parts]
    single = len(NAMES) - sum(counts)
    relay = slice(0, single + counts[0])
    read = {"single": slice(0, single), "relay": relay, "distilled": slice(relay.stop, None)}
    for kind, own in read.items():
        mixed = list(other)
        mixed[own] = genome[own]
        one, two = (JOINT_SPACE.decode(of_kind(g, kind)) for g in (genome, mixed))
        assert one == two
        keys = {build_schedule(c, JOINT_CARDS).key() for c in (one, two)}
        assert len(keys) == 1


@pytest.mark.parametrize(
    ("kind", "gene"),
    [
        ("single", "solver"),
        ("relay", "calls"),
        ("relay", "relay_start"),
        ("relay", "relay_width_0"),
        ("distilled", "distilled_calls"),
    ],
)
def test_genes_that_are_in_effect_change_the_schedule(kind, gene):
    keys = set()
    for value in range(dict(JOINT_SPACE.genes)[gene]):
        candidate = JOINT_SPACE.decode(of_kind(middle(**{gene: value}), kind))
        keys.add(build_schedule(candidate, JOINT_CARDS).key())
    assert len(keys) == dict(JOINT_SPACE.genes)[gene]


@given(GENOMES, st.booleans())
def test_a_candidate_of_every_kind_survives_json(genome, per_call):
    relay = replace(RELAYING, space=replace(RELAYING.space, per_call=per_call))
    space = replace(JOINT_SPACE, relay=relay)
    for place, kind in enumerate(KINDS):
        candidate = space.decode((place, *genome[1:]))
        data = candidate.to_dict()
        assert ("second" in data, "distilled" in data) == (kind == "relay", kind == "distilled")
        again = Candidate.from_dict(json.loads(json.dumps(data)))
        assert again == candidate
        assert hash(again) == hash(candidate)


def test_a_candidate_of_an_older_journal_is_of_a_single_stage():
    data = SPACE.decode((0,) * len(SPACE.genes)).to_dict()
    assert not {"second", "distilled"} & data.keys()
    assert Candidate.from_dict(data).kind == "single"


@pytest.mark.parametrize("gene", ["relay_start", "relay_width_0", "distilled_calls"])
def test_an_index_out_of_range_is_refused_whether_it_is_in_effect_or_not(gene):
    for kind in KINDS:
        genome = of_kind(middle(**{gene: dict(JOINT_SPACE.genes)[gene]}), kind)
        with pytest.raises(SpaceError, match="does not fit"):
            JOINT_SPACE.decode(genome)


# --- what a search begins with


@pytest.mark.parametrize("space", [JOINT_SPACE, BANKED], ids=["files", "bank"])
@pytest.mark.parametrize("limit", [1, 3, 4, 12, 100])
def test_baselines_are_of_one_stage(space, limit):
    found = [space.decode(genome) for genome in space.uniform_genomes(limit)]
    assert 1 <= len(found) <= limit
    assert {(c.kind, c.supernet) for c in found} == {("single", "net")}
    assert len({(c.calls, c.widths) for c in found}) == len(found)


@pytest.mark.parametrize("space", [JOINT_SPACE, BANKED], ids=["files", "bank"])
@pytest.mark.parametrize("limit", [5, 8, 100])
def test_every_kind_is_tried_early(space, limit):
    found = [space.decode(genome) for genome in space.setting_genomes(limit)]
    assert {c.kind for c in found} == set(KINDS)
    assert len(found) <= limit


def test_a_student_is_tried_with_every_number_of_its_calls():
    found = [JOINT_SPACE.decode(genome) for genome in JOINT_SPACE.setting_genomes(100)]
    students = [c for c in found if c.kind == "distilled"]
    assert [c.calls for c in students] == list(FEW.calls)
    settings = len(SPACE.grids) * len(SPACE.solvers)
    assert len(found) == len(students) + 2 * settings - 1
    assert {c.second.widths for c in found if c.kind == "relay"} == {(0.75, 0.75)}
    assert {c.second.grid_args["start"] for c in found if c.kind == "relay"} == {0.6}


# --- banks


@given(st.data())
def test_every_network_that_a_bank_makes_of_a_first_stage_is_followed_by_the_second(data):
    genome = data.draw(st.tuples(*(st.integers(0, n - 1) for _, n in BANKED.genes)))
    candidate = BANKED.decode(genome)
    assert (candidate.kind == "relay") == candidate.supernet.startswith("low")
    assert (candidate.kind == "distilled") == (candidate.supernet == "student")
    plain = put(genome, BANKED, pool=0)
    firsts = [BANKED.decode(put(plain, BANKED, supernet=1, pool=i)) for i in range(2)]
    assert [c.supernet for c in firsts] == ["low", "low-2"]
    assert firsts[0].second == firsts[1].second


def test_a_student_ignores_what_a_bank_trains():
    for pool in range(2):
        genome = put([0] * len(BANKED.genes), BANKED, supernet=2, pool=pool)
        assert BANKED.decode(genome).supernet == "student"


# --- identity


@pytest.mark.parametrize(
    ("overrides", "sha256"),
    [
        ([], "e4dee0505a1abcaf55182d66a7d3412bb850631925bf7b726167806ead9cb428"),
        (
            ["train.immiscible.pool=[1, 4]"],
            "d508433538cfaae418de84255194f927ffe8ea9de37c2e41ed98c69de3b72036",
        ),
        (
            ["schedule.solver=[heun, {unipc: {order: 3}}]", "schedule.calls=5"],
            "7dcb2bb6650ee88c70af976ca1ab386b1f62c732836f9c36043df96e9bc9a235",
        ),
    ],
    ids=["plain", "bank", "solvers"],
)
def test_a_space_without_the_sections_keeps_the_identity_that_it_had_before_them(
    tmp_path, overrides, sha256
):
    """Hashes of the program at c57391a, which knew neither relays nor students."""
    (tmp_path / "net.yaml").write_text(UNET)
    (tmp_path / "space.yaml").write_text(TEXT)
    settings = read_space(tmp_path / "space.yaml", overrides)
    assert content_hash(settings.content()) == sha256
