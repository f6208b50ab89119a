"""What networks are trained on: noise alone, or the blur and noise of a second stage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepsearch.build import plan_stage
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.relay import LEAST, Relay, block_noise, patch_blur
from stepsearch.nets.load import load_net
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_batches, recipe_data
from stepsearch.supernet import ensure_supernet
from stepsearch.training.noising import AddNoise, BlurAndNoise

RELAYS = [
    Relay(),
    Relay(scale=4, blur=1.5, prob_length=0.8),
    Relay(block=0.0),
    Relay(scale=4, block=0.4, normalize=True),
    Relay(blur=0.0),
]
each_relay = pytest.mark.parametrize("relay", RELAYS, ids=str)
SD = 0.5


def images(count, side=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, side, side, generator=rng, dtype=torch.float64) * 2 - 1


def drawn(noising, count, side=8, seed=0):
    """Places and noise, in double precision."""
    place, noise = noising.draw((count, 1, side, side), torch.Generator().manual_seed(seed))
    return place, noise.double()


# --- noise alone


def test_noise_alone_is_the_forward_process_at_whole_times():
    process = get_process("vp-linear-1000")
    noising = AddNoise(process)
    x0 = images(50)
    time, noise = drawn(noising, 50)
    noisy, told, target = noising(x0, time, noise)
    assert torch.equal(told, time)
    assert torch.equal(target, noise)
    for i, t in enumerate(time.tolist()):
        level = process.level_at(t)
        want = process.alpha(level) * (x0[i] + level * noise[i])
        torch.testing.assert_close(noisy[i], want, rtol=1e-6, atol=1e-6)


def test_signal_and_noise_are_what_they_were_before_there_was_blur():
    """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps from float32 sums of linear betas, and the same
    draws: times, then noise."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    signal = torch.cumprod(1 - betas, 0).float()[:, None, None, None]
    rng = torch.Generator().manual_seed(5)
    time = torch.randint(1000, (64,), generator=rng)
    noise = torch.randn((64, 1, 4, 4), generator=rng)
    x0 = images(64, 4).float()
    noising = AddNoise(get_process("vp-linear-1000"))
    found = noising.draw((64, 1, 4, 4), torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(found, (time, noise), strict=True))
    want = signal[time].sqrt() * x0 + (1 - signal[time]).sqrt() * noise
    torch.testing.assert_close(noising(x0, time, noise)[0], want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("process", ["edm", "vp-linear"])
def test_noise_alone_needs_whole_times(process):
    with pytest.raises(ConfigError, match=f"'{process}' has not"):
        AddNoise(get_process(process))


# --- blur and noise


@each_relay
def test_levels_and_blurs_of_many_places_are_those_of_each(relay):
    x0, noising = images(40, 16), BlurAndNoise(relay)
    place, noise = drawn(noising, 40, 16)
    level, x = noising.blurred(x0, place, noise)
    for i, u in enumerate(place.tolist()):
        assert float(level[i]) == pytest.approx(relay.level_at(u), rel=1e-9)
        blur = relay.blur_at(relay.level_at(u))
        want = patch_blur(x0[i : i + 1], relay.scale, blur) + relay.level_at(u) * noise[i]
        torch.testing.assert_close(x[i : i + 1], want, rtol=1e-9, atol=1e-9)


@each_relay
def test_places_are_even_between_the_least_noise_and_the_most(relay):
    count = 20_000
    place, _ = drawn(BlurAndNoise(relay), count, relay.scale)
    least = relay.place_of(LEAST)
    assert float(place.min()) >= least
    assert float(place.max()) < 1
    assert relay.level_at(float(place.min())) >= LEAST * (1 - 1e-12)
    quantiles = np.quantile(place.numpy(), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.5, 0.9], atol=5 / math.sqrt(count))


