"""Distillation: gradients in closed form on Gaussians, and a mixture that is really distilled."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.process import get_process
from stepsearch.training.dpdm import (
    direction,
    distill,
    score_errors,
    student_answers,
    student_loss,
    student_weight,
)
from stepsearch.training.dpdm_draws import Denoiser, Draw, Draws, eps_denoiser

MEAN, SPREAD, SMOOTHING = 0.3, 0.7, 0.9  # of the Gaussian data; level of the smoothing
SLOPE = math.sqrt(3)  # outer node of the Gauss-Hermite rule with weights 1/6, 2/3, 1/6


class Gaussian(nn.Module):
    """E[x0 | x0 + s e] for x0 of N(mean, deviation^2)."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.variance = mean, deviation**2

    def forward(self, y, level):
        gain = self.variance / (self.variance + level[:, None] ** 2)
        return self.mean + gain * (y - self.mean)


class Affine(nn.Module):
    """Answers noise z with a z + b, of N(b, a^2)."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(float(deviation), dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(float(mean), dtype=torch.float64))

    def forward(self, y, level):
        return self.a * y + self.b


PLAIN = Denoiser(lambda module, y, level, width, labels: module(y, level), torch.ones_like, 0, 9)


def exact_draw():
    """Rows whose mean is the exact expectation of quadratics of both noises; the level is 1."""
    nodes = torch.tensor([-SLOPE, 0, 0, 0, 0, SLOPE], dtype=torch.float64)
    noise, smooth = (grid.reshape(-1, 1) for grid in torch.meshgrid(nodes, nodes, indexing="ij"))
    one = torch.ones(len(noise), dtype=torch.float64)
    whole = ((1.0, slice(0, len(noise))),)
    return Draw(torch.zeros_like(noise), noise, one, smooth, SMOOTHING * one, whole)


def gradient(mean, deviation):
    """Of the student's loss in its mean and deviation, its score exact."""
    student, draw = Affine(mean, deviation), exact_draw()
    answers = student_answers(student, draw, PLAIN)
    networks = Gaussian(mean, deviation), Gaussian(MEAN, SPREAD)
    gap = direction(*networks, answers.detach(), draw, PLAIN, 1.0)
    student_loss(answers, gap, draw, PLAIN).backward()
    return float(student.b.grad), float(student.a.grad)


class TestGradient:
    def test_vanishes_where_the_student_answers_with_data(self):
        assert gradient(MEAN, SPREAD) == pytest.approx((0, 0), abs=1e-15)

    @pytest.mark.parametrize("mean", [-1.0, MEAN, 0.8])
    @pytest.mark.parametrize("deviation", [0.1, SPREAD, 1.5])
    def test_is_the_closed_form(self, mean, deviation):
        """With v = D_q - D_p, q of N(b, a^2) and p of N(m, c^2), by hand."""
        one = torch.ones(1, dtype=torch.float64)
        s2, weight = SMOOTHING**2, float(student_weight(one, one))
        total = SPREAD**2 + s2
        by_mean = weight * (mean - MEAN) * s2 / total
        excess = deviation**2 - SPREAD**2
        by_deviation = weight * deviation * s2 * excess / ((deviation**2 + s2) * total)
        assert gradient(mean, deviation) == pytest.approx((by_mean, by_deviation), abs=1e-13)

    def test_descent_ends_at_the_data(self):
        mean, deviation = -1.0, 0.2
        for _ in range(600):
            by_mean, by_deviation = gradient(mean, deviation)
            mean, deviation = mean - 0.3 * by_mean, deviation - 0.3 * by_deviation
        assert (mean, deviation) == pytest.approx((MEAN, SPREAD), abs=1e-6)

    def test_normalised_by_the_error_of_the_teacher(self):
        draw, answers = exact_draw(), exact_draw().noise
        networks = Gaussian(0.0, 1.0), Gaussian(MEAN, SPREAD)
        gap = direction(*networks, answers, draw, PLAIN, 1.0)
        scaled = direction(*networks, answers, draw, PLAIN, 1.0, normalize=True)
        noisy = answers + SMOOTHING * draw.smooth
        error = (answers - networks[1](noisy, draw.smoothing)).abs()
        assert torch.allclose(scaled * error, gap, rtol=1e-12)

    def test_the_score_loss_is_least_at_the_posterior_mean(self):
        draw, answers = exact_draw(), exact_draw().noise
        losses = [
            float(score_errors(Gaussian(m, d), answers, draw, PLAIN, 1.0).mean())
            for m, d in [(0.0, 1.0), (0.0, 0.9), (0.0, 1.1), (0.1, 1.0)]
        ]
        assert losses[0] == pytest.approx(SMOOTHING**2 / (1 + SMOOTHING**2))  # posterior variance
        assert losses[0] == min(losses)


