"""`stepsearch plan`: what a search will take, before anything is spent."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.planning import Plan, Timing
    from stepsearch.space_size import Size


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What `plan` is told."""
    parser.epilog = (
        "Nothing is trained or written. Two candidates are timed alone on this machine; others are "
        "taken to lie on the line between them, and to be as expensive as random genomes are."
    )
    parser.add_argument("words", nargs="*", metavar="FILE|key=value")
    text = "concurrent trials, each as fast as alone (default 1)"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=text)
    text = "GPUs of a worker, for GPU-hours (default 1 on a GPU)"
    parser.add_argument("--gpus-per-worker", type=float, default=None, metavar="G", help=text)
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    text = "import the code that a recipe names under data: {dataset: ...}"
    parser.add_argument("--allow-code", action="store_true", help=text)


def plan(args: argparse.Namespace) -> int:
    """Print the plan."""
    if args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    if args.gpus_per_worker is not None and not args.gpus_per_worker > 0:
        raise ConfigError(f"--gpus-per-worker: must be positive, got {args.gpus_per_worker:g}")
    from stepsearch.config import read_space
    from stepsearch.loading import scored_recipe, space_images
    from stepsearch.planning import plan_search
    from stepsearch.progress import Display
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable

    settings = read_space(args.file, args.overrides)
    with Display() as display, Signals("the same command") as signals:
        images = space_images(settings, display, signals, allow_code=args.allow_code)
        for recipe in settings.networks:
            check_buildable(recipe, images[recipe.name])
        scored = images[scored_recipe(settings).name]
        found = plan_search(settings, images, scored, args.workers, display.say)
    share = 1.0 if args.gpus_per_worker is None else args.gpus_per_worker
    share = share if found.device == "cuda" else 1.0
    print(_json(found, share) if args.format == "json" else _table(found, share))
    return 0


def _json(found: Plan, share: float) -> str:
    data = asdict(found)
    hours = {name: value * share for name, value in data.pop("hours").items()}
    data["gpu_hours" if found.device == "cuda" else "core_hours"] = hours
    data["size"]["exact"] = found.size.exact
    return json.dumps(data, indent=2)


def _table(found: Plan, share: float) -> str:
    kind = "GPU" if found.device == "cuda" else "core"
    hours = (found.hours.p50 * share, found.hours.p90 * share)
    rows = [
        ("cheap candidate", _timing(found.cheap)),
        ("dear candidate", _timing(found.dear)),
        ("trials", f"{found.trials} at most"),
        (f"{kind}-hours", f"{_hours(hours[0])}, in nine of ten cases below {_hours(hours[1])}"),
        (
            f"wall time, {found.workers} worker{'s' if found.workers > 1 else ''}",
            f"{_hours(found.wall_hours.p50)}, in nine of ten cases below "
            f"{_hours(found.wall_hours.p90)}",
        ),
        ("disk", f"{found.disk_mb:.3g} MB of journal and tables"),
        ("different schedules", _size(found.size)),
        ("meet the constraints", f"{found.accepted:.1%} of {found.drawn} random genomes"),
    ]
    for name, steps in found.training_steps.items():
        rows.append((f"to train: {name}", f"{steps} steps, not in the hours above"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _timing(timing: Timing) -> str:
    low, high = min(timing.seconds), max(timing.seconds)
    return (
        f"{timing.gflops_per_image:.4g} GFLOPs per image, {low:.3g} to {high:.3g} s "
        f"(from {timing.images} images)"
    )


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{60 * hours:.2g} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def _size(size: Size) -> str:
    genomes = f"of {size.genomes:.3g} genomes"
    if size.exact:
        shown = f"{size.schedules:,.0f}" if size.schedules < 1e9 else f"{size.schedules:.4g}"
        return f"{shown}, counted, {genomes}"
    digits = max(1, 1 + math.ceil(math.log10(size.schedules / size.error)))
    return f"about {size.schedules:.{digits}g} +- {size.error:.1g}, estimated, {genomes}"
