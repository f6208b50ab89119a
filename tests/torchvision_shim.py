"""Lets PyPI's torchvision, built for CUDA, be imported on a CPU-only torch. For tests alone."""

from __future__ import annotations

import importlib
import sys

import torch

SCHEMAS = ("nms", "qnms")  # the operators that torchvision decorates without having loaded them
_LIBRARIES: list[torch.library.Library] = []  # a library's definitions live as long as it does


def ensure_torchvision() -> None:
    """Import torchvision, after defining the schemas it lacks; nothing where it loads by itself.

    The operators get a schema and no kernel: importing works, calling nms does not. Where
    torchvision is not installed this does nothing either.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in SCHEMAS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")
