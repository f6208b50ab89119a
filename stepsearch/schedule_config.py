"""The `schedule` section of a space file: every combination is planned before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from yaml.nodes import MappingNode, SequenceNode

from stepsearch.build import RELAY, plan_calls
from stepsearch.core.bank import Bank
from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.guidance import CLASSIFIER, KINDS, Guidance
from stepsearch.core.process import TRAINED, Process, get_process
from stepsearch.core.registry import did_you_mean
from stepsearch.core.settings import Recipe
from stepsearch.core.space import MONOTONE, NO_GUIDANCE, Range, SearchSpace, Setting, named
from stepsearch.core.yamlfile import Section, Value
from stepsearch.nets.families import FAMILIES
from stepsearch.solvers.registry import GRIDS, SOLVERS

T = TypeVar("T")
STEPS = 21  # values of a range that says nothing of them
MOST_STEPS = 10_000


def read_schedule(
    section: Section,
    recipes: Sequence[Recipe],
    bank: Bank | None,
    read_recipe: Callable[[Value], Recipe],
) -> tuple[SearchSpace, tuple[Recipe, ...]]:
    """The space that a `schedule` section spans, and the recipes of the classifiers it names.

    Args:
        recipes: the supernets, as their files are.
        bank: the networks that are made of them where there are several of one.
        read_recipe: the recipe at the path that a value names.

    Raises:
        ConfigError: with the place of what cannot be.
    """
    calls = read_calls(section.need("calls"))
    grids = listed(section.need("grid"), lambda v: read_setting(v, "grid", list(GRIDS)))
    solvers = read_solvers(section.need("solver"), [name for name in SOLVERS if name != RELAY])
    check_solvers(solvers, calls)
    check_grids(get_process(TRAINED), grids, solvers, calls)
    guidance_value = section.get("guidance")
    guides: dict[str, Recipe] = {}
    plain_recipes = [r for r in recipes if r.distill is None]  # the others have genes of their own

    def guidance(value: Value) -> Setting:
        return _guidance(value, plain_recipes, guides, read_recipe)

    guidances = [] if guidance_value is None else listed(guidance_value, guidance)
    widths = section.need("widths").section()
    space = SearchSpace(
        supernets=tuple(r.name for r in recipes),
        calls=calls,
        grids=tuple(setting for _, setting in grids),
        solvers=tuple(setting for _, setting in solvers),
        width_choices=read_choices(widths.need("choices"), plain_recipes),
        **read_width_genes(widths, calls),
        guidances=tuple(setting for _, setting in guidances) or (NO_GUIDANCE,),
        bank=bank,
    )
    for name in guides:
        if bank is not None and name in bank.networks:
            raise section.value.error(f"two networks are named '{name}'; rename a recipe")
    widths.close()
    return space, tuple(guides.values())


def dump_schedule(space: SearchSpace, guides: Mapping[str, str]) -> dict[str, Any]:
    """The section with every default filled in; `read_schedule` reads it back to an equal space.

    Args:
        guides: file of the recipe of every classifier, by name.
    """
    data = dump_stage(space)
    if any(guidance != NO_GUIDANCE for guidance in space.guidances):
        settings = [_to_file(setting, guides) for setting in space.guidances]
        data["guidance"] = [dump_setting(setting) for setting in settings]
    return data


def dump_stage(space: SearchSpace) -> dict[str, Any]:
    """Calls, grids, solvers and widths of a space."""
    genes = {"per_call": True} if space.per_call else {"segments": space.width_genes}
    if space.monotone is not None:
        genes |= {"monotone": space.monotone}
    return {
        "calls": list(space.calls),
        "grid": [dump_setting(setting) for setting in space.grids],
        "solver": [dump_setting(setting) for setting in space.solvers],
        "widths": {**genes, "choices": list(space.width_choices)},
    }


def read_width(value: Value) -> float:
    """A fraction of channels in (0, 1]."""
    return value.number(0, 1, open_low=True)


def plain(value: Value) -> Any:
    """Scalars and lists of scalars as Python data."""
    if isinstance(value.node, SequenceNode):
        return [item.scalar() for item in value.items()] if value.node.value else []
    return value.scalar()


def read_choices(value: Value, recipes: Sequence[Recipe]) -> tuple[float, ...]:
    """Widths that every supernet offers, ascending."""
    choices = value.distinct(read_width)
    for item, width in zip(value.items(), choices, strict=True):
        for recipe in recipes:
            if width not in recipe.widths:
                offered = ", ".join(f"{w:g}" for w in recipe.widths)
                raise item.error(
                    f"{width:g} is not offered by supernet '{recipe.name}' (it offers {offered})"
                )
    return tuple(sorted(choices))


def read_width_genes(widths: Section, calls: tuple[int, ...]) -> dict[str, Any]:
    """How many width genes a space has, and what they mean."""
    per_call, segments = widths.get("per_call"), widths.get("segments")
    by_call = per_call is not None and per_call.flag()
    if by_call == (segments is not None):
        raise widths.value.error("give either 'segments: n' or 'per_call: true'")
    monotone = widths.get("monotone")
    return {
        "width_genes": max(calls) if segments is None else segments.whole(1, 10_000),
        "per_call": by_call,
        "monotone": None if monotone is None else monotone.one_of(list(MONOTONE)),
    }


def read_calls(value: Value) -> tuple[int, ...]:
    """A list of whole numbers, one number, or {min, max, step}; ascending."""
    if isinstance(value.node, MappingNode):
        section = value.section()
        low, high = section.need("min").whole(1), section.need("max").whole(1, 1000)
        step_value = section.get("step")
        step = 1 if step_value is None else step_value.whole(1)
        section.close()
        if low > high:
            raise value.error(f"min {low} exceeds max {high}; swap them")
        return tuple(range(low, high + 1, step))
    return tuple(sorted(n for _, n in listed(value, lambda v: v.whole(1, 1000))))


def listed(value: Value, read: Callable[[Value], T]) -> list[tuple[Value, T]]:
    """Entries with their places, none of them twice; one entry may stand for a list of one."""
    if not isinstance(value.node, SequenceNode):
        return [(value, read(value))]
    return list(zip(value.items(), value.distinct(read), strict=True))


def read_solvers(value: Value, known: list[str]) -> list[tuple[Value, Setting]]:
    """Solvers of `known` with their arguments."""
    return listed(value, lambda v: named(read_setting(v, "solver", known)))


def read_setting(value: Value, kind: str, known: list[str]) -> Setting:
    """`name`, `{name: {argument: value}}`, or for a grid a list of noise levels."""
    if isinstance(value.node, SequenceNode) and kind == "grid":
        return "explicit", {"levels": tuple(plain(value))}
    if not isinstance(value.node, MappingNode):
        return _known(value, value.text(), kind, known)
    section = value.section()
    names = list(section)
    if len(names) != 1:
        raise value.error(f"name one {kind}, e.g. {{{known[-1]}: {{...}}}}, got {names}")
    name = _known(value, names[0], kind, known)
    arguments = section.need(name).section()
    args = {key: _argument(arguments.need(key)) for key in arguments}
    return (name, args) if args else name  # one form only: resolved.yaml reads back equal


def _known(value: Value, name: str, kind: str, known: list[str]) -> str:
    if name not in known:
        hint = did_you_mean(name, known)
        if (kind, name) == ("solver", RELAY):
            hint = " here; second stages have a section of their own, relay"
        raise value.error(f"unknown {kind} '{name}'{hint}; known: {', '.join(known)}")
    return name


def _argument(value: Value, steps: int = STEPS, log: bool = False) -> Any:
    """A scalar, a list of scalars, a range, or a vector of ranges.

    Args:
        steps, log: of a range that does not say.
    """
    if not isinstance(value.node, MappingNode):
        data = plain(value)
        return tuple(data) if isinstance(data, list) else data
    section = value.section()
    genes = section.get("genes")
    count = 1 if genes is None else genes.whole(1, 1000)
    low, high, step = (_bound(section.get(name)) for name in ("min", "max", "step"))
    steps_value, log_value = section.get("steps"), section.get("log")
    section.close()
    if genes is not None:  # weights of spacings: only their proportion matters
        low, high = 0 if low is None else low, 4 if high is None else high
        step = 1 if step is None and steps_value is None else step
    if low is None or high is None:
        raise value.error("a range needs min and max")
    if step is not None and (step <= 0 or steps_value is not None):
        raise value.error("give a step above 0, or the number of steps, but not both")
    if steps_value is not None:
        steps = steps_value.whole(2, MOST_STEPS)
    if step is not None:
        intervals = (high - low) / step
        if abs(intervals) >= MOST_STEPS:
            raise value.error(f"step {step:g} makes more than {MOST_STEPS} values; enlarge it")
        steps = round(intervals) + 1
        if low < high and abs(intervals - round(intervals)) > 1e-6:
            raise value.error(f"step {step:g} does not divide the range {low:g} .. {high:g}")
    try:
        made = Range(low, high, steps, log if log_value is None else log_value.flag())
    except SpaceError as error:
        raise value.error(str(error)) from None
    return made if genes is None else (made,) * count


def read_levels(value: Value, steps: int) -> tuple[float, ...]:
    """Positive numbers, ascending: a list, one, or a range, even in the logarithm by default."""
    if not isinstance(value.node, MappingNode):
        return tuple(sorted(n for _, n in listed(value, lambda v: v.number(0, 1e4, open_low=True))))
    made = _argument(value, steps=steps, log=True)
    if not isinstance(made, Range):
        raise value.error("expected noise levels: a list, or min, max and steps")
    return tuple(made.value(i) for i in range(made.steps))


def _bound(value: Value | None) -> float | None:
    """A number, whole where it was written whole."""
    if value is None:
        return None
    value.number(-1e12, 1e12)
    return value.scalar()  # type: ignore[no-any-return]


def range_ends(args: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments with every range at either of its ends."""
    options = [
        [(name, end) for end in _end_values(value)] for name, value in args.items()
    ]  # a vector of ranges goes from end to end as one
    for chosen in itertools.product(*options):
        yield dict(chosen)


