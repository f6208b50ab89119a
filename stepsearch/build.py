"""Candidate -> StepSchedule: the one place where settings become an explicit list of calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.core.space import Candidate
from stepsearch.solvers.registry import GRIDS, SOLVERS


def plan_stage(
    net: NetCard,
    *,
    solver: str,
    calls: int,
    grid: str = "uniform",
    widths: float | Sequence[float] = 1.0,
    **args: Any,
) -> Stage:
    """Plan `calls` network evaluations; the fine grid follows from them.

    Args:
        net: card of the network that walks the stage.
        solver: a registered solver; `args` are its own, e.g. k and l of pfdiff.
        calls: network evaluations per image, at least 1.
        grid: a registered grid.
        widths: one width for all calls, or one per call in the order of the calls.

    Raises:
        SpaceError: a setting that the solver, the grid or the network cannot carry out.
    """
    if type(calls) is not int or calls < 1:
        raise SpaceError(f"calls must be a whole number of at least 1, got {calls!r}")
    name, args = SOLVERS[solver].canonical(calls, **args)
    method = SOLVERS[name]
    levels = (*GRIDS[grid](net.diffusion, method.nodes(calls, **args)), 0.0)
    plan = method.plan(levels, calls, **args)
    per_call = [widths] * calls if isinstance(widths, (int, float)) else list(widths)
    if len(per_call) != calls:
        raise SpaceError(f"{len(per_call)} widths for {calls} calls; give one, or one per call")
    made = tuple(Call(c.level, net.check_width(w)) for c, w in zip(plan, per_call, strict=True))
    return Stage(net=net.key, solver=name, args=args, levels=levels, calls=made)


def build_schedule(candidate: Candidate, cards: Mapping[str, NetCard]) -> StepSchedule:
    """Compile a candidate against the cards of the supernets it may choose, keyed by name."""
    if candidate.supernet not in cards:
        known = ", ".join(sorted(cards))
        raise SpaceError(f"unknown supernet '{candidate.supernet}'; known: {known}")
    card = cards[candidate.supernet]
    settings = {"solver": candidate.solver, "calls": candidate.calls, "grid": candidate.grid}
    levels = [c.level for c in plan_stage(card, **settings, **candidate.solver_args).calls]
    genes = candidate.widths
    if candidate.per_call:
        widths = [genes[i * len(genes) // len(levels)] for i in range(len(levels))]
    else:
        widths = [genes[segment(level, len(genes), card.diffusion)] for level in levels]
    stage = plan_stage(card, **settings, widths=widths, **candidate.solver_args)
    return StepSchedule((stage,))


def segment(level: float, segments: int, process: Process) -> int:
    """Which of `segments` equal parts of the range of log noise level holds `level`; 0 is noise."""
    top = math.log(process.level_at(process.last_time))
    bottom = math.log(process.level_at(process.first_time))
    part = int((top - math.log(level)) / (top - bottom) * segments)
    return min(max(part, 0), segments - 1)
