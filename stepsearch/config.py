"""Recipes and space files: YAML in, validated settings out; every error has a line and a column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import (
    DataSettings,
    EvaluationSettings,
    Recipe,
    RunSettings,
    SearchSettings,
    TrainConfig,
)
from stepsearch.core.yamlfile import Dumper, Section, Value, read_yaml
from stepsearch.nets.families import FAMILIES
from stepsearch.objectives.features import check_extractor
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.schedule_config import dump_schedule, plain, read_schedule, read_width
from stepsearch.training.data import LOADERS

VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SIDE_VALUES = ("fid_se",)  # reported with an objective, none by themselves


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The supernet recipe in a file; ConfigError names file, line, column, value and remedy."""
    root = read_yaml(path, overrides).section()
    _version(root)
    net = root.need("net").section()
    family_value = net.need("family")
    family = family_value.one_of(list(FAMILIES))
    widths = root.need("widths").distinct(read_width)
    arch = {k: plain(net.need(k)) for k in net if k != "family"}
    try:
        FAMILIES[family].check(arch, widths)
    except ConfigError as error:
        raise net.value.error(str(error)) from None
    train = None
    if FAMILIES[family].fitted:
        if (section := root.get("train")) is not None:
            raise section.error(f"family '{family}' is fitted, not trained; remove this section")
    else:
        train = _train(root.need("train").section())
    recipe = Recipe(
        name=_name(root, path),
        data=_data(root.need("data"), path.parent),
        family=family,
        net=arch,
        widths=tuple(sorted(widths)),
        train=train,
        file=str(path.resolve()),
    )
    root.close()
    return recipe


def read_space(path: Path, overrides: list[str] | None = None) -> RunSettings:
    """The search space and its budget in a file; ConfigError as in `read_recipe`."""
    root = read_yaml(path, overrides).section()
    _version(root)
    name = _name(root, path)
    recipes = _supernets(root.need("supernets"), path.parent)
    schedule = root.need("schedule").section()
    space, guides = read_schedule(schedule, recipes, lambda value: _recipe(value, path.parent))
    schedule.close()
    known = [o for o in OBJECTIVES if o not in SIDE_VALUES]
    objectives_value = root.need("objectives")
    objectives = objectives_value.distinct(lambda v: v.one_of(known))
    if len(objectives) < 2:
        raise objectives_value.error(f"a front needs at least two objectives; known: {known}")
    settings = RunSettings(
        name=name,
        space=space,
        recipes=recipes,
        objectives=objectives,
        constraints=_constraints(root.get("constraints")),
        evaluation=_evaluation(root.get("evaluation"), path.parent),
        search=_search(root.get("search")),
        guides=guides,
    )
    root.close()
    return settings


def dump_space(settings: RunSettings) -> str:
    """A space file with every default filled in; `read_space` reads it back to equal settings."""
    data = {
        "version": VERSION,
        "name": settings.name,
        "supernets": [r.file for r in settings.recipes],
        "schedule": dump_schedule(settings.space, {r.name: r.file for r in settings.guides}),
        "objectives": list(settings.objectives),
        "evaluation": {k: v for k, v in asdict(settings.evaluation).items() if v is not None},
        "search": {k: v for k, v in asdict(settings.search).items() if v is not None},
    }
    if settings.constraints:
        data["constraints"] = {
            k: {n: v for n, v in zip(("min", "max"), r, strict=True) if abs(v) != float("inf")}
            for k, r in settings.constraints.items()
        }
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


def _version(root: Section) -> None:
    value = root.need("version")
    if type(value.scalar()) is not int or value.scalar() != VERSION:
        raise value.error(f"this stepsearch reads version {VERSION}, got {value.shown()}")


def _name(root: Section, path: Path) -> str:
    value = root.get("name")
    name = path.stem if value is None else value.text()
    if not NAME.fullmatch(name):
        message = f"'{name}' cannot name a folder; use letters, digits, '.', '_' and '-'"
        raise ConfigError(f"{path}: name: {message}") if value is None else value.error(message)
    return name


def _supernets(value: Value, folder: Path) -> tuple[Recipe, ...]:
    """Recipes of networks that sample, no two of one name."""
    recipes = tuple(_recipe(item, folder) for item in value.items())
    for item, recipe in zip(value.items(), recipes, strict=True):
        if FAMILIES[recipe.family].classifies:
            raise item.error(
                f"'{recipe.name}' is a classifier, which samples nothing; name it under "
                f"schedule.guidance as {{classifier: {{net: ..., scale: 1}}}}"
            )
    names = [r.name for r in recipes]
    if len(set(names)) < len(names):
        raise value.error(f"two supernets share a name: {names}; rename one")
    return recipes


