"""Relay Diffusion against the authors' code, its formulas, and the exact flow of Gaussian data."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.integrate import solve_ivp
from scipy.stats import norm

from stepsearch.core.process import get_process
from stepsearch.core.protocols import SolverState
from stepsearch.core.relay import Relay, block_noise, blur_scales, filter_tiles, patch_blur
from stepsearch.core.schedule import Stage
from stepsearch.solvers.registry import SOLVERS
from stepsearch.solvers.relay import begin, enlarge

SOLVER, EDM = SOLVERS["relay"], get_process("edm")


# --- the same in numpy, from the definitions


def tiles_of(images, patch):
    """(..., H, W) -> (..., H / p, W / p, p, p)."""
    *lead, height, width = images.shape
    split = images.reshape(*lead, height // patch, patch, width // patch, patch)
    return np.swapaxes(split, -3, -2)


def untiled(tiles, shape):
    return np.swapaxes(tiles, -3, -2).reshape(shape)


def filtered(images, scales):
    """Tiles whose DCT coefficients are multiplied by `scales` (p, p)."""
    coefficients = dctn(tiles_of(images, len(scales)), norm="ortho", axes=(-2, -1)) * scales
    return untiled(idctn(coefficients, norm="ortho", axes=(-2, -1)), images.shape)


def multipliers(relay, level):
    """Of a tile's coefficients (p, p), and their derivative in the level."""
    place = norm.cdf((math.log(level) + 1.2) / 1.2) / relay.prob_length
    speed = norm.pdf((math.log(level) + 1.2) / 1.2) / (1.2 * level * relay.prob_length)
    blur = relay.blur * math.sin(math.pi * place / 2) ** 2
    rate = relay.blur * math.pi * math.sin(math.pi * place / 2) * math.cos(math.pi * place / 2)
    k = np.arange(relay.scale)
    squares = np.pi**2 * (k[:, None] ** 2 + k**2) / relay.scale**2
    decay = 0.999 * np.exp(-squares * blur**2 / 2)
    return decay + 0.001, -decay * squares * blur * rate * speed


def noise_covariance(relay, side):
    """Of the mixture at level 1, pixels by pixels."""
    g = np.eye(side * side).reshape(-1, side, side)
    rolled = itertools.product(range(relay.scale), repeat=2)
    flat = sum(np.roll(g, shift, (-2, -1)) for shift in rolled).reshape(side * side, -1)
    total = np.eye(side * side) + relay.block**2 * flat.T @ flat / relay.scale**2
    return total / (1 + relay.block**2) if relay.normalize else total


class Prior:
    """The exact network of images N(mean, covariance), every channel alike, under a relay."""

    def __init__(self, relay, mean, covariance):
        side = math.isqrt(len(covariance))
        self.relay, self.mean, self.covariance = relay, np.full(side * side, mean), covariance
        self.noise = noise_covariance(relay, side)
        self.card = SimpleNamespace(diffusion=EDM)

    def blurring(self, level):
        """Pixels by pixels; symmetric."""
        side = math.isqrt(len(self.mean))
        basis = np.eye(side * side).reshape(-1, side, side)
        return filtered(basis, multipliers(self.relay, level)[0]).reshape(side * side, -1)

    def marginal(self, level):
        """Mean and covariance of noisy images."""
        blur = self.blurring(level)
        return blur @ self.mean, blur @ self.covariance @ blur + level**2 * self.noise

    def image(self, x, level):
        """E[x0 | x], (..., H, W)."""
        mean, covariance = self.marginal(level)
        gain = np.linalg.solve(covariance, self.blurring(level) @ self.covariance)
        flat = x.reshape(*x.shape[:-2], -1) - mean
        return (self.mean + flat @ gain).reshape(x.shape)

    def eps(self, x, level, *, width=1.0, cond=None):
        return (x - torch.from_numpy(self.image(x.numpy(), level))) / level


