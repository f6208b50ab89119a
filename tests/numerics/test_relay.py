"""Relay Diffusion against its formulas, and the exact flow of Gaussian images."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from relay_exact import (
    EDM,
    SOLVER,
    Prior,
    close,
    correlated,
    filtered,
    multipliers,
    noise_covariance,
    stage_of,
    walked,
)
from scipy.integrate import solve_ivp

from stepsearch.core.relay import Relay, block_noise

# --- noise


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
def test_block_noise_has_the_covariance_of_the_paper(height, width):
    """max(0, s - dx) max(0, s - dy) / s^2 at every size, where large blocks meet round both ends
    of the circle; a pixel's variance is 1.
    """
    pixels = height * width
    basis = torch.eye(pixels, dtype=torch.float64).reshape(pixels, height, width)

    def overlap(size, distance, sides):
        around = [abs(distance + turn * sides) for turn in (-1, 0, 1)]
        return sum(max(0, size - d) for d in around) / size

    for size in range(1, min(height, width)):
        flat = block_noise(basis, size).reshape(pixels, pixels)
        got = (flat.T @ flat)[0].reshape(height, width)
        want = [
            [overlap(size, y, height) * overlap(size, x, width) for x in range(width)]
            for y in range(height)
        ]
        close(got, want)
        close((flat.T @ flat).diagonal(), np.ones(pixels))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("block", [0.0, 0.15, 2.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_mixture_has_unit_variance_where_it_is_normalized(scale, block, normalize):
    relay = Relay(scale=scale, block=block, normalize=normalize)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 8, 8)
    nothing = torch.zeros_like(basis)
    parts = (relay.noise(basis, nothing), relay.noise(nothing, basis))
    got = sum(part.reshape(64, 64).T @ part.reshape(64, 64) for part in parts)
    close(got, noise_covariance(relay, 8))
    close(got.diagonal(), np.full(64, 1.0 if normalize else 1 + block**2))


# --- the exact flow


def exact_flow(net, x, start, end):
    """dx/dlevel = (x - A D) / level + A' D, from d(x / level) = D d(A / level)."""

    def slope(level, flat):
        x = flat.reshape(8, 8)
        image, (scales, change) = net.image(x, level), multipliers(net.relay, level)
        return (x / level + filtered(image, change - scales / level)).ravel()

    solved = solve_ivp(slope, (start, end), x.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    assert solved.success, solved.message
    return solved.y[:, -1].reshape(8, 8)


def sample(net, level, seed=0):
    """A noisy image."""
    mean, covariance = net.marginal(level)
    white = np.random.default_rng(seed).standard_normal(len(mean))
    return (mean + np.linalg.cholesky(covariance) @ white).reshape(8, 8)


TOP, BOTTOM = 0.9, 0.05


def test_exact_flow_of_white_images_has_a_closed_form():
    """A coefficient's deviation from its mean goes as the deviation of its marginal."""
    net = Prior(Relay(4, 3.0, block=0.0), 0.1, 0.25 * np.eye(64))
    x = sample(net, TOP)
    spread = [
        np.sqrt(0.25 * multipliers(net.relay, level)[0] ** 2 + level**2) for level in (TOP, BOTTOM)
    ]
    want = 0.1 + filtered(x - 0.1, spread[1] / spread[0])  # a tile's mean is not blurred
    np.testing.assert_allclose(exact_flow(net, x, TOP, BOTTOM), want, rtol=0, atol=1e-9)


def measured_order(relay, step):
    net = Prior(relay, 0.1, correlated(8))
    x = sample(net, TOP)
    want, errors, nodes = torch.from_numpy(exact_flow(net, x, TOP, BOTTOM)), [], [32, 64, 128, 256]
    for n in nodes:
        stage = stage_of(relay, np.geomspace(TOP, BOTTOM, n + 1), step)
        got = walked(net, stage, torch.from_numpy(x)[None, None])[0, 0]
        errors.append(float((got - want).square().mean().sqrt()))
    return -np.polyfit(np.log2(nodes), np.log2(errors), 1)[0]


@pytest.mark.parametrize(
    ("step", "blur", "order"),
    [
        ("first", 3.0, 1),
        ("official", 3.0, 1),
        ("trapezoid", 3.0, 2),
        ("first", 0.0, 1),
        ("official", 0.0, 2),
        ("trapezoid", 0.0, 2),
    ],
)
def test_error_on_correlated_images_falls_with_the_stated_order(step, blur, order):
    relay = Relay(4, blur, block=0.15)
    assert SOLVER.order(step=step, scale=4, blur=blur) == order
    assert abs(measured_order(relay, step) - order) < 0.1


# --- marginals


class Known:
    """The network of one image, which it always answers with."""

    card = SimpleNamespace(diffusion=EDM)

    def __init__(self, image):
        self.answer = image

    def eps(self, x, level, *, width=1.0, cond=None):
        return (x - self.answer) / level


def passed(net, stage, mean, covariance):
    """Mean and covariance at the end: a walk is affine in its start and in every noise it draws."""
    pixels, draws = len(mean), 2 * len(stage.calls)
    side = math.isqrt(pixels)
    rows = torch.zeros(draws + 2, pixels, pixels, dtype=torch.float64)  # start, each noise, none
    start = rows.clone()
    start[0] = torch.eye(pixels)
    start += torch.from_numpy(mean)
    order = itertools.count(1)

    def noise():
        unit = rows.clone()
        unit[next(order)] = torch.eye(pixels)
        return unit.reshape(-1, 1, side, side)

    end = walked(net, stage, start.reshape(-1, 1, side, side), noise).reshape(rows.shape).numpy()
    gains = end[:-1] - end[-1, 0]
    own, *others = gains
    return end[-1, 0], own.T @ covariance @ own + sum(gain.T @ gain for gain in others)


@pytest.mark.parametrize("step", ["first", "trapezoid"])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("blur", "block"), [(3.0, 0.15), (3.0, 0.0), (0.0, 2.0)])
def test_with_the_true_image_any_share_of_fresh_noise_keeps_the_marginal(
    step, eta, normalize, blur, block
):
    """Of x given that image, at every node: A x0 + level (e + block Block(e'))."""
    relay = Relay(4, blur, block=block, normalize=normalize)
    image = np.random.default_rng(0).standard_normal((8, 8))
    net, noise = Known(torch.from_numpy(image)), noise_covariance(relay, 8)

    def blurred(level):
        return filtered(image, multipliers(relay, level)[0]).ravel()

    stage = stage_of(relay, (TOP, 0.5, 0.2, BOTTOM), step, eta)
    mean, covariance = passed(net, stage, blurred(TOP), TOP**2 * noise)
    np.testing.assert_allclose(mean, blurred(BOTTOM), rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, BOTTOM**2 * noise, rtol=0, atol=1e-14)


def lost(nodes, eta):
    """Share of the images' variance that a walk of trapezoids with the exact network loses."""
    relay = Relay(4, 3.0, block=0.15)
    net = Prior(relay, 0.1, correlated(8))
    stage = stage_of(relay, np.geomspace(TOP, BOTTOM, nodes + 1), "trapezoid", eta)
    mean, covariance = passed(net, stage, *net.marginal(TOP))
    np.testing.assert_allclose(mean, net.marginal(BOTTOM)[0], rtol=0, atol=1e-12)
    return 1 - np.trace(covariance) / np.trace(net.marginal(BOTTOM)[1])


def test_with_predicted_images_the_flow_keeps_the_variance_and_fresh_noise_loses_eta_squared():
    """What is lost to noise is that of the images around their prediction, once in every step, and
    more steps do not bring it back.
    """
    few, many = lost(8, 0.0), lost(16, 0.0)
    assert many < 0.02
    assert many == pytest.approx(few / 4, rel=0.2)  # second order
    little, more = (lost(8, eta) - few for eta in (0.1, 0.2))
    assert little == pytest.approx(0.0023, abs=2e-4)
    assert more == pytest.approx(4 * little, rel=0.05)
    assert lost(16, 0.2) - many > more
