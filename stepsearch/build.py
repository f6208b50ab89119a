"""Candidate -> StepSchedule: the one place where settings become an explicit list of calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import CLASSIFIER, Guidance
from stepsearch.core.process import Process
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import CFG, Call, Stage, StepSchedule
from stepsearch.core.space import Candidate, Range
from stepsearch.core.text import some
from stepsearch.solvers.guidance import check_conditional
from stepsearch.solvers.registry import GRIDS, SOLVERS
from stepsearch.solvers.relay import NAME as RELAY
from stepsearch.solvers.renoise import NAME as RENOISE

SLACK = 1e-9  # relative, of a level at the end of a network's range
BETWEEN = ("karras", "logsnr", "cosine", "free")  # grids that take `start` and `end`

GridSpec = str | Mapping[str, Mapping[str, Any]] | Sequence[float]


def plan_stage(
    net: NetCard,
    *,
    solver: str,
    calls: int,
    grid: GridSpec = "uniform",
    widths: float | Sequence[float] | None = None,
    guidance: Guidance | None = None,
    classifier: NetCard | None = None,
    **args: Any,
) -> Stage:
    """Plan `calls` network evaluations; the fine grid follows from them.

    Args:
        net: card of the network that walks the stage.
        solver: a registered solver; `args` are its own, e.g. k and l of pfdiff.
        calls: network evaluations per image, at least 1.
        grid: a registered grid, one with arguments as {"karras": {"rho": 5}}, or a list of
            descending noise levels.
        widths: one width for all calls, or one per call in the order of the calls; None is 1, or
            what a distilled network was distilled at.
        guidance: which calls are guided, and how strongly.
        classifier: card of the classifier where guidance is by one.

    Raises:
        SpaceError: a setting that the solver, the grid or the network cannot carry out.
    """
    args, grid = suited(net, solver, args), few_grid(net.distilled, grid)
    name, args, levels, plan = plan_calls(net.diffusion, solver, args, calls, grid)
    if widths is None:
        widths = [_default_width(net, call.level) for call in plan]
    per_call = [widths] * calls if isinstance(widths, (int, float)) else list(widths)
    if len(per_call) != calls:
        raise SpaceError(f"{len(per_call)} widths for {calls} calls; give one, or one per call")
    if net.distilled is not None:
        check_distilled(net, levels[:-1], per_call)
    scales = [None if guidance is None else guidance.at(c.level) for c in plan]
    guide = None if guidance is None else _guide(guidance, net, classifier)
    if all(scale is None for scale in scales):
        guide = None
    made = tuple(
        Call(c.level, net.check_width(w), s) for c, w, s in zip(plan, per_call, scales, strict=True)
    )
    return Stage(net=net.key, solver=name, args=args, levels=levels, calls=made, guide=guide)


def suited(net: NetCard, solver: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with what a second stage was trained with; SpaceError where solver and network do
    not suit each other."""
    if net.distilled is not None and solver != RENOISE:
        raise SpaceError(
            f"network '{net.name}' is distilled: it answers with images and follows no equation "
            f"that '{solver}' could solve; use {RENOISE}"
        )
    if net.relay is None:
        return dict(args)
    if solver != RELAY:
        raise SpaceError(
            f"network '{net.name}' is the second stage of a relay, whose blur '{solver}' does not "
            f"know; use {RELAY}"
        )
    trained = asdict(net.relay)
    for name in trained.keys() & args.keys():
        if args[name] != trained[name]:
            raise SpaceError(
                f"{RELAY}: {name} is {trained[name]} in the training of network '{net.name}', got "
                f"{args[name]}; leave it out"
            )
    return {**args, **trained}


def few_grid(distilled: Distilled | None, grid: GridSpec) -> GridSpec:
    """The grid, which for a distilled network lies between the levels it was distilled for."""
    name, args = _grid(grid)
    if distilled is None or name not in BETWEEN:
        return grid
    ends = {"start": distilled.levels[0], "end": distilled.levels[-1]}
    if len(distilled.levels) == 1:  # for one call, at which a grid has no end
        del ends["end"]
    return {name: {**ends, **args}}


def _default_width(net: NetCard, level: float) -> float:
    own = None if net.distilled is None else net.distilled.width_at(level)
    return 1.0 if own is None else own


