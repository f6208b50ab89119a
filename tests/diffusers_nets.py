"""Small networks of diffusers, every parameter random."""

import pytest
import torch
from torchvision_shim import ensure_torchvision

ensure_torchvision()  # diffusers imports it, and PyPI's build breaks on a CPU-only torch
diffusers = pytest.importorskip("diffusers", reason="makes the networks, installed for tests alone")


def levels(*attends):
    """Block types going down and up, with attention where it is said."""
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    return {"down_block_types": down, "up_block_types": up}


TINY = {  # fits the digits
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    **levels(0, 0),
    "norm_num_groups": 2,
    "downsample_padding": 0,
    "attention_head_dim": None,
}


def model(config):
    """A network of diffusers, every parameter random."""
    net, rng = diffusers.UNet2DModel(**config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 0.7 / parameter[0].numel() ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return net.eval()
