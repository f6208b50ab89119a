"""The exact network: its noise prediction is the score of the density it claims to have."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.process import PROCESSES, get_process
from stepsearch.nets.gaussian import GaussianMixture, SlimMixture

SHAPES = [(5,), (1, 2, 3), (3, 4, 4)]
TIMES = {
    "vp-linear-1000": (0, 10, 250, 500, 999),
    "vp-cosine-1000": (0, 500, 999),
    "vp-linear": (0.001, 0.37, 1.0),
    "vp-cosine": (0.001, 0.5, 0.9946),
    "edm": (0.002, 0.1, 1.0, 7.5, 80.0),
    "ve": (0.01, 50.0),
}
LEVELS = [(p, get_process(p).level_at(t)) for p, times in TIMES.items() for t in times]


@pytest.fixture
def parameters(rng):
    """Builds (weights, means, variances) of four components of a shape."""

    def build(shape):
        means = rng.uniform(-1, 1, (4, *shape))
        return rng.uniform(0.1, 1, 4), means, rng.uniform(0.01, 0.5, 4)

    return build


def noisy(rng, means, process, level, count=6):
    """Images of the mixture's means at a noise level, in the network's own scale."""
    x0 = means[rng.integers(len(means), size=count)]
    x = get_process(process).alpha(level) * (x0 + level * rng.standard_normal(x0.shape))
    return torch.from_numpy(x)


def log_density(x, level, process, weights, means, variances):
    """log p of x = alpha (x0 + level eps), from torch's own distributions."""
    alpha = get_process(process).alpha(level)
    weights, means, variances = map(torch.as_tensor, (weights, means, variances))
    deviations = alpha * (variances + level**2).sqrt()
    parts = Normal(alpha * means.flatten(1), deviations[:, None])
    return MixtureSameFamily(Categorical(weights), Independent(parts, 1)).log_prob(x.flatten(1))


def test_every_process_is_covered():
    assert set(TIMES) == set(PROCESSES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("process", "level"), LEVELS)
def test_eps_is_the_score(rng, parameters, shape, process, level):
    """eps = -sigma grad log p(x) with sigma = alpha * level (Vincent 2011)."""
    weights, means, variances = parameters(shape)
    x = noisy(rng, means, process, level).requires_grad_()
    log_density(x, level, process, weights, means, variances).sum().backward()
    sigma = get_process(process).alpha(level) * level
    got = GaussianMixture(weights, means, variances, process).eps(x.detach(), level)
    assert got.shape == x.shape
    np.testing.assert_allclose(got, -sigma * x.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("process", "level"), LEVELS)
def test_single_gaussian(rng, process, level):
    mean, variance = rng.uniform(-1, 1, (2, 3)), 0.3
    x = noisy(rng, mean[None], process, level)
    got = GaussianMixture([1.0], mean[None], [variance], process).eps(x, level)
    scaled = x.numpy() / get_process(process).alpha(level)
    want = level * (scaled - mean) / (variance + level**2)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("time", [0, 250, 999])
def test_formula_in_alpha_bar(rng, parameters, time):
    """sqrt(1-A) sum r_k (x - sqrt(A) m_k) / (A v_k + 1 - A), the convention of golden/README.md."""
    weights, means, variances = parameters((5,))
    process = get_process("vp-linear-1000")
    bar = process.alpha(process.level_at(time)) ** 2
    x = noisy(rng, means, process.name, process.level_at(time)).numpy()
    offset, total = x[:, None] - np.sqrt(bar) * means, bar * variances + 1 - bar
    log = np.log(weights) - 2.5 * np.log(total) - 0.5 * (offset**2).sum(2) / total
    posterior = np.exp(log - log.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    want = np.sqrt(1 - bar) * ((posterior / total)[:, :, None] * offset).sum(1)
    net = GaussianMixture(weights, means, variances)
    got = net.eps(torch.from_numpy(x), process.level_at(time))
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("process", "level"), LEVELS)
def test_float32(rng, parameters, shape, process, level):
    """Within 1e-4 of float64 where a typical entry is of size 1."""
    weights, means, variances = parameters(shape)
    net = GaussianMixture(weights, means, variances, process)
    x = noisy(rng, means, process, level).float()
    got = net.eps(x, level)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, net.eps(x.double(), level), rtol=0, atol=1e-4)


def test_rows_do_not_see_each_other(rng, parameters):
    net = GaussianMixture(*parameters((1, 2, 3)))
    x = torch.from_numpy(rng.standard_normal((7, 1, 2, 3)))
    rows = torch.cat([net.eps(row[None], 1.5) for row in x])
    np.testing.assert_allclose(net.eps(x, 1.5), rows, rtol=0, atol=1e-13)


