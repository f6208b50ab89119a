"""`stepsearch sample`: images of a trial, or of a schedule file."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsearch.cli.common import find_network, run_folder
from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.core.schedule import StepSchedule
    from stepsearch.sample import Nets


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """What `sample` is told."""
    parser.epilog = "Image j starts from the same noise in every folder, so grids can be compared."
    parser.add_argument("run", nargs="?", type=run_folder, metavar="RUN")
    text = "trial_id, key, or the beginning of a key"
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help=text)
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="instead of RUN and TRIAL")
    text = "of the schedule: a recipe, a NAME of `stepsearch ls`, or weights (.safetensors); "
    text += "once for each of its stages, in order"
    parser.add_argument("--supernet", action="append", metavar="NAME", help=text)
    parser.add_argument("--guide", metavar="NAME", help="classifier of the schedule, likewise")
    parser.add_argument("-n", "--count", type=int, default=64, help="images (default 64)")
    parser.add_argument("--seed", type=int, help="of the noise (default: the run's, else 0)")
    parser.add_argument("--batch", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("-o", "--output", type=Path, help="folder (default RUN/samples/KEY)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def sample(args: argparse.Namespace) -> int:
    """Write images; the folder is printed."""
    _check(args)  # before torch is imported
    from stepsearch.build import coupling_warning, trained_pool
    from stepsearch.evaluate import pick_device
    from stepsearch.progress import Display, delayed
    from stepsearch.sample import Job, check_output, write_samples

    device = pick_device(args.device)
    schedule, nets, seed = (_of_file if args.schedule else _of_run)(args, device)
    seed = seed if args.seed is None else args.seed
    folder = args.output or (args.run or Path()) / "samples" / schedule.key()
    check_output(folder)
    job = Job(schedule, args.count, seed, args.batch, device)
    cards = [nets[stage.net].card for stage in schedule.stages]
    pools = {card.name: trained_pool(card) for card in cards}
    warning = coupling_warning(pools, [(stage.solver, stage.args) for stage in schedule.stages])
    with Display() as display:
        if warning is not None:
            display.say(warning)
        write_samples(folder, job, nets, delayed(display, "images"))
    print(folder)
    return 0


def _check(args: argparse.Namespace) -> None:
    """ConfigError where arguments are missing, too many or senseless."""
    from_run = [n for n in ("run", "trial") if getattr(args, n) is not None]
    from_file = [f"--{n}" for n in ("schedule", "supernet", "guide") if getattr(args, n)]
    if from_run and from_file:
        raise ConfigError(f"sample: {from_file[0]} is for a schedule file, not for RUN; drop one")
    if not from_file and len(from_run) < 2:
        missing = "TRIAL is" if from_run else "RUN and TRIAL (or --schedule and --supernet) are"
        raise ConfigError(f"sample: {missing} missing; see `stepsearch sample --help`")
    if from_file and not (args.schedule and args.supernet):
        missing = "--supernet" if args.schedule else "--schedule"
        raise ConfigError(f"sample: {missing} is missing; give --schedule and --supernet")
    for name, least in (("count", 1), ("batch", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**63:
            raise ConfigError(f"--{name}: must be at least {least}, got {value}")


def _of_run(args: argparse.Namespace, device: str) -> tuple[StepSchedule, Nets, int]:
    """Schedule, networks and seed of a trial of a run."""
    from stepsearch.config import read_space
    from stepsearch.core.schedule import StepSchedule
    from stepsearch.sample import find_trial, run_networks
    from stepsearch.store import JOURNAL, is_run, read_journal

    if not is_run(args.run):
        raise ConfigError(f"{args.run}: no run directory (no {JOURNAL})")
    trial = find_trial(read_journal(args.run / JOURNAL)[0], args.trial, args.run)
    settings = read_space(args.run / "resolved.yaml")
    schedule = StepSchedule.from_json(trial.schedule)
    nets = run_networks(schedule, settings.networks, device, allow_code=args.allow_code)
    return schedule, nets, settings.evaluation.seed


def _of_file(args: argparse.Namespace, device: str) -> tuple[StepSchedule, Nets, int]:
    """Schedule of a file, bound to the networks that are named, one for each stage."""
    from stepsearch.sample import bind, read_schedule

    given = read_schedule(args.schedule, len(args.supernet))
    named = [("supernet", "eps", name) for name in args.supernet]
    named += [("guide", "gradient", args.guide)] if args.guide is not None else []
    loaded = {one: _network(*one, args, device) for one in dict.fromkeys(named)}
    cards = [loaded[one].card for one in named]
    stages = len(given.stages)
    try:
        schedule = bind(given, cards[:stages], *cards[stages:] or [None])
    except ConfigError as error:
        raise ConfigError(f"{args.schedule}: {error}") from None
    asked, found = ([(s.net, s.guide) for s in one.stages] for one in (given, schedule))
    for was, now in dict.fromkeys(zip(chain(*asked), chain(*found), strict=True)):
        if was != now:
            print(f"{args.schedule}: made for {was}, sampled with {now}", file=sys.stderr)
    return schedule, {net.card.key: net for net in loaded.values()}, 0


def _network(option: str, ability: str, name: str, args: argparse.Namespace, device: str) -> Any:
    """What an option's path of weights, path of a recipe, or recipe's name stands for."""
    from stepsearch.nets.load import load_net
    from stepsearch.recipe_config import read_recipe
    from stepsearch.sample import recipe_weights

    path = find_network(name)
    if path is None:
        raise ConfigError(
            f"--{option}: '{name}' is neither a recipe, nor weights, nor a name that "
            f"`stepsearch ls` lists under supernets"
        )
    weights = path
    if path.suffix != ".safetensors":
        weights = recipe_weights(read_recipe(path), allow_code=args.allow_code)
    net = load_net(weights, device=device)
    if not hasattr(net, ability):
        what = {"eps": "predicts no noise", "gradient": "is no classifier"}[ability]
        raise ConfigError(f"--{option}: '{name}' is of family '{net.card.family}' and {what}")
    return net
