"""`stepsearch run`, `resume` and `fork`: searches and where they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stepsearch.cli.common import read_resources, run_folder
from stepsearch.core.errors import ConfigError


def runs_arguments(
    run: argparse.ArgumentParser, resume: argparse.ArgumentParser, fork: argparse.ArgumentParser
) -> None:
    """Arguments of the three commands."""
    text = "run directory, or a URI as s3://bucket/run (default results/NAME)"
    run.add_argument("-o", "--output", help=text)
    run.add_argument("--seed", type=int, help="seed of the search; same as search.seed=S")
    run.add_argument("--resume", action="store_true", help="continue if the directory is there")
    text = "the run, and a larger budget if it is to go on"
    resume.add_argument("words", nargs="*", metavar="RUN|search.generations=N", help=text)
    resume.set_defaults(needed="one RUN")
    text = "the run, the space of the new one (default: the same), and any overrides"
    fork.add_argument("words", nargs="*", metavar="RUN|FILE|key=value", help=text)
    fork.add_argument("-o", "--output", required=True, help="the new run directory, or a URI")
    fork.set_defaults(files=(1, 2), needed="a RUN and at most one FILE")
    for sub in (run, resume, fork):
        sub.add_argument("--workers", type=int, default=1, help="concurrent trials (default 1)")
        sub.add_argument("--executor", choices=("auto", "local", "ray"), default="auto")
        sub.add_argument("--address", help="of a running Ray cluster (default: start one here)")
        sub.add_argument("--gpus-per-worker", type=float, help="fractions allowed")
        text = "import the code that a recipe names under data: {dataset: ...}"
        sub.add_argument("--allow-code", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Search a space."""
    from stepsearch.config import read_space
    from stepsearch.remote import open_place
    from stepsearch.run import start_run

    resources = read_resources(args)
    seed = [] if args.seed is None else [f"search.seed={args.seed}"]
    settings = read_space(args.file, [*args.overrides, *seed])
    out, mirror = open_place(args.output or str(Path("results") / settings.name))
    typed = args.file.read_text(encoding="utf-8-sig")
    how = {"resume": args.resume, "allow_code": args.allow_code}
    start_run(settings, out, typed, resources, **how, mirror=mirror)
    print(out if mirror is None else mirror.uri)
    return 0


def resume(args: argparse.Namespace) -> int:
    """Continue a run, with a larger budget where one is given."""
    from stepsearch.remote import open_place
    from stepsearch.run import resume_run

    foreign = [text for text in args.overrides if not text.startswith("search.generations=")]
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: only search.generations of a run may change; begin another run from it "
            f"with `stepsearch fork {args.file} {foreign[0]} -o NEW`"
        )
    out, mirror = open_place(args.place)
    how = {"allow_code": args.allow_code, "mirror": mirror}
    resume_run(out, read_resources(args), args.overrides, **how)
    print(args.place)
    return 0


def fork(args: argparse.Namespace) -> int:
    """A new run that begins from the front of another and knows what was measured there."""
    from stepsearch.config import read_space
    from stepsearch.remote import open_place
    from stepsearch.run import RESOLVED, start_run
    from stepsearch.store import is_run

    source = run_folder(args.place).absolute()
    if not is_run(source):
        raise ConfigError(f"{args.file}: no run directory to begin from; name the RUN first")
    space = args.more[0] if args.more else source / RESOLVED
    warm = f"search.warm_start={json.dumps([str(source)])}"
    settings = read_space(space, [*args.overrides, warm])
    typed = space.read_text(encoding="utf-8-sig")
    resources = read_resources(args)
    out, mirror = open_place(args.output)
    how = {"resume": False, "allow_code": args.allow_code}
    start_run(settings, out, typed, resources, **how, mirror=mirror)
    print(args.output)
    return 0