def correlated(side):
    """Covariance of the golden prior: smooth over two pixels, and a little white."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    square = ((grid[:, None] - grid) ** 2).sum(-1)
    return 0.25 * np.exp(-square / 8) + 0.01 * np.eye(side * side)


def stage_of(relay, levels, step, eta=0.0):
    """A relay stage on these levels, the end among them."""
    nodes = len(levels) - 1
    calls = nodes if step == "first" else 2 * nodes - 1
    fields = {name: getattr(relay, name) for name in Relay.__dataclass_fields__}
    args = {"step": step, "eta": eta, **fields}
    levels = tuple(float(level) for level in levels)
    return Stage("net", "relay", args, levels, SOLVER.plan(levels, calls, **args))


def walked(net, stage, x, noise=None):
    """The end of a stage."""
    state = SolverState(x)
    for i in range(len(stage.calls)):
        state = SOLVER.step(net, stage, state, i, noise)
    return state.x


# --- the authors' code


def lcg(seed, shape):
    """Noise that golden files name by its seed."""
    values = np.empty(math.prod(shape))
    for i in range(len(values)):
        total = 0.0
        for _ in range(12):
            seed = (1103515245 * seed + 12345) % 2**31
            total += seed / 2**31
        values[i] = round(total - 6, 4)
    return torch.from_numpy(values.reshape(shape))


def given(case, name):
    """An array of a case, or the noise of its seed where the file only names it."""
    if isinstance(case[name], str):
        return lcg(case["seed"], case["shape"])
    return torch.tensor(case[name], dtype=torch.float64)


def close(got, want, what=""):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=1e-9, err_msg=what)


def relay_cases(golden, kind):
    cases = golden("relay")[kind]["cases"]
    assert cases
    return cases


@pytest.mark.parametrize(("kind", "array"), [("block_noise", "g"), ("dct_2d", "x")])
def test_seeds_name_the_noise_of_the_golden_file(golden, kind, array):
    for case in relay_cases(golden, kind):
        close(lcg(case["seed"], case["shape"]), case[array])


def test_block_noise_is_that_of_the_authors(golden):
    for case in relay_cases(golden, "block_noise"):
        close(block_noise(given(case, "g"), case["block_size"]), case["out"])


def test_covariance_of_block_noise_is_that_of_the_authors(golden):
    rows = golden("relay")["block_noise"]["covariance_8x8"]
    sizes = [size for size in rows if size.isdigit()]
    assert sizes
    for size in sizes:
        flat = block_noise(torch.eye(64).double().reshape(64, 8, 8), int(size)).reshape(64, 64)
        close((flat.T @ flat)[0], rows[size]["row0"])


def test_tiles_are_filtered_in_the_transform_of_the_authors(golden):
    """Their coefficients, scaled at random and transformed back by scipy."""
    for case in relay_cases(golden, "dct_2d"):
        patch = case["patch"]
        scales = np.random.default_rng(0).uniform(-1, 2, (patch, patch))
        tiles = tiles_of(np.array(case["dct"]), patch) * scales
        want = untiled(idctn(tiles, norm="ortho", axes=(-2, -1)), case["shape"])
        close(filter_tiles(given(case, "x"), torch.from_numpy(scales)), want)


def test_blur_is_that_of_the_authors(golden):
    for case in relay_cases(golden, "dct_blur"):
        x = given(case, "x")
        close(patch_blur(x, case["patch"], case["blur_sigma"]), case["out"], str(case["seed"]))
        each = torch.full((len(x),), case["blur_sigma"], dtype=torch.float64)
        close(patch_blur(x, case["patch"], each), case["out"])


def test_place_blur_and_multipliers_of_a_level_are_those_of_the_authors(golden):
    for case in relay_cases(golden, "alpha"):
        relay = Relay(4, case["blur_sigma_max"], case["prob_length"])
        sigma, like = case["sigma"], torch.zeros(4, 4, dtype=torch.float64)
        close(relay.place_of(sigma), case["u"])
        close(relay.blur_at(sigma), case["blur_sigma"])
        close(blur_scales(4, relay.blur_at(sigma), like), case["alpha_4x4"])
        close(multipliers(relay, sigma)[0], case["alpha_4x4"])
        if case["u"] <= 1:
            close(relay.level_at(case["u"]), sigma)


def test_noisy_images_and_their_loss_are_those_of_the_authors(golden):
    row = golden("relay")["blur_loss"]
    config = row["config"]
    relay = Relay(
        config["up_scale"], config["blur_sigma_max"], config["prob_length"], config["block_scale"]
    )
    y, white, blocks = (given(row, name) for name in ("y", "n_gauss", "n_block"))
    levels = [relay.level_at(max(u, row["u_min"])) for u in row["u"]]
    close(levels, row["sigma"])
    blurs = torch.tensor([relay.blur_at(level) for level in levels], dtype=torch.float64)
    sigma = torch.tensor(levels, dtype=torch.float64).reshape(-1, 1, 1, 1)
    noisy = patch_blur(y, relay.scale, blurs) + sigma * relay.noise(white, blocks)
    close(noisy, row["x_t"])
    weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2).clamp(max=1e5)
    loss = weight * (0.7 * noisy + 0.1 - y) ** 2
    close(loss, row["loss"])
    close(loss.mean((1, 2, 3)), row["loss_mean_per_sample"])


def test_enlarged_images_are_those_of_the_authors(golden):
    row = golden("relay")["nearest_upsample"]
    low = torch.tensor(row["low"], dtype=torch.float64)
    assert torch.equal(enlarge(low, row["scale"]), torch.tensor(row["out"], dtype=torch.float64))


class Told:
    """A network that tells of its calls."""

    def __init__(self, net):
        self.net, self.card, self.calls = net, net.card, []

    def eps(self, x, level, *, width=1.0, cond=None):
        eps = self.net.eps(x, level)
        self.calls.append((level, x, x - level * eps))
        return eps


class White:
    """The exact network of white images, of mean 0.1 and variance 0.25, without any blur."""

    card = SimpleNamespace(diffusion=EDM)

    def eps(self, x, level, *, width=1.0, cond=None):
        return (x - (0.25 * x + 0.1 * level**2) / (0.25 + level**2)) / level


def golden_levels(kwargs):
    """Those of EDM's grid that are below the truncation, and 0."""
    low, high = (kwargs[name] ** (1 / kwargs["rho"]) for name in ("sigma_min", "sigma_max"))
    steps = kwargs["num_steps"]
    grid = [(high + i / (steps - 1) * (low - high)) ** kwargs["rho"] for i in range(steps)]
    return [level for level in grid if level < kwargs["truncation_sigma"]] + [0.0]


