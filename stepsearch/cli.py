"""The command line: arguments, exit statuses, and the only place that writes to stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stepsearch.core.errors import ConfigError, StepsearchError

if TYPE_CHECKING:
    from stepsearch.core.schedule import StepSchedule
    from stepsearch.progress import Display
    from stepsearch.run import Resources
    from stepsearch.sample import Nets

PATIENCE = 2.0  # seconds before progress is shown

EXITS = """exit status: 0 done, 1 internal error, 2 bad input, 3 too many failed trials,
4 no completed trial, 5 run directory corrupt, locked or of another search,
75 stopped by a signal and resumable, 130 stopped by a second signal"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stepsearch",
        description="Search which network width each diffusion step should use, jointly with the "
        "solver, and get a Pareto front of image quality against compute.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("stepsearch"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, target: str, metavar: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        if target:
            added.add_argument(target, type=Path, metavar=metavar or target.upper())
        return added

    text = "the file, and any overrides such as search.population=8"
    words = {"nargs": "*", "metavar": "FILE|key=value", "help": text}
    run = command("run", "search a space, e.g. `run search_spaces/digits.yaml --workers 2`", "")
    run.add_argument("words", **words)
    run.add_argument("-o", "--output", type=Path, help="run directory (default results/NAME)")
    run.add_argument("--seed", type=int, help="seed of the search; same as search.seed=S")
    run.add_argument("--resume", action="store_true", help="continue if the directory is there")
    resume = command("resume", "continue a stopped run from its journal", "run")
    for sub in (run, resume):
        sub.add_argument("--workers", type=int, default=1, help="concurrent trials (default 1)")
        sub.add_argument("--executor", choices=("auto", "local", "ray"), default="auto")
        sub.add_argument("--address", help="of a running Ray cluster (default: start one here)")
        sub.add_argument("--gpus-per-worker", type=float, help="fractions allowed")
    train = command("train", "train the supernet of a recipe; unchanged ones are kept", "")
    train.add_argument("words", **words)
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    validate = command("validate", "check a space or recipe file and its data", "")
    validate.add_argument("words", **words)
    status = command("status", "how far a run is", "run")
    status.add_argument("--json", action="store_true")
    front = command("front", "print the Pareto front", "run")
    front.add_argument("-f", "--format", choices=("table", "csv", "json"), default="table")
    front.add_argument(
        "--savings", action="store_true", help="what the search saves on each uniform width"
    )
    command("plot", "redraw the plots of a run", "run")
    _sample_arguments(command("sample", "write images of a trial, or of a schedule file", ""))
    command("ls", "list space files and recipes, here and shipped", "")
    return parser


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Image j starts from the same noise in every folder, so grids can be compared."
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN")
    text = "trial_id, key, or the beginning of a key"
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help=text)
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="instead of RUN and TRIAL")
    text = "of the schedule: a recipe, a NAME of `stepsearch ls`, or weights (.safetensors)"
    parser.add_argument("--supernet", metavar="NAME", help=text)
    parser.add_argument("--guide", metavar="NAME", help="classifier of the schedule, likewise")
    parser.add_argument("-n", "--count", type=int, default=64, help="images (default 64)")
    parser.add_argument("--seed", type=int, help="of the noise (default: the run's, else 0)")
    parser.add_argument("--batch", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("-o", "--output", type=Path, help="folder (default RUN/samples/KEY)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; FILE and key=value overrides may stand anywhere after the command."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    words = hasattr(args, "words")
    stray = [a for a in rest if a.startswith("-") or not words]
    if stray:
        parser.error(f"unrecognised argument '{stray[0]}' after '{args.command}'")
    if words:
        given = [*args.words, *rest]
        files = [w for w in given if "=" not in w or Path(w).is_file()]
        if len(files) != 1:
            parser.error(f"{args.command}: one FILE is needed, got {files or 'none'}")
        args.file = Path(files[0])
        args.overrides = [w for w in given if w not in files]
    return args


def _run(args: argparse.Namespace) -> int:
    from stepsearch.config import read_space
    from stepsearch.run import start_run

    resources = _resources(args)
    seed = [] if args.seed is None else [f"search.seed={args.seed}"]
    settings = read_space(args.file, [*args.overrides, *seed])
    out = args.output or Path("results") / settings.name
    typed = args.file.read_text(encoding="utf-8-sig")
    start_run(settings, out, typed, resources, resume=args.resume)
    print(out)
    return 0


def _resume(args: argparse.Namespace) -> int:
    from stepsearch.run import resume_run

    resume_run(args.run, _resources(args))
    print(args.run)
    return 0


def _resources(args: argparse.Namespace) -> Resources:
    from stepsearch.run import Resources

    if args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    if args.gpus_per_worker is not None and args.gpus_per_worker < 0:
        raise ConfigError(f"--gpus-per-worker: must not be negative, got {args.gpus_per_worker:g}")
    return Resources(args.workers, args.executor, args.address, args.gpus_per_worker)


def _train(args: argparse.Namespace) -> int:
    from stepsearch.config import read_recipe
    from stepsearch.progress import Display
    from stepsearch.run import train
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable, recipe_data

    recipe = read_recipe(args.file, args.overrides)
    data = recipe_data(recipe)
    check_buildable(recipe, data)
    with Display() as display, Signals("the same command") as signals:
        path, card = train(recipe, data, display, signals, args.device)
        for width, flops in zip(card.widths, card.flops, strict=True):
            loss = card.training.get("loss", {}).get(f"{width:g}")
            shown = "" if loss is None else f", loss {loss:.4f}"
            display.say(f"width {width:g}: {flops / 1e9:.4g} GFLOPs per image and call{shown}")
    print(path)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from stepsearch.config import read_recipe, read_space
    from stepsearch.core.yamlfile import read_yaml
    from stepsearch.supernet import check_buildable, recipe_data

    if "supernets" in read_yaml(args.file, args.overrides).section():
        settings = read_space(args.file, args.overrides)
        recipes, search = settings.networks, settings.search
        sizes = [n for _, n in settings.space.genes]
        summary = f"{len(sizes)} genes, {search.population * search.generations} trials"
    else:
        recipes = (read_recipe(args.file, args.overrides),)
        summary = f"recipe '{recipes[0].name}', widths {list(recipes[0].widths)}"
    for recipe in recipes:
        check_buildable(recipe, recipe_data(recipe))
    print(f"{args.file}: fine: {summary}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from stepsearch.core.yamlfile import read_yaml
    from stepsearch.store import JOURNAL, is_run, read_journal

    if not is_run(args.run):
        raise ConfigError(f"{args.run}: no run directory (no {JOURNAL})")
    search = read_yaml(args.run / "resolved.yaml").section().need("search").section()
    generations = search.need("generations").whole(1)
    trials, _ = read_journal(args.run / JOURNAL)
    planned = search.need("population").whole(1) * generations
    fids = [t.result.values["fid"] for t in trials if t.complete and "fid" in t.result.values]
    state = {
        "run": str(args.run),
        "trials": len(trials),
        "planned": planned,
        "failed": sum(not t.complete for t in trials),
        "generation": max((t.generation for t in trials), default=0) + 1,
        "generations": generations,
        "best_fid": min(fids, default=None),
    }
    print(json.dumps(state) if args.json else "\n".join(f"{k:12} {v}" for k, v in state.items()))
    return 0


def _front(args: argparse.Namespace) -> int:
    from stepsearch.store import load_run
    from stepsearch.tables import front_text, markdown_table, savings

    run = load_run(args.run)
    frame = savings(run.trials) if args.savings else run.pareto
    if args.format == "csv":
        print(frame.to_csv(index=False), end="")
    elif args.format == "json":
        print(frame.to_json(orient="records", indent=2))
    else:
        print(markdown_table(frame) if args.savings else front_text(frame), end="")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from stepsearch.report import plot_all
    from stepsearch.store import load_run

    run = load_run(args.run)
    folder = args.run / "plots"
    for path in plot_all(run.trials, run.pareto, run.generations, run.schedules, folder):
        print(path)
    return 0


def _sample(args: argparse.Namespace) -> int:
    _check_sample(args)  # before torch is imported
    from stepsearch.evaluate import pick_device
    from stepsearch.progress import Display
    from stepsearch.sample import Job, check_output, write_samples

    device = pick_device(args.device)
    schedule, nets, seed = (_sample_file if args.schedule else _sample_run)(args, device)
    seed = seed if args.seed is None else args.seed
    folder = args.output or (args.run or Path()) / "samples" / schedule.key()
    check_output(folder)
    job = Job(schedule, args.count, seed, args.batch, device)
    with Display() as display:
        write_samples(folder, job, nets, _delayed(display, "images", args.count))
    print(folder)
    return 0


def _check_sample(args: argparse.Namespace) -> None:
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


def _sample_run(args: argparse.Namespace, device: str) -> tuple[StepSchedule, Nets, int]:
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
    nets = run_networks(schedule, settings.networks, device)
    return schedule, nets, settings.evaluation.seed


def _sample_file(args: argparse.Namespace, device: str) -> tuple[StepSchedule, Nets, int]:
    """Schedule of a file, bound to the networks that are named."""
    from stepsearch.sample import bind, read_schedule

    given = read_schedule(args.schedule)
    net = _network("--supernet", args.supernet, "eps", device)
    guide = None if args.guide is None else _network("--guide", args.guide, "gradient", device)
    try:
        schedule = bind(given, net.card, None if guide is None else guide.card)
    except ConfigError as error:
        raise ConfigError(f"{args.schedule}: {error}") from None
    (old,), (new,) = given.stages, schedule.stages
    for was, now in ((old.net, new.net), (old.guide, new.guide)):
        if was != now:
            print(f"{args.schedule}: made for {was}, sampled with {now}", file=sys.stderr)
    return schedule, {n.card.key: n for n in (net, guide) if n is not None}, 0


def _network(option: str, name: str, ability: str, device: str) -> Any:
    """What a path of weights, a path of a recipe, or a recipe's name stands for."""
    from stepsearch.config import read_recipe
    from stepsearch.nets.load import load_net
    from stepsearch.sample import recipe_weights

    paths = [Path(name), *(root / "supernets" / f"{name}.yaml" for root in _roots())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{option}: '{name}' is neither a recipe, nor weights, nor a name that `stepsearch ls` "
            f"lists under supernets"
        )
    weights = path if path.suffix == ".safetensors" else recipe_weights(read_recipe(path))
    net = load_net(weights, device=device)
    if not hasattr(net, ability):
        what = {"eps": "predicts no noise", "gradient": "is no classifier"}[ability]
        raise ConfigError(f"{option}: '{name}' is of family '{net.card.family}' and {what}")
    return net


def _delayed(display: Display, name: str, total: int) -> Callable[[int], None]:
    """Shows progress from the third second on: what is over sooner needs none."""
    start, shown = time.monotonic(), False

    def advance(done: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start > PATIENCE:
            display.stage(name, total)
            shown = True
        if shown:
            display.advance(name, done, total)

    return advance


def _roots() -> tuple[Path, Path, Path]:
    """Where spaces and recipes lie: here, in a checkout, in an installed package."""
    package = Path(__file__).parent
    return Path(), package.parent, package / "recipes"


def _ls(args: argparse.Namespace) -> int:
    """One line per file: path and its first comment."""
    seen = set()
    for folder in ("search_spaces", "supernets"):
        for root in _roots():
            for path in sorted((root / folder).glob("*.yaml")):
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
                    print(f"{path}  {first.lstrip('# ')}")
    return 0


COMMANDS = {
    "run": _run,
    "resume": _resume,
    "train": _train,
    "validate": _validate,
    "status": _status,
    "front": _front,
    "plot": _plot,
    "sample": _sample,
    "ls": _ls,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args = _parse(argv)
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except StepsearchError as error:
        print(f"stepsearch: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is not ours
        where = f"{error.filename}: " if error.filename else ""
        print(f"stepsearch: {where}{error.strerror or error}", file=sys.stderr)
        return 1