def test_weights_need_not_be_normalised(rng, parameters):
    weights, means, variances = parameters((5,))
    x = torch.from_numpy(rng.standard_normal((3, 5)))
    a, b = (GaussianMixture(w, means, variances) for w in (weights, 8 * weights))
    np.testing.assert_allclose(a.eps(x, 0.7), b.eps(x, 0.7), rtol=1e-12)


def test_card(parameters):
    weights, means, variances = parameters((3, 4, 4))
    card = GaussianMixture(weights, means, variances, "edm").card
    assert (card.image_shape, card.widths, card.process) == ((3, 4, 4), (1.0,), "edm")
    others = [
        GaussianMixture(weights, means, variances),
        GaussianMixture(weights, means + 0.1, variances, "edm"),
        GaussianMixture(weights, means, variances * 2, "edm"),
        GaussianMixture(weights * [1, 1, 1, 2], means, variances, "edm"),
    ]
    assert len({card.key, *(net.card.key for net in others)}) == 5


def test_bad_parameters(rng, parameters):
    weights, means, variances = parameters((5,))
    with pytest.raises(ConfigError, match=r"4 means .*\(3,\)"):
        GaussianMixture(weights[:3], means, variances)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="positive"):
            GaussianMixture(weights, means, [bad, 1, 1, 1])
        with pytest.raises(ConfigError, match="positive"):
            GaussianMixture([bad, 1, 1, 1], means, variances)
    with pytest.raises(SpaceError, match=r"'emd'.*edm"):
        GaussianMixture(weights, means, variances, "emd")
    net, x = GaussianMixture(weights, means, variances), torch.zeros(2, 5)
    with pytest.raises(SpaceError, match=r"0\.5"):
        net.eps(x, 1.0, width=0.5)
    with pytest.raises(ConfigError, match="unconditional"):
        net.eps(x, 1.0, cond=torch.zeros(2))


def test_means_that_are_not_finite(parameters):
    weights, means, variances = parameters((5,))
    with pytest.raises(ConfigError):
        GaussianMixture(weights, np.full_like(means, np.nan), variances)


def test_reversed_arrays(rng, parameters):
    weights, means, variances = (array[::-1] for array in parameters((5,)))
    x = torch.from_numpy(rng.standard_normal((3, 5)))
    want = GaussianMixture(weights.copy(), means.copy(), variances.copy()).eps(x, 0.7)
    assert torch.equal(GaussianMixture(weights, means, variances).eps(x, 0.7), want)


def test_the_callers_arrays_are_copied(parameters):
    weights, means, variances = parameters((5,))
    net, x = GaussianMixture(weights, means, variances), torch.ones(1, 5)
    before = net.eps(x, 1.0)
    means += 5  # the card's hash would no longer be that of the network
    assert torch.equal(net.eps(x, 1.0), before)


def slim(parameters, dtype=torch.float32):
    weights, means, variances = parameters((1, 2, 3))
    order = np.argsort(-weights)
    net = SlimMixture(4, (1, 2, 3))
    net.weights.copy_(torch.from_numpy(weights[order]))
    net.means.copy_(torch.from_numpy(means[order]))
    net.variances.copy_(torch.from_numpy(variances[order]))
    return net.to(dtype)


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("time", TIMES["vp-linear-1000"])
def test_slim_mixture_is_the_mixture_of_its_heaviest_components(rng, parameters, width, time):
    """In float64 up to the rounding of the noise levels, which the module holds in float32."""
    net = slim(parameters).double()
    keep = round(4 * width)
    parts = [buffer[:keep].numpy() for buffer in (net.weights, net.means, net.variances)]
    exact, level = GaussianMixture(*parts), get_process("vp-linear-1000").level_at(time)
    x = noisy(rng, parts[1], "vp-linear-1000", level)
    got = net(x, torch.full((len(x),), float(time)), width=width)
    np.testing.assert_allclose(got, exact.eps(x, level), rtol=1e-5, atol=1e-5)


def test_slim_mixture_takes_a_time_per_image(rng, parameters):
    net = slim(parameters)
    x = torch.from_numpy(rng.standard_normal((5, 1, 2, 3))).float()
    times = torch.tensor(TIMES["vp-linear-1000"])
    rows = torch.cat([net(row[None], t[None]) for row, t in zip(x, times, strict=True)])
    torch.testing.assert_close(net(x, times), rows)
