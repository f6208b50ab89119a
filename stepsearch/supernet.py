"""From a recipe to a trained network on disk; an unchanged recipe is never trained twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import Recipe, TrainConfig
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_card, save_net
from stepsearch.training.data import Dataset, load_dataset
from stepsearch.training.loop import OnStep, train_supernet

PROCESS = "vp-linear-1000"
WINDOW = 200  # last steps that the card's loss per width is averaged over


def recipe_data(recipe: Recipe) -> Dataset:
    """The images that a recipe names."""
    path = recipe.data.path
    return load_dataset(recipe.data.kind, None if path is None else Path(path), recipe.data.size)


def supernet_path(recipe: Recipe, data: Dataset) -> Path:
    """Where the weights of this recipe on these images lie: beside the recipe, named by content."""
    return Path(recipe.file).parent / f"{recipe.name}-{recipe.sha256(data.sha256)[:8]}.safetensors"


def ensure_supernet(
    recipe: Recipe, data: Dataset, *, device: str = "cpu", on_step: OnStep | None = None
) -> tuple[Path, NetCard]:
    """Weights and card of the recipe's network, trained now unless they are there already.

    A training run that was killed continues from its last checkpoint.
    """
    path = supernet_path(recipe, data)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            _make(recipe, data, path, device, on_step)
        return path, load_card(path)


def check_buildable(recipe: Recipe, data: Dataset) -> None:
    """ConfigError where the recipe's network does not fit its images; nothing is written."""
    count, least = len(data.images), FAMILIES[recipe.family].least_images(recipe.net)
    if count < least:
        raise ConfigError(
            f"{recipe.file}: data: '{data.name}' has {count} images, fewer than the {least} that "
            f"this network needs; use more images or a smaller network"
        )
    _build(recipe, data, "meta")
    _check_labels(recipe, data)
    if recipe.train is not None and recipe.train.batch > count:
        raise ConfigError(
            f"{recipe.file}: train.batch: {recipe.train.batch} exceeds the {count} "
            f"images of '{data.name}'"
        )


def _check_labels(recipe: Recipe, data: Dataset) -> None:
    """ConfigError unless a conditional network sees every one of its labels and no other."""
    classes = FAMILIES[recipe.family].classes(recipe.net)
    if not classes:
        return
    if data.labels is None:
        raise ConfigError(
            f"{recipe.file}: net.classes: '{data.name}' has no labels; use labelled images, or "
            f"leave classes out"
        )
    if data.labels.ndim != 1 or not np.issubdtype(data.labels.dtype, np.integer):
        raise ConfigError(
            f"{recipe.file}: net.classes: labels of '{data.name}' must be one whole number an "
            f"image, got {data.labels.dtype} of shape {data.labels.shape}"
        )
    found = np.unique(data.labels)
    if not np.array_equal(found, np.arange(classes)):
        raise ConfigError(
            f"{recipe.file}: net.classes: {classes} classes are labels 0..{classes - 1}; "
            f"'{data.name}' has {len(found)} labels in {found[0]}..{found[-1]}"
        )


def _build(recipe: Recipe, data: Dataset, device: str) -> nn.Module:
    """Fresh weights drawn from the recipe's seed."""
    seed = 0 if recipe.train is None else recipe.train.seed
    # torch's initialisers know no generator argument: seed the global one inside a fork of it
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.random.default_generator.manual_seed(seed)
        try:
            return FAMILIES[recipe.family].build(recipe.net, data.images.shape[1:], recipe.widths)
        except ConfigError as error:
            raise ConfigError(f"{recipe.file}: net: {error}") from None


def _make(recipe: Recipe, data: Dataset, path: Path, device: str, on_step: OnStep | None) -> None:
    family, module = FAMILIES[recipe.family], _build(recipe, data, "cpu")
    training: dict[str, Any] = {
        "recipe": recipe.content(),
        "recipe_sha256": recipe.sha256(data.sha256),
        "data": data.name,
        "data_sha256": data.sha256,
        "images": len(data.images),
        "torch": torch.__version__,
    }
    if recipe.train is None:
        family.fit(module, data.images.astype(np.float32) / 127.5 - 1, seed=0)
        weights: Mapping[str, Tensor] = module.state_dict()
    else:
        weights, losses = _train(recipe, recipe.train, module, data, path, device, on_step)
        training |= {"steps": recipe.train.steps, "seed": recipe.train.seed, "loss": losses}
    shape = tuple(data.images.shape[1:])
    flops = tuple(family.flops(_build(recipe, data, "meta"), shape, w) for w in recipe.widths)
    card = NetCard(
        name=recipe.name,
        sha256="",
        family=recipe.family,
        process=PROCESS,
        image_shape=shape,
        widths=recipe.widths,
        flops=flops,
        arch=recipe.net,
        training=training,
        classes=family.classes(recipe.net),
    )
    save_net(path, card, weights)


def _train(
    recipe: Recipe,
    config: TrainConfig,
    module: nn.Module,
    data: Dataset,
    path: Path,
    device: str,
    on_step: OnStep | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """EMA weights, and the mean loss of each width over the last steps."""
    recent: dict[float, list[float]] = {}

    def watch(step: int, losses: Mapping[float, float]) -> None:
        if step > config.steps - WINDOW:
            for width, loss in losses.items():
                recent.setdefault(width, []).append(loss)
        if on_step is not None:
            on_step(step, losses)

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        weights = train_supernet(
            module,
            data.images,
            recipe.widths,
            get_process(PROCESS),
            config,
            loss=FAMILIES[recipe.family].loss,
            labels=data.labels if FAMILIES[recipe.family].classes(recipe.net) else None,
            checkpoint=path.with_suffix(".training"),
            on_step=watch,
            device=device,
        )
    finally:
        torch.set_num_threads(threads)
    return weights, {f"{w:g}": float(np.mean(v)) for w, v in sorted(recent.items())}