@each_relay
def test_noise_is_the_mixture_of_a_white_and_a_block_draw(relay):
    rng = torch.Generator().manual_seed(3)
    torch.rand(30, generator=rng, dtype=torch.float64)
    white, blocks = (torch.randn(30, 1, 8, 8, generator=rng) for _ in range(2))
    _, noise = BlurAndNoise(relay).draw((30, 1, 8, 8), torch.Generator().manual_seed(3))
    want = white + relay.block * block_noise(blocks, relay.scale) if relay.block else white
    want = want / math.sqrt(1 + relay.block**2) if relay.normalize else want
    torch.testing.assert_close(noise, want, rtol=0, atol=1e-6)


@each_relay
@given(seed=st.integers(0, 99))
def test_the_error_of_the_answer_is_the_weighted_error_of_the_image(relay, seed):
    """Karras et al. 2022, table 1: lambda |D - x0|^2 = |F - target|^2 for every answer F, with
    D = c_skip x + c_out F and lambda = (sigma^2 + sd^2) / (sigma sd)^2."""
    x0, noising = images(6, seed=seed), BlurAndNoise(relay)
    place, noise = drawn(noising, 6, seed=seed)
    level, x = noising.blurred(x0, place, noise)
    given_, time, target = noising(x0, place, noise)
    answer = images(6, seed=seed + 1) * 3
    sigma = level[:, None, None, None]
    total = sigma**2 + SD**2
    image = SD**2 / total * x + sigma * SD / total.sqrt() * answer
    weight = total / (sigma * SD) ** 2
    torch.testing.assert_close(
        weight * (image - x0) ** 2, (answer - target) ** 2, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(given_, x / total.sqrt(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(time, level.log() / 4, rtol=1e-9, atol=1e-12)
    assert float(weight.max()) < 1e5  # where the authors' code cuts it off


def test_at_the_most_noise_an_image_is_the_means_of_its_tiles():
    """All but a thousandth of what is left of the other coefficients of a tile."""
    relay = Relay(scale=2, blur=3.0)
    x0, noising = images(20), BlurAndNoise(relay)
    ones = torch.ones(20, dtype=torch.float64)
    level, x = noising.blurred(x0, ones, torch.zeros_like(x0))
    means = x0.reshape(20, 1, 4, 2, 4, 2).mean((3, 5), keepdim=True)
    tiles = x.reshape(20, 1, 4, 2, 4, 2)
    torch.testing.assert_close(tiles.mean((3, 5), keepdim=True), means, rtol=0, atol=1e-12)
    left = math.exp(-(math.pi**2) / 4 * 9 / 2) + 1e-3  # of the slowest, (0, 1)
    assert float((tiles - means).abs().max()) < 1.01 * left * 2
    assert float(level[0]) == pytest.approx(relay.most, rel=1e-12)


@pytest.mark.parametrize("u", [0.3, 0.8, 1.0])
def test_noisy_tiles_keep_the_means_of_the_sharp_ones(u):
    """Blur moves no mean, and noise is of mean 0 and of deviation level sqrt(1 + block^2)."""
    relay, count = Relay(scale=2, blur=2.0, block=0.3), 4000
    noising = BlurAndNoise(relay)
    x0 = images(1).expand(count, 1, 8, 8)
    _, noise = drawn(noising, count)
    level, x = noising.blurred(x0, torch.full((count,), u, dtype=torch.float64), noise)
    added = x - patch_blur(x0, 2, relay.blur_at(relay.level_at(u)))
    deviation = float(level[0]) * math.sqrt(1 + 0.3**2)
    assert float(added.std()) == pytest.approx(deviation, rel=0.01)
    means = x.reshape(count, 1, 4, 2, 4, 2).mean((0, 3, 5))
    want = x0[0].reshape(1, 4, 2, 4, 2).mean((2, 4))
    assert float((means - want).abs().max()) < 5 * deviation / math.sqrt(count)


def test_what_networks_are_given_has_about_unit_variance():
    """c_in divides by sqrt(sigma^2 + sd^2); images here have the deviation sd."""
    noising = BlurAndNoise(Relay(blur=0.0, block=0.0))
    rng = torch.Generator().manual_seed(0)
    x0 = SD * torch.randn(4000, 1, 4, 4, generator=rng, dtype=torch.float64)
    place, noise = drawn(noising, 4000, 4)
    given_, _, target = noising(x0, place, noise)
    assert float(given_.std()) == pytest.approx(1, rel=0.02)
    assert float(target.std()) == pytest.approx(1, rel=0.02)


def test_loss_is_that_of_the_authors(golden):
    """Their denoiser D = 0.7 x + 0.1, as the answer that stands for it."""
    row = golden("relay")["blur_loss"]
    config = row["config"]
    scale, blur = config["up_scale"], config["blur_sigma_max"]
    noising = BlurAndNoise(Relay(scale, blur, config["prob_length"], config["block_scale"]))
    relay = noising.relay
    names = ("u", "y", "n_gauss", "n_block")
    place, x0, white, blocks = (torch.tensor(row[n], dtype=torch.float64) for n in names)
    place = place.clamp(min=row["u_min"]).reshape(-1)
    noise = relay.noise(white, blocks)
    level, x = noising.blurred(x0, place, noise)
    _, _, target = noising(x0, place, noise)
    sigma = level[:, None, None, None]
    total = sigma**2 + SD**2
    answer = (0.7 * x + 0.1 - SD**2 / total * x) * total.sqrt() / (sigma * SD)
    want = torch.tensor(row["loss"], dtype=torch.float64).reshape(x.shape)
    torch.testing.assert_close((answer - target) ** 2, want, rtol=1e-6, atol=1e-8)


# --- a trained second stage

RECIPE = """\
version: 1
name: sharp
data: digits
widths: [0.5, 1.0]
net: {family: unet, base: 4, mult: [1, 2], groups: 1}
relay: {scale: 2, blur: 2.0, block: 0.2}
train: {steps: 4, batch: 8, warmup: 1, seed: 3}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharp") / "sharp.yaml"
    path.write_text(RECIPE)
    return read_recipe(path)


@pytest.fixture(scope="module")
def net(recipe):
    return load_net(ensure_supernet(recipe, recipe_data(recipe))[0])


def test_a_second_stage_is_trained_on_blur_and_noise_of_its_recipe(recipe):
    data = recipe_data(recipe)
    batches = recipe_batches(recipe, data)
    pixels = torch.from_numpy(data.images).float() / 127.5 - 1
    for _, batch in batches(0).parts:
        sigma = (4 * batch.time.double()).exp()[:, None, None, None]
        total = sigma**2 + SD**2
        x = batch.noisy * total.sqrt()
        x0 = SD**2 / total * x + sigma * SD / total.sqrt() * batch.target
        distance = (x0.float()[:, None] - pixels[None]).abs().amax((2, 3, 4)).amin(1)
        assert float(distance.max()) < 1e-4  # the sharp images, not blurred ones
        assert float(sigma.min()) >= LEAST * (1 - 1e-6)
        assert float(sigma.max()) <= recipe.relay.most * (1 + 1e-6)


def test_the_card_of_a_second_stage_says_how_it_is_asked(recipe, net):
    card = net.card
    assert (card.process, card.prediction, card.relay) == ("edm", "F", recipe.relay)
    process = card.diffusion
    ends = (process.level_at(process.first_time), process.level_at(process.last_time))
    assert ends == pytest.approx((LEAST, recipe.relay.most), rel=1e-12)
    assert plan_stage(card, solver="relay", calls=3, grid="karras").args["blur"] == 2.0
    assert card.distilled is None


@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize("level", [0.02, 0.3, 1.7])
def test_the_noise_it_answers_leads_to_the_image_that_it_learned(net, width, level):
    """eps = (x - D) / level, D = c_skip x + c_out F; the module as training asks it."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(3, 1, 8, 8, generator=rng) * math.sqrt(level**2 + SD**2)
    total = level**2 + SD**2
    module = net._plain(width).eval()
    with torch.no_grad():
        answer = module(x / math.sqrt(total), torch.full((3,), math.log(level) / 4))
    image = SD**2 / total * x + level * SD / math.sqrt(total) * answer
    eps = net.eps(x, level, width=width)
    assert float(answer.abs().max()) > 0
    torch.testing.assert_close(x - level * eps, image, rtol=1e-4, atol=1e-5)
