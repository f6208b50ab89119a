"""Relays and students in settings files: what comes back, and what is refused at its place."""

from pathlib import Path

import pytest
from joint import JOINT, NET, SHARP, SMALL, STUDENT, write_joint
from malformed_stages import MALFORMED, OTHERS

from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.relay import Relay
from stepsearch.core.space import Range
from stepsearch.recipe_config import read_recipe

SHIPPED = Path(__file__).parents[2] / "search_spaces" / "digits-joint.yaml"
CASES = [(name, case) for name, cases in MALFORMED.items() for case in cases]
MIDDLE = get_process(TRAINED).level_at(400)
ALL_WIDTHS = STUDENT.replace("low: 1}", "low: 1, widths: all}")


@pytest.fixture
def folder(tmp_path):
    """The files of `joint`, and recipes with something wrong beside them."""
    return write_joint(tmp_path, **OTHERS)


def read(folder, space=JOINT, overrides=(), **changed):
    """Settings of the space, with other texts of some recipes."""
    write_joint(folder, space=space, **changed)
    return read_space(folder / "space.yaml", list(overrides))


def check_resolved(folder, settings):
    """The resolved file of a run, which lies elsewhere, is read back equal."""
    resolved = folder / "run" / "resolved.yaml"
    resolved.parent.mkdir(exist_ok=True)
    resolved.write_text(dump_space(settings))
    assert read_space(resolved) == settings


# --- what is right


def test_the_resolved_file_of_the_shipped_space_reads_back_equal(tmp_path):
    check_resolved(tmp_path, read_space(SHIPPED))


