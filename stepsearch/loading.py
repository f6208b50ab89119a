"""Loads a recipe's images and shows it: progress while they are decoded, and what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepsearch.progress import delayed
from stepsearch.recipe_training import recipe_data
from stepsearch.training.sources import some

if TYPE_CHECKING:
    from stepsearch.core.settings import Recipe
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
