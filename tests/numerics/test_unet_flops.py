"""FLOPs of the U-Net against the plain formula, counted here layer by layer.

The seven numbers of DDSM's CIFAR-10 network are in contract/test_nets.py.
"""

import pytest
import torch

from stepsearch.nets.families import count_flops
from stepsearch.nets.unet import UNet, UNetArch


def formula(arch, height, width_px, width):
    """2 x multiply-adds of every convolution, linear layer and attention product."""
    slim = {factor: arch.base * factor * width for factor in {1, 4, *arch.mult}}
    time, total = slim[4], 0

    def conv(inputs, out, pixels, kernel=3):
        return 2 * kernel**2 * inputs * out * pixels

    def block(inputs, out, pixels, attends):
        flops = conv(inputs, out, pixels) + conv(out, out, pixels) + 2 * time * out
        flops += conv(inputs, out, pixels, 1) if inputs != out else 0
        # four 1x1 convolutions; scores and weighted values are a product each
        attention = 4 * conv(out, out, pixels, 1) + 2 * 2 * pixels**2 * out
        return flops + (attention if attends else 0)

    pixels = height * width_px
    total += 2 * (arch.sinusoid or arch.base) * time + 2 * time * time
    total += conv(arch.image_channels, slim[1], pixels)
    channels, skips = slim[1], [slim[1]]
    for level, factor in enumerate(arch.mult):
        for _ in range(arch.blocks):
            total += block(channels, slim[factor], pixels, level in arch.attention)
            channels = slim[factor]
            skips.append(channels)
        if level < len(arch.mult) - 1:
            pixels /= 4
            total += conv(channels, channels, pixels)
            skips.append(channels)
    total += block(channels, channels, pixels, True) + block(channels, channels, pixels, False)
    for level, factor in reversed(list(enumerate(arch.mult))):
        for _ in range(arch.blocks + 1):
            inputs = channels + skips.pop()
            total += block(inputs, slim[factor], pixels, level in arch.attention)
            channels = slim[factor]
        if level:
            pixels *= 4
            total += conv(channels, channels, pixels)
    return total + conv(channels, arch.image_channels, pixels)


@pytest.mark.parametrize("width", [1.0, 0.625, 0.25])
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        (UNetArch(3, 64, (1, 2, 3, 4), 3, (1, 2, 3), 4), (64, 64)),
        (UNetArch(1, 32, (2, 1), 1, (0,), 4), (28, 28)),
        (UNetArch(3, 32, (1,), 2, (), 4, classes=10), (16, 24)),
        (UNetArch(3, 32, (1, 1, 2), 1, (0, 2), 2, sinusoid=20), (32, 16)),
        (
            UNetArch(
                3,
                64,
                (1, 2, 2),
                2,
                (1,),
                4,
                head_dim=8,
                time="table",
                downsample="asymmetric",
                concat="leading",
            ),
            (32, 32),
        ),
    ],
    ids=lambda value: f"{value.base} {value.mult}" if isinstance(value, UNetArch) else str(value),
)
def test_flops_are_those_of_the_formula(arch, size, width):
    with torch.device("meta"):
        net = UNet(arch)
    assert count_flops(net, (arch.image_channels, *size), width) == formula(arch, *size, width)


def test_the_formula_gives_the_published_number():
    """Guards the formula itself: DDSM's network at full width, 3x32x32."""
    arch = UNetArch(3, 128, (1, 2, 2, 2), 2, (1,), 16)
    assert formula(arch, 32, 32, 1.0) == 12_443_713_536
