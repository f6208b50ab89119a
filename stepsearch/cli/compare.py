"""`stepsearch compare`: how well searches spend what they are given."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepsearch.cli.common import run_folder
from stepsearch.core.errors import ConfigError


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("runs", nargs="+", type=run_folder, metavar="RUN")
    text = "of the runs, in their order; runs of one label are repeats (default: each its own)"
    parser.add_argument("--label", nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument("-o", "--output", type=Path, help="folder for compare.csv and the plots")
    parser.add_argument("-f", "--format", choices=("table", "csv", "json"), default="table")


def compare(args: argparse.Namespace) -> int:
    """Hypervolume of runs against evaluations and against GFLOPs spent."""
    from stepsearch.comparing import (
        Search,
        bound_of,
        check_comparable,
        common_front,
        curves_of,
        results_of,
    )
    from stepsearch.core.files import write_atomic
    from stepsearch.store import load_run
    from stepsearch.tables import markdown_table

    names = [run.name for run in args.runs]
    labels = args.label or (names if len(set(names)) == len(names) else [*map(str, args.runs)])
    if len(labels) != len(args.runs):
        raise ConfigError(f"--label: {len(labels)} labels for {len(args.runs)} runs; give one each")
    searches = []
    for label, path in zip(labels, args.runs, strict=True):
        run = load_run(path)
        searches.append(Search(label, str(path), tuple(run.env["objectives"]), run.trials))
    check_comparable(searches)
    bound = bound_of(common_front(searches))
    curves = curves_of(searches, tuple(bound))
    results = results_of(curves)
    if args.output is not None:
        if (args.output / "compare.csv").exists():
            raise ConfigError(f"{args.output}/compare.csv: exists already; choose another folder")
        from stepsearch.report_compare import plot_curves

        write_atomic(args.output / "compare.csv", curves.to_csv(index=False).encode())
        plot_curves(curves, args.output / "compare")
    if args.format == "csv":
        print(results.to_csv(index=False), end="")
    elif args.format == "json":
        print(results.to_json(orient="records", indent=2))
    else:
        shown = ", ".join(
            f"{n} {b:.4g}" for n, b in zip(searches[0].objectives, bound, strict=True)
        )
        print(markdown_table(results), end="")
        print(f"\nhypervolume within {shown}")
    return 0