class TestEpsNetworks:
    PROCESS = get_process("vp-linear-1000")

    def test_noise_that_is_predicted_becomes_the_posterior_mean(self):
        class Eps(nn.Module):
            def forward(self, x, time, *, width):
                assert not time.is_floating_point()
                level = levels[time][:, None]
                y = x * (1 + level**2).sqrt()
                return level * (y - MEAN) / (SPREAD**2 + level**2)

        levels = torch.tensor([self.PROCESS.level_at(t) for t in range(1000)], dtype=torch.float64)
        y = torch.linspace(-2, 2, 1000, dtype=torch.float64)[:, None] * (1 + levels[:, None])
        found = eps_denoiser(self.PROCESS).answer(Eps(), y, levels, 1.0, None)
        assert torch.allclose(found, Gaussian(MEAN, SPREAD)(y, levels), rtol=1e-9, atol=1e-9)

    def test_levels_snap_to_the_trained_time_nearest_in_log(self):
        levels = torch.from_numpy(np.geomspace(1e-3, 1e3, 500))
        by_hand = [self.PROCESS.level_at(self.PROCESS.time_at(float(level))) for level in levels]
        by_hand = torch.tensor(by_hand, dtype=torch.float64)
        found = eps_denoiser(self.PROCESS).snap(levels)
        assert set(found.tolist()) <= {self.PROCESS.level_at(t) for t in range(1000)}
        gaps, others = ((x.log() - levels.log()).abs() for x in (found, by_hand))
        assert bool((gaps <= others + 1e-12).all())  # the same but for ties of interpolation
        assert float((found == by_hand).double().mean()) > 0.98


class TestWeight:
    LEVELS = torch.tensor([0.05, 0.5, 20.0])

    def test_is_constant_under_the_preconditioning_of_edm(self):
        gain = 0.5 * self.LEVELS / (self.LEVELS**2 + 0.25).sqrt()
        assert student_weight(self.LEVELS, gain).tolist() == pytest.approx([2, 2, 2])

    def test_pulls_at_any_output_alike(self):
        pulls = [student_weight(self.LEVELS, g) * g for g in (self.LEVELS, self.LEVELS**2 + 3)]
        for pull in pulls:
            by_hand = [101**-0.5, 0.5**0.5, (1600 / 1601) ** 0.5]
            assert pull.tolist() == pytest.approx(by_hand)


class TestSmoothing:
    def draw(self, **config):
        config = DistillConfig(steps=1, batch=4000, **config)
        images = np.zeros((10, 1), np.float32)
        return Draws(images, None, config, Denoiser(None, None, 0.01, 80.0), (1.0,))(0)[0]

    def test_tied_is_the_level_of_the_student(self):
        draw = self.draw(smoothing="tied")
        assert torch.equal(draw.smoothing, draw.levels)

    def test_capped_is_independent_where_that_is_below_the_level(self):
        free, capped = self.draw(), self.draw(smoothing="capped")
        assert torch.equal(free.levels, capped.levels)
        assert torch.equal(capped.smoothing, torch.minimum(free.smoothing, capped.levels))
        assert 0.1 < float((free.smoothing < capped.levels).float().mean()) < 0.9

    def test_independent_is_log_normal_and_tells_nothing_of_the_level(self):
        draw = self.draw()
        logs, levels = draw.smoothing.log().numpy(), draw.levels.log().numpy()
        assert abs(logs.mean() + 1.2) < 4 * 1.2 / 4000**0.5
        assert abs(logs.std() - 1.2) < 4 * 1.2 / 8000**0.5
        assert abs(np.corrcoef(logs, levels)[0, 1]) < 4 / 4000**0.5

    def test_dense_levels_are_even_in_log(self):
        logs = self.draw(high=20.0, low=0.1).levels.log().numpy()
        places = (logs - math.log(0.1)) / math.log(200)
        assert wasserstein_distance(places, np.linspace(0, 1, 1001)) < 0.02


