"""Extractors of torch-fidelity (Obukhov et al. 2020, doi:10.5281/zenodo.4957738), an optional
dependency: its networks and its resizing, at the layer that its own FID takes.

Deviation: torch-fidelity unpickles weights files, which may run code. Here a file is read by
safetensors or with weights_only=True, and torch-fidelity opens a private copy that holds tensors
and nothing else. CLIP and DINOv2 come as programs (TorchScript, torch.hub): torch-fidelity fetches
and runs those where a recipe names them, but never from a file that a recipe names.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import did_you_mean
from stepsearch.objectives.registry import EXTRACTORS, FeatureRequest

PROGRAMS = ("clip-", "dinov2-")  # extractors whose weights come with code
SAFE_LOAD = (2, 10)  # first torch without a known way round weights_only (CVE-2026-24747)


class FidelityFeatures:
    """One layer of a torch-fidelity network."""

    def __init__(self, request: FeatureRequest, layer: str, module: nn.Module) -> None:
        self.name, self.layer, self.device = request.name, layer, request.device
        self.sha256 = _sha256(self.name, layer, module)
        self.module = module.to(self.device)
        probe = torch.zeros(1, *request.images.shape[1:], dtype=torch.uint8)
        self.dim = self(probe).shape[1]

    def __call__(self, images: Tensor) -> np.ndarray:
        """(B, C, H, W) uint8 with C = 3, or 1, which is repeated -> (B, dim) float32."""
        with torch.no_grad():
            (features,) = self.module(images.to(self.device).expand(-1, 3, -1, -1))
        return features.float().cpu().numpy()


def fidelity_features(request: FeatureRequest) -> FidelityFeatures:
    """What torch-fidelity registers under `request.name`; ConfigError says what is missing.

    Without `request.weights` they are downloaded once into torch's hub folder.
    """
    name, (kind, create) = request.name, find_extractor(request.name)
    channels = request.images.shape[1]
    if channels not in (1, 3):
        raise _error(
            name,
            f" takes images of 1 or 3 channels and the data set has {channels}; use another "
            f"extractor",
        )
    layer = kind.get_default_feature_layer_for_metric("fid")
    path = _given(request) or _downloaded(name)
    if path is not None:
        module = _with_weights(create, name, layer, path)
    else:
        module = _fetched(name, lambda: create(name, [layer], cuda=False, verbose=False))
    return FidelityFeatures(request, layer, module)


def find_extractor(name: str) -> tuple[Any, Callable[..., nn.Module]]:
    """torch-fidelity's class of that name and its constructor; ConfigError where it has none."""
    known, create = _torch_fidelity(name)
    if name not in known:
        names = sorted([*EXTRACTORS, *known])
        hint = did_you_mean(name, names)
        raise _error(name, f" is no feature extractor{hint}; known: {', '.join(names)}")
    return known[name], create


def _error(name: str, text: str) -> ConfigError:
    return ConfigError(f"evaluation.features: '{name}'{text}")


def _torch_fidelity(name: str) -> tuple[Mapping[str, Any], Callable[..., nn.Module]]:
    """Its registry and its constructor, imported when first needed."""
    hint = did_you_mean(name, EXTRACTORS)
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
        from torch_fidelity.utils import create_feature_extractor
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise _error(
            name,
            f" is not built in{hint} (built in: {', '.join(EXTRACTORS)}) and module '{missing}' is "
            f"not installed; for torch-fidelity's extractors: pip install 'stepsearch[fidelity]'",
        ) from None
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise _error(
            name,
            f" is not built in{hint} and needs torchvision, which cannot load on torch "
            f"{torch.__version__} ({textwrap.shorten(str(error), 120)}); install the torchvision "
            f"build that matches this torch, for a CPU-only one from PyTorch's own CPU index",
        ) from None
    return FEATURE_EXTRACTORS_REGISTRY, create_feature_extractor


def _given(request: FeatureRequest) -> Path | None:
    """The weights file of the request, if it names one."""
    if request.weights is None:
        return None
    path = Path(request.weights)
    if request.name.startswith(PROGRAMS):
        raise _error(
            request.name,
            f": weights {path}: this network's weights come with code, which is never run from a "
            f"given file; leave weights out and torch-fidelity fetches them",
        )
    if not path.is_file():
        raise _error(request.name, f": weights {path}: no such file; correct the path")
    return path


def _downloaded(name: str) -> Path | None:
    """The published state dict in torch's hub folder, hash checked on arrival; None if no such."""
    if name == "inception-v3-compat":
        from torch_fidelity import feature_extractor_inceptionv3

        url = feature_extractor_inceptionv3.URL_INCEPTION_V3
    elif name == "vgg16":
        from torchvision.models import VGG16_Weights

        url = VGG16_Weights.IMAGENET1K_V1.url
    else:
        return None
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)

    def download() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = path.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)

    if not path.is_file():
        _fetched(name, download)
    return path


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """What `fetch` returns; where the network fails it, ConfigError."""
    try:
        return fetch()
    except (OSError, RuntimeError, HTTPException) as error:
        remedy = "pass a local file with weights: PATH"
        if name.startswith(PROGRAMS):
            remedy = f"copy {torch.hub.get_dir()} from a machine that can download them"
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        raise _error(name, f": cannot download its weights ({reason}); {remedy}") from None


def _with_weights(create: Callable[..., nn.Module], name: str, layer: str, path: Path) -> nn.Module:
    """The network with the weights of `path`, a file that torch-fidelity itself never opens."""
    state = _read(name, path)
    with TemporaryDirectory() as folder:
        copy = Path(folder, "weights.pth")
        torch.save(state, copy)
        options = {"feature_extractor_weights_path": str(copy), "verbose": False}
        try:
            return create(name, [layer], cuda=False, **options)
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 200)
            raise _error(
                name, f": weights {path}: of another network ({reason}); give those of '{name}'"
            ) from None


def _read(name: str, path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or torch.save; ConfigError for all else, and nothing is run."""
    safetensors = path.suffix == ".safetensors"
    if not safetensors and torch.__version__ < SAFE_LOAD:
        raise _error(
            name,
            f": weights {path}: torch {torch.__version__} cannot read such a file safely; give it "
            f"as .safetensors or install torch>={'.'.join(map(str, SAFE_LOAD))}",
        )
    try:
        if safetensors:
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise all sorts, struct.error to AssertionError
        state, found = None, type(error).__name__
    else:
        found = type(state).__name__
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _error(
            name,
            f": weights {path}: not a state dict that loads without running code ({found}); write "
            f"one with safetensors or torch.save(module.state_dict(), PATH)",
        )
    return state


def _sha256(name: str, layer: str, module: nn.Module) -> str:
    """Hash of name, layer and every tensor of the state dict with its key, type and shape."""
    digest = hashlib.sha256(repr((name, layer)).encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
