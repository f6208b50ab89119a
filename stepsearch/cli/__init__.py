"""The command line: arguments and exit statuses; no other package writes to stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from stepsearch.cli.common import is_space, roots, run_folder
from stepsearch.cli.compare import compare, compare_arguments
from stepsearch.cli.convert import convert, convert_arguments
from stepsearch.cli.export import export, export_arguments
from stepsearch.cli.networks import distill, distill_arguments, train, train_arguments
from stepsearch.cli.plan import plan, plan_arguments
from stepsearch.cli.reeval import reeval, reeval_arguments
from stepsearch.cli.runs import fork, resume, run, runs_arguments
from stepsearch.cli.sampling import sample, sample_arguments
from stepsearch.cli.stats import stats, stats_arguments
from stepsearch.cli.submit import submit, submit_arguments
from stepsearch.core.errors import FULL, ConfigError, NoSpace, StepsearchError

EXITS = """exit status: 0 done, 1 internal error, 2 bad input, 3 too many failed trials,
4 no completed trial, 5 run directory corrupt, locked or of another search,
75 stopped by a signal or a full disk and resumable, 130 stopped by a second signal"""


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
            kind = run_folder if target == "run" else Path
            added.add_argument(target, type=kind, metavar=metavar or target.upper())
        return added

    text = "the file, and any overrides such as search.population=8"
    words = {"nargs": "*", "metavar": "FILE|key=value", "help": text}
    searching = command(
        "run", "search a space, e.g. `run search_spaces/digits.yaml --workers 2`", ""
    )
    searching.add_argument("words", **words)
    continuing = command(
        "resume", "continue a stopped run, e.g. `resume RUN search.generations=20`", ""
    )
    text = "begin a run from another, e.g. `fork RUN space.yaml -o NEW search.seed=1`"
    runs_arguments(searching, continuing, command("fork", text, ""))
    train = command("train", "train the supernet of a recipe; unchanged ones are kept", "")
    train.add_argument("words", **words)
    train_arguments(train)
    distil = command("distill", "distil a few-step student of a network (DPDM)", "")
    distil.add_argument("words", **words)
    distill_arguments(distil)
    convert_arguments(command("convert", "make a network that others trained ours", "source"))
    validate = command("validate", "check a space or recipe file and its data", "")
    validate.add_argument("words", **words)
    stats = command("stats", "write reference statistics of the data of a recipe or space", "")
    stats.add_argument("words", **words)
    stats_arguments(stats)
    sample_command = command("sample", "write images of a trial, or of a schedule file", "")
    sample_arguments(sample_command)
    for sub in (train, distil, validate, stats, sample_command):
        text = "import the code that a recipe names under data: {dataset: ...}"
        sub.add_argument("--allow-code", action="store_true", help=text)
    status = command("status", "how far a run is", "run")
    status.add_argument("--json", action="store_true")
    front = command("front", "print the Pareto front", "run")
    front.add_argument("-f", "--format", choices=("table", "csv", "json"), default="table")
    told = front.add_mutually_exclusive_group()
    text = "what the search saves on each uniform width"
    told.add_argument("--savings", action="store_true", help=text)
    text = "where one stage, relays and distilled networks are each the best"
    told.add_argument("--kinds", action="store_true", help=text)
    text = "measure the front again with many images, and how far it can be trusted"
    reeval_arguments(command("reeval", text, "run"))
    command("plot", "redraw the plots of a run", "run")
    compare_arguments(command("compare", "hypervolume of runs by evaluations and GFLOPs", ""))
    text = "what a search will take, e.g. `plan search_spaces/digits.yaml --workers 8`"
    plan_arguments(command("plan", text, ""))
    submit_arguments(command("submit", "a search as a job of a cluster", ""))
    export_arguments(command("export", "write a run as an Optuna study", "run"))
    command("ls", "list space files and recipes, here and shipped", "")
    return parser


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
        least, most = getattr(args, "files", (1, 1))
        if not least <= len(files) <= most:
            needed = getattr(args, "needed", "one FILE")
            parser.error(f"{args.command}: {needed} is needed, got {files or 'none'}")
        args.place = files[0]  # as typed: a Path would spoil a URI
        args.file, args.more = Path(files[0]), [Path(file) for file in files[1:]]
        args.overrides = [w for w in given if w not in files]
    return args


def _validate(args: argparse.Namespace) -> int:
    from stepsearch.build import coupling_warning
    from stepsearch.config import read_space
    from stepsearch.core.space import named
    from stepsearch.loading import read_data, space_images
    from stepsearch.progress import Display
    from stepsearch.recipe_config import read_recipe
    from stepsearch.signals import Signals
    from stepsearch.supernet import check_buildable

    if is_space(args.file, args.overrides):
        settings = read_space(args.file, args.overrides)
        recipes, search = settings.networks, settings.search
        sizes = [n for _, n in settings.space.genes]
        summary = f"{len(sizes)} genes, {search.population * search.generations} trials"
        pools = {r.name: r.train.pool for r in settings.recipes if r.train is not None}
        warning = coupling_warning(pools, map(named, settings.space.solvers))
    else:
        recipes = (read_recipe(args.file, args.overrides),)
        summary = f"recipe '{recipes[0].name}', widths {list(recipes[0].widths)}"
        settings, warning = None, None
    with Display() as display, Signals("the same command") as signals:
        if settings is not None:
            images = space_images(settings, display, signals, allow_code=args.allow_code)
        else:
            (recipe,) = recipes
            data = read_data(recipe, display, signals, allow_code=args.allow_code)
            images = {recipe.name: data}
        for recipe in recipes:
            check_buildable(recipe, images[recipe.name])
        if warning is not None:
            display.say(warning)
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
    from stepsearch.remeasured import front_words
    from stepsearch.store import load_run
    from stepsearch.tables import front_text, kind_wins, markdown_table, savings

    run, made = load_run(args.run), savings if args.savings else kind_wins if args.kinds else None
    frame = run.pareto if made is None else made(run.trials)
    if args.format == "csv":
        print(frame.to_csv(index=False), end="")
    elif args.format == "json":
        print(frame.to_json(orient="records", indent=2))
    elif made is None:
        print(front_text(frame), end="")
        print(front_words(args.run, run.pareto), file=sys.stderr)
    else:
        print(markdown_table(frame), end="")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from stepsearch.remeasured import load_remeasured
    from stepsearch.report import plot_all
    from stepsearch.store import load_run

    run = load_run(args.run)
    frames = (run.trials, run.pareto, run.generations)
    again = load_remeasured(args.run, run.pareto)
    for path in plot_all(*frames, run.schedules, args.run / "plots", again):
        print(path)
    return 0


def _ls(args: argparse.Namespace) -> int:
    """One line per file: path and its first comment."""
    seen = set()
    for folder in ("search_spaces", "supernets"):
        for root in roots():
            for path in sorted((root / folder).glob("*.yaml")):
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
                    print(f"{path}  {first.lstrip('# ')}")
    return 0


COMMANDS = {
    "run": run,
    "resume": resume,
    "fork": fork,
    "train": train,
    "distill": distill,
    "convert": convert,
    "validate": _validate,
    "status": _status,
    "front": _front,
    "reeval": reeval,
    "plot": _plot,
    "compare": compare,
    "plan": plan,
    "submit": submit,
    "export": export,
    "sample": sample,
    "stats": stats,
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
        return NoSpace.exit_code if error.errno in FULL else 1
