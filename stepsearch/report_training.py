"""How good a supernet is at each of its widths alone: whether it is worth searching."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepsearch.build import plan_stage
from stepsearch.core.errors import ConfigError
from stepsearch.core.files import write_atomic
from stepsearch.core.process import TRAINED
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import EvaluationSettings, Recipe
from stepsearch.core.trial import Measurement
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation, sample
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_net
from stepsearch.sample import grid, to_image
from stepsearch.training.data import Dataset

# one setting for every network: best, or as good, at 5 to 20 calls among all solvers of
# results/reference/solvers_digits.csv
SOLVER, ARGS, GRID = "unipc", {"order": 2}, "quad"
SHOWN = 64  # images in a grid
IDENTITY = ("key", "metric_id", "n_samples", "seed")  # of a row; equal rows are measured once
COLUMNS = ("width", "loss", "gflops_per_call", "gflops_per_image", "gflops_over_widest", "fid")
COLUMNS += ("fid_se", "fid_over_widest", "nfe", "solver", "solver_args", "grid", "n_samples")
COLUMNS += ("seed", "metric_id", "supernet", "key", "seconds", "started_at")
Row = dict[str, str]


def uniform_schedule(card: NetCard, width: float, calls: int) -> StepSchedule:
    """All calls at one width."""
    return StepSchedule(
        (plan_stage(card, solver=SOLVER, calls=calls, grid=GRID, widths=width, **ARGS),)
    )


def prepare_widths(
    recipe: Recipe, data: Dataset, settings: EvaluationSettings, calls: int
) -> tuple[EvaluatorSpec, float | None]:
    """All that can be refused before the network is trained; the noise floor of the images too.

    Raises:
        ConfigError: a recipe, or options, of which no FID can be measured.
    """
    _check_alone(recipe)
    shape, widths = tuple(data.images.shape[1:]), recipe.widths
    card = NetCard(recipe.name, "", recipe.family, TRAINED, shape, widths, (0.0,) * len(widths))
    try:
        uniform_schedule(card, widths[-1], calls)
    except ConfigError as error:
        raise ConfigError(f"--calls: {error}") from None
    try:
        spec, facts = prepare_evaluation(settings, ("fid", "gflops_per_image"), data)
    except ConfigError as error:
        for name in ("features", "weights"):
            text = str(error).removeprefix(f"evaluation.{name}:")
            if text != str(error):
                raise ConfigError(f"--{name}:{text}") from None
        raise
    return spec, facts.get("real_vs_real")


def _check_alone(recipe: Recipe) -> None:
    """ConfigError for a network that makes no images at a width alone."""
    if FAMILIES[recipe.family].classifies:
        raise ConfigError(
            f"{recipe.file}: net.family: '{recipe.family}' classifies and samples nothing; leave "
            f"--eval out"
        )
    if recipe.relay is not None:
        raise ConfigError(
            f"{recipe.file}: relay: a second stage starts from images of a first one and has no "
            f"FID of its own; leave --eval out, and measure it by `stepsearch run` of a space with "
            f"a relay section"
        )
    if recipe.distill is not None:
        raise ConfigError(
            f"{recipe.file}: distill: a student is sampled at levels and widths of its own, not by "
            f"{SOLVER} at one width; leave --eval out, and measure it by `stepsearch run` of a "
            f"space with a distilled section"
        )


def measure_widths(
    spec: EvaluatorSpec, path: Path, calls: int, on_width: Callable[[int], None]
) -> list[Row]:
    """Rows of all widths, widest first; those that an earlier call has written are taken as are.

    Every row is added to the table beside the weights once it is measured, and a grid of images
    is drawn. `on_width` is told how many widths are done.
    """
    table = eval_path(path)
    known = {_identity(row): row for row in _read(table)}
    evaluator, rows = Evaluator(replace(spec, nets=(str(path),))), []
    net = load_net(path, device=spec.device)
    for done, width in enumerate(sorted(net.card.widths, reverse=True)):
        on_width(done)
        schedule = uniform_schedule(net.card, width, calls)
        wanted = (schedule.key(), spec.metric_id, spec.settings.images, spec.settings.seed)
        identity = tuple(map(str, wanted))
        if identity not in known:
            measured = evaluator(schedule)
            known[identity] = _row(schedule, net.card, width, measured, rows[:1])
            write_atomic(table, _text(list(known.values())))
        rows.append(known[identity])
        _draw(path, schedule, net, width, spec)
    on_width(len(rows))
    return rows


def eval_path(path: Path) -> Path:
    """The table of weights."""
    return path.with_name(f"{path.stem}-eval.csv")


def grid_path(path: Path, width: float) -> Path:
    """Images of weights at one width."""
    return path.with_name(f"{path.stem}-w{width:g}.png")


def _row(
    schedule: StepSchedule, card: NetCard, width: float, measured: Measurement, widest: list[Row]
) -> Row:
    (stage,) = schedule.stages
    values: dict[str, Any] = dict(measured.values)
    values |= {
        "width": width,
        "loss": card.training.get("loss", {}).get(f"{width:g}", ""),
        "gflops_per_call": card.gflops(width),
        "nfe": schedule.nfe,
        "solver": stage.solver,
        "solver_args": ";".join(f"{k}={v}" for k, v in sorted(stage.args.items())),
        "grid": GRID,
        "supernet": card.key,
        "key": schedule.key(),
    }
    for name in ("n_samples", "seed", "metric_id", "seconds", "started_at"):
        values[name] = getattr(measured, name)
    for name, over in (("fid", "fid_over_widest"), ("gflops_per_image", "gflops_over_widest")):
        values[over] = values[name] / float(widest[0][name]) if widest else 1.0
    return {name: _shown(values[name]) for name in COLUMNS}


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _draw(path: Path, schedule: StepSchedule, net: Any, width: float, spec: EvaluatorSpec) -> None:
    """The first images of those that were measured."""
    settings, images = spec.settings, []
    for first in range(0, min(SHOWN, settings.images), settings.batch):
        count = min(settings.batch, SHOWN - first, settings.images - first)
        nets = {net.card.key: net}
        made = sample(schedule, nets, count, settings.seed, first=first, device=spec.device)
        images.append(made.cpu().numpy())
    buffer = io.BytesIO()
    to_image(grid(np.concatenate(images))).save(buffer, "PNG")
    write_atomic(grid_path(path, width), buffer.getvalue())


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in IDENTITY)


def _read(table: Path) -> list[Row]:
    if not table.is_file():
        return []
    reader = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() for row in rows):
        raise ConfigError(f"{table}: no table of --eval; move it away or delete it")
    return rows


def _text(rows: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
