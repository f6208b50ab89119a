"""Distillation: what is asked where, resumable, seeded, and settings that say what they mean."""

import copy
import itertools
from collections import defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from stepsearch.core.distill_settings import SMOOTHINGS, DistillConfig
from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.core.noise import LABELS
from stepsearch.core.process import get_process
from stepsearch.nets.families import FAMILIES
from stepsearch.training.batches import CANDIDATES, EPOCHS, FLIPS, STEPS
from stepsearch.training.data import load_dataset
from stepsearch.training.dpdm import distill, student_answers
from stepsearch.training.dpdm_draws import STREAM, Denoiser, Draws, eps_denoiser, student_levels

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SHORT = DistillConfig(steps=7, batch=12, warmup=3, checkpoint_every=3, widths=(1.0, 0.5))
DENOISER = eps_denoiser(get_process("vp-linear-1000"))
TRAINED = [get_process("vp-linear-1000").level_at(t) for t in range(1000)]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def build(classes=0, dropout=0.1, seed=0):
    """A tiny supernet whose every weight is random."""
    arch = {"base": 8, "groups": 2, "dropout": dropout} | ({"classes": classes} if classes else {})
    rng = torch.Generator().manual_seed(seed)
    module = FAMILIES["unet"].build(arch, (1, 8, 8), WIDTHS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    return module


class Run:
    """A distillation, always of the same teacher, and all that its networks were asked."""

    def __init__(self, digits, path, config=SHORT, *, end=None, ends=Interrupted, classes=0, **how):
        self.teacher = build(classes)
        self.before = copy.deepcopy(self.teacher.state_dict())
        self.student, self.score = build(classes, seed=1), build(classes, seed=2)
        self.calls, self.masks, self.steps = [], defaultdict(list), []
        roles = {"student": self.student, "score": self.score, "teacher": self.teacher}
        for role, module in roles.items():
            module.register_forward_hook(self.watch(role), with_kwargs=True)
            for layer in module.modules():
                if isinstance(layer, nn.Dropout):
                    layer.register_forward_hook(self.watch_dropout(role))

        def on_step(step, losses):
            self.steps.append((step, losses))
            if step == end:
                raise ends("stop")

        self.weights = distill(
            *roles.values(),
            digits.images[:64],
            labels=digits.labels[:64] if classes else None,
            config=config,
            denoiser=DENOISER,
            checkpoint=path,
            on_step=on_step,
            offered=WIDTHS,
            **how,
        )

    def watch(self, role):
        def hook(module, args, kwargs, output):
            times = args[1].tolist()
            labels = args[2].tolist() if len(args) > 2 else None
            call = (role, kwargs["width"], times, labels, torch.is_grad_enabled(), module.training)
            self.calls.append((*call, self.same(module)))

        return hook

    def same(self, module):
        state = module.state_dict()
        return all(torch.equal(state[k], v) for k, v in self.before.items())

    def watch_dropout(self, role):
        return lambda layer, args, output: self.masks[role].append((output == 0) & (args[0] != 0))


@pytest.fixture
def run(digits, tmp_path):
    """Runs a distillation whose checkpoint has that name."""
    return lambda *args, name="run", **how: Run(digits, tmp_path / name, *args, **how)


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


class TestResume:
    @pytest.mark.parametrize("end", [2, 3, 5])
    def test_stopped_and_resumed_equals_an_unbroken_run(self, run, tmp_path, end):
        whole = run(name="whole")
        with pytest.raises(Interrupted):
            run(end=end)
        assert (tmp_path / "run").is_file()
        resumed = run()
        assert [step for step, _ in resumed.steps] == list(range(end + 1, 8))
        assert equal(whole.weights, resumed.weights)
        for role in ("student", "score"):
            assert equal(getattr(whole, role).state_dict(), getattr(resumed, role).state_dict())

    @pytest.mark.parametrize(("kill", "first"), [(2, 1), (3, 1), (5, 4)])
    def test_killed_it_continues_after_the_last_checkpoint(self, run, kill, first):
        whole = run(name="whole")
        with pytest.raises(ZeroDivisionError):  # anything but Interrupted
            run(end=kill, ends=ZeroDivisionError)
        resumed = run()
        assert [step for step, _ in resumed.steps] == list(range(first, 8))
        assert equal(whole.weights, resumed.weights)

    def test_run_in_parts_equals_a_run_at_once(self, run, tmp_path):
        whole, part = run(name="whole"), run(stop=4)
        assert len(part.steps) == 4
        rest = run()
        assert [step for step, _ in rest.steps] == [5, 6, 7]
        assert equal(whole.weights, rest.weights)

    def test_a_seed_decides_all_and_the_global_generator_nothing(self, run):
        found = {}
        for name, global_seed, seed in [("a", 1, 0), ("b", 2, 0), ("c", 1, 1)]:
            with torch.random.fork_rng():
                torch.manual_seed(global_seed)
                found[name] = run(replace(SHORT, seed=seed), name=name).weights
        assert equal(found["a"], found["b"])
        assert not any(torch.equal(found["a"][k], found["c"][k]) for k in found["a"])

    def test_the_global_generator_is_left_as_it_was(self, digits, tmp_path):
        networks = [build() for _ in range(3)]
        before = torch.random.get_rng_state()
        distill(
            *networks,
            digits.images,
            config=replace(SHORT, steps=1),
            denoiser=DENOISER,
            checkpoint=tmp_path / "run",
            on_step=lambda step, losses: None,
            offered=WIDTHS,
        )
        assert torch.equal(before, torch.random.get_rng_state())

    def test_its_stream_is_no_other(self):
        assert STREAM not in (EPOCHS, STEPS, FLIPS, CANDIDATES, LABELS)
        assert len(STREAM) == 2  # four words with seed and step; noise of sampling has three


class TestUpdates:
    def test_all_begin_as_the_teacher_and_it_stays(self, run):
        found = run()
        first = {call[0]: call[-1] for call in reversed(found.calls)}
        # the score has moved when the teacher is first asked, the student has not
        assert first == {"student": True, "score": True, "teacher": True}
        asked = [call for call in found.calls if call[0] == "student"]
        assert asked[0][-1]
        assert not asked[-1][-1]
        assert equal(found.teacher.state_dict(), found.before)
        assert all(parameter.grad is None for parameter in found.teacher.parameters())
        for module in (found.student, found.score):
            state = module.state_dict()
            assert not any(torch.equal(state[k], found.before[k]) for k in state)

    @pytest.mark.parametrize("updates", [1, 3])
    def test_the_score_is_updated_so_often_for_each_of_the_student(self, run, updates):
        found = run(replace(SHORT, score_updates=updates, widths=(0.5,), steps=2))
        one = [*[("student", False), ("score", True)] * updates, ("student", True)]
        one += [("score", False), ("teacher", False)]
        assert [(call[0], call[4]) for call in found.calls] == one * 2

    def test_score_and_teacher_drop_the_same_and_the_student_nothing(self, run):
        found = run(replace(SHORT, steps=2, widths=(0.5,)))
        layers = len(found.masks["teacher"]) // 2  # asked once a step
        score = [found.masks["score"][i : i + layers] for i in range(0, 4 * layers, layers)]
        teacher = [found.masks["teacher"][i : i + layers] for i in range(0, 2 * layers, layers)]
        for step in range(2):
            pairs = list(zip(score[2 * step + 1], teacher[step], strict=True))
            assert all(bool(a.any()) and torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(score[0][0], score[1][0])  # every update drops afresh
        assert not torch.equal(teacher[0][0], teacher[1][0])
        assert not any(bool(mask.any()) for mask in found.masks["student"])

    def test_the_weights_are_an_average_over_the_steps(self, run):
        found = run(replace(SHORT, steps=1))
        name, decay = "tail.weight", 1 / 10
        raw = found.student.state_dict()[name]
        assert torch.allclose(found.weights[name], decay * found.before[name] + 0.9 * raw)

    def test_losses_are_the_score_s_by_the_width_of_the_student(self, run):
        for _, losses in run().steps:
            assert set(losses) <= {0.5, 1.0}
            assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())


def asked_times(found, role):
    return {time for call in found.calls if call[0] == role for time in call[2]}


class TestWhereItIsAsked:
    def test_the_student_at_listed_levels_alone(self, run):
        listed = (10.0, 1.0, 0.3)
        found = run(replace(SHORT, levels=listed))
        process = get_process("vp-linear-1000")
        assert asked_times(found, "student") == {process.time_at(level) for level in listed}

    def test_a_dense_student_within_its_range(self, run):
        levels = [TRAINED[time] for time in asked_times(run(), "student")]
        high, low = student_levels(SHORT, DENOISER)
        assert low <= min(levels) < 0.3 < 5 < max(levels) <= high
        assert (high, low) == pytest.approx((20, 0.1), rel=0.02)

    @pytest.mark.parametrize("widths", [(1.0, 0.5), (0.25, 1.0, 0.5), (0.75,)])
    @pytest.mark.parametrize("levels", [(), (10.0, 3.0, 0.5)])
    def test_widths_are_those_of_the_schedule_and_all_others_ask_the_widest(
        self, run, widths, levels
    ):
        config = replace(SHORT, widths=widths, levels=levels)
        found = run(config)
        card = Distilled("teacher", student_levels(config, DENOISER), widths, dense=not levels)
        student = [call for call in found.calls if call[0] == "student"]
        for _, width, times, *_ in student:
            assert {card.width_at(TRAINED[time]) for time in times} == {width}
        if not levels:
            assert {call[1] for call in student} == set(widths)
        assert {call[1] for call in found.calls if call[0] != "student"} == {1.0}

    def test_without_a_schedule_every_width_is_asked(self, run):
        found = run(replace(SHORT, widths=()))
        assert {call[1] for call in found.calls if call[0] == "student"} == set(WIDTHS)

    def test_rows_of_all_widths_answer_as_each_would_alone(self, digits):
        config = replace(SHORT, widths=(1.0, 0.5, 0.25), batch=9)
        draw = Draws(digits.images, None, config, DENOISER, WIDTHS)(0)[-1]
        student = build().eval()
        found = student_answers(student, draw, DENOISER)
        for width, rows in draw.rows:
            for i in range(rows.start, rows.stop):
                noisy = draw.x0[i : i + 1] + draw.levels[i] * draw.noise[i : i + 1]
                level = draw.levels[i : i + 1]
                alone = DENOISER.answer(student, noisy, level, width, None)
                assert torch.allclose(found[i : i + 1], alone, rtol=1e-4, atol=1e-4)

    def test_labels_are_those_of_the_images(self, run, digits):
        found = run(classes=10)
        assert all(len(call[3]) == len(call[2]) for call in found.calls)
        assert {label for call in found.calls for label in call[3]} == set(range(10))
        draw = Draws(digits.images, digits.labels, SHORT, DENOISER, WIDTHS)(0)[0]
        for image, label in zip(draw.x0, draw.labels.tolist(), strict=True):
            same = (digits.images / np.float32(127.5) - 1 == image.numpy()).all((1, 2, 3))
            assert label in digits.labels[same]

    def test_no_step_draws_what_another_drew(self, digits):
        draws = Draws(digits.images, None, SHORT, DENOISER, WIDTHS)
        seen = [draw for step in range(3) for draw in draws(step)]
        noises = [n for draw in seen for n in (draw.noise, draw.smooth)]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(noises, 2))
        assert len({draw.seed for draw in seen}) == len(seen)

    def test_floats_are_taken_as_they_are(self):
        points = np.array([[-3.0], [0.25], [7.0]], np.float32)
        draw = Draws(points, None, SHORT, DENOISER, (1.0,))(0)[0]
        assert set(draw.x0.flatten().tolist()) <= {-3.0, 0.25, 7.0}


