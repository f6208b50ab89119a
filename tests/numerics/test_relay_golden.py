"""Relay Diffusion against the authors' code, in float64: every row of golden/relay.json."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from relay_exact import (
    EDM,
    Prior,
    close,
    correlated,
    multipliers,
    stage_of,
    tiles_of,
    untiled,
    walked,
)
from scipy.fft import idctn

from stepsearch.core.relay import Relay, block_noise, blur_scales, filter_tiles, patch_blur
from stepsearch.solvers.relay import begin, enlarge


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