def _inner(args: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments with one range at a value between its ends, the others at their least."""
    least = next(range_ends(args))
    for name, value in args.items():
        if isinstance(value, Range):
            for i in range(1, value.steps - 1):
                yield {**least, name: value.value(i)}


def _end_values(value: Any) -> list[Any]:
    if isinstance(value, Range):
        return [value.low, value.high]
    if isinstance(value, tuple) and any(isinstance(v, Range) for v in value):
        return [tuple(r.low for r in value), tuple(r.high for r in value)]
    return [value]


def check_solvers(solvers: list[tuple[Value, Setting]], calls: tuple[int, ...]) -> None:
    """Every solver knows its arguments and every number of calls."""
    for value, setting in solvers:
        name, args = named(setting)
        inner = ((chosen, calls[0]) for chosen in _inner(args))  # 2.5 between 1 and 4
        for chosen, n in (*itertools.product(range_ends(args), calls), *inner):
            try:
                SOLVERS[name].nodes(n, **chosen)
            except SpaceError as error:
                raise value.error(str(error)) from None


def check_grids(
    process: Process,
    grids: list[tuple[Value, Setting]],
    solvers: list[tuple[Value, Setting]],
    calls: tuple[int, ...],
) -> None:
    """Every solver can walk every grid with every number of calls."""
    for (value, one), (_, other) in itertools.product(grids, solvers):
        (grid, grid_args), (solver, args) = named(one), named(other)
        ends = range_ends(grid_args), range_ends(args)
        for on_grid, chosen, n in itertools.product(*ends, calls):
            try:
                plan_calls(process, solver, chosen, n, {grid: on_grid})
            except ConfigError as error:
                raise value.error(f"{error} (solver {solver}, {n} calls)") from None


def _guidance(
    value: Value,
    recipes: Sequence[Recipe],
    guides: dict[str, Recipe],
    read_recipe: Callable[[Value], Recipe],
) -> Setting:
    """A guidance whose numbers make sense; a classifier is put into `guides`, and named."""
    kind, args = named(read_setting(value, "guidance", [NO_GUIDANCE, *KINDS]))
    if kind == NO_GUIDANCE:
        if args:
            raise value.error(f"'{NO_GUIDANCE}' takes no arguments")
        return kind
    if kind == CLASSIFIER and "net" in args:
        net = value.section().need(kind).section().need("net")
        guide = read_recipe(net)
        _check_guide(net, guide, recipes, guides)
        guides[guide.name] = guide
        args = {**args, "net": guide.name}
    for chosen in range_ends(args):
        try:
            Guidance.of(kind, chosen)
        except SpaceError as error:
            raise value.error(str(error).removeprefix("guidance: ")) from None
    for recipe in recipes:
        if kind != CLASSIFIER and not _classes(recipe):
            raise value.error(
                f"supernet '{recipe.name}' is unconditional, so there is nothing to guide it by; "
                f"give its recipe net.classes, or guide by a classifier"
            )
    return kind, args


def _check_guide(
    value: Value, guide: Recipe, recipes: Sequence[Recipe], guides: Mapping[str, Recipe]
) -> None:
    """A classifier of the labels that the supernets know, under a name of its own."""
    if not FAMILIES[guide.family].classifies:
        known = ", ".join(name for name in FAMILIES if FAMILIES[name].classifies)
        raise value.error(
            f"'{guide.name}' is of family '{guide.family}', which classifies nothing; name a "
            f"recipe of family {known}"
        )
    if guides.get(guide.name, guide) != guide or guide.name in [r.name for r in recipes]:
        raise value.error(f"another network of this space is named '{guide.name}'; rename one")
    for recipe in recipes:
        if _classes(recipe) not in (0, _classes(guide)):
            raise value.error(
                f"'{guide.name}' knows {_classes(guide)} classes, supernet '{recipe.name}' "
                f"{_classes(recipe)}; train them on the same labels"
            )


def _classes(recipe: Recipe) -> int:
    return FAMILIES[recipe.family].classes(recipe.net)


def _to_file(setting: Setting, guides: Mapping[str, str]) -> Setting:
    """A guidance as it is written: by the file of its classifier instead of the name."""
    kind, args = named(setting)
    return (kind, {**args, "net": guides[args["net"]]}) if kind == CLASSIFIER else setting


def dump_setting(setting: Setting) -> Any:
    """A setting as it is written in a file."""
    name, args = named(setting)
    return {name: {key: _dumped_argument(value) for key, value in args.items()}} if args else name


def _dumped_argument(value: Any) -> Any:
    if isinstance(value, Range):
        data: dict[str, Any] = {"min": value.low, "max": value.high, "steps": value.steps}
        return data | {"log": True} if value.log else data
    if isinstance(value, tuple) and value and isinstance(value[0], Range):
        return {"genes": len(value), **_dumped_argument(value[0])}
    return list(value) if isinstance(value, tuple) else value
