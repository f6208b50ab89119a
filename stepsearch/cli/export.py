"""`stepsearch export`: a run in the form that other programs read."""

from __future__ import annotations

import argparse

from stepsearch.core.errors import ConfigError

FORMATS = ("optuna",)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """What `export` is told."""
    parser.epilog = "Repeat it while a search is running: trials that are new are added."
    text = "`--to optuna sqlite:///x.db` writes a study for optuna-dashboard"
    parser.add_argument("--to", nargs=2, required=True, metavar=("FORMAT", "PLACE"), help=text)
    parser.add_argument("--study", metavar="NAME", help="of the study (default: the run's name)")


def export(args: argparse.Namespace) -> int:
    """Write the study; its name is printed."""
    import sys

    from stepsearch.optuna_export import export_optuna

    kind, place = args.to
    if kind not in FORMATS:
        raise ConfigError(f"--to: unknown format '{kind}'; known: {', '.join(FORMATS)}")
    done = export_optuna(args.run, place, args.study)
    text = f"study '{done.study}': {done.added} trials added, {done.total} in all"
    print(text, file=sys.stderr)
    print(done.study)
    return 0
