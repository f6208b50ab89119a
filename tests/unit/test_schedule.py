"""Schedules as JSON, and widths as run-length text."""

import dataclasses
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsearch.core.errors import SpaceError
from stepsearch.core.schedule import (
    Call,
    Stage,
    StepSchedule,
    parse_run_length,
    run_length,
)
from stepsearch.solvers.registry import SOLVERS

LEVELS = st.floats(1e-6, 1e6)
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(-9, 9)
VALUES = SCALARS | st.lists(SCALARS, max_size=3).map(tuple)


@st.composite
def stages(draw):
    levels = sorted(draw(st.lists(LEVELS, min_size=1, max_size=6)), reverse=True)
    scales = st.none() | st.floats(0, 1e3)
    call = st.builds(Call, LEVELS, st.floats(1e-3, 1), scales)
    calls = draw(st.lists(call, min_size=1, max_size=5))
    guided = any(c.scale is not None for c in calls)
    return Stage(
        net=draw(st.text(max_size=8)),
        solver=draw(st.sampled_from(sorted(SOLVERS)) | st.text(max_size=8)),
        args=draw(st.dictionaries(st.text(max_size=3), VALUES, max_size=3)),
        levels=(*levels, draw(st.floats(0, levels[-1]))),
        calls=tuple(calls),
        guide=draw(st.text(max_size=8)) if guided else None,
    )


SCHEDULES = st.builds(StepSchedule, st.lists(stages(), min_size=1, max_size=3).map(tuple))


def document(**fields):
    """A valid schedule as JSON, with some fields of its one stage replaced."""
    stage = {"net": "n", "solver": "ddim", "args": {}, "levels": [1.0, 0.0], "calls": [[1.0, 1.0]]}
    return json.dumps({"version": 1, "stages": [stage | fields]})


