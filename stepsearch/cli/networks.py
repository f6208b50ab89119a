"""Commands that make networks and what they are measured with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stepsearch.cli.common import find_network, read_resources
from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.core.protocols import NetCard
    from stepsearch.core.settings import EvaluationSettings
    from stepsearch.progress import Display

EVAL_OPTIONS = {"images": 5000, "calls": 10, "seed": 0, "features": "classifier", "weights": None}


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` is told."""
    parser.epilog = "Weights, checkpoint and a table of the losses are written beside the recipe."
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    text = "train data-parallel on so many Ray workers (default 1: in this process); the recipe's "
    text += "folder must be on a file system that all of their nodes share"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=text)
    parser.add_argument("--address", help="of a running Ray cluster (default: start one here)")
    parser.add_argument("--gpus-per-worker", type=float, metavar="F", help="default: shared evenly")
    parser.set_defaults(executor="auto")
    text = "measure the FID of every width alone, and write it, and images, beside the weights"
    parser.add_argument("--eval", action="store_true", help=text)
    parser.add_argument("--images", type=int, help="per width of --eval (default 5000)")
    parser.add_argument("--calls", type=int, help="network calls per image (default 10)")
    parser.add_argument("--seed", type=int, help="of the noise of --eval (default 0)")
    parser.add_argument("--features", metavar="NAME", help="extractor (default classifier)")
    text = "of the extractor, a local file"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=text)


def train(args: argparse.Namespace) -> int:
    """Train the supernet of a recipe, and measure its widths; the path of weights is printed."""
    given = _eval_options(args)
    from stepsearch.loading import read_data
    from stepsearch.network_training import check_team
    from stepsearch.network_training import train as run_training
    from stepsearch.progress import Display
    from stepsearch.recipe_config import read_recipe
    from stepsearch.report_training import eval_path, measure_widths, prepare_widths
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable

    resources, recipe = read_resources(args), read_recipe(args.file, args.overrides)
    check_team(recipe, resources)
    with Display() as display, Signals("the same command") as signals:
        data = read_data(recipe, display, signals, allow_code=args.allow_code)
        check_buildable(recipe, data)
        if args.eval:
            display.stage("features and reference statistics", 1)
            calls, settings = given["calls"], _settings(given, args.device)
            spec, floor = prepare_widths(recipe, data, settings, calls)
        training = (recipe, data, display, signals, args.device, resources)
        path, card = run_training(*training, allow_code=args.allow_code)
        if not args.eval:
            _say_widths(card, display)
        else:
            total = len(card.widths)
            display.stage("FID of every width", total)

            def on_width(done: int) -> None:
                signals.check()
                display.advance("FID of every width", done, total)

            rows = measure_widths(spec, path, calls, on_width)
            _say_table(rows, floor, display)
            display.say(f"{eval_path(path)}: the table; images in {path.stem}-w*.png beside it")
    print(path)
    return 0


def distill_arguments(parser: argparse.ArgumentParser) -> None:
    """What `distill` is told."""
    parser.epilog = "The student's weights, checkpoint and losses are written beside its recipe."
    text = "the network to distil: a recipe, or a NAME of `stepsearch ls` (default: the recipe's)"
    parser.add_argument("--teacher", metavar="NAME", help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def distill(args: argparse.Namespace) -> int:
    """Distil the student of a recipe, its teacher trained first if need be; its path is printed."""
    from stepsearch.loading import read_data
    from stepsearch.network_training import train as run_training
    from stepsearch.progress import Display
    from stepsearch.recipe_config import read_recipe
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable

    teacher = [] if args.teacher is None else [f"distill.teacher={_teacher(args.teacher)}"]
    recipe = read_recipe(args.file, [*args.overrides, *teacher])
    if recipe.distill is None:
        raise ConfigError(
            f"{args.file}: no recipe of a student; give it a distill section, or train it with "
            f"`stepsearch train`"
        )
    with Display() as display, Signals("the same command") as signals:
        data = read_data(recipe, display, signals, allow_code=args.allow_code)
        check_buildable(recipe, data)
        path, _ = run_training(recipe, data, display, signals, args.device)
    print(path)
    return 0


def _teacher(name: str) -> Path:
    """The recipe that an option's path or name stands for."""
    found = find_network(name)
    if found is None or found.suffix == ".safetensors":
        raise ConfigError(
            f"--teacher: '{name}' is neither a recipe nor a name that `stepsearch ls` lists under "
            f"supernets; weights alone need a recipe with `init`"
        )
    return found.resolve()


def _eval_options(args: argparse.Namespace) -> dict:
    """Options of --eval with their defaults; ConfigError for one that makes no sense."""
    given = {name: getattr(args, name) for name in EVAL_OPTIONS}
    stray = [name for name, value in given.items() if value is not None]
    if stray and not args.eval:
        raise ConfigError(f"--{stray[0]}: says how widths are measured; add --eval")
    given = {k: EVAL_OPTIONS[k] if v is None else v for k, v in given.items()}
    for name, least in (("images", 4), ("calls", 1), ("seed", 0)):
        if not least <= given[name] < 2**63:
            raise ConfigError(f"--{name}: must be at least {least}, got {given[name]}")
    weights = given["weights"]
    if weights is not None and not weights.is_file():
        raise ConfigError(f"--weights: {weights}: no such file; correct the path")
    return given


def _settings(given: dict, device: str) -> EvaluationSettings:
    from stepsearch.core.settings import EvaluationSettings
    from stepsearch.objectives.features import check_extractor

    try:
        check_extractor(given["features"])
    except ConfigError as error:
        text = str(error).removeprefix("evaluation.features: ")
        raise ConfigError(f"--features: {text}") from None
    weights = None if given["weights"] is None else str(given["weights"].resolve())
    images, seed, features = given["images"], given["seed"], given["features"]
    return EvaluationSettings(
        images=images, seed=seed, features=features, weights=weights, device=device
    )


def _say_widths(card: NetCard, display: Display) -> None:
    for width, flops in zip(card.widths, card.flops, strict=True):
        loss = card.training.get("loss", {}).get(f"{width:g}")
        shown = "" if loss is None else f", loss {loss:.4f}"
        display.say(f"width {width:g}: {flops / 1e9:.4g} GFLOPs per image and call{shown}")


def _say_table(rows: list[dict[str, str]], floor: float | None, display: Display) -> None:
    """Columns that a person compares; the rest is in the file."""
    first = rows[0]
    display.say(
        f"FID of {first['n_samples']} images, {first['solver']} on {first['grid']}, "
        f"{first['nfe']} calls, seed {first['seed']}, {first['metric_id']}"
    )
    display.say("width    loss  GFLOPs/call  of widest      FID    +-  of widest")
    for row in rows:
        loss = "" if row["loss"] == "" else f"{float(row['loss']):.4f}"
        n = {k: float(row[k]) for k in row if k.startswith(("gflops", "fid"))}
        display.say(
            f"{float(row['width']):<5g} {loss:>7} {n['gflops_per_call']:>12.4g} "
            f"{n['gflops_over_widest']:>9.1%} {n['fid']:>9.2f} {n['fid_se']:>5.2f} "
            f"{n['fid_over_widest']:>9.2f}x"
        )
    if floor is not None:
        display.say(f"real images against real: FID {floor:.4g}")