def check_distilled(net: NetCard, levels: Sequence[float], widths: Sequence[float]) -> None:
    """SpaceError for a call where, or at a width that, a distilled network was not trained."""
    assert net.distilled is not None
    net.distilled.check_levels(net.name, levels)
    for level, width in zip(levels, widths, strict=True):
        wanted = net.distilled.width_at(level)
        if wanted is not None and abs(wanted - width) > 1e-9:
            raise SpaceError(
                f"network '{net.name}' was distilled at width {wanted:g} for noise level "
                f"{level:g}, got {width:g}; leave widths to the network"
            )


def plan_calls(
    process: Process, solver: str, args: Mapping[str, Any], calls: int, grid: GridSpec
) -> tuple[str, dict[str, Any], tuple[float, ...], tuple[Call, ...]]:
    """Canonical solver, its arguments, levels and calls; all of `plan_stage` but the network.

    Raises:
        SpaceError: as `plan_stage`; a grid outside the process's range of noise levels too.
    """
    if type(calls) is not int or calls < 1:
        raise SpaceError(f"calls must be a whole number of at least 1, got {calls!r}")
    SOLVERS[solver].nodes(calls, **args)  # before `canonical` names another solver
    name, own = SOLVERS[solver].canonical(calls, **args)
    grid_name, grid_args = _grid(grid)
    nodes = SOLVERS[name].nodes(calls, **own)
    levels = (*GRIDS[grid_name](process, nodes, **grid_args), 0.0)
    check_range(process, levels[:-1], f"grid {grid_name}")
    return name, own, levels, SOLVERS[name].plan(levels, calls, **own)


def check_range(process: Process, levels: Sequence[float], owner: str) -> None:
    """SpaceError for a node outside the noise levels that were trained."""
    low, high = (process.level_at(t) for t in (process.first_time, process.last_time))
    for level in levels:
        if not low * (1 - SLACK) <= level <= high * (1 + SLACK):
            raise SpaceError(
                f"{owner}: noise level {level:g} lies outside the network's range, "
                f"{low:g} .. {high:g}"
            )


def _grid(grid: GridSpec) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of a grid."""
    if isinstance(grid, str):
        return grid, {}
    if isinstance(grid, Mapping):
        if len(grid) != 1:
            raise SpaceError(f"grid: name one, e.g. {{'karras': {{'rho': 5}}}}, got {sorted(grid)}")
        return next(iter(grid.items()))
    return "explicit", {"levels": list(grid)}


def _guide(guidance: Guidance, net: NetCard, classifier: NetCard | None) -> str:
    """Name of the guide in the schedule; SpaceError where it cannot guide this network."""
    if guidance.kind == CFG:
        check_conditional(net)
        return CFG
    if classifier is None or classifier.name != guidance.net:
        raise SpaceError(f"guidance: no classifier '{guidance.net}' is given")
    check_classifier(net, classifier)
    return classifier.key


def check_classifier(net: NetCard, classifier: NetCard) -> None:
    """SpaceError for a classifier of other images, labels or noise than the network's."""
    facts = ["process", "image_shape"] + (["classes"] if net.classes else [])
    for fact in facts:
        ours, theirs = getattr(net, fact), getattr(classifier, fact)
        if ours != theirs:
            raise SpaceError(
                f"guidance: classifier '{classifier.name}' has {fact} {theirs}, network "
                f"'{net.name}' has {ours}; train them alike"
            )


def build_schedule(candidate: Candidate, cards: Mapping[str, NetCard]) -> StepSchedule:
    """Compile a candidate against the cards of the networks it may choose, keyed by name."""
    first = _stage(candidate, cards)
    if candidate.second is None:
        return StepSchedule((first,))
    return StepSchedule((first, _stage(candidate.second, cards)))


def _stage(candidate: Candidate, cards: Mapping[str, NetCard]) -> Stage:
    """The stage that a candidate asks for, without what follows it."""
    card = _card(candidate.supernet, cards)
    guidance = candidate.guidance
    grid = {candidate.grid: candidate.grid_args}
    by_classifier = guidance is not None and guidance.kind == CLASSIFIER
    return plan_stage(
        card,
        solver=candidate.solver,
        calls=candidate.calls,
        grid=grid,
        widths=_widths(candidate, card, grid),
        guidance=guidance,
        classifier=_card(guidance.net, cards) if guidance and by_classifier else None,
        **candidate.solver_args,
    )


