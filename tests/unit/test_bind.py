"""A schedule bound to other networks, and images of it: all of them or nothing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import CARD

from stepsearch.build import plan_stage
from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.relay import Relay
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.recipe_config import read_recipe
from stepsearch.sample import Job, bind, recipe_weights, write_samples

GUIDE = replace(CARD, name="judge", classes=10)
LABELLED = replace(CARD, classes=10)
RELAY = Relay()


def schedule_of(guide=None, level=10.0):
    scale = None if guide is None else 2.0
    stage = Stage("old@0", "ddim", {}, (level, 0.0), (Call(level, 0.5, scale),), guide)
    return StepSchedule((stage,))


@pytest.mark.parametrize("guide", [None, "cfg", "old@1"])
def test_a_bound_schedule_differs_in_nothing_but_its_networks(guide):
    old = schedule_of(guide)
    bound = bind(old, [LABELLED], GUIDE if guide == "old@1" else None)
    names = {"old@1": GUIDE.key}
    assert bound.stages == (replace(old.stages[0], net=CARD.key, guide=names.get(guide, guide)),)


@pytest.mark.parametrize(
    ("schedule", "card", "guide", "says"),
    [
        (schedule_of(level=200.0), CARD, None, r"'net'.* 200 lies outside .*157"),
        (schedule_of(level=0.001), CARD, None, r"0\.001 lies outside .*0\.01"),
        (schedule_of(), replace(CARD, process="vp-cosine"), None, None),
        (schedule_of(level=100.0), replace(CARD, process="edm"), None, r"edm.* 100 lies outside"),
        (schedule_of(), replace(CARD, widths=(1.0,), flops=(1,)), None, "width 0.5 is not offered"),
        (schedule_of("cfg"), CARD, None, "'net' is unconditional"),
        (schedule_of("judge@1"), CARD, None, "'judge@1'; give --guide"),
        (schedule_of("cfg"), LABELLED, GUIDE, "leave --guide out"),
        (schedule_of(), LABELLED, GUIDE, "leave --guide out"),
        (schedule_of("judge@1"), CARD, replace(GUIDE, process="edm"), "process edm"),
        (schedule_of("judge@1"), CARD, replace(GUIDE, image_shape=(3, 8, 8)), r"\(3, 8, 8\)"),
        (schedule_of("judge@1"), LABELLED, replace(GUIDE, classes=5), "classes 5"),
        (schedule_of("judge@1"), CARD, GUIDE, None),
    ],
)
def test_networks_that_do_not_fit_are_told(schedule, card, guide, says):
    if says is None:
        assert bind(schedule, [card], guide).stages[0].net == card.key
    else:
        with pytest.raises(SpaceError, match=says):
            bind(schedule, [card], guide)


# --- two stages, and few-step networks


def large(relay=RELAY, **change):
    """Card of a second stage that doubles the sides of CARD's images."""
    facts = {"name": "large", "process": "edm", "image_shape": (1, 16, 16), "prediction": "F"}
    return replace(CARD, **facts | {"relay": relay} | change)


HIGH, MIDDLE, LOW = (CARD.diffusion.level_at(time) for time in (900, 500, 20))


def student(widths=(1.0,), levels=(HIGH, LOW), dense=True):
    return replace(CARD, name="few", distilled=Distilled("net@0", levels, widths, dense))


def relay_of(card=None, calls=5, first=None):
    """A schedule of a first stage by CARD and a second one by a card of its own."""
    grid = {"karras": {"start": 0.5, "end": 0.02}}
    second = plan_stage(card or large(), solver="relay", calls=calls, grid=grid, widths=0.5)
    return StepSchedule((first or plan_stage(CARD, solver="ddim", calls=3), second))


def few(card=None, calls=3, **grid):
    """A schedule of a few-step network alone."""
    made = {"solver": "renoise", "calls": calls, "grid": {"karras": grid}}
    return StepSchedule((plan_stage(card or student(), **made),))


def test_the_stages_of_a_relay_take_networks_in_their_order():
    """Retrained ones, of other keys, are what the same settings plan with them."""
    cards = [replace(c, name=f"new-{c.name}") for c in (CARD, large())]
    want = relay_of(cards[1], first=plan_stage(cards[0], solver="ddim", calls=3))
    assert bind(relay_of(), cards, None) == want


def test_guidance_of_both_stages_is_by_the_networks_own_labels():
    cfg = {"guidance": Guidance("cfg", 2.0)}
    grid = {"karras": {"start": 0.5, "end": 0.02}}
    labelled = [LABELLED, large(classes=10)]
    stages = (
        plan_stage(labelled[0], solver="ddim", calls=3, **cfg),
        plan_stage(labelled[1], solver="relay", calls=3, grid=grid, **cfg),
    )
    assert bind(StepSchedule(stages), labelled, None).stages == stages
    with pytest.raises(SpaceError, match="'large' is unconditional"):
        bind(StepSchedule(stages), [LABELLED, large()], None)