def _recipe(value: Value, folder: Path) -> Recipe:
    path = _path(value, folder)
    if path is None or not path.is_file():
        where = folder / value.text()
        raise value.error(f"'{value.text()}': no such recipe at {where}; paths start at this file")
    return read_recipe(folder / value.text())


def _path(value: Value, folder: Path) -> Path | None:
    """The absolute path that a value names; None where nothing is there or could be."""
    try:
        path = (folder / value.text()).resolve()
        return path if path.exists() else None
    except (OSError, ValueError):  # too long a name, a NUL, no permission
        return None


def _data(value: Value, folder: Path) -> DataSettings:
    if not isinstance(value.node, MappingNode):
        kind = value.one_of(list(LOADERS))
        if kind != "digits":
            raise value.error(f"{kind} needs a path, e.g. {{{kind}: path/to/images}}")
        return DataSettings(kind)
    section = value.section()
    size = section.get("size")
    side = None if size is None else size.whole(1, 4096)
    kinds = [k for k in section if k != "size"]
    if len(kinds) != 1:
        raise value.error(f"name one of {', '.join(LOADERS)} with its path, got {kinds}")
    if kinds[0] not in LOADERS:
        for loader in LOADERS:
            section.get(loader)
        section.close()
    source = section.need(kinds[0])
    path = _path(source, folder)
    if path is None:
        where = folder / source.text()
        raise source.error(f"'{source.text()}': no such file or folder at {where}")
    return DataSettings(kinds[0], str(path), side)


def _train(section: Section) -> TrainConfig:
    read: dict[str, Any] = {
        "steps": lambda v: v.whole(1),
        "batch": lambda v: v.whole(1),
        "learning_rate": lambda v: v.number(0, 1, open_low=True),
        "warmup": lambda v: v.whole(0),
        "ema": lambda v: v.number(0, 1),
        "grad_clip": lambda v: v.number(0, 1e9, open_low=True),
        "seed": lambda v: v.whole(0),
        "checkpoint_every": lambda v: v.whole(1),
        "threads": lambda v: v.whole(1, 1024),
    }
    return _filled(TrainConfig, section, read)


def _evaluation(value: Value | None, folder: Path) -> EvaluationSettings:
    if value is None:
        return EvaluationSettings()

    def weights(v: Value) -> str:
        path = _path(v, folder)
        if path is None or not path.is_file():
            raise v.error(f"'{v.text()}': no such weights file at {folder / v.text()}")
        return str(path)

    def features(v: Value) -> str:
        try:
            check_extractor(v.text())
        except ConfigError as error:
            raise v.error(str(error).removeprefix("evaluation.features: ")) from None
        return v.text()

    read: dict[str, Any] = {
        "images": lambda v: v.whole(4),  # two groups of two for the standard error
        "batch": lambda v: v.whole(1),
        "seed": lambda v: v.whole(0),
        "features": features,
        "weights": weights,
        "device": lambda v: v.one_of(["auto", "cpu", "cuda"]),
    }
    return _filled(EvaluationSettings, value.section(), read)


def _search(value: Value | None) -> SearchSettings:
    if value is None:
        return SearchSettings()
    read: dict[str, Any] = {
        "algorithm": lambda v: v.one_of(list(ALGORITHMS)),
        "population": lambda v: v.whole(2, 100_000),
        "generations": lambda v: v.whole(1, 100_000),
        "seed": lambda v: v.whole(0, 2**32 - 1),
        "crossover": lambda v: v.number(0, 1),
        "mutation": lambda v: v.number(0, 1, open_low=True),
    }
    return _filled(SearchSettings, value.section(), read)


def _filled(cls: Any, section: Section, read: Mapping[str, Any]) -> Any:
    """A dataclass from a section: fields that are absent take their defaults."""
    values = {}
    for f in fields(cls):
        needed = f.default is MISSING
        value = section.need(f.name) if needed else section.get(f.name)
        if value is not None:
            values[f.name] = read[f.name](value)
    section.close()
    return cls(**values)


def _constraints(value: Value | None) -> dict[str, tuple[float, float]]:
    if value is None:
        return {}
    section = value.section()
    known = [o for o in OBJECTIVES if not OBJECTIVES[o].needs_images]
    result = {}
    for name in known:
        if (limits_value := section.get(name)) is not None:
            limits = limits_value.section()
            low, high = limits.get("min"), limits.get("max")
            limits.close()
            least = -float("inf") if low is None else low.number(0, 1e12)
            most = float("inf") if high is None else high.number(0, 1e12)
            if least > most:
                raise limits_value.error(f"min {least:g} exceeds max {most:g}; swap them")
            result[name] = (least, most)
    section.close()
    return result
