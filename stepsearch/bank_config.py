"""The `train` section of a space file: settings of every recipe, and lists, which make a bank."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, SequenceNode

from stepsearch.core.bank import Bank
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import Recipe, content_hash
from stepsearch.core.yamlfile import OVERRIDE, Section, Value

MOST = 256  # networks of a bank
LONGEST = 64  # letters of a network's name
SHORTHAND = "immiscible"  # may stand beside `train` instead of below it
# What a network may change after steps that it shares with others.
MIDWAY = ["learning_rate", "distill", "width_weight", "between", "ema", "grad_clip", "flip"]
MIDWAY += ["immiscible.pool", "immiscible.method", "immiscible.scope"]

ReadRecipe = Callable[[Path, list[str]], Recipe]


def read_bank(
    root: Section, recipes: Sequence[Recipe], read: ReadRecipe
) -> tuple[tuple[Recipe, ...], Bank | None]:
    """The networks to train, and which of them each combination of listed values chooses.

    Args:
        root: a space file.
        recipes: as their files are.
        read: a recipe's file with overrides of it.

    Raises:
        ConfigError: with the place of what no recipe could say.
    """
    given = _given(root)
    if not given:
        return tuple(recipes), None
    listed = {key: _values(value) for key, value in given.items()}
    fixed = {key: values[0] for key, values in listed.items() if len(values) == 1}
    varied = {key: values for key, values in listed.items() if len(values) > 1}
    count = len(recipes) * math.prod(len(values) for values in varied.values())
    if count > MOST:
        raise next(reversed(given.values())).error(
            f"{count} networks are more than {MOST}; list fewer values"
        )
    plain = [_read(read, recipe, fixed) for recipe in recipes]
    _check_trunks(plain, {key: given[key] for key in varied})
    networks, chosen, variants = dict[str, Recipe](), [], []
    for recipe in plain:
        trained = {_identity(recipe): recipe}
        for values in itertools.product(*varied.values()):
            variant = _read(read, recipe, fixed | dict(zip(varied, values, strict=True)))
            variants.append(variant)
            network = trained.setdefault(_identity(variant), _named(variant, recipe, varied))
            if networks.setdefault(network.name, network) is not network:
                place = next(iter(given.values()))
                raise place.error(f"two networks share the name '{network.name}'; rename a recipe")
            chosen.append(network.name)
    settings = tuple((key, tuple(dict.fromkeys(_value(v, key) for v in variants))) for key in given)
    return tuple(networks.values()), Bank(settings, tuple(chosen))


def dump_bank(bank: Bank | None) -> dict[str, Any]:
    """The section, read back to an equal bank; empty where there is none."""
    if bank is None:
        return {}
    return {"train": {k: list(v) if len(v) > 1 else v[0] for k, v in bank.settings}}


def _given(root: Section) -> dict[str, Value]:
    """Every setting by its dotted key, however it was nested."""
    found: dict[str, Value] = {}
    if (section := root.get("train")) is not None:
        _collect("", section, found)
    for name in root:
        if name.partition(".")[0] == SHORTHAND:
            _collect(name, root.need(name), found)
    return found


def _collect(key: str, value: Value, found: dict[str, Value]) -> None:
    if isinstance(value.node, MappingNode) or not key:
        section = value.section()
        if not list(section):
            raise value.error("expected at least one key, e.g. immiscible.pool: [1, 64]")
        for name in section:
            _collect(f"{key}.{name}".removeprefix("."), section.need(name), found)
        return
    other = found.get(key)
    overrides = value.source.startswith(OVERRIDE)
    if other is not None and overrides == other.source.startswith(OVERRIDE):
        raise value.error(f"'{key}' is given twice; remove one")
    if other is None or overrides:
        found[key] = value


def _values(value: Value) -> list[Value]:
    """Entries of a list of single values, none of them twice; one value stands for itself."""
    if not isinstance(value.node, SequenceNode):
        return [value]
    value.distinct(Value.scalar)
    return value.items()


def _read(read: ReadRecipe, recipe: Recipe, chosen: Mapping[str, Value]) -> Recipe:
    """A recipe with some of its settings changed; what is wrong with one is said at its place."""
    texts = {f"train.{k}={json.dumps(v.scalar())}": (k, v) for k, v in chosen.items()}
    try:
        return read(Path(recipe.file), list(texts))
    except ConfigError as error:
        for text, (key, value) in texts.items():
            place = str(ConfigError(f"{OVERRIDE}'{text}': "))
            if str(error).startswith(place):
                said = str(error).removeprefix(place).removeprefix(f"train.{key}: ")
                raise value.error(said) from None
        raise


def _check_trunks(recipes: Sequence[Recipe], varied: Mapping[str, Value]) -> None:
    """ConfigError for a value that steps in common leave no choice of."""
    trunks = [r.train.trunk for r in recipes if r.train is not None and r.train.trunk is not None]
    for key, value in varied.items():
        if key == "trunk":
            raise value.error("steps in common are one number; give one value")
        if trunks and key not in MIDWAY:
            raise value.error(
                f"networks that have their first {trunks[0]} steps in common (trunk) cannot differ "
                f"in {key}, only in {', '.join(MIDWAY)}"
            )


def _identity(recipe: Recipe) -> str:
    """Equal for two networks of one file that are trained alike."""
    return "" if recipe.train is None else content_hash(recipe.train.content())


def _named(variant: Recipe, plain: Recipe, keys: Iterable[str]) -> Recipe:
    """The variant under a name that says what is different."""
    words = [f"{key}-{_value(variant, key)}" for key in keys]
    name = "-".join([plain.name, *words])
    if len(name) > LONGEST:
        name = f"{plain.name[: LONGEST - 9]}-{content_hash({'name': name})[:8]}"
    return replace(variant, name=name, plain=plain.train)


def _value(recipe: Recipe, key: str) -> Any:
    """A setting as the recipe reader understood it."""
    return functools.reduce(getattr, key.split("."), recipe.train)