@pytest.mark.parametrize(
    ("cards", "says"),
    [
        ([CARD, CARD], "second of a relay, network 'net' is no second stage.*relay section"),
        ([CARD, large(replace(RELAY, blur=1.0))], r"relay\.blur 3\.0, .*'large'.* with 1\.0"),
        ([CARD, large(replace(RELAY, scale=4))], r"relay\.scale 2, .*'large'.* with 4"),
        ([CARD, large(replace(RELAY, normalize=True))], r"relay\.normalize False, .* with True"),
        ([CARD, large(image_shape=(1, 8, 8))], r"\(1, 16, 16\) .*its network wants \(1, 8, 8\)"),
        ([CARD, large(image_shape=(3, 16, 16))], r"wants \(3, 16, 16\)"),
        ([CARD, large(widths=(1.0,), flops=(1,))], "width 0.5 is not offered by network 'large'"),
        ([large(), large()], "'large' is the second stage of a relay.*use relay"),
        ([student(), large()], "'few' is distilled.*use renoise"),
    ],
)
def test_networks_that_cannot_relay_are_told(cards, says):
    with pytest.raises(SpaceError, match=says):
        bind(relay_of(), cards, None)


def test_noise_that_the_second_stage_never_saw_is_told():
    shallow = replace(RELAY, prob_length=0.5)  # trained up to level 0.3
    schedule = relay_of()
    (first, second) = schedule.stages
    edited = replace(second, args={**second.args, "prob_length": 0.5})
    with pytest.raises(SpaceError, match=r"'large' .*0\.5 lies outside"):
        bind(StepSchedule((first, edited)), [CARD, large(shallow)], None)


def test_block_noise_of_none_is_the_same_normalized_or_not():
    """As the solver itself has it: the schedule says False for both."""
    card = large(replace(RELAY, block=0.0, normalize=True))
    schedule = relay_of(large(replace(RELAY, block=0.0)))
    assert bind(schedule, [CARD, card], None).stages[1].args == schedule.stages[1].args


@pytest.mark.parametrize("calls", [1, 3])
def test_a_student_takes_the_schedule_of_another(calls):
    """One call of renoise is written as ddim, which other networks answer otherwise."""
    new = replace(student(), name="new")
    assert bind(few(calls=calls), [new], None) == few(new, calls=calls)


@pytest.mark.parametrize(
    ("schedule", "card", "says"),
    [
        (few(), student(widths=(0.5,)), "'few' was distilled at width 0.5 .*got 1"),
        (few(), student(levels=(MIDDLE, LOW)), rf"{LOW:g} \.\. {MIDDLE:g}, not at {HIGH:g}"),
        (few(), student(levels=(HIGH, LOW), dense=False), rf"levels {HIGH:g}, {LOW:g}, not at "),
        (schedule_of(), student(widths=(0.5,)), None),  # one call of ddim
        (StepSchedule((plan_stage(CARD, solver="ddim", calls=2),)), student(), "use renoise"),
    ],
)
def test_a_student_walks_only_what_it_was_distilled_for(schedule, card, says):
    if says is None:
        assert bind(schedule, [card], None).stages[0].net == card.key
    else:
        with pytest.raises(SpaceError, match=says):
            bind(schedule, [card], None)


def test_a_stage_of_another_size_that_is_no_relay_is_told():
    stages = (plan_stage(CARD, solver="ddim", calls=2), plan_stage(CARD, solver="ddim", calls=2))
    with pytest.raises(SpaceError, match=r"\(1, 16, 16\).*only solver 'relay'"):
        bind(StepSchedule(stages), [CARD, replace(CARD, image_shape=(1, 16, 16))], None)


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    class Net:
        card, asked = CARD, 0

        def eps(self, x, level, *, width=1.0, cond=None):
            self.asked += 1
            if self.asked == 2:
                raise RuntimeError("out of memory")
            return x

    net = Net()
    schedule = bind(schedule_of(), [CARD], None)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_samples(tmp_path / "o", Job(schedule, 4, 0, batch=2), {CARD.key: net})
    assert net.asked == 2
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_channels_are_refused(tmp_path):
    card = replace(CARD, image_shape=(2, 8, 8))
    nets = {card.key: SimpleNamespace(card=card)}
    with pytest.raises(ConfigError, match=r"\(2, 8, 8\).*1 or 3 channels"):
        write_samples(tmp_path / "o", Job(bind(schedule_of(), [card], None), 4, 0), nets)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_of_a_student_are_told_with_the_command_that_makes_them(tmp_path):
    net = "version: 1\nname: net\ndata: digits\nwidths: [1.0]\n"
    net += "net: {family: unet, base: 8}\ntrain: {steps: 1}\n"
    (tmp_path / "net.yaml").write_text(net)
    path = tmp_path / "few.yaml"
    path.write_text("version: 1\nname: few\ndistill: {teacher: net.yaml, steps: 1}\n")
    with pytest.raises(ConfigError, match=f"`stepsearch distill {path}`"):
        recipe_weights(read_recipe(path))
