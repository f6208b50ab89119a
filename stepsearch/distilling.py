"""How a recipe's student is distilled: its teacher's weights, its images, its levels."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from stepsearch.core.distilled import Distilled
from stepsearch.core.process import TRAINED, get_process
from stepsearch.core.settings import Recipe
from stepsearch.nets.families import FAMILIES
from stepsearch.recipe_training import (
    WINDOW,
    build_network,
    checkpoint_path,
    logged,
    losses_path,
    torch_threads,
)
from stepsearch.training.data import Dataset
from stepsearch.training.dpdm import distill
from stepsearch.training.dpdm_draws import eps_denoiser, student_levels
from stepsearch.training.loop import OnStep
from stepsearch.training.losses import LossLog, recent_losses


def distilled_of(recipe: Recipe, teacher: str = "") -> Distilled | None:
    """What the network of a recipe is distilled for, None where it is not; `teacher` is a key."""
    if recipe.distill is None:
        return None
    levels = student_levels(recipe.distill, eps_denoiser(get_process(TRAINED)))
    return Distilled(teacher, levels, recipe.distill.widths, dense=not recipe.distill.levels)


def distil(
    recipe: Recipe, teacher: Path, data: Dataset, path: Path, device: str, on_step: OnStep | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """EMA weights of a student, and the score's mean loss by width over the last steps.

    Args:
        teacher: weights of the network that it learns from.
        path: where the student's weights will be; the checkpoint lies beside.
    """
    config, checkpoint = recipe.distill, checkpoint_path(path)
    assert config is not None
    assert recipe.teacher is not None
    student, score, frozen = (build_network(recipe.teacher, data, "cpu") for _ in range(3))
    frozen.load_state_dict(load_file(teacher))
    losses = losses_path(checkpoint)
    reads_labels = FAMILIES[recipe.family].classes(recipe.net) > 0
    with torch_threads(config.threads):
        weights = distill(
            student,
            score,
            frozen,
            data.images,
            labels=data.labels if reads_labels else None,
            config=config,
            denoiser=eps_denoiser(get_process(TRAINED)),
            checkpoint=checkpoint,
            on_step=logged(on_step or (lambda step, losses: None), LossLog(losses), None, config),
            offered=recipe.teacher.widths,
            device=device,
        )
    return weights, recent_losses(losses, WINDOW)
