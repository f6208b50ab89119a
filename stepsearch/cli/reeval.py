"""`stepsearch reeval`: the front of a run, measured again with many images and fresh noise."""

from __future__ import annotations

import argparse
import sys

from stepsearch.cli.common import read_resources


def reeval_arguments(parser: argparse.ArgumentParser) -> None:
    """What `reeval` is told."""
    parser.epilog = (
        "Writes RUN/reeval.csv and RUN/reeval.json and prints what they say. A stopped call "
        "continues where it was; one with more seeds measures what is missing."
    )
    text = "images of one evaluation (default 50000)"
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help=text)
    text = "evaluations of each schedule, with noise that the search has not seen (default 3)"
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help=text)
    text = "trials beside the front (default: as many as it has, and at least 20 in all)"
    parser.add_argument("--neighbours", type=int, metavar="K", help=text)
    parser.add_argument("--workers", type=int, default=1, help="concurrent trials (default 1)")
    parser.add_argument("--executor", choices=("auto", "local", "ray"), default="auto")
    parser.add_argument("--address", help="of a running Ray cluster (default: start one here)")
    parser.add_argument("--gpus-per-worker", type=float, help="fractions allowed")
    text = "import the code that the run's recipe names under data: {dataset: ...}"
    parser.add_argument("--allow-code", action="store_true", help=text)


def reeval(args: argparse.Namespace) -> int:
    """Measure again; the sentence for a paper is printed, a warning goes to stderr."""
    from stepsearch.reeval import Again, reevaluate
    from stepsearch.remeasured import LEAST_TAU
    from stepsearch.remote import open_place

    again = Again(args.samples, args.seeds, args.neighbours)
    _, mirror = open_place(str(args.run))
    found = reevaluate(args.run, again, read_resources(args), allow_code=args.allow_code)
    if mirror is not None:
        mirror.push([*sorted(args.run.glob("reeval*")), *sorted((args.run / "plots").iterdir())])
    tau = found.summary["kendall_tau_b"]["tau"]
    if tau < LEAST_TAU:
        print(
            f"warning: Kendall's tau-b is {tau:.2f}, below {LEAST_TAU:g}: the search could not "
            f"trust so few images; search again with more evaluation.images",
            file=sys.stderr,
        )
    print(found.summary["sentence"])
    return 0
