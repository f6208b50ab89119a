"""Sections of a space file for what is not one stage: `relay`, and `distilled` networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stepsearch.build import BETWEEN, RELAY, RENOISE, few_grid, plan_calls
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED, VarianceExploding, get_process
from stepsearch.core.relay import LEAST, RELAY_KEYS
from stepsearch.core.settings import Recipe
from stepsearch.core.space import Relaying, SearchSpace, Setting, named
from stepsearch.core.yamlfile import Section, Value
from stepsearch.distilling import distilled_of
from stepsearch.schedule_config import (
    check_grids,
    check_solvers,
    dump_stage,
    listed,
    range_ends,
    read_calls,
    read_choices,
    read_levels,
    read_setting,
    read_solvers,
    read_width_genes,
)
from stepsearch.solvers.registry import GRIDS, SOLVERS

STARTS = 9  # of a range that says nothing of them
Listed = list[tuple[Value, Setting]]


def read_relay(section: Section, seconds: Sequence[Recipe], firsts: Sequence[str]) -> Relaying:
    """The genes of a second stage, all combinations planned before anything runs.

    Args:
        seconds: recipes of the second stages.
        firsts: names of the networks that they follow.

    Raises:
        ConfigError: with the place of what cannot be.
    """
    starts = _starts(section.need("start"), seconds)
    calls = read_calls(section.need("calls"))
    solvers = read_solvers(section.need("solver"), list(SOLVERS))
    grids = _read_grids(section.need("grid"), BETWEEN, "cannot begin at relay.start")
    for value, setting in solvers:
        name, args = named(setting)
        if name != RELAY:
            raise value.error(f"'{name}' does not know the blur of a second stage; use {RELAY}")
        for key in args:
            if key in RELAY_KEYS:
                raise value.error(f"{key} is what the second stage was trained with; leave it out")
    for value, setting in grids:
        if "start" in named(setting)[1]:
            raise value.error("start: the grid begins at relay.start; leave it out")
    for second in seconds:
        _check(second, starts, solvers, grids, calls)
    widths = section.need("widths").section()
    genes = read_width_genes(widths, calls)
    space = SearchSpace(
        supernets=tuple(r.name for r in seconds),
        calls=calls,
        grids=tuple(setting for _, setting in grids),
        solvers=tuple(setting for _, setting in solvers),
        width_choices=read_choices(widths.need("choices"), seconds),
        **genes,
    )
    widths.close()
    return Relaying(tuple(firsts), starts, space)


def dump_relay(relay: Relaying, files: Mapping[str, str]) -> dict[str, Any]:
    """The section with every default filled in, but for its key `first`.

    Args:
        files: of the recipes of second stages, by name.
    """
    seconds = [files[name] for name in relay.space.supernets]
    return {"second": seconds, "start": list(relay.starts), **dump_stage(relay.space)}


def read_distilled_space(section: Section, recipes: Sequence[Recipe]) -> SearchSpace:
    """The genes of distilled networks.

    Raises:
        ConfigError: as `read_relay`.
    """
    if (solver := section.get("solver")) is not None:
        raise solver.error(
            "a distilled network is sampled by renoise alone, not by solvers of an equation that "
            "it does not follow; remove this key"
        )
    calls = read_calls(section.need("calls"))
    known = (*BETWEEN, "explicit")
    grids = _read_grids(section.need("grid"), known, "goes where no student was trained")
    for value, setting in grids:
        for recipe in recipes:
            try:
                _check_levels(recipe, setting, calls)
            except ConfigError as error:
                raise value.error(str(error)) from None
    elastic = _elastic(recipes)
    widths = section.get("widths")
    if (widths is None) == bool(elastic):
        names = ", ".join(f"'{r.name}'" for r in elastic or recipes)
        raise (widths or section.value).error(
            f"{names}: distilled at all widths; list choices under widths"
            if elastic
            else f"{names}: widths were chosen when it was distilled; remove this section"
        )
    genes: dict[str, Any] = {"width_choices": (1.0,), "width_genes": 1}
    if widths is not None:
        chosen = widths.section()
        genes = read_width_genes(chosen, calls)
        genes["width_choices"] = read_choices(chosen.need("choices"), elastic)
        chosen.close()
    return SearchSpace(
        supernets=tuple(r.name for r in recipes),
        calls=calls,
        grids=tuple(setting for _, setting in grids),
        solvers=(RENOISE,),
        **genes,
    )


def dump_distilled(space: SearchSpace | None, recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The section with every default filled in; empty where there is none."""
    if space is None:
        return {}
    data = dump_stage(space)
    del data["solver"]
    if not _elastic(recipes):
        del data["widths"]
    return {"distilled": data}


def _elastic(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Students that were distilled at all widths."""
    return [r for r in recipes if r.distill is not None and not r.distill.widths]


def _read_grids(value: Value, known: Sequence[str], why: str) -> Listed:
    """Grids with their places; ConfigError, which says `why`, for one that is not `known`."""
    grids = listed(value, lambda v: read_setting(v, "grid", list(GRIDS)))
    for place, setting in grids:
        if (name := named(setting)[0]) not in known:
            raise place.error(f"'{name}' {why}; use {', '.join(known)}")
    return grids


def _check_levels(recipe: Recipe, setting: Setting, calls: Sequence[int]) -> None:
    """SpaceError for a call where a student is not trained."""
    distilled, (name, args) = distilled_of(recipe), named(setting)
    assert distilled is not None
    for chosen, n in itertools.product(range_ends(args), calls):
        grid = few_grid(distilled, {name: chosen})
        levels = plan_calls(get_process(TRAINED), RENOISE, {}, n, grid)[2]
        distilled.check_levels(recipe.name, levels[:-1])


def _starts(value: Value, seconds: Sequence[Recipe]) -> tuple[float, ...]:
    """A list of noise levels, or a range, even in the logarithm unless it says otherwise."""
    cap = min(recipe.relay.most for recipe in seconds if recipe.relay is not None)
    starts = read_levels(value, STARTS)
    if not all(LEAST < start <= cap for start in starts):
        found = next(start for start in starts if not LEAST < start <= cap)
        raise value.error(
            f"{found:g} lies outside what the second stage was trained for, noise levels above "
            f"{LEAST:g} to {cap:.4g}; start within them"
        )
    return starts


def _check(
    recipe: Recipe,
    starts: Sequence[float],
    solvers: Listed,
    grids: Listed,
    calls: tuple[int, ...],
) -> None:
    """ConfigError unless every solver walks every grid with every number of calls."""
    assert recipe.relay is not None
    process = VarianceExploding("edm", LEAST, recipe.relay.most)
    trained = asdict(recipe.relay)
    filled = [(value, (RELAY, {**named(one)[1], **trained})) for value, one in solvers]
    check_solvers(filled, calls)
    for start in (min(starts), max(starts)):
        begun = [(v, (named(one)[0], {**named(one)[1], "start": start})) for v, one in grids]
        check_grids(process, begun, filled, calls)
