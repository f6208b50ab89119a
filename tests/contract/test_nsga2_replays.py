"""NSGA-II asks today what it asked when the run of results/reference/digits was made.

The reason of this snapshot: a run is resumed by replay, so other asks would strand every journal.
"""

import csv
import json
from pathlib import Path

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.config import read_space
from stepsearch.core.protocols import NetCard
from stepsearch.search import Compiler, search_problem

ROOT = Path(__file__).parents[2]
RUN = ROOT / "results" / "reference" / "digits"


def test_the_reference_run_is_asked_again_schedule_by_schedule():
    with (RUN / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["trial_id"]))
    values = {row["key"]: (float(row["fid"]), float(row["gflops_per_image"])) for row in rows}
    words = ["search.algorithm=nsga2", "search.population=24", "search.seed=0"]
    settings = read_space(ROOT / "search_spaces" / "digits.yaml", words)
    (recipe,) = settings.recipes
    sha256 = json.loads((RUN / "env.json").read_text())["supernets"]["digits"]["sha256"]
    flops = tuple(1e6 * width for width in recipe.widths)  # a schedule's key does not depend on it
    card = NetCard("digits", sha256, "unet", "vp-linear-1000", (1, 8, 8), recipe.widths, flops)
    compiler = Compiler(settings, {"digits": card})
    algorithm = ALGORITHMS["nsga2"](search_problem(settings, compiler), settings.search)
    asked = []
    while len(asked) < len(rows):
        keys = [compiler.schedule(genome).key() for genome in algorithm.ask()]
        algorithm.tell([values[key] for key in keys])
        asked += keys
    assert asked == [row["key"] for row in rows]