def test_every_call_of_the_authors_sampler(golden):
    for case in relay_cases(golden, "sampler"):
        name, kwargs = case["name"], case["kwargs"]
        scale, block, eta = (kwargs[key] for key in ("up_scale", "s_block", "s_noise"))
        relay = Relay(scale, kwargs["blur_sigma_max"], kwargs["truncation_t"], block)
        latents = torch.tensor(case["latents"], dtype=torch.float64)
        side = latents.shape[-1]
        exact = Prior(Relay(scale, 3.0, 0.93, block), 0.1, correlated(side))
        net = Told(exact if "exact_prior" in name else White())
        queue = iter([lcg(seed, latents.shape) for seed in case["noise_seeds"]])
        stage = stage_of(relay, golden_levels(kwargs), "official", eta)
        low = latents[..., ::scale, ::scale]
        assert torch.equal(enlarge(low, scale), latents)
        x = begin(low, stage, EDM, lambda like, queue=queue: next(queue))
        end = walked(net, stage, x, lambda queue=queue: next(queue))
        assert len(net.calls) == len(case["net_calls"]) == case["nfe"]
        for i, ((level, x, image), call) in enumerate(
            zip(net.calls, case["net_calls"], strict=True)
        ):
            close(level, call["sigma"], f"{name}, level of call {i}")
            close(x, call["x"], f"{name}, input of call {i}")
            close(image, call["denoised"], f"{name}, image of call {i}")
        close(end, case["out"], name)
        used = case["n_noise_used"] if eta else 1 + (block > 0)  # theirs draws what it never adds
        assert len(case["noise_seeds"]) - len(list(queue)) == used


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
