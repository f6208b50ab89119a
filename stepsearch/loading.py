"""Loads a recipe's images and shows it: progress while they are decoded, and what is left out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from stepsearch.core.errors import ConfigError
from stepsearch.core.text import some
from stepsearch.progress import delayed
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import check_sides

if TYPE_CHECKING:
    from stepsearch.core.settings import DataSettings, Recipe, RunSettings
    from stepsearch.progress import Display
    from stepsearch.signals import Signals
    from stepsearch.training.data import Dataset


def read_data(
    recipe: Recipe, display: Display, signals: Signals, *, allow_code: bool = False
) -> Dataset:
    """The images that a recipe names, decoded with progress unless they are cached.

    Raises:
        ConfigError: images that cannot be used, or code that `allow_code` does not allow.
        Interrupted: a signal came while images were decoded.
    """
    advance = delayed(display, "decoding images")

    def on_progress(done: int, total: int) -> None:
        signals.check()
        advance(done, total)

    data = recipe_data(recipe, allow_code=allow_code, on_progress=on_progress)
    if data.corrupt:
        display.say(
            f"data: {len(data.corrupt)} of {len(data.corrupt) + len(data.images)} images are "
            f"unreadable and left out: {some(data.corrupt)}"
        )
    return data


def scored_recipe(settings: RunSettings) -> Recipe:
    """One whose images are those that candidates are scored against: any but a first stage."""
    firsts = _firsts(settings)
    return next(r for r in settings.networks if r.name not in firsts)


def _firsts(settings: RunSettings) -> tuple[str, ...]:
    relay = settings.space.relay
    return () if relay is None else relay.firsts


def space_images(
    settings: RunSettings, display: Display, signals: Signals, *, allow_code: bool = False
) -> dict[str, Dataset]:
    """The images of every network by its name; ConfigError where they do not belong together."""
    scored, firsts = scored_recipe(settings), _firsts(settings)
    loaded: dict[DataSettings, Dataset] = {}
    images: dict[str, Dataset] = {}
    for recipe in settings.networks:
        same, wanted = recipe.data, scored.data
        if recipe.name in firsts:  # of another size, made from the same pictures
            same, wanted = (
                replace(d, size=None, resample="lanczos") for d in (recipe.data, scored.data)
            )
        if same != wanted:
            raise ConfigError(
                f"networks '{scored.name}' and '{recipe.name}' are trained on different data and "
                f"cannot be compared; use one data set"
            )
        if recipe.data not in loaded:
            loaded[recipe.data] = read_data(recipe, display, signals, allow_code=allow_code)
        images[recipe.name] = loaded[recipe.data]
    for recipe, second in itertools.product(settings.recipes, settings.seconds):
        if recipe.name in firsts and second.relay is not None:
            check_sides(recipe, images[recipe.name], second, images[second.name])
    return images
