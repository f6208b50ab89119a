"""The `distill` section of a recipe: a few-step student of the network of another recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from yaml.nodes import SequenceNode

from stepsearch.core.distill_settings import MOST, SMOOTHINGS, DistillConfig
from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.settings import Recipe
from stepsearch.core.yamlfile import Section, Value
from stepsearch.distilling import distilled_of
from stepsearch.nets.families import FAMILIES
from stepsearch.schedule_config import read_width

ReadTeacher = Callable[[Value], Recipe]
SLACK = 1.01  # of a noise level that is typed with few digits
FROM_TEACHER = ("data", "net", "widths", "train", "relay", "init")


def read_distilled(root: Section, value: Value, name: str, path: Path, read: ReadTeacher) -> Recipe:
    """The recipe of a student, with the images, the network and the widths of its teacher.

    Args:
        read: the recipe that `teacher` names.

    Raises:
        ConfigError: with the place of what cannot be.
    """
    for key in FROM_TEACHER:
        if (given := root.get(key)) is not None:
            raise given.error("is that of the teacher; remove this section")
    section = value.section()
    teacher_value = section.need("teacher")
    teacher = read(teacher_value)
    check_teacher(teacher, teacher_value.error)
    config = _settings(section)
    for width in config.widths:
        if width not in teacher.widths:
            offered = ", ".join(f"{w:g}" for w in teacher.widths)
            raise section.need("widths").error(
                f"{width:g} is not offered by teacher '{teacher.name}' (it offers {offered})"
            )
    recipe = Recipe(
        name=name,
        data=teacher.data,
        family=teacher.family,
        net=teacher.net,
        widths=tuple(sorted(set(config.widths))) or teacher.widths,
        train=None,
        distill=config,
        teacher=teacher,
        file=str(path.resolve()),
    )
    try:
        distilled_of(recipe)
    except ConfigError as error:
        raise _placed(section, error) from None
    return recipe


def check_teacher(teacher: Recipe, error: Callable[[str], ConfigError]) -> None:
    """ConfigError, made by `error`, for a network that no student can learn from."""
    family = FAMILIES[teacher.family]
    if family.classifies or family.fitted:
        what = "classifies" if family.classifies else "is fitted, not trained"
        raise error(f"'{teacher.name}' is of family '{teacher.family}', which {what}; name another")
    if teacher.distill is not None:
        raise error(f"'{teacher.name}' is distilled itself; name the network it was distilled from")
    if teacher.relay is not None:
        raise error(f"'{teacher.name}' is the second stage of a relay; name a network of one stage")
    if teacher.train is not None and teacher.train.pool > 1:
        raise error(
            f"'{teacher.name}' was trained on noise that is coupled to images (immiscible pool "
            f"{teacher.train.pool}), and a student's score is not: the two would differ even where "
            f"the student is perfect; name a network of plain training"
        )


def _settings(section: Section) -> DistillConfig:
    read: dict[str, Any] = {
        "steps": lambda v: v.whole(1),
        "batch": lambda v: v.whole(1),
        "learning_rate": _rate,
        "score_learning_rate": _rate,
        "warmup": lambda v: v.whole(0),
        "ema": lambda v: v.number(0, 0.999999),
        "grad_clip": lambda v: v.number(0, 1e9, open_low=True),
        "seed": lambda v: v.whole(0),
        "checkpoint_every": lambda v: v.whole(1),
        "threads": lambda v: v.whole(1, 1024),
        "levels": lambda v: tuple(sorted(v.distinct(_level), reverse=True)),
        "high": _level,
        "low": _level,
        "widths": _widths,
        "smoothing": lambda v: v.one_of(list(SMOOTHINGS)),
        "smoothing_mean": lambda v: v.number(-MOST, MOST),
        "smoothing_std": lambda v: v.number(0, MOST),
        "score_updates": lambda v: v.whole(1, 100),
        "normalize": lambda v: v.flag(),
    }
    values = {}
    for field in fields(DistillConfig):
        value = section.need("steps") if field.name == "steps" else section.get(field.name)
        if value is not None:
            values[field.name] = read[field.name](value)
    section.close()
    try:
        return DistillConfig(**values)
    except ConfigError as error:
        raise _placed(section, error) from None


def _placed(section: Section, error: ConfigError) -> ConfigError:
    """An error of a setting, `distill.KEY: ...`, at the place of its key."""
    key, _, said = str(error).removeprefix("distill.").partition(": ")
    given = section.get(key)
    return section.value.error(f"{key}: {said}") if given is None else given.error(said)


def _rate(value: Value) -> float:
    return value.number(0, 1, open_low=True)


def _level(value: Value) -> float:
    level, process = value.number(0, 1e4, open_low=True), get_process(TRAINED)
    least, most = (process.level_at(t) for t in (process.first_time, process.last_time))
    if not least / SLACK <= level <= most * SLACK:
        raise value.error(
            f"{level:g} lies outside the noise levels that teachers are trained for, {least:.4g} "
            f"to {most:.4g}; choose within them"
        )
    return level


def _widths(value: Value) -> tuple[float, ...]:
    """One width, those of equal parts of the range of noise, or `all`."""
    if isinstance(value.node, SequenceNode):
        return tuple(read_width(item) for item in value.items())
    return () if value.scalar() == "all" else (read_width(value),)
