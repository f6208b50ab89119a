"""Images of one schedule as PNGs: every schedule starts from the same noise, so grids compare."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepsearch.build import (
    RELAY,
    RENOISE,
    check_classifier,
    check_distilled,
    check_range,
    suited,
)
from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.protocols import Classifier, Net, NetCard
from stepsearch.core.schedule import CFG, Stage, StepSchedule
from stepsearch.core.settings import Recipe
from stepsearch.core.trial import Failure, Trial
from stepsearch.evaluate import sample
from stepsearch.nets.load import load_net
from stepsearch.recipe_training import recipe_data
from stepsearch.solvers.guidance import check_conditional
from stepsearch.solvers.integrate import check_handover
from stepsearch.solvers.registry import SOLVERS
from stepsearch.supernet import supernet_path

Nets = Mapping[str, Net | Classifier]
Pixels = NDArray[np.uint8]

BATCH = 64  # images at a time; more or fewer change memory and speed alone
MOST = 1024  # images in a grid
SIDE = 64  # pixels that small images are scaled up to in a grid, by whole factors
PADDING, GREY = 1, 128  # seen beside black and white


@dataclass(frozen=True, slots=True)
class Job:
    """What to sample; image j of 0 .. count - 1 starts from the noise of (seed, j)."""

    schedule: StepSchedule
    count: int
    seed: int
    batch: int = BATCH
    device: str = "cpu"


def find_trial(trials: Sequence[Trial], name: str, run: Path) -> Trial:
    """The completed trial of a number, a key, or the unique beginning of a key."""
    if name.isdecimal():
        found = [t for t in trials if t.trial_id == int(name)]
    else:
        found = [t for t in trials if name and t.key.startswith(name)]
    if len(found) > 1:
        keys = ", ".join(t.key for t in found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(f"{run}: trial '{name}' is ambiguous: {keys}; write more of the key")
    if not found:
        raise ConfigError(
            f"{run}: no trial '{name}' among {len(trials)}; give a trial_id or a key of its "
            f"trials.csv"
        )
    if isinstance(found[0].result, Failure):
        raise ConfigError(
            f"{run}: trial {found[0].trial_id} failed ({found[0].result.error}); choose a "
            f"completed one, e.g. from `stepsearch front {run}`"
        )
    return found[0]


def networks_of(schedule: StepSchedule) -> list[str]:
    """Keys of the networks and classifiers that a schedule asks, each once."""
    asked = (key for s in schedule.stages for key in (s.net, s.guide) if key not in (None, CFG))
    return [str(key) for key in dict.fromkeys(asked)]


def run_networks(
    schedule: StepSchedule, recipes: Sequence[Recipe], device: str, *, allow_code: bool = False
) -> Nets:
    """The very networks that a run's schedule was measured with, from the run's recipes.

    Raises:
        ConfigError: weights that are missing, or that were trained anew since.
    """
    by_name, nets = {r.name: r for r in recipes}, {}
    for key in networks_of(schedule):
        recipe = by_name.get(key.rpartition("@")[0])
        if recipe is None:
            raise ConfigError(f"network '{key}' of the trial is none of the run's {list(by_name)}")
        weights = recipe_weights(recipe, allow_code=allow_code)
        nets[key] = load_net(weights, device=device)
        if (found := nets[key].card.key) != key:
            raise ConfigError(
                f"{weights}: was trained again: the trial was measured with {key}, "
                f"this is {found}; restore the old weights or search again"
            )
    return nets


def recipe_weights(recipe: Recipe, *, allow_code: bool = False) -> Path:
    """Weights of a recipe; ConfigError with the command that makes them where they are missing."""
    path = supernet_path(recipe, recipe_data(recipe, allow_code=allow_code))
    if not path.is_file():
        word = "train" if recipe.distill is None else "distill"
        command = f"{word} {recipe.file}" if recipe.plain is None else "resume RUN"  # of a bank
        raise ConfigError(f"{path}: no such weights; train them with `stepsearch {command}`")
    return path


def read_schedule(path: Path, networks: int) -> StepSchedule:
    """A schedule.json for so many networks, one for each of its stages; ConfigError names it."""
    try:
        schedule = StepSchedule.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; check the path") from None
    except (SpaceError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    stages = schedule.stages
    if stages[0].solver == RELAY:
        raise ConfigError(
            f"{path}: its first stage, of '{stages[0].net}', is of solver '{RELAY}', which goes on "
            f"from images and does not start from noise; put a stage that makes images before it"
        )
    if len(stages) != networks:
        asked = ", ".join(stage.net for stage in stages)
        count, times = (
            f"{n} {word}" + "s" * (n != 1)
            for n, word in ((len(stages), "stage"), (networks, "time"))
        )
        raise ConfigError(
            f"{path}: {count} ({asked}), but --supernet is given {times}; give it once for each "
            f"stage, in order, or sample the schedule from its run: `stepsearch sample RUN TRIAL`"
        )
    return schedule


def bind(schedule: StepSchedule, cards: Sequence[NetCard], guide: NetCard | None) -> StepSchedule:
    """The schedule with the given networks, one for each stage, and classifier for its own.

    Raises:
        SpaceError: a network that cannot walk its stage or go on from the one before, a classifier
            that is missing or of no use.
    """
    if guide is not None and not any(map(_by_classifier, schedule.stages)):
        raise SpaceError("the schedule is not guided by a classifier; leave --guide out")
    pairs = zip(schedule.stages, cards, strict=True)
    stages = [_bound(stage, card, guide) for stage, card in pairs]
    shapes = [card.image_shape for card in cards]
    for both, sizes in zip(pairwise(stages), pairwise(shapes), strict=True):
        check_handover(*both, *sizes)
    return StepSchedule(tuple(stages))


def _by_classifier(stage: Stage) -> bool:
    return stage.guide not in (None, CFG)


def _bound(stage: Stage, card: NetCard, guide: NetCard | None) -> Stage:
    """A stage with another network, by the rules of `plan_stage`."""
    if _by_classifier(stage) and guide is None:
        raise SpaceError(f"the schedule is guided by classifier '{stage.guide}'; give --guide")
    _check_solver(stage, card)
    check_range(card.diffusion, stage.levels[:-1], f"network '{card.name}' ({card.process})")
    calls = tuple(replace(call, width=card.check_width(call.width)) for call in stage.calls)
    if card.distilled is not None:
        check_distilled(card, stage.levels[:-1], [call.width for call in calls])
    if stage.guide == CFG:
        check_conditional(card)
    if _by_classifier(stage) and guide is not None:
        check_classifier(card, guide)
        stage = replace(stage, guide=guide.key)
    return replace(stage, net=card.key, calls=calls)


def _check_solver(stage: Stage, card: NetCard) -> None:
    """SpaceError for a network that was not trained for the solver of a stage."""
    count, name = len(stage.calls), stage.solver
    planned = SOLVERS[name].canonical(count, **stage.args)
    if name == RELAY:
        if card.relay is None:
            raise SpaceError(
                f"stage of '{stage.net}' is the second of a relay, network '{card.name}' is no "
                f"second stage; give one that was trained with a relay section"
            )
        trained = SOLVERS[name].canonical(count, **{**stage.args, **asdict(card.relay)})
        for key, value in planned[1].items():
            if trained[1][key] != value:
                raise SpaceError(
                    f"stage of '{stage.net}' is for a network of relay.{key} {value}, network "
                    f"'{card.name}' was trained with {trained[1][key]}; give one trained alike"
                )
    one = card.distilled is not None and planned == SOLVERS[RENOISE].canonical(count)
    suited(card, RENOISE if one else name, {})


def check_output(folder: Path) -> None:
    """ConfigError unless `folder` is absent or empty: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and nothing is overwritten; choose another with -o")


