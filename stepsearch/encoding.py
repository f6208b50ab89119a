"""Schedules read back into the genes of a space: the genome whose schedule is the nearest.

What a schedule does at a noise level is what counts, so it may come from a network of another
resolution, from another number of calls, or from a hand.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepsearch.build import build_schedule, gene_levels
from stepsearch.core.errors import SpaceError
from stepsearch.core.protocols import Genome, NetCard
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.core.space import Candidate, SearchSpace

WIDTH_GENE = re.compile(r"(relay_|distilled_)?width_\d+")
POINTS = np.linspace(0, 1, 9)  # of the way along a grid, where two grids are compared
SWEEPS, STARTS = 4, 12  # over all genes, and beginnings beside the first, at most
STAGES, NETWORK, SOLVER, CALLS = 1000.0, 100.0, 10.0, 5.0  # weights; a factor e of noise counts 1


def nearest_genome(
    schedule: StepSchedule, space: SearchSpace, cards: Mapping[str, NetCard]
) -> Genome:
    """The genome of `space` that comes nearest to a schedule.

    Solver, number of calls, grid and guidance are chosen one gene after the other until none
    improves, from several beginnings; every width gene then takes the choice nearest to the width
    that `schedule` has at the noise level for which the gene stands.
    """
    genes = space.genes
    free = [i for i, (name, size) in enumerate(genes) if size > 1 and not WIDTH_GENE.match(name)]
    sizes = [size for _, size in genes]

    def miss(trial: Sequence[int]) -> float:
        try:
            return distance(build_schedule(space.decode(tuple(trial)), cards), schedule)
        except SpaceError:  # a combination that nothing can carry out
            return math.inf

    best: tuple[float, list[int]] | None = None
    for start in (*space.uniform_genomes(1), *space.setting_genomes(STARTS)):
        found = _descended(list(start), free, sizes, miss)
        best = found if best is None or found[0] < best[0] else best
        if best[0] == 0:
            break
    assert best is not None
    return _with_widths(best[1], schedule, space, cards)


def _descended(
    genome: list[int], free: Sequence[int], sizes: Sequence[int], miss: Callable[..., float]
) -> tuple[float, list[int]]:
    """Least `miss` that changes of one gene at a time lead to, with its genome."""
    best = miss(genome)
    for _ in range(SWEEPS):
        before = best
        for i in free:
            kept = genome[i]
            for value in range(sizes[i]):
                genome[i] = value
                if (found := miss(genome)) < best:
                    best, kept = found, value
            genome[i] = kept
        if best == before:
            break
    return best, genome


def _with_widths(
    genome: Sequence[int], schedule: StepSchedule, space: SearchSpace, cards: Mapping[str, NetCard]
) -> Genome:
    candidate = space.decode(tuple(genome))
    stages: list[tuple[str, Candidate, Sequence[float]]]
    if candidate.distilled:
        assert space.distilled is not None
        stages = [("distilled_", candidate, space.distilled.width_choices)]
    else:
        stages = [("", candidate, space.width_choices)]
    if candidate.second is not None:
        assert space.relay is not None
        stages.append(("relay_", candidate.second, space.relay.space.width_choices))
    places = {name: i for i, (name, _) in enumerate(space.genes)}
    found = list(genome)
    for n, (prefix, part, choices) in enumerate(stages):
        calls = schedule.stages[min(n, len(schedule.stages) - 1)].calls
        for i, level in enumerate(gene_levels(part, cards)):
            width = _width_at(calls, level)
            nearest = min(range(len(choices)), key=lambda c: abs(choices[c] - width))
            found[places[f"{prefix}width_{i}"]] = nearest
    return tuple(found)


def _width_at(calls: Sequence[Call], level: float) -> float:
    """Width of the call that is nearest in log noise level."""
    return min(calls, key=lambda call: abs(math.log(call.level / level))).width


def distance(one: StepSchedule, other: StepSchedule) -> float:
    """How differently two schedules walk, whatever their widths; 0 for equal ones."""
    total = STAGES * abs(len(one.stages) - len(other.stages))
    return total + sum(map(_stage_distance, one.stages, other.stages))


def _stage_distance(one: Stage, other: Stage) -> float:
    total = NETWORK * (one.net.partition("@")[0] != other.net.partition("@")[0])
    total += SOLVER * (one.solver != other.solver)
    total += CALLS * abs(math.log(len(one.calls) / len(other.calls)))
    total += _argument_distance(one.args, other.args) + _guidance_distance(one, other)
    logs = [np.log([c.level for c in stage.calls]) for stage in (one, other)]
    paths = [np.interp(POINTS, np.linspace(0, 1, len(log)), log) for log in logs]
    return total + float(np.abs(paths[0] - paths[1]).mean())


def _argument_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """1 for every argument that differs, for numbers their relative difference."""
    total = 0.0
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        numbers = [v for v in (a, b) if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == 2 and a != b:
            total += abs(numbers[0] - numbers[1]) / max(map(abs, numbers))
        else:
            total += a != b
    return total


def _guidance_distance(one: Stage, other: Stage) -> float:
    """Mean difference of the scale over the calls of `other`, at the nearest noise level."""
    if one.guide is None and other.guide is None:
        return 0.0
    levels = sorted(call.level for call in one.calls)
    scales = {call.level: call.scale or 0.0 for call in one.calls}
    total = 0.0
    for call in other.calls:
        i = bisect.bisect_left(levels, call.level)
        near = min(levels[max(i - 1, 0) : i + 1], key=lambda v: abs(math.log(v / call.level)))
        total += abs(scales[near] - (call.scale or 0.0))
    return total / len(other.calls)
