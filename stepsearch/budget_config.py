"""The sections of a space file that say how it is scored and searched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.counting import COUNTINGS
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import (
    MODES,
    EvaluationSettings,
    Rung,
    RunSettings,
    SearchSettings,
)
from stepsearch.core.yamlfile import Section, Value
from stepsearch.objectives.features import check_extractor
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.recipe_config import filled, path_of, place_of

SCREENS = ("fid", "kid")  # objectives of a rung
SIDE_VALUES = ("fid_se",)  # reported with an objective, none by themselves
LEAST_FID = 2048  # images below which a distance of moments says little


def known_objectives() -> list[str]:
    """Objectives that stand for themselves."""
    return [name for name in OBJECTIVES if name not in SIDE_VALUES]


def read_evaluation(value: Value | None, folder: Path) -> EvaluationSettings:
    """The section `evaluation`; ConfigError names file, line and column."""
    if value is None:
        return EvaluationSettings()

    def weights(v: Value) -> str:
        path = path_of(v, folder)
        if path is None or not path.is_file():
            raise v.error(f"'{v.text()}': no such weights file at {place_of(v, folder)}")
        return str(path)

    def reference(v: Value) -> str:
        path = path_of(v, folder)
        if path is None or not path.is_file():
            raise v.error(
                f"'{v.text()}': no such statistics at {place_of(v, folder)}; write them with "
                f"`stepsearch stats`"
            )
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
        "counting": lambda v: v.one_of(list(COUNTINGS)),
        "reference": reference,
        "ladder": lambda v: tuple(map(_rung, v.items())),
        "report": lambda v: v.distinct(lambda item: item.one_of(known_objectives())),
    }
    return filled(EvaluationSettings, value.section(), read)


def _rung(value: Value) -> Rung:
    section = value.section()
    images = section.need("images").whole(4)
    objective = section.need("objective").one_of(list(SCREENS))
    keep = section.need("keep").number(0, 1, open_low=True)
    section.close()
    if objective == "fid" and images < LEAST_FID:
        raise value.error(
            f"FID of {images} images is biased by the small number; use kid, or at least "
            f"{LEAST_FID} images"
        )
    return Rung(images, objective, keep)


def read_search(value: Value | None, folder: Path) -> SearchSettings:
    """The section `search`."""
    if value is None:
        return SearchSettings()
    read: dict[str, Any] = {
        "algorithm": lambda v: v.one_of(list(ALGORITHMS)),
        "population": lambda v: v.whole(2, 100_000),
        "generations": lambda v: v.whole(1, 100_000),
        "seed": lambda v: v.whole(0, 2**32 - 1),
        "crossover": lambda v: v.number(0, 1),
        "mutation": lambda v: v.number(0, 1, open_low=True),
        "mode": lambda v: v.one_of(list(MODES)),
        "weights": lambda v: tuple(item.number(0, 1e12) for item in v.items()),
        "warm_start": lambda v: v.distinct(lambda item: _source(item, folder)),
    }
    return filled(SearchSettings, value.section(), read)


def read_constraints(value: Value | None) -> dict[str, tuple[float, float]]:
    """The section `constraints`: ranges of objectives that are known before anything runs."""
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


def _source(value: Value, folder: Path) -> str:
    """An absolute path; whether something is there is asked when the run begins."""
    return str(place_of(value, folder).absolute())


def check_search(settings: RunSettings, root: Section) -> None:
    """ConfigError where algorithm, mode, ladder and objectives do not go together."""
    search, ladder = settings.search, settings.evaluation.ladder
    place = root.get("search") or root.value
    problem = Problem(
        sizes=tuple(n for _, n in settings.space.genes),
        first=(),
        objectives=len(settings.objectives),
        identity=lambda genome: genome,
        names=settings.objectives,
    )
    try:
        algorithm = ALGORITHMS[search.algorithm](problem, search)
    except ConfigError as error:
        raise place.error(str(error).removeprefix("search.")) from None
    if search.mode == MODES[1] and not algorithm.steady:
        able = [name for name in ALGORITHMS if getattr(ALGORITHMS[name], "steady", False)]
        raise place.error(
            f"algorithm '{search.algorithm}' asks whole generations; use mode: generational, or "
            f"one of {', '.join(able)}"
        )
    if search.mode == MODES[1] and ladder:
        raise place.error(
            "a ladder screens whole generations; use mode: generational, or remove "
            "evaluation.ladder"
        )
    if search.weights and len(search.weights) != len(settings.objectives):
        raise place.error(
            f"{len(search.weights)} weights for {len(settings.objectives)} objectives; give one "
            f"each, in the order of `objectives`"
        )
    if ladder and not any(OBJECTIVES[name].needs_images for name in settings.objectives):
        raise root.need("evaluation").error(
            "ladder: no objective needs images, so there is nothing to screen; remove it"
        )
    for name in settings.evaluation.report:
        if name in settings.objectives:
            raise root.need("evaluation").error(f"report: '{name}' is an objective; remove it here")
    images = [rung.images for rung in ladder] + [settings.evaluation.images]
    if images != sorted(set(images)):
        raise root.need("evaluation").error(
            f"ladder: images of the rungs must grow to those of the evaluation, got {images}"
        )


def dump_budget(settings: RunSettings) -> dict[str, Any]:
    """The sections as plain data that read back to the same settings."""
    sections = {"evaluation": asdict(settings.evaluation), "search": asdict(settings.search)}
    data: dict[str, Any] = {
        name: {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if _says(v)}
        for name, fields in sections.items()
    }
    if settings.constraints:
        data["constraints"] = {
            k: {n: v for n, v in zip(("min", "max"), r, strict=True) if abs(v) != float("inf")}
            for k, r in settings.constraints.items()
        }
    return data


def _says(value: Any) -> bool:
    return value is not None and value != ()
