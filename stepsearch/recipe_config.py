"""Recipes of networks: YAML in, validated settings out; every error has a line and a column."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.protocols import NetCard
from stepsearch.core.relay import Relay
from stepsearch.core.settings import (
    CORRUPT,
    METHODS,
    NAME,
    PRECISIONS,
    RESAMPLES,
    SCOPES,
    DataSettings,
    Immiscible,
    Recipe,
    TrainConfig,
)
from stepsearch.core.yamlfile import OVERRIDE, Section, Value, read_yaml
from stepsearch.distill_config import read_distilled
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_card
from stepsearch.nets.start import check_start
from stepsearch.schedule_config import plain, read_width
from stepsearch.training.data import LOADERS

VERSION = 1
CODE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
DATA_OPTIONS = ("size", "channels", "corrupt", "resample", "args")
PLACES = {"dataset": "package.module:name"}  # what a kind of data is named by, if no path


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The supernet recipe in a file; ConfigError names file, line, column, value and remedy."""
    root = read_yaml(path, overrides).section()
    check_version(root)
    if (distill := root.get("distill")) is not None:
        teacher = functools.partial(_teacher, folder=path.parent)
        recipe = read_distilled(root, distill, read_name(root, path), path, teacher)
        root.close()
        return recipe
    init, card = _init(root.get("init"), path.parent)
    family, arch, widths = _network(root, card)
    relay = _relay(root.get("relay"), family)
    train = None
    if FAMILIES[family].fitted:
        if (section := root.get("train")) is not None:
            raise section.error(f"family '{family}' is fitted, not trained; remove this section")
    elif card is None or relay is not None or root.get("train") is not None:
        section = root.need("train").section()
        train = _train(section)
        if relay is not None and train.pool > 1:
            raise section.need("immiscible").error(
                "a second stage starts from noise that is coupled to no image; leave this out, and "
                "train the first stage so"
            )
    recipe = Recipe(
        name=read_name(root, path),
        data=_data(root.need("data"), path.parent),
        family=family,
        net=arch,
        widths=tuple(sorted(widths)),
        train=train,
        relay=relay,
        file=str(path.resolve()),
        init=init,
        init_sha256="" if card is None else card.sha256,
    )
    root.close()
    return recipe


def _teacher(value: Value, folder: Path) -> Recipe:
    path = path_of(value, folder)
    if path is None or not path.is_file():
        raise value.error(
            f"'{value.text()}': no such recipe at {place_of(value, folder)}; name the recipe of "
            f"the network to distil, or give --teacher"
        )
    return read_recipe(place_of(value, folder))


def _init(value: Value | None, folder: Path) -> tuple[str, NetCard | None]:
    """Path and card of the weights that a recipe starts from."""
    if value is None:
        return "", None
    path = path_of(value, folder)
    if path is None or path.suffix != ".safetensors":
        raise value.error(
            f"'{value.text()}': no .safetensors at {place_of(value, folder)}; `stepsearch convert` "
            f"makes them of a network that others trained"
        )
    try:
        card = load_card(path)
        check_start(card, card.family)
    except ConfigError as error:
        raise value.error(str(error)) from None
    return str(path), card


def _relay(value: Value | None, family: str) -> Relay | None:
    """The forward process of a second stage."""
    if value is None:
        return None
    if FAMILIES[family].fitted or FAMILIES[family].classifies:
        raise value.error(f"family '{family}' is no network of a second stage; remove this section")
    read: dict[str, Any] = {
        "scale": lambda v: v.whole(2, 64),
        "blur": lambda v: v.number(0, 1e3),
        "prob_length": lambda v: v.number(0, 0.999, open_low=True),
        "block": lambda v: v.number(0, 1e3),
        "normalize": lambda v: v.flag(),
    }
    try:
        return filled(Relay, value.section(), read)  # type: ignore[no-any-return]
    except SpaceError as error:
        raise value.error(str(error).removeprefix("relay: ")) from None


def _network(root: Section, card: NetCard | None) -> tuple[str, dict[str, Any], list[float]]:
    """Family, `net` section and widths; what is left out is taken from the card of `init`."""
    net_value = root.get("net") if card else root.need("net")
    widths_value = root.get("widths") if card else root.need("widths")
    family, arch = (card.family, dict(card.arch)) if card else ("", {})
    if net_value is not None:
        net = net_value.section()
        family = net.need("family").one_of(list(FAMILIES))
        arch = {k: plain(net.need(k)) for k in net if k != "family"}
    offered = card.widths if card else ()
    widths = list(offered) if widths_value is None else widths_value.distinct(read_width)
    try:
        FAMILIES[family].check(arch, widths)
        if card and net_value is not None:
            check_start(card, family, arch)
    except ConfigError as error:
        raise (net_value or widths_value or root.value).error(str(error)) from None
    return family, arch, widths


def check_version(root: Section) -> None:
    """ConfigError for a file of another version."""
    value = root.need("version")
    if type(value.scalar()) is not int or value.scalar() != VERSION:
        raise value.error(f"this stepsearch reads version {VERSION}, got {value.shown()}")


