"""`stepsearch stats`: reference statistics of a data set, for other runs to be compared with."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stepsearch.cli.common import is_space
from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.core.settings import EvaluationSettings, Recipe


def stats_arguments(parser: argparse.ArgumentParser) -> None:
    """What `stats` is told."""
    parser.epilog = "Use them in a space as evaluation: {reference: FILE}."
    parser.add_argument("-o", "--output", type=Path, help="npz file (default NAME-FEATURES.npz)")
    parser.add_argument("--features", metavar="NAME", help="extractor (default: the space's)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="of the extractor, a local file"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the space's")


def stats(args: argparse.Namespace) -> int:
    """Write statistics; their path is printed."""
    from stepsearch.evaluate import write_statistics
    from stepsearch.loading import read_data
    from stepsearch.progress import Display
    from stepsearch.signals import Signals

    recipe, settings = _read(args)
    path = args.output or Path(f"{recipe.name}-{settings.features}.npz")
    if path.exists():
        raise ConfigError(f"{path}: exists and nothing is overwritten; choose another with -o")
    with Display() as display, Signals("the same command") as signals:
        data = read_data(recipe, display, signals, allow_code=args.allow_code)
        display.stage("features and reference statistics", 1)
        found = write_statistics(settings, data, path)
        size = "x".join(map(str, found.shape))
        floor = "not measurable, too few images for the features"
        if found.real_vs_real is not None:
            floor = f"FID {found.real_vs_real:.4g}"
        display.say(
            f"{found.extractor}@{found.extractor_sha256[:8]} of {found.images} images {size}: real "
            f"against real (halves of the data) {floor}"
        )
    print(path)
    return 0


def _read(args: argparse.Namespace) -> tuple[Recipe, EvaluationSettings]:
    """The recipe whose images are meant, and how features are taken."""
    from stepsearch.config import read_space
    from stepsearch.core.settings import EvaluationSettings
    from stepsearch.loading import scored_recipe
    from stepsearch.objectives.features import check_extractor
    from stepsearch.recipe_config import read_recipe

    if is_space(args.file, args.overrides):
        space = read_space(args.file, args.overrides)
        recipe, settings = scored_recipe(space), space.evaluation
    else:
        recipe, settings = read_recipe(args.file, args.overrides), EvaluationSettings()
    if args.features is not None:
        check_extractor(args.features)
        settings = replace(settings, features=args.features, weights=None)
    if args.weights is not None:
        if not args.weights.is_file():
            raise ConfigError(f"--weights: {args.weights}: no such file; correct the path")
        settings = replace(settings, weights=str(args.weights.resolve()))
    return recipe, replace(settings, device=args.device or settings.device, reference=None)