def write_samples(
    folder: Path,
    job: Job,
    nets: Nets,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write 00000.png ..., grid.png, schedule.json and sample.json, all of them or nothing.

    Args:
        on_images: told how many of all images there are after every batch.
    """
    check_output(folder)
    _check_shape(nets[job.schedule.stages[-1].net].card)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    digits, shown = max(5, len(str(job.count - 1))), []
    try:
        draft.mkdir(parents=True)
        for first, images in _batches(job, nets):
            for j, pixels in enumerate(images, first):
                to_image(pixels).save(draft / f"{j:0{digits}}.png")
            shown.extend(images[: max(0, MOST - first)])
            on_images(first + len(images), job.count)
        to_image(grid(np.stack(shown))).save(draft / "grid.png")
        facts = {"count": job.count, "seed": job.seed, "schedule": job.schedule.key()}
        (draft / "sample.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        (draft / "schedule.json").write_text(job.schedule.to_json() + "\n", encoding="utf-8")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _batches(job: Job, nets: Nets) -> Iterator[tuple[int, Pixels]]:
    """Number of the first image, and the images (B, C, H, W)."""
    for first in range(0, job.count, job.batch):
        count = min(job.batch, job.count - first)
        images = sample(job.schedule, nets, count, job.seed, first=first, device=job.device)
        yield first, images.cpu().numpy()


def _check_shape(card: NetCard) -> None:
    if len(card.image_shape) != 3 or card.image_shape[0] not in (1, 3):
        raise ConfigError(
            f"network '{card.name}' makes images of shape {card.image_shape}; a PNG needs 1 or 3 "
            f"channels"
        )


def to_image(pixels: Pixels) -> Image.Image:
    """(C, H, W) as grey or RGB."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def grid(images: Pixels) -> Pixels:
    """Images (N, C, H, W) row by row as one (C, H', W') near a square, grey lines between.

    Small ones are scaled up by a whole factor, nearest neighbour, towards 64 pixels.
    """
    factor = max(1, SIDE // max(images.shape[2:]))
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = height + PADDING, width + PADDING
    size = (channels, rows * height + PADDING, columns * width + PADDING)
    canvas = np.full(size, GREY, np.uint8)
    for j, pixels in enumerate(images):
        top, left = j // columns * height + PADDING, j % columns * width + PADDING
        canvas[:, top : top + height - PADDING, left : left + width - PADDING] = pixels
    return canvas
