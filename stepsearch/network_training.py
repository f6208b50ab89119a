"""The networks of a run, trained with progress unless they are there, here or on Ray workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import Recipe
from stepsearch.evaluate import pick_device
from stepsearch.nets.families import FAMILIES
from stepsearch.progress import Display
from stepsearch.recipe_training import Together
from stepsearch.resources import ALONE, Resources, gpus_per_worker
from stepsearch.signals import Signals
from stepsearch.supernet import ensure_supernet, supernet_path
from stepsearch.training.data import Dataset
from stepsearch.training.loop import OnStep, Team
from stepsearch.training.ray_train import RayTrainer


def train(
    recipe: Recipe,
    data: Dataset,
    display: Display,
    signals: Signals,
    device: str = "auto",
    resources: Resources = ALONE,
    *,
    allow_code: bool = False,
) -> tuple[Path, NetCard]:
    """The recipe's network, trained with progress unless it is there already."""
    path = supernet_path(recipe, data)
    kind = "classifier" if FAMILIES[recipe.family].classifies else "supernet"
    if path.is_file():
        display.say(f"{kind} {recipe.name}: recipe unchanged, using {path}")
    elif recipe.distill is not None:
        assert recipe.teacher is not None
        _, teacher = train(recipe.teacher, data, display, signals, device)
        steps = recipe.distill.steps
        display.say(f"student {recipe.name}: distilling {teacher.key} in {steps} steps")
        if not recipe.distill.widths:
            display.say(
                f"warning: {recipe.name}: distilling all widths at once is experimental: one score "
                f"follows their mixture, and a width may make up for what another lacks"
            )
        display.stage(f"distilling {recipe.name}", steps)
        on_step = _shown(steps, display, signals)
        return ensure_supernet(recipe, data, device=pick_device(device), on_step=on_step)
    elif recipe.train is not None:
        steps = recipe.train.steps

        team = f" with {resources.workers} workers" if resources.workers > 1 else ""
        display.say(f"{kind} {recipe.name}: training {steps} steps on {data.name}{team}")
        immiscible = recipe.train.immiscible
        if immiscible is not None and immiscible.method == "knn" and immiscible.pool > 1:
            display.say(
                f"warning: {recipe.name}: the nearest of {immiscible.pool} noises (method knn) is "
                f"not Gaussian as that of sampling is: it is shorter and leans to the mean image"
            )
        display.stage(f"training {recipe.name}", steps)
        with _together(recipe, resources, signals, device, allow_code) as together:
            return ensure_supernet(
                recipe,
                data,
                device=pick_device(device),
                on_step=_shown(steps, display, signals if together is None else None),
                together=together,
            )
    return ensure_supernet(recipe, data, device=pick_device(device))


def _shown(steps: int, display: Display, signals: Signals | None) -> OnStep:
    """Shows steps, and that workers took some again; raises where a signal of `signals` came."""
    last = 0

    def on_step(step: int, losses: Mapping[float, float]) -> None:
        nonlocal last
        if step <= last:
            display.say(f"workers were lost at step {last}; others continue from step {step}")
        last = step
        display.training(step, steps, losses)
        if signals is not None:
            signals.check()

    return on_step


def check_team(recipe: Recipe, resources: Resources) -> None:
    """ConfigError unless every worker gets as many images of a batch as the others."""
    if recipe.distill is not None and not resources.alone:
        raise ConfigError(f"{recipe.file}: a student is distilled in one process; drop --workers")
    if recipe.train is not None:
        try:
            Team(0, resources.workers).rows(recipe.train.batch, recipe.train.accumulate)
        except ConfigError as error:
            raise ConfigError(f"{recipe.file}: {error}") from None


@contextmanager
def _together(
    recipe: Recipe, resources: Resources, signals: Signals, device: str, allow_code: bool
) -> Iterator[Together | None]:
    """Workers that train, None where this process does."""
    if resources.alone:
        yield None
        return
    assert recipe.train is not None
    gpus = gpus_per_worker(resources, pick_device(device))
    trainer = RayTrainer(
        resources.workers,
        address=resources.address,
        cpus_per_worker=1 if gpus else recipe.train.threads,
        gpus_per_worker=gpus,
        check=signals.check,
    )
    with closing(trainer):
        signals.install("the same command")  # again: Ray has put in its own
        yield lambda member, on_step: trainer(replace(member, allow_code=allow_code), on_step)