# the mixture: a teacher of the exact posterior mean, preconditioned as in EDM

WEIGHTS, MEANS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.7])
SPREADS = np.array([0.08, 0.12, 0.05])
DEVIATION = math.sqrt((WEIGHTS * (SPREADS**2 + MEANS**2)).sum() - (WEIGHTS * MEANS).sum() ** 2)
HIGH, LOW = 20.0, 0.1


def mixture(count, seed):
    rng = np.random.default_rng(seed)
    parts = rng.choice(3, count, p=WEIGHTS)
    points = MEANS[parts] + SPREADS[parts] * rng.standard_normal(count)
    return points.astype(np.float32)[:, None]


def posterior_mean(y, level):
    """E[x0 | y] of the mixture."""
    total = torch.from_numpy(SPREADS**2).float() + level[:, None] ** 2
    far = y - torch.from_numpy(MEANS).float()
    logs = torch.from_numpy(np.log(WEIGHTS)).float() - far**2 / (2 * total) - total.log() / 2
    means = torch.from_numpy(MEANS).float() + torch.from_numpy(SPREADS**2).float() / total * far
    return (logs.softmax(1) * means).sum(1, keepdim=True)


def c_out(level):
    return level * DEVIATION / (level**2 + DEVIATION**2).sqrt()


class Preconditioned(nn.Module):
    """Karras et al. 2022, eq. 7."""

    def __init__(self):
        super().__init__()
        inner = [layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.SiLU())]
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), *inner, nn.Linear(64, 1))

    def forward(self, y, level):
        level = level[:, None]
        total = level**2 + DEVIATION**2
        raw = self.net(torch.cat([y / total.sqrt(), level.log() / 4], 1))
        return DEVIATION**2 / total * y + c_out(level) * raw


MIXTURE = Denoiser(lambda module, y, level, width, labels: module(y, level), c_out, 0.01, HIGH)


def train_teacher(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Preconditioned()
    rng = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(mixture(20000, seed))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(800):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 800)
        x0 = points[torch.randint(len(points), (256,), generator=rng)]
        level = 0.01 * (HIGH / 0.01) ** torch.rand(256, generator=rng)
        y = x0 + level[:, None] * torch.randn(256, 1, generator=rng)
        error = (net(y, level) - posterior_mean(y, level)) / c_out(level)[:, None]
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return net


def distance(module, calls, truth):
    """W1 of what predicting and noising again draws, on EDM's grid of rho = 7."""
    ends = HIGH ** (1 / 7), LOW ** (1 / 7)
    levels = [HIGH] if calls == 1 else (np.linspace(*ends, calls) ** 7).tolist()
    rng, x = torch.Generator().manual_seed(5), torch.zeros(len(truth), 1)
    with torch.no_grad():
        for level in levels:
            noisy = x + level * torch.randn(x.shape, generator=rng)
            x = module(noisy, torch.full((len(x),), level))
    return wasserstein_distance(x[:, 0].numpy(), truth[:, 0])


def distances(seed, tmp_path):
    """W1 at 4, 2 and 1 calls before distillation, and after."""
    teacher, truth = train_teacher(seed), mixture(20000, 99)
    student = copy.deepcopy(teacher)
    config = DistillConfig(
        steps=700, learning_rate=1e-3, ema=0.98, high=HIGH, low=LOW, seed=seed, smoothing="capped"
    )
    weights = distill(
        student,
        copy.deepcopy(teacher),
        teacher,
        mixture(20000, seed + 1000),
        config=config,
        denoiser=MIXTURE,
        checkpoint=tmp_path / "mixture.training",
        on_step=lambda step, losses: None,
    )
    before = [distance(teacher, calls, truth) for calls in (4, 2, 1)]
    student.load_state_dict(weights)
    return before, [distance(student, calls, truth) for calls in (4, 2, 1)]


def test_a_distilled_mixture_is_nearer_to_the_data_in_few_calls(tmp_path):
    before, after = distances(0, tmp_path)
    assert after[0] < before[0] / 2
    assert all(new < 0.75 * old for old, new in zip(before, after, strict=True)), (before, after)
