"""From a recipe to a trained network on disk; an unchanged recipe is never trained twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import Recipe
from stepsearch.distilling import distil, distilled_of
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_card, save_net
from stepsearch.recipe_training import (
    Together,
    build_network,
    checkpoint_path,
    noise_scope,
    train_recipe,
)
from stepsearch.training.data import Dataset
from stepsearch.training.loop import ALONE, OnStep


def supernet_path(recipe: Recipe, data: Dataset) -> Path:
    """Where the weights of this recipe on these images lie: beside the recipe, named by content."""
    return Path(recipe.file).parent / f"{recipe.name}-{recipe.sha256(data.sha256)[:8]}.safetensors"


def ensure_supernet(
    recipe: Recipe,
    data: Dataset,
    *,
    device: str = "cpu",
    on_step: OnStep | None = None,
    together: Together | None = None,
) -> tuple[Path, NetCard]:
    """Weights and card of the recipe's network, trained now unless they are there already.

    A training run that was killed continues from its last checkpoint.

    Args:
        together: lets workers train to the last step and leave their checkpoint; None trains here.
    """
    path = supernet_path(recipe, data)
    if recipe.teacher is not None and not path.is_file():
        ensure_supernet(recipe.teacher, data, device=device, on_step=on_step, together=together)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            _make(recipe, data, path, device, on_step, together)
        return path, load_card(path)


def check_buildable(recipe: Recipe, data: Dataset) -> None:
    """ConfigError where the recipe's network does not fit its images; nothing is written."""
    if recipe.teacher is not None:
        check_buildable(recipe.teacher, data)
    count, least = len(data.images), FAMILIES[recipe.family].least_images(recipe.net)
    if count < least:
        raise ConfigError(
            f"{recipe.file}: data: '{data.name}' has {count} images, fewer than the {least} that "
            f"this network needs; use more images or a smaller network"
        )
    build_network(recipe, data, "meta")
    sides, scale = data.images.shape[2:], 1 if recipe.relay is None else recipe.relay.scale
    if any(side % scale for side in sides):
        raise ConfigError(
            f"{recipe.file}: relay.scale: images of {sides[0]} x {sides[1]} pixels do not divide "
            f"into tiles of {scale}"
        )
    _check_labels(recipe, data)
    if recipe.train is not None and recipe.train.batch > count:
        raise ConfigError(
            f"{recipe.file}: train.batch: {recipe.train.batch} exceeds the {count} "
            f"images of '{data.name}'"
        )
    if recipe.train is not None:
        try:
            ALONE.rows(recipe.train.batch, recipe.train.accumulate)
        except ConfigError as error:
            raise ConfigError(f"{recipe.file}: {error}") from None


def check_sides(first: Recipe, small: Dataset, second: Recipe, large: Dataset) -> None:
    """ConfigError unless images of a first stage, upsampled, are as large as those of a second."""
    assert second.relay is not None
    (channels, *low), (wanted, *high) = small.images.shape[1:], large.images.shape[1:]
    if [channels, *(n * second.relay.scale for n in low)] != [wanted, *high]:
        raise ConfigError(
            f"{first.file}: data: images of {channels} x {low[0]} x {low[1]} do not make those of "
            f"second stage '{second.name}', {wanted} x {high[0]} x {high[1]}, which is for "
            f"{second.relay.scale} times as many pixels a side; correct data.size or relay.scale"
        )


def _check_labels(recipe: Recipe, data: Dataset) -> None:
    """ConfigError unless a conditional network sees every one of its labels and no other."""
    if noise_scope(recipe) == "within_class" and data.labels is None:
        raise ConfigError(
            f"{recipe.file}: train.immiscible.scope: '{data.name}' has no labels to stay within; "
            f"use global"
        )
    classes = FAMILIES[recipe.family].classes(recipe.net)
    if not classes:
        return
    if data.labels is None:
        raise ConfigError(
            f"{recipe.file}: net.classes: '{data.name}' has no labels; use labelled images, or "
            f"leave classes out"
        )
    found = np.unique(data.labels)
    if not np.array_equal(found, np.arange(classes)):
        raise ConfigError(
            f"{recipe.file}: net.classes: {classes} classes are labels 0..{classes - 1}; "
            f"'{data.name}' has {len(found)} labels in {found[0]}..{found[-1]}"
        )


def _make(
    recipe: Recipe,
    data: Dataset,
    path: Path,
    device: str,
    on_step: OnStep | None,
    together: Together | None,
) -> None:
    family, module = FAMILIES[recipe.family], build_network(recipe, data, "cpu")
    weights: Mapping[str, Tensor]
    training: dict[str, Any] = {
        "recipe": recipe.content(),
        "recipe_sha256": recipe.sha256(data.sha256),
        "data": data.name,
        "data_sha256": data.sha256,
        "images": len(data.images),
        "torch": torch.__version__,
    }
    if data.corrupt:
        training["corrupt"] = list(data.corrupt)
    distilled = None
    if recipe.distill is not None:
        assert recipe.teacher is not None
        source = supernet_path(recipe.teacher, data)
        teacher = load_card(source)
        weights, losses = distil(recipe, source, data, path, device, on_step)
        distilled = distilled_of(recipe, teacher.key)
        training |= {"steps": recipe.distill.steps, "seed": recipe.distill.seed, "loss": losses}
        training |= {"teacher": teacher.key, "teacher_sha256": teacher.sha256}
    elif recipe.train is None:
        if family.fitted:
            family.fit(module, data.images.astype(np.float32) / 127.5 - 1, seed=0)
        weights = module.state_dict()
    else:
        how = (device, on_step, together)
        weights, losses = train_recipe(recipe, recipe.train, module, data, path, *how)
        training |= {"steps": recipe.train.steps, "seed": recipe.train.seed, "loss": losses}
        if recipe.train.immiscible is not None and recipe.train.pool > 1:
            training["immiscible"] = asdict(recipe.train.immiscible) | {
                "scope": noise_scope(recipe)
            }
    card = _card(recipe, data, training, distilled)
    save_net(path, card, weights)
    checkpoint_path(path).unlink(missing_ok=True)


def write_untrained(recipe: Recipe, data: Dataset, path: Path) -> NetCard:
    """Weights of the right shapes that know nothing, for what does not depend on what they know."""
    family, module = FAMILIES[recipe.family], build_network(recipe, data, "cpu")
    if recipe.train is None and family.fitted:
        family.fit(module, data.images.astype(np.float32) / 127.5 - 1, seed=0)
    distilled = None if recipe.distill is None else distilled_of(recipe, "untrained")
    return save_net(path, _card(recipe, data, {}, distilled), module.state_dict())


def _card(
    recipe: Recipe, data: Dataset, training: Mapping[str, Any], distilled: Distilled | None
) -> NetCard:
    """What is known of a recipe's network; `save_net` adds the hash of its weights."""
    family, shape = FAMILIES[recipe.family], tuple(data.images.shape[1:])
    empty = build_network(recipe, data, "meta")
    return NetCard(
        name=recipe.name,
        sha256="",
        family=recipe.family,
        process=TRAINED if recipe.relay is None else "edm",
        image_shape=shape,
        widths=recipe.widths,
        flops=tuple(family.flops(empty, shape, width) for width in recipe.widths),
        arch=recipe.net,
        training=training,
        classes=family.classes(recipe.net),
        prediction="eps" if recipe.relay is None else "F",
        relay=recipe.relay,
        distilled=distilled,
    )
