"""A space with everything that it names, in a folder that can be sent elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, SequenceNode

from stepsearch.config import dump_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import Recipe, RunSettings
from stepsearch.core.yamlfile import Dumper, Value, read_yaml

SPACE = "space.yaml"
MOST_BYTES = 400_000_000  # Ray takes 500 MiB of working directory


def write_bundle(settings: RunSettings, folder: Path) -> None:
    """Write the space as `folder`/space.yaml, with its recipes, their weights and statistics.

    What else it names, images, an extractor's weights and runs to begin from, stays where it is
    and is named by absolute paths. Weights of networks are named by content and checked by sha256
    wherever they are loaded.

    Raises:
        ConfigError: a network that is not trained yet, or more weights than can be sent.
    """
    recipes = {recipe.file: recipe for recipe in _all(settings)}
    places = {file: f"networks/{i}/{Path(file).name}" for i, file in enumerate(recipes)}
    data = _moved(yaml.safe_load(dump_space(settings)), places)
    copies = {}
    if (reference := settings.evaluation.reference) is not None:
        data["evaluation"]["reference"] = Path(reference).name
        copies[Path(reference)] = folder / Path(reference).name
    text = yaml.dump(data, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)
    for recipe in _all(settings):
        target = (folder / places[recipe.file]).parent
        copies |= {path: target / path.name for path in _weights(recipe, settings)}
        if recipe.init:
            for path in (Path(recipe.init), Path(recipe.init).with_suffix(".json")):
                copies[path] = target / "init" / path.name
    _check_size(copies)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPACE).write_text(text, encoding="utf-8")
    for file, recipe in recipes.items():
        path = folder / places[file]
        path.parent.mkdir(parents=True)
        path.write_text(_recipe_text(recipe, places), encoding="utf-8")
    for source, target_path in copies.items():
        target_path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target_path)


def _all(settings: RunSettings) -> Iterator[Recipe]:
    """Every network of a space, and every teacher."""
    for recipe in settings.networks:
        yield recipe
        if recipe.teacher is not None:
            yield recipe.teacher


def _moved(value: Any, places: Mapping[str, str]) -> Any:
    """Plain data that names recipes by their places in the bundle."""
    if isinstance(value, dict):
        return {k: _moved(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, places) for v in value]
    return places.get(value, value) if isinstance(value, str) else value


def _recipe_text(recipe: Recipe, places: Mapping[str, str]) -> str:
    """A recipe as it was typed, with the paths that it has in the bundle."""
    data = _plain(read_yaml(Path(recipe.file)))
    if recipe.teacher is not None:
        data["distill"]["teacher"] = f"../../{places[recipe.teacher.file]}"
    elif recipe.data.path is not None and recipe.data.kind != "dataset":
        data["data"][recipe.data.kind] = recipe.data.path
    if recipe.init:
        data["init"] = f"init/{Path(recipe.init).name}"
    data["name"] = data.get("name", Path(recipe.file).stem)
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True))


def _plain(value: Value) -> Any:
    """What a file says as Python data; numbers as our own reader reads them."""
    if isinstance(value.node, MappingNode):
        section = value.section()
        return {key: _plain(section.need(key)) for key in section}
    if isinstance(value.node, SequenceNode):
        return [_plain(item) for item in value.items()] if value.node.value else []
    return value.scalar()


def _weights(recipe: Recipe, settings: RunSettings) -> list[Path]:
    """The trained weights of a recipe and their cards, on whatever images they were trained."""
    found = []
    for card in sorted(Path(recipe.file).parent.glob(f"{recipe.name}-*.json")):
        weights = card.with_suffix(".safetensors")
        try:
            data_sha256 = json.loads(card.read_text(encoding="utf-8"))["training"]["data_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # some other file of that name
        if weights.is_file() and card.stem == f"{recipe.name}-{recipe.sha256(data_sha256)[:8]}":
            found += [card, weights]
    trains = recipe.train is not None or recipe.distill is not None
    if not found and trains and recipe in settings.networks:
        raise ConfigError(
            f"network '{recipe.name}' is not trained yet, and a job would lose what it trains; run "
            f"`stepsearch train {recipe.file}` first, or use --in-place on a shared file system"
        )
    return found


def _check_size(copies: Mapping[Path, Path]) -> None:
    size = sum(path.stat().st_size for path in copies)
    if size > MOST_BYTES:
        raise ConfigError(
            f"weights and files of the space: {size / 1e6:.0f} MB, more than the "
            f"{MOST_BYTES / 1e6:.0f} MB that can be sent with a job; put the space on a shared "
            f"file system and use --in-place"
        )
