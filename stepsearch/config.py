"""Space files: YAML in, validated settings out; every error has a line and a column."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from stepsearch.bank_config import dump_bank, read_bank
from stepsearch.budget_config import (
    check_search,
    dump_budget,
    known_objectives,
    read_constraints,
    read_evaluation,
    read_search,
)
from stepsearch.core.bank import Bank
from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.guidance import CLASSIFIER
from stepsearch.core.settings import Recipe, RunSettings
from stepsearch.core.space import NO_GUIDANCE, SearchSpace, named
from stepsearch.core.yamlfile import Dumper, Section, Value, read_yaml
from stepsearch.nets.counting import countable, uncountable
from stepsearch.nets.families import FAMILIES
from stepsearch.recipe_config import (
    VERSION,
    check_version,
    path_of,
    place_of,
    read_name,
    read_recipe,
)
from stepsearch.schedule_config import dump_schedule, read_schedule
from stepsearch.schedule_config import listed as entries
from stepsearch.stage_config import (
    dump_distilled,
    dump_relay,
    read_distilled_space,
    read_relay,
)


def read_space(path: Path, overrides: list[str] | None = None) -> RunSettings:
    """The search space and its budget in a file; ConfigError as in `read_recipe`."""
    root = read_yaml(path, overrides).section()
    check_version(root)
    name = read_name(root, path)
    space, networks = _space(root, path.parent)
    known = known_objectives()
    objectives_value = root.need("objectives")
    objectives = objectives_value.distinct(lambda v: v.one_of(known))
    if len(objectives) < 2:
        raise objectives_value.error(f"a front needs at least two objectives; known: {known}")
    settings = RunSettings(
        name=name,
        space=space,
        objectives=objectives,
        constraints=read_constraints(root.get("constraints")),
        evaluation=read_evaluation(root.get("evaluation"), path.parent),
        search=read_search(root.get("search"), path.parent),
        **networks,
    )
    _check_counting(settings, root.get("evaluation"))
    check_search(settings, root)
    root.close()
    return settings


def _space(root: Section, folder: Path) -> tuple[SearchSpace, dict[str, tuple[Recipe, ...]]]:
    """What is searched, and the networks of it: recipes, seconds and guides of RunSettings."""
    relay = None if (value := root.get("relay")) is None else value.section()
    firsts, seconds = ((), ()) if relay is None else _relay_networks(relay, folder)
    supernets_value = root.get("supernets") if firsts else root.need("supernets")
    supernets = () if supernets_value is None else _supernets(supernets_value, folder)
    students = [r for r in supernets if r.distill is not None]
    listed = (*(r for r in supernets if r.distill is None), *firsts, *students)
    place = (relay.value if relay else supernets_value) or root.value
    _check_names((*listed, *seconds), place)
    schedule = root.need("schedule").section()
    recipes, bank = _networks(root, listed)
    _check_names((*recipes, *seconds), place)
    read_guide = functools.partial(_recipe, folder=folder)
    space, guides = read_schedule(schedule, listed, bank, read_guide)
    schedule.close()
    if relay is not None:
        files = {r.file for r in firsts}
        names = [r.name for r in recipes if r.file in files]
        space = replace(space, relay=read_relay(relay, seconds, names))
        _check_relay_guidance(space, seconds, relay)
        relay.close()
    space = replace(space, distilled=_distilled(root.get("distilled"), students, root.value))
    return space, {"recipes": recipes, "seconds": seconds, "guides": guides}


def dump_space(settings: RunSettings) -> str:
    """A space file with every default filled in; `read_space` reads it back to equal settings."""
    relay = settings.space.relay
    firsts = () if relay is None else relay.firsts
    files = {r.file: r.name in firsts for r in settings.recipes}
    listed = [file for file, is_first in files.items() if not is_first]
    data = {
        "version": VERSION,
        "name": settings.name,
        **({"supernets": listed} if listed else {}),
        **dump_bank(settings.space.bank),
        "schedule": dump_schedule(settings.space, {r.name: r.file for r in settings.guides}),
        **dump_distilled(settings.space.distilled, settings.recipes),
        "objectives": list(settings.objectives),
        **dump_budget(settings),
    }
    if relay is not None:
        named = {r.name: r.file for r in settings.seconds}
        first = [file for file, is_first in files.items() if is_first]
        data["relay"] = {"first": first, **dump_relay(relay, named)}
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


def _supernets(value: Value, folder: Path) -> tuple[Recipe, ...]:
    """Recipes of networks that sample, no two of one name."""
    recipes = tuple(_recipe(item, folder) for item in value.items())
    for item, recipe in zip(value.items(), recipes, strict=True):
        if FAMILIES[recipe.family].classifies:
            raise item.error(
                f"'{recipe.name}' is a classifier, which samples nothing; name it under "
                f"schedule.guidance as {{classifier: {{net: ..., scale: 1}}}}"
            )
        if recipe.relay is not None:
            raise item.error(
                f"'{recipe.name}' is the second stage of a relay, which starts from images of "
                f"another network; name it under relay.second"
            )
    return recipes


def _networks(root: Section, recipes: Sequence[Recipe]) -> tuple[tuple[Recipe, ...], Bank | None]:
    """The networks of a space, students last, which a bank trains no variants of."""
    students = tuple(r for r in recipes if r.distill is not None)
    plain = recipes[: len(recipes) - len(students)]
    if not plain and (train := root.get("train")) is not None:
        raise train.error("every supernet is distilled, not trained; remove this section")
    trained, bank = read_bank(root, plain, read_recipe) if plain else ((), None)
    if bank is not None:
        size = math.prod(count for _, count in bank.genes)
        chosen = (student.name for student in students for _ in range(size))
        bank = replace(bank, networks=(*bank.networks, *chosen))
    return (*trained, *students), bank


def _check_names(recipes: Sequence[Recipe], value: Value) -> None:
    names = [r.name for r in recipes]
    if len(set(names)) < len(names):
        raise value.error(f"two supernets share a name: {names}; rename one, or remove it")


def _relay_networks(
    section: Section, folder: Path
) -> tuple[tuple[Recipe, ...], tuple[Recipe, ...]]:
    """Recipes of the first and of the second stages."""
    first_value, second_value = section.need("first"), section.need("second")
    read = functools.partial(_recipe, folder=folder)
    firsts, seconds = entries(first_value, read), entries(second_value, read)
    for value, recipe in firsts:
        if recipe.distill is not None:
            raise value.error(
                f"'{recipe.name}' is distilled, and a student was not distilled to be a first "
                f"stage; name its teacher"
            )
        if recipe.relay is not None or FAMILIES[recipe.family].classifies:
            raise value.error(f"'{recipe.name}' cannot start from noise; name a supernet")
    for value, recipe in seconds:
        if recipe.relay is None:
            raise value.error(
                f"'{recipe.name}' was not trained as a second stage; give its recipe a relay "
                f"section"
            )
    return tuple(r for _, r in firsts), tuple(r for _, r in seconds)


def _check_relay_guidance(space: SearchSpace, seconds: Sequence[Recipe], relay: Section) -> None:
    """ConfigError for guidance of the first stage that cannot go on in the second."""
    for kind, _ in map(named, space.guidances):
        if kind == CLASSIFIER:
            raise relay.value.error(
                "a classifier knows images of one size, and a relay has two; guide by cfg, or "
                "remove one of the two sections"
            )
        for recipe in seconds:
            if kind != NO_GUIDANCE and not FAMILIES[recipe.family].classes(recipe.net):
                raise relay.need("second").error(
                    f"'{recipe.name}' is unconditional, so guidance would stop with the "
                    f"first stage; give its recipe net.classes"
                )


def _distilled(value: Value | None, students: Sequence[Recipe], root: Value) -> SearchSpace | None:
    if value is None:
        if students:
            raise root.error(
                f"supernet '{students[0].name}' is distilled; add its own numbers of calls and "
                f"grids, e.g. distilled: {{calls: [1, 2, 4, 8], grid: [karras]}}"
            )
        return None
    if not students:
        raise value.error("no supernet is distilled; remove this section")
    section = value.section()
    space = read_distilled_space(section, students)
    section.close()
    return space


def _recipe(value: Value, folder: Path) -> Recipe:
    path = path_of(value, folder)
    if path is None or not path.is_file():
        where = place_of(value, folder)
        raise value.error(f"'{value.text()}': no such recipe at {where}; paths start at this file")
    return read_recipe(place_of(value, folder))


def _check_counting(settings: RunSettings, evaluation: Value | None) -> None:
    """ConfigError where FLOPs of a network cannot be counted as `evaluation` asks."""
    counting = settings.evaluation.counting
    if evaluation is None or counting == FULL_COUNT:
        return
    for recipe in settings.networks:
        if not countable(FAMILIES[recipe.family]):
            value = evaluation.section().need("counting")
            message = uncountable(recipe.name, recipe.family, counting)
            raise value.error(message.removeprefix("counting: "))