class TestScheduleJson:
    @given(SCHEDULES)
    def test_round_trip_is_exact(self, schedule):
        back = StepSchedule.from_json(schedule.to_json())
        assert back == schedule
        assert back.to_json() == schedule.to_json()
        assert back.key() == schedule.key()

    @given(SCHEDULES, st.data())
    def test_key_is_the_content(self, schedule, data):
        """Every single change gives another key."""
        stage = schedule.stages[0]
        first = stage.calls[0]
        call = dataclasses.replace(first, level=math.nextafter(first.level, math.inf))
        guided = dataclasses.replace(first, scale=1.5 if first.scale != 1.5 else 2.5)
        change = data.draw(
            st.sampled_from(
                [
                    {"net": stage.net + "x"},
                    {"solver": stage.solver + "x"},
                    {"args": {**stage.args, "extra": 1}},
                    {"levels": (stage.levels[0] * 2, *stage.levels)},
                    {"calls": (call, *stage.calls[1:])},
                    {"calls": (*stage.calls, stage.calls[-1])},
                    {"calls": (guided, *stage.calls[1:]), "guide": stage.guide or "cfg"},
                ]
            )
        )
        other = StepSchedule((dataclasses.replace(stage, **change), *schedule.stages[1:]))
        assert other != schedule
        assert other.key() != schedule.key()
        twice = StepSchedule((*schedule.stages, stage))
        assert twice.key() != schedule.key()

    @given(SCHEDULES)
    def test_order_of_arguments_does_not_matter(self, schedule):
        turned = [
            dataclasses.replace(s, args=dict(reversed(s.args.items()))) for s in schedule.stages
        ]
        assert StepSchedule(tuple(turned)).key() == schedule.key()

    def test_what_guides_and_how_strongly_is_part_of_the_content(self):
        calls = (Call(2.0, 1.0, 3.0), Call(1.0, 0.5))
        stages = [Stage("n", "ddim", {}, (2.0, 1.0, 0.0), calls, g) for g in ("cfg", "judge@01")]
        one, other = (StepSchedule((stage,)) for stage in stages)
        assert one.key() != other.key()
        back = StepSchedule.from_json(one.to_json()).stages[0]
        assert (back.guide, back.calls) == ("cfg", calls)

    def test_a_document_of_version_1_that_knows_no_guidance_reads_as_it_was_written(self):
        stage = StepSchedule.from_json(document()).stages[0]
        assert stage == Stage("n", "ddim", {}, (1.0, 0.0), (Call(1.0, 1.0),))
        assert json.loads(StepSchedule((stage,)).to_json()) == json.loads(document())

    def test_key_looks_like_a_name(self):
        key = StepSchedule.from_json(document()).key()
        assert len(key) == 16
        assert key[0] == "s"
        assert int(key[1:], 16) >= 0

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"levels": (1, 0)}, id="whole levels"),
            pytest.param({"calls": (Call(1, 1),)}, id="whole call"),
            pytest.param({"levels": (1.0, -0.0)}, id="minus zero"),
            pytest.param({"args": {"k": 1.0, "s": (1, 2)}}, id="float argument"),
            pytest.param({"args": {"k": 1, "s": (1.0, 2.0)}}, id="floats in a list"),
        ],
    )
    def test_equal_schedules_have_equal_keys(self, other):
        stage = Stage("n", "pfdiff", {"k": 1, "s": (1, 2)}, (1.0, 0.0), (Call(1.0, 1.0),))
        a, b = StepSchedule((stage,)), StepSchedule((dataclasses.replace(stage, **other),))
        assert a == b
        assert a.key() == b.key()

    @pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
    def test_other_versions(self, version):
        text = json.dumps(json.loads(document()) | {"version": version})
        with pytest.raises(SpaceError, match="version") as caught:
            StepSchedule.from_json(text)
        assert repr(version) in str(caught.value)
        assert "1" in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "garbage",
            "[]",
            "null",
            '"text"',
            "{}",
            '{"version": 1}',
            '{"version": 1, "stages": []}',
            '{"version": 1, "stages": null}',
            '{"version": 1, "stages": [5]}',
            document()[:-5],
            '{"version": 1, "stages": [[]]}',
            '{"version": 1, "stages": [["net"]]}',
            document(net=5),
            document(net=None),
            document(solver=["ddim"]),
            document(args=[["k", 1]]),
            document(color="red"),
            json.dumps(json.loads(document()) | {"seed": 0}),
            document(guide="cfg"),
            document(guide=5, calls=[[1.0, 1.0, 2.0]]),
            document(guide="cfg", calls=[[1.0, 1.0, -2.0]]),
            document(guide="cfg", calls=[[1.0, 1.0, float("nan")]]),
            document(guide="cfg", calls=[[1.0, 1.0, True]]),
            document(calls=[[1.0, 1.0, 1.0, 1.0]]),
            document(levels=None),
            document(levels=[1.0]),
            document(levels=[0.0, 1.0]),
            document(levels=[1.0, -1.0]),
            document(levels=[float("nan"), 0.0]),
            document(levels=[float("inf"), 0.0]),
            document(levels=["a", "b"]),
            document(args=None),
            document(args=[1]),
            document(calls=[]),
            document(calls=[1.0]),
            document(calls=[[1.0]]),
            document(calls=[[1.0, 1.0, 1.0]]),
            document(calls=[[0.0, 1.0]]),
            document(calls=[[1.0, 0.0]]),
            document(calls=[[1.0, 1.5]]),
            document(calls=[[float("nan"), 1.0]]),
            pytest.param(
                document().replace("[1.0, 0.0]", f"[1{'0' * 400}, 0.0]"),
                id="huge",
            ),
            pytest.param(
                "[" * 100_000,
                id="deep",
            ),
            *(
                pytest.param(
                    document(**fields),
                    id=str(fields),
                )
                for fields in ({"levels": "321"}, {"levels": ["3", "2"]}, {"calls": ["11"]})
            ),
        ],
    )
    def test_garbage(self, text):
        with pytest.raises(SpaceError) as caught:
            StepSchedule.from_json(text)
        assert "\n" not in str(caught.value)


class TestRunLength:
    @given(st.lists(st.floats(1e-3, 1) | st.sampled_from([0.25, 0.5, 1.0]), min_size=1))
    def test_round_trip_is_exact(self, widths):
        assert parse_run_length(run_length(widths)) == tuple(widths)

    @given(st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1))
    def test_runs_are_as_long_as_can_be(self, widths):
        runs = [part.split("x")[0] for part in run_length(widths).split("|")]
        assert all(a != b for a, b in itertools.pairwise(runs))

    def test_example(self):
        assert run_length((1, 1, 0.5)) == "1.0x2|0.5x1"

    @pytest.mark.parametrize("text", ["", "1.0", "x", "1.0x", "1x2x3", "a", "1.0x1|", "1.0xa"])
    def test_garbage(self, text):
        with pytest.raises(SpaceError, match="run-length") as caught:
            parse_run_length(text)
        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize("text", ["1.0x-5", "1.0x0", "nanx1", "infx2"])
    def test_nonsense(self, text):
        with pytest.raises(SpaceError):
            parse_run_length(text)
