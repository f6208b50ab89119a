"""The relay from its definitions in numpy, and the exact network of Gaussian images."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch
from scipy.fft import dctn, idctn
from scipy.stats import norm

from stepsearch.core.process import get_process
from stepsearch.core.protocols import SolverState
from stepsearch.core.relay import Relay
from stepsearch.core.schedule import Stage
from stepsearch.solvers.registry import SOLVERS

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


def close(got, want, what=""):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=1e-9, err_msg=what)
