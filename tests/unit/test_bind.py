"""A schedule bound to other networks, and images of it: all of them or nothing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import CARD

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.sample import Job, bind, write_samples

GUIDE = replace(CARD, name="judge", classes=10)
LABELLED = replace(CARD, classes=10)


def schedule_of(guide=None, level=10.0):
    scale = None if guide is None else 2.0
    stage = Stage("old@0", "ddim", {}, (level, 0.0), (Call(level, 0.5, scale),), guide)
    return StepSchedule((stage,))


@pytest.mark.parametrize("guide", [None, "cfg", "old@1"])
def test_a_bound_schedule_differs_in_nothing_but_its_networks(guide):
    old = schedule_of(guide)
    bound = bind(old, LABELLED, GUIDE if guide == "old@1" else None)
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
        assert bind(schedule, card, guide).stages[0].net == card.key
    else:
        with pytest.raises(SpaceError, match=says):
            bind(schedule, card, guide)


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    class Net:
        card, asked = CARD, 0

        def eps(self, x, level, *, width=1.0, cond=None):
            self.asked += 1
            if self.asked == 2:
                raise RuntimeError("out of memory")
            return x

    net = Net()
    schedule = bind(schedule_of(), CARD, None)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_samples(tmp_path / "o", Job(schedule, 4, 0, batch=2), {CARD.key: net})
    assert net.asked == 2
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_channels_are_refused(tmp_path):
    card = replace(CARD, image_shape=(2, 8, 8))
    nets = {card.key: SimpleNamespace(card=card)}
    with pytest.raises(ConfigError, match=r"\(2, 8, 8\).*1 or 3 channels"):
        write_samples(tmp_path / "o", Job(bind(schedule_of(), card, None), 4, 0), nets)
    assert list(tmp_path.iterdir()) == []
