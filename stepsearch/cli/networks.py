"""Commands that make networks and what they are measured with."""

from __future__ import annotations

import argparse


def train(args: argparse.Namespace) -> int:
    """Train the supernet of a recipe; its path is printed."""
    from stepsearch.config import read_recipe
    from stepsearch.progress import Display
    from stepsearch.run import train as run_training
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable, recipe_data

    recipe = read_recipe(args.file, args.overrides)
    data = recipe_data(recipe)
    check_buildable(recipe, data)
    with Display() as display, Signals("the same command") as signals:
        path, card = run_training(recipe, data, display, signals, args.device)
        for width, flops in zip(card.widths, card.flops, strict=True):
            loss = card.training.get("loss", {}).get(f"{width:g}")
            shown = "" if loss is None else f", loss {loss:.4f}"
            display.say(f"width {width:g}: {flops / 1e9:.4g} GFLOPs per image and call{shown}")
    print(path)
    return 0