RELAYS = JOINT.partition("distilled:")[0].replace("[net.yaml, student.yaml]", "[net.yaml]")
RELAYS += JOINT[JOINT.index("objectives") :]
FORMS = {
    "as it is": (JOINT, {}),
    "lists": (JOINT.replace("small.yaml", "[small.yaml]"), {}),
    "one start": (JOINT.replace("{min: 0.3, max: 1.2, steps: 3}", "0.7"), {}),
    "even starts": (JOINT.replace("steps: 3}\n  calls", "log: false}\n  calls"), {}),
    "a width per call": (JOINT.replace("segments: 3", "per_call: true"), {}),
    "monotone": (JOINT.replace("segments: 3", "segments: 3, monotone: non-increasing"), {}),
    "relays": (RELAYS, {}),
    "relays alone": (RELAYS.replace("supernets: [net.yaml]\n", ""), {}),
    "a bank": (JOINT + "train: {immiscible.pool: [1, 4]}\n", {}),
    "listed levels": (
        JOINT.replace("[1, 2]\n  grid: [logsnr]", "[2]\n  grid: [[19, 1], {karras: {rho: 3}}]"),
        {},
    ),
    "levels of a student": (
        JOINT.replace("[1, 2]\n  grid: [logsnr]", "[2]\n  grid: [{explicit: {times: [768, 400]}}]"),
        {"student": STUDENT.replace("high: 20, low: 1", f"levels: [20, {MIDDLE}]")},
    ),
    "a student of all widths": (
        JOINT.replace("[logsnr]", "[logsnr]\n  widths: {segments: 2, choices: [0.5, 1.0]}"),
        {"student": ALL_WIDTHS},
    ),
    "one of all widths": (
        JOINT.replace("[logsnr]", "[logsnr]\n  widths: {segments: 1, choices: [1.0]}"),
        {"student": ALL_WIDTHS},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back_to_equal_settings(folder, form):
    space, changed = FORMS[form]
    check_resolved(folder, read(folder, space, **changed))


def test_networks_are_told_apart_by_what_they_are(folder):
    settings = read(folder)
    assert [r.name for r in settings.recipes] == ["net", "small", "student"]
    assert [r.name for r in settings.seconds] == ["sharp"]
    assert [r.name for r in settings.networks] == ["net", "small", "student", "sharp"]
    assert settings.space.relay.firsts == ("small",)
    assert settings.space.distilled.supernets == ("student",)
    assert settings.seconds[0].relay == Relay(scale=2, blur=2.0)


def test_students_come_last_so_that_baselines_are_of_one_stage(folder):
    settings = read(folder, JOINT.replace("[net.yaml, student.yaml]", "[student.yaml, net.yaml]"))
    found = [settings.space.decode(g) for g in settings.space.uniform_genomes(4)]
    assert {c.kind for c in found} == {"single"}


def test_starts_are_even_in_the_logarithm_unless_they_say_otherwise(folder):
    starts = read(folder).space.relay.starts
    assert starts == (0.3, 0.6, 1.2)
    plain = JOINT.replace("max: 1.2, steps: 3", "max: 1.2, steps: 3, log: false")
    assert read(folder, plain).space.relay.starts == (0.3, 0.75, 1.2)


def test_ranges_of_a_second_stage_and_of_students_are_genes(folder):
    space = read(folder, JOINT.replace("[logsnr]", "[{logsnr: {end: {min: 2, max: 5}}}]")).space
    (_, args), (solver, plain) = space.relay.space.solvers
    assert args == {"step": "trapezoid", "eta": Range(0, 0.4, 3)}
    assert (solver, plain) == ("relay", {"step": "first"})
    genes = dict(space.genes)
    assert genes["relay_solver_0_relay_eta"] == 3
    assert genes["relay_grid_0_karras_end"] == 3
    assert genes["distilled_grid_0_logsnr_end"] == 21


@pytest.mark.parametrize("setting", ["[1, 4]", "{immiscible.pool: [1, 4], ema: 0.5}"])
def test_a_bank_is_made_of_first_stages_and_not_of_seconds_or_students(folder, setting):
    text = setting if setting.startswith("{") else f"{{immiscible.pool: {setting}}}"
    settings = read(folder, f"{JOINT}train: {text}\n")
    pools = {r.name: r.train.pool for r in settings.recipes if r.train is not None}
    wanted = {"net": 1, "small": 1, "net-immiscible.pool-4": 4, "small-immiscible.pool-4": 4}
    assert pools == wanted
    assert settings.space.relay.firsts == ("small", "small-immiscible.pool-4")
    assert settings.seconds == read(folder).seconds
    students = [r for r in settings.recipes if r.distill is not None]
    assert students == [read_recipe(folder / "student.yaml")]


def test_a_student_has_the_images_the_network_and_the_widths_of_its_teacher(folder):
    teacher, student = (read_recipe(folder / f"{name}.yaml") for name in ("net", "student"))
    for name in ("data", "family", "net"):
        assert getattr(student, name) == getattr(teacher, name)
    assert (student.teacher, student.train) == (teacher, None)
    assert student.widths == (1.0,)
    (folder / "student.yaml").write_text(ALL_WIDTHS)
    assert read_recipe(folder / "student.yaml").widths == teacher.widths
    (folder / "student.yaml").write_text(STUDENT.replace("low: 1", "low: 1, widths: [1.0, 0.5]"))
    student = read_recipe(folder / "student.yaml")
    assert (student.widths, student.distill.widths) == ((0.5, 1.0), (1.0, 0.5))


def test_another_teacher_or_its_training_is_another_student(folder):
    first = read_recipe(folder / "student.yaml")
    hashes = {first.sha256("d")}
    for net in (NET.replace("steps: 3", "steps: 4"), NET.replace("base: 4", "base: 8")):
        (folder / "net.yaml").write_text(net)
        hashes.add(read_recipe(folder / "student.yaml").sha256("d"))
    (folder / "net.yaml").write_text(NET)
    hashes.add(read_recipe(folder / "student.yaml", ["distill.seed=5"]).sha256("d"))
    assert len(hashes) == 4
    assert read_recipe(folder / "student.yaml").sha256("d") in hashes


def test_another_blur_is_another_second_stage(folder):
    hashes = set()
    for relay in ("", "relay: {}\n", "relay: {blur: 2.0}\n", "relay: {normalize: true}\n"):
        (folder / "sharp.yaml").write_text(SHARP.partition("relay:")[0] + relay)
        hashes.add(read_recipe(folder / "sharp.yaml").sha256("d"))
    assert len(hashes) == 4


def test_how_pixels_are_made_smaller_is_part_of_the_network(folder):
    lanczos = SMALL.replace(", resample: box", "")
    (folder / "other.yaml").write_text(lanczos)
    box, plain = (read_recipe(folder / f"{name}.yaml") for name in ("small", "other"))
    assert box.sha256("d") != plain.sha256("d")
    assert "resample" not in plain.content()["data"]


# --- what is wrong


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{name}-{c.name.replace(' ', '-')}" for name, c in CASES]
)
def test_what_cannot_be_is_refused_in_one_line_at_its_place(folder, name, case):
    path = folder / f"{name}.yaml"
    path.write_bytes(case.data)
    with pytest.raises(ConfigError) as error:
        read_space(folder / "space.yaml")
    text = str(error.value)
    assert text.startswith(f"{path}:{case.line}:{case.column}: " if case.line else f"{path}:")
    assert text.isprintable()
    for words in case.says:
        assert words in text, f"{words!r} is not in {text!r}"


def test_cases_have_names_of_their_own():
    names = [(name, case.name) for name, case in CASES]
    assert len(set(names)) == len(names) > 80


SOLVERS = "solver: [ddim, dpmpp_2m]\n"
CFG = JOINT.replace(SOLVERS, f"{SOLVERS}  guidance: [none, {{cfg: {{scale: 2}}}}]\n")


def test_guidance_goes_through_both_stages_or_is_refused(folder):
    texts = {"net": NET, "small": SMALL, "sharp": SHARP}
    classes = {k: t.replace("groups: 1", "groups: 1, classes: 10") for k, t in texts.items()}
    settings = read(folder, CFG, **classes)
    assert settings.space.guidances == ("none", ("cfg", {"scale": 2}))
    with pytest.raises(ConfigError, match=r":12:11: relay\.second: 'sharp' is uncond.*classes"):
        read(folder, CFG, **{**classes, "sharp": SHARP})
    with pytest.raises(ConfigError, match=r"guidance\[1\]: supernet 'small' is unconditional"):
        read(folder, CFG, **{**classes, "small": SMALL})


def test_a_student_of_all_widths_lists_its_choices(folder):
    with pytest.raises(ConfigError, match=r"'student': distilled at all widths; list choices"):
        read(folder, student=ALL_WIDTHS)
    wrong = JOINT.replace("[logsnr]", "[logsnr]\n  widths: {segments: 1, choices: [0.75]}")
    with pytest.raises(ConfigError, match=r"space\.yaml:20:35: .*0\.75 is not offered.*'student'"):
        read(folder, wrong, student=ALL_WIDTHS)


@pytest.mark.parametrize("levels", ["[20, 1]", "[20, 5, 1]"])
def test_a_student_of_listed_levels_is_asked_there_alone(folder, levels):
    student = STUDENT.replace("high: 20, low: 1", f"levels: {levels}")
    with pytest.raises(ConfigError, match=r":19:10: .*was distilled at.*choose a grid"):
        read(folder, JOINT.replace("[1, 2]", "[3]"), student=student)


def test_two_second_stages_start_within_the_smaller_of_their_ranges(folder):
    low = SHARP.replace("sharp", "other").replace("blur: 2.0", "prob_length: 0.8")
    (folder / "other.yaml").write_text(low)
    both = JOINT.replace("second: sharp.yaml", "second: [sharp.yaml, other.yaml]")
    assert 0.8 < Relay(prob_length=0.8).most < 1.2
    with pytest.raises(ConfigError, match=rf"1\.2 lies outside.*{Relay(prob_length=0.8).most:.4g}"):
        read(folder, both)
    settings = read(folder, both.replace("max: 1.2", "max: 0.8"))
    assert settings.space.relay.space.supernets == ("sharp", "other")
    check_resolved(folder, settings)


@pytest.mark.parametrize("train", ["{immiscible.pool: [1, 4]}", "{steps: 9}"])
def test_where_all_are_students_there_is_no_training_to_vary(folder, train):
    few = JOINT.partition("relay:")[0] + JOINT[JOINT.index("distilled:") :]
    few = few.replace("[net.yaml, student.yaml]", f"[student.yaml]\ntrain: {train}")
    with pytest.raises(ConfigError, match=r"space\.yaml:4:8: train: every supernet is distilled"):
        read(folder, few)
