"""What the rungs of a fidelity ladder were worth: how each ranks as the next one does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from stepsearch.core.settings import Rung
from stepsearch.core.trial import Trial
from stepsearch.ties import rank_agreement

COLUMNS = ["rung", "next", "measured", "went_on", "tau", "tau_low", "tau_high"]
LEAST = 3  # trials that a rank correlation needs


def ladder_frame(trials: Sequence[Trial], ladder: Sequence[Rung], objective: str) -> pd.DataFrame:
    """Kendall's tau-b between each rung and the next, with its 95 % interval.

    Only trials that went on have both values: the better part, among which ranks agree less than
    among all. Empty where fewer than three did.

    Args:
        objective: of the full evaluation, the last `next`.
    """
    steps = [rung.name for rung in ladder] + [objective]
    rows = []
    for name, following in pairwise(steps):
        have = [t.result.values for t in trials if name in t.result.values]
        both = [v for v in have if following in v]
        row = {"rung": name, "next": following, "measured": len(have), "went_on": len(both)}
        pairs = [[v[step] for v in both] for step in (name, following)]
        if len(both) >= LEAST and all(len(set(values)) > 1 for values in pairs):
            found = rank_agreement(*pairs)
            row |= {"tau": found.tau, "tau_low": found.low, "tau_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
