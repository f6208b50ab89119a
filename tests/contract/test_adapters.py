"""Every parameterisation of every process means the same network."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from walks import each_process

import stepsearch
from stepsearch.build import plan_stage
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import PROCESSES, get_process
from stepsearch.core.protocols import PREDICTIONS
from stepsearch.core.schedule import StepSchedule
from stepsearch.nets.adapters import ADAPTERS, adapt
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate

SHAPE, SIGMA_DATA = (1, 2, 2), 0.6
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
each_times = pytest.mark.parametrize("times", ["nearest", "continuous"])


def mixture(process):
    means = np.random.default_rng(0).uniform(-1, 1, (3, *SHAPE))
    return GaussianMixture([0.5, 0.3, 0.2], means, [0.04, 0.01, 0.09], process)


def c_skip(s):
    return SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)


def c_out(s):
    return s * SIGMA_DATA / math.sqrt(SIGMA_DATA**2 + s**2)


def c_in(s):
    return 1 / math.sqrt(s**2 + SIGMA_DATA**2)


def c_noise(s):
    """This and the three above: Karras et al. 2022, table 1, last column."""
    return math.log(s) / 4


class Foreign(nn.Module):
    """What a network of a parameterisation would answer if it were exact, from its definition."""

    def __init__(self, process, prediction, times="nearest"):
        super().__init__()
        self.net, self.prediction, self.asked = mixture(process), prediction, []
        self.process = get_process(process, continuous=times == "continuous")

    def forward(self, x, time):
        assert time.shape == (len(x),)
        assert len(set(time.tolist())) == 1
        self.asked.append(time[0].item())
        if self.prediction == "F":  # sees c_in (x0 + s n) and c_noise(s), whatever the process
            s = math.exp(4 * time[0].item())
            x_hat = x / c_in(s)
            alpha = self.process.alpha(s)
            denoised = x_hat - s * self.net.eps(alpha * x_hat, s)
            return (denoised - c_skip(s) * x_hat) / c_out(s)
        level = self.process.level_at(time[0].item())
        alpha = self.process.alpha(level)
        eps = self.net.eps(x, level)
        x0 = x / alpha - level * eps
        a = 1 / math.sqrt(1 + level**2)  # v is defined in the variance-preserving scale
        return {"eps": eps, "x0": x0, "v": a * eps - a * level * x0}[self.prediction]


def foreign(process, prediction, times="nearest"):
    module = Foreign(process, prediction, times)
    options = {"process": process, "prediction": prediction, "times": times}
    net = adapt(module, name="a", image_shape=SHAPE, sigma_data=SIGMA_DATA, **options)
    return net, module


def noisy(process, level, count=5):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (count, *SHAPE)) + level * rng.standard_normal((count, *SHAPE))
    return torch.from_numpy(x) * get_process(process).alpha(level)


def test_every_prediction_has_an_adapter():
    assert set(ADAPTERS) == set(PREDICTIONS)


@each_process
@each_prediction
@each_times
def test_eps_comes_out(process, prediction, times):
    net, _ = foreign(process, prediction, times)
    p = net.card.diffusion
    span = p.last_time - p.first_time
    for part in (0, 0.1, 0.5, 1):
        time = p.first_time + part * span
        level = p.level_at(math.floor(time) if p.discrete else time)
        x = noisy(process, level)
        got = net.eps(x, level)
        assert got.dtype == torch.float64
        want = mixture(process).eps(x, level)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@each_process
@each_prediction
@pytest.mark.parametrize("solver", [{"solver": "heun"}, {"solver": "ddpm"}], ids=str)
def test_a_solver_ends_at_the_same_images(process, prediction, solver):
    ends = []
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((4, *SHAPE)))
    for net in (mixture(process), foreign(process, prediction)[0]):
        stage = plan_stage(net.card, calls=7, grid="logsnr", **solver)
        begin = x * net.card.diffusion.start_scale(stage.levels[0])
        ends.append(integrate(StepSchedule((stage,)), {stage.net: net}, begin))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", [p for p in PROCESSES if get_process(p).discrete])
def test_a_discrete_network_is_asked_at_nearest_or_continuous_time(process, prediction):
    """As its card says; the levels of a schedule need not be trained ones."""
    table = get_process(process)
    levels = [table.level_at(t) * 1.01 for t in (900, 412, 30)] + [table.level_at(7)]
    asked = {}
    for times in ("nearest", "continuous"):
        net, module = foreign(process, prediction, times)
        stage = plan_stage(net.card, solver="ddim", calls=4, grid=levels)
        assert [call.level for call in stage.calls] == levels
        x = torch.zeros(2, *SHAPE, dtype=torch.float64)
        integrate(StepSchedule((stage,)), {stage.net: net}, x)
        asked[times] = module.asked
        assert net.card.times == times
    exact = [table.continuous_time(level) for level in levels]
    assert asked["continuous"] == pytest.approx(exact, rel=1e-12)
    assert asked["nearest"] == [float(round(t)) for t in exact]
    assert not any(t.is_integer() for t in exact[:3])


def test_a_continuous_process_is_asked_at_its_own_time():
    for name, level, time in (("edm", 3.7, 3.7), ("ve", 3.7, 3.7), ("vp-linear", None, 0.37)):
        net, module = foreign(name, "eps")
        net.eps(noisy(name, 1.0), level or get_process(name).level_at(time))
        assert module.asked == pytest.approx([time], rel=1e-12)


class Recorder(nn.Module):
    """Answers with zeros or ones and keeps what it is given."""

    def __init__(self, answer=0.0, dtype=torch.float32):
        super().__init__()
        self.register_buffer("steps", torch.arange(3))  # a whole-number buffer says nothing of x
        self.scale = nn.Parameter(torch.tensor(answer, dtype=dtype))
        self.given = []

    def forward(self, x, *rest):
        self.given.append((x, *rest))
        return torch.ones_like(x) * self.scale


@pytest.mark.parametrize("process", ["edm", "vp-linear"])
@pytest.mark.parametrize("level", [0.01, 0.6, 40.0])
def test_f_is_preconditioned_as_in_edm(process, level):
    """D = c_skip x + c_out F(c_in x, c_noise), for F = 0 and F = 1, with x at alpha = 1."""
    x = noisy(process, level)
    x_hat = x / get_process(process).alpha(level)
    for answer in (0.0, 1.0):
        module = Recorder(answer, torch.float64)
        options = {"process": process, "prediction": "F", "sigma_data": SIGMA_DATA}
        eps = adapt(module, name="a", image_shape=SHAPE, **options).eps(x, level)
        denoised = c_skip(level) * x_hat + c_out(level) * answer
        torch.testing.assert_close(x_hat - level * eps, denoised, rtol=1e-10, atol=1e-10)
        ((given, time),) = module.given
        torch.testing.assert_close(given, c_in(level) * x_hat, rtol=1e-12, atol=1e-12)
        assert time.tolist() == pytest.approx([c_noise(level)] * len(x), rel=1e-12)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("images", [torch.float32, torch.float64, torch.float16])
def test_a_network_computes_in_the_type_of_its_weights(weights, images):
    """Times are never rounded to half precision, which tells no 998.3 from 998.5."""
    module = Recorder(dtype=weights)
    net = adapt(module, name="a", image_shape=SHAPE, times="continuous")
    got = net.eps(torch.ones(2, *SHAPE, dtype=images), net.card.diffusion.level_at(998.3))
    ((x, time),) = module.given
    assert (x.dtype, got.dtype) == (weights, images)
    assert time.tolist() == pytest.approx([998.3, 998.3], rel=1e-6)


def test_a_module_without_weights_computes_in_the_type_of_the_images():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.arange(3))

        def forward(self, x, time):
            return x

    x = torch.full((2, *SHAPE), 0.25)
    assert torch.equal(adapt(Counting(), name="a", image_shape=SHAPE).eps(x, 1.0), x)


def test_labels():
    """None is the label after the last class, for the unconditional answer."""
    module = Recorder()
    net, x = adapt(module, name="a", image_shape=SHAPE, classes=10), torch.zeros(3, *SHAPE)
    net.eps(x, 1.0)
    net.eps(x, 1.0, cond=torch.tensor([0, 9, 4], dtype=torch.int32))
    (_, _, none), (_, _, labels) = module.given
    assert none.tolist() == [10, 10, 10]
    assert labels.tolist() == [0, 9, 4]
    assert none.dtype == labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("cond", "told"),
    [
        (torch.tensor([0, 10, 1]), "0..9, got 0..10"),
        (torch.tensor([0, -1, 1]), "0..9, got -1..1"),
        (torch.tensor([0, 1]), "expected 3 whole-number labels"),
        (torch.tensor([0.0, 1.0, 2.0]), "expected 3 whole-number labels"),
        (torch.zeros(3, 1, dtype=torch.int64), "(3, 1)"),
    ],
    ids=str,
)
def test_bad_labels_are_refused(cond, told):
    module = Recorder()
    net = adapt(module, name="a", image_shape=SHAPE, classes=10)
    with pytest.raises(ConfigError) as caught:
        net.eps(torch.zeros(3, *SHAPE), 1.0, cond=cond)
    assert told in str(caught.value)
    assert module.given == []


def test_an_unconditional_network_takes_no_labels():
    net = adapt(Recorder(), name="a", image_shape=SHAPE)
    with pytest.raises(ConfigError, match="'a' is unconditional"):
        net.eps(torch.zeros(1, *SHAPE), 1.0, cond=torch.tensor([0]))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: torch.cat([x, x], 1), r"\(3, 2, 2, 2\) to an input of \(3, 1, 2, 2\)"),
        (lambda x: x[:1], r"\(1, 1, 2, 2\) to an input of \(3, 1, 2, 2\)"),
        (lambda x: (x,), "tuple"),
    ],
)
def test_an_answer_of_another_shape_is_told(answer, told):
    """A learned variance doubles the channels, and one channel would broadcast in silence."""

    class Odd(nn.Module):
        def forward(self, x, time):
            return answer(x)

    net = adapt(Odd(), name="a", image_shape=SHAPE)
    with pytest.raises(ConfigError, match=f"network 'a' answered with {told}"):
        net.eps(torch.zeros(3, *SHAPE), 1.0)


def test_adapt_leaves_a_module_trainable_but_asks_it_in_evaluation_mode():
    module = nn.Sequential(nn.Dropout(0.5))
    module.forward = lambda x, time: module[0](x)
    module.register_parameter("weight", nn.Parameter(torch.ones(1)))
    x = torch.ones(2, *SHAPE)
    got = adapt(module, name="a", image_shape=SHAPE).eps(x, 1.0)
    assert torch.equal(got, x)
    assert not got.requires_grad
    assert module.weight.requires_grad


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"process": "vp"}, ["unknown process 'vp'", "edm"]),
        ({"prediction": "noise"}, ["unknown prediction 'noise'", "eps, x0, v, F"]),
        ({"times": "next"}, ["unknown times 'next'", "nearest, continuous"]),
        ({"classes": -1}, ["classes", "-1"]),
        ({"sigma_data": 0.0}, ["sigma_data", "0.0"]),
        ({"image_shape": (0, 2)}, ["image_shape", "(0, 2)"]),
        ({"name": ""}, ["name", "''"]),
        ({"flops": "1"}, ["flops"]),
    ],
    ids=str,
)
def test_adapt_tells_what_makes_no_sense_in_one_line(settings, told):
    with pytest.raises(ConfigError) as caught:
        adapt(Recorder(), **{"name": "a", "image_shape": SHAPE, **settings})
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapt_is_a_public_name():
    assert stepsearch.adapt is adapt