def _widths(candidate: Candidate, card: NetCard, grid: GridSpec) -> list[float] | None:
    """The width of every call; None where the network was distilled at widths of its own."""
    if card.distilled is not None and card.distilled.widths:
        return None
    solver, genes = candidate.solver, candidate.widths
    args = suited(card, solver, candidate.solver_args)
    planned = (card.diffusion, solver, args)
    grid = few_grid(card.distilled, grid)
    levels = [call.level for call in plan_calls(*planned, candidate.calls, grid)[3]]
    if candidate.per_call:
        full = [call.level for call in plan_calls(*planned, len(genes), grid)[3]]
        return [genes[i] for i in _nearest(levels, full)]
    return [genes[segment(level, len(genes), card.diffusion)] for level in levels]


def gene_levels(candidate: Candidate, cards: Mapping[str, NetCard]) -> list[float]:
    """The noise level that each width gene of a stage stands for, most noise first."""
    card, count = _card(candidate.supernet, cards), len(candidate.widths)
    if candidate.per_call:
        args = suited(card, candidate.solver, candidate.solver_args)
        grid = few_grid(card.distilled, {candidate.grid: candidate.grid_args})
        plan = plan_calls(card.diffusion, candidate.solver, args, count, grid)[3]
        return [call.level for call in plan]
    process = card.diffusion
    top, bottom = (math.log(process.level_at(t)) for t in (process.last_time, process.first_time))
    return [math.exp(top - (i + 0.5) / count * (top - bottom)) for i in range(count)]


def coupling_warning(
    pools: Mapping[str, int], solvers: Iterable[tuple[str, Mapping[str, Any]]]
) -> str | None:
    """What to say where networks of immiscible training are sampled with fresh noise, or None.

    A denoiser that was trained on coupled noise moves its images along the same marginals by any
    deterministic solver; noise that a solver adds is coupled to nothing.

    Args:
        pools: networks by name, with the pool of their training; 1 is plain training.
        solvers: names and arguments; a Range is judged by its ends.
    """
    coupled = [f"'{name}' (immiscible pool {pool})" for name, pool in pools.items() if pool > 1]
    fresh = dict.fromkeys(name for name, args in solvers if _adds_noise(name, args))
    if not coupled or not fresh:
        return None
    return (
        f"warning: {some(coupled)} learned from noise that is coupled to images; the noise that "
        f"{', '.join(fresh)} adds is not, so images hold less variance on their way than in "
        f"training and may come out worse; solvers that add none (no eta, no churn) are exact"
    )


def _adds_noise(solver: str, args: Mapping[str, Any]) -> bool:
    ends = (
        {k: getattr(v, end) if isinstance(v, Range) else v for k, v in args.items()}
        for end in ("low", "high")
    )
    return any(SOLVERS[solver].order(**chosen) is None for chosen in ends)


def trained_pool(card: NetCard) -> int:
    """The immiscible pool that a network was trained with; 1 is plain training."""
    return int(card.training.get("immiscible", {}).get("pool", 1))


def _card(name: str, cards: Mapping[str, NetCard]) -> NetCard:
    if name not in cards:
        known = ", ".join(sorted(cards))
        raise SpaceError(f"unknown supernet '{name}'; known: {known}")
    return cards[name]


def _nearest(levels: Sequence[float], full: Sequence[float]) -> list[int]:
    """For every level the index of the nearest of `full` in log noise level."""
    if len(levels) == len(full):
        return list(range(len(full)))
    distance = [[abs(math.log(level / other)) for other in full] for level in levels]
    return [row.index(min(row)) for row in distance]


def segment(level: float, segments: int, process: Process) -> int:
    """Which of `segments` equal parts of the range of log noise level holds `level`; 0 is noise."""
    top = math.log(process.level_at(process.last_time))
    bottom = math.log(process.level_at(process.first_time))
    part = int((top - math.log(level)) / (top - bottom) * segments)
    return min(max(part, 0), segments - 1)