class TestSettings:
    def test_what_is_not_used_says_nothing(self):
        plain = DistillConfig(steps=5)
        assert plain.content().keys() == {f.name for f in fields(plain)} - {
            *("levels", "score_learning_rate", "checkpoint_every"),
            *("smoothing", "smoothing_mean", "smoothing_std", "score_updates", "normalize"),
        }
        same = replace(plain, score_learning_rate=plain.learning_rate, checkpoint_every=7)
        assert same.content() == plain.content()
        listed = replace(plain, levels=(5.0, 1.0), high=7.0)
        assert listed.content() == replace(listed, high=20.0).content()
        assert "high" not in listed.content()
        tied = replace(plain, smoothing="tied")
        assert tied.content() == replace(tied, smoothing_mean=0.0, smoothing_std=1.0).content()

    @pytest.mark.parametrize(
        "change",
        [
            {"levels": (5.0, 1.0)},
            {"high": 10.0},
            {"low": 0.2},
            {"widths": (0.5,)},
            *({"smoothing": name} for name in SMOOTHINGS[1:]),
            {"smoothing_mean": 0.0},
            {"smoothing_std": 1.0},
            {"score_updates": 5},
            {"normalize": True},
            {"score_learning_rate": 1e-3},
            {"seed": 1},
        ],
        ids=str,
    )
    def test_every_other_distillation_is_one_of_its_own(self, change):
        plain = DistillConfig(steps=5)
        assert replace(plain, **change).content() != plain.content()

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": 0},
            {"batch": 0},
            {"learning_rate": 0.0},
            {"score_learning_rate": -1.0},
            {"warmup": -1},
            {"ema": 1.0},
            {"grad_clip": 0.0},
            {"seed": -1},
            {"checkpoint_every": 0},
            {"threads": 0},
            {"levels": (1.0, 2.0)},
            {"levels": (1.0, 0.0)},
            {"high": float("inf")},
            {"low": 30.0},
            {"widths": (1.5,)},
            {"smoothing": "same"},
            {"score_updates": 0},
        ],
        ids=str,
    )
    def test_nonsense_is_named(self, change):
        with pytest.raises(ConfigError, match=f"distill.{next(iter(change))}: .*; (use|list) "):
            DistillConfig(**{"steps": 5} | change)

    def test_rates_rise_and_fall_to_a_tenth(self):
        config = DistillConfig(steps=100, warmup=10)
        paces = [config.pace(step) for step in range(100)]
        assert paces[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert all(a >= b for a, b in itertools.pairwise(paces[9:]))
        assert paces[10] == pytest.approx(1)
        assert paces[-1] == pytest.approx(0.1, abs=1e-3)
        assert DistillConfig(steps=5, warmup=0).pace(0) == 1

    def test_levels_that_mean_one_trained_time_are_refused(self):
        with pytest.raises(ConfigError, match=r"distill.levels: .*5.*trained noise level"):
            student_levels(replace(SHORT, levels=(5.0, 4.9999, 1.0)), DENOISER)
        with pytest.raises(ConfigError, match=r"distill.low: .*trained noise level"):
            student_levels(replace(SHORT, high=1e6, low=1e5), DENOISER)

    def test_a_process_without_whole_times_is_refused(self):
        with pytest.raises(ConfigError, match="'edm'"):
            eps_denoiser(get_process("edm"))

    def test_without_a_table_levels_stay_within_what_was_trained(self):
        bounded = Denoiser(None, None, 0.1, 10.0)
        assert bounded.snap(torch.tensor([0.01, 3.0, 50.0])).tolist() == pytest.approx([0.1, 3, 10])
