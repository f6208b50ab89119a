"""Small networks of every family, every parameter random, for the contract tests."""

import copy
import functools
import json

import pytest
import torch

from stepsearch.nets.families import FAMILIES

SHAPE, WIDTHS = (2, 8, 8), (0.25, 0.5, 0.75, 1.0)
EXAMPLES = {  # small configurations of each family; a new family adds its own
    "unet": [
        {"base": 8, "groups": 2},
        {"base": 8, "mult": [1, 2, 3], "blocks": 2, "attention": [0, 2], "groups": 2},
        {"base": 16, "mult": [2], "attention": [0], "groups": 4, "sinusoid": 6},
        {"base": 8, "groups": 2, "classes": 3, "label_dropout": 0.2},
        {"base": 8, "attention": [1], "groups": 2, "head_dim": 2, "eps": 1e-3, "concat": "leading"}
        | {"time": "table", "downsample": "asymmetric"},
    ],
    "dit": [
        {"dim": 16, "depth": 2, "heads": 4},
        {"dim": 24, "depth": 1, "heads": 8, "mlp": 0.5, "patch": 4},
        {"dim": 16, "depth": 2, "heads": 4, "mlp": 2, "classes": 3, "label_dropout": 0.2},
    ],
    "gaussian": [{"components": 8}],
    "noisy-classifier": [
        {"base": 8, "groups": 2, "classes": 3},
        {"base": 8, "mult": [1, 2, 2], "blocks": 2, "attention": [1], "groups": 2, "classes": 3},
    ],
}
EACH = [(name, config) for name in FAMILIES for config in EXAMPLES.get(name, [])]
CASES = [case for case in EACH if not FAMILIES[case[0]].classifies]  # all that predict noise
each_case = pytest.mark.parametrize(("family", "config"), CASES, ids=str)
each_width = pytest.mark.parametrize("width", WIDTHS)
UNET, CONDITIONAL = EXAMPLES["unet"][1], EXAMPLES["unet"][3]
each_classifier = pytest.mark.parametrize("config", EXAMPLES["noisy-classifier"], ids=str)


def make(family, config):
    """A network whose every parameter is random; output convolutions start at zero."""
    return copy.deepcopy(_made(family, json.dumps(config)))


@functools.cache
def _made(family, config):
    rng = torch.Generator().manual_seed(0)
    widths = (1.0,) if FAMILIES[family].classifies else WIDTHS
    module = FAMILIES[family].build(json.loads(config), SHAPE, widths)
    if FAMILIES[family].fitted:
        images = torch.rand(40, *SHAPE, generator=rng).numpy() * 2 - 1
        FAMILIES[family].fit(module, images, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return module.eval()


def inputs(shape=SHAPE, count=3, dtype=torch.float32):
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    return x.to(dtype), torch.tensor([0.0, 400.0, 999.0])[:count]


def close(a, b, tolerance):
    """Equal up to a part of the largest entry."""
    assert (a - b).abs().max() <= tolerance * b.abs().max()
