"""What every network family that takes labels must keep to."""

import pytest
import torch
from networks import CASES, SHAPE, close, each_width, inputs, make

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NoisyBatch
from stepsearch.nets.families import FAMILIES, count_flops

LABELLED = [case for case in CASES if "classes" in case[1]]
LABELS = torch.tensor([2, 0, 1])
each_labelled = pytest.mark.parametrize(("family", "config"), LABELLED, ids=str)


def unlabelled(config):
    return {k: v for k, v in config.items() if k not in ("classes", "label_dropout")}


@each_labelled
@each_width
def test_no_label_is_the_label_after_the_last(family, config, width):
    net, (x, time), count = make(family, config), inputs(), config["classes"]
    with torch.no_grad():
        none = net(x, time, width=width)
        assert torch.equal(net(x, time, torch.full((3,), count), width=width), none)
        for label in range(count):
            other = net(x, time, torch.full((3,), label), width=width)
            assert (other - none).abs().amax((1, 2, 3)).min() > 1e-3


@each_labelled
@each_width
def test_subnet_equals_the_supernet_for_every_label(family, config, width):
    net, (x, time) = make(family, config), inputs()
    plain = net.subnet(width)
    with torch.no_grad():
        for labels in (LABELS, None):
            close(plain(x, time, labels), net(x, time, labels, width=width), 1e-6)


@each_labelled
def test_an_image_sees_its_own_label_alone(family, config):
    net, (x, time) = make(family, config), inputs()
    with torch.no_grad():
        rows = [net(x[i:][:1], time[i:][:1], LABELS[i:][:1]) for i in range(3)]
        close(torch.cat(rows), net(x, time, LABELS), 1e-5)


@each_labelled
@each_width
def test_labels_cost_nothing(family, config, width):
    costs = {count_flops(make(family, c), SHAPE, width) for c in (unlabelled(config), config)}
    assert len(costs) == 1


@each_labelled
def test_a_hidden_label_trains_the_answer_without_labels(family, config):
    net, (x, time) = make(family, config), inputs()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    shown, hidden = config["label_dropout"], 0.9 * config["label_dropout"]

    def loss(labels, chance):
        batch = NoisyBatch(x, time, noise, torch.full((3,), chance), labels)
        return FAMILIES[family].loss(net, batch, 0.5)

    with torch.no_grad():
        want = (net(x, time, width=0.5) - noise).square().mean()
        for labels in (LABELS, LABELS.flip(0)):
            assert loss(labels, hidden) == want
        assert loss(LABELS, shown) != loss(LABELS.flip(0), shown)


@each_labelled
def test_a_network_without_classes_refuses_labels(family, config):
    with pytest.raises(ConfigError, match="no classes"):
        make(family, unlabelled(config))(*inputs(), LABELS)