def read_name(root: Section, path: Path) -> str:
    """The name in a file, by default that of the file."""
    value = root.get("name")
    name = path.stem if value is None else value.text()
    if not NAME.fullmatch(name):
        message = f"'{name}' cannot name a folder; use letters, digits, '.', '_' and '-'"
        raise ConfigError(f"{path}: name: {message}") if value is None else value.error(message)
    return name


def place_of(value: Value, folder: Path) -> Path:
    """What a path means: in a file it starts at the file's folder, on the command line here."""
    return (Path() if value.source.startswith(OVERRIDE) else folder) / value.text()


def path_of(value: Value, folder: Path) -> Path | None:
    """The absolute path that a value names; None where nothing is there or could be."""
    try:
        path = place_of(value, folder).resolve()
        return path if path.exists() else None
    except (OSError, ValueError):  # too long a name, a NUL, no permission
        return None


def _data(value: Value, folder: Path) -> DataSettings:
    if not isinstance(value.node, MappingNode):
        kind = value.one_of(list(LOADERS))
        if kind != "digits":
            place = PLACES.get(kind, "path/to/images")
            raise value.error(f"{kind} needs a path, e.g. {{{kind}: {place}}}")
        return DataSettings(kind)
    section = value.section()
    options = _data_options(section)
    kinds = [k for k in section if k not in DATA_OPTIONS]
    if len(known := [k for k in kinds if k in LOADERS]) == 1:
        section.get(known[0])
        section.close()
    if len(kinds) != 1:
        raise value.error(f"name one of {', '.join(LOADERS)} with its path, got {kinds}")
    if kinds[0] not in LOADERS:
        for loader in LOADERS:
            section.get(loader)
        section.close()
    source = section.need(kinds[0])
    if kinds[0] == "digits":
        if source.scalar() is not None:
            raise source.error("digits come with scikit-learn, at no path; write {digits, size: 4}")
        return DataSettings("digits", **options)
    if kinds[0] == "dataset":
        if not CODE.fullmatch(source.text()):
            raise source.error(f"'{source.text()}': expected {PLACES['dataset']}")
        return DataSettings("dataset", source.text(), **options)
    if "args" in options:
        raise section.need("args").error(f"'{kinds[0]}' takes none; leave args out")
    path = path_of(source, folder)
    if path is None:
        where = place_of(source, folder)
        raise source.error(
            f"'{source.text()}': no such file or folder at {where}; correct the path, or add "
            f"data.{kinds[0]}=PATH to the command"
        )
    return DataSettings(kinds[0], str(path), **options)


def _data_options(section: Section) -> dict[str, Any]:
    """Those that are given of DATA_OPTIONS."""

    def channels(value: Value) -> int:
        if (count := value.whole(1, 3)) == 2:
            raise value.error("must be 1 or 3, got 2")
        return count

    def args(value: Value) -> dict[str, Any]:
        given = value.section()
        return {name: plain(given.need(name)) for name in given}

    read: dict[str, Any] = {
        "size": lambda v: v.whole(1, 4096),
        "channels": channels,
        "corrupt": lambda v: v.one_of(list(CORRUPT)),
        "resample": lambda v: v.one_of(list(RESAMPLES)),
        "args": args,
    }
    assert tuple(read) == DATA_OPTIONS
    values = {name: section.get(name) for name in DATA_OPTIONS}
    return {name: read[name](value) for name, value in values.items() if value is not None}


def _immiscible(value: Value) -> Immiscible:
    read: dict[str, Any] = {
        "pool": lambda v: v.whole(1, 65_536),
        "method": lambda v: v.one_of(list(METHODS)),
        "scope": lambda v: v.one_of(list(SCOPES)),
    }
    found = filled(Immiscible, value.section(), read)
    if found.method == "knn" and found.scope is not None:
        raise value.error("scope: knn shares no noise between images; leave scope out")
    return found


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
        "between": lambda v: v.whole(0, 1024),
        "width_weight": lambda v: v.number(-8, 8),
        "distill": lambda v: v.number(0, 1),
        "flip": lambda v: v.flag(),
        "accumulate": lambda v: v.whole(1),
        "precision": lambda v: v.one_of(list(PRECISIONS)),
        "compile": lambda v: v.flag(),
        "immiscible": _immiscible,
        "trunk": lambda v: v.whole(1),
    }
    config: TrainConfig = filled(TrainConfig, section, read)
    if config.trunk is not None and config.trunk >= config.steps:
        message = f"must be below the {config.steps} steps of all, got {config.trunk}"
        raise section.need("trunk").error(message)
    return config


def filled(cls: Any, section: Section, read: Mapping[str, Any]) -> Any:
    """A dataclass from a section: fields that are absent take their defaults."""
    values = {}
    for f in fields(cls):
        needed = f.default is MISSING
        value = section.need(f.name) if needed else section.get(f.name)
        if value is not None:
            values[f.name] = read[f.name](value)
    section.close()
    return cls(**values)
