"""Guidance: what a solver sees instead of the bare network, so that no solver knows of it.

A buffer of a solver therefore holds guided values, as PFDiff's official codes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepsearch.core.errors import SpaceError
from stepsearch.core.protocols import Classifier, Net, NetCard
from stepsearch.core.schedule import CFG, Stage, StepSchedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Guided:
    """A network at one call of a stage: with its labels, and guided where the call has a scale."""

    net: Net
    labels: Tensor | None
    classifier: Classifier | None
    scale: float | None

    @property
    def card(self) -> NetCard:
        return self.net.card

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        """Guided noise prediction.

        Classifier-free: eps(none) + scale (eps(label) - eps(none)), so that 1 is the plain
        conditional and 0 the unconditional network (Ho & Salimans 2022, arXiv:2207.12598, eq. 6,
        with scale = 1 + w). Classifier: eps - scale sigma grad log p(label | x) (Dhariwal & Nichol
        2021, arXiv:2105.05233, alg. 2).
        """
        own = self.labels if self.card.classes else None
        if self.scale is None:
            return self.net.eps(x, level, width=width, cond=own)
        assert self.labels is not None
        if self.classifier is not None:
            sigma = self.card.diffusion.alpha(level) * level
            gradient = self.classifier.gradient(x, level, self.labels)
            return self.net.eps(x, level, width=width, cond=own) - self.scale * sigma * gradient
        free = self.net.eps(x, level, width=width)
        if self.scale == 0:
            return free
        return free + self.scale * (self.net.eps(x, level, width=width, cond=own) - free)


def check_conditional(card: NetCard) -> None:
    """SpaceError for classifier-free guidance of a network that knows no labels."""
    if not card.classes:
        raise SpaceError(
            f"guidance: network '{card.name}' is unconditional, so there is nothing to guide it "
            f"by; train it with classes, or use a classifier"
        )


def find_classifier(
    stage: Stage, nets: Mapping[str, Net | Classifier], labels: Tensor | None
) -> Classifier | None:
    """The classifier that guides a stage, if any; SpaceError where it or the labels are missing."""
    if stage.guide is None:
        return None
    if labels is None:
        raise SpaceError(f"schedule: stage of '{stage.net}' is guided; give labels as cond")
    if stage.guide == CFG:
        check_conditional(nets[stage.net].card)
        return None
    guide = nets.get(stage.guide)
    if guide is None or not hasattr(guide, "gradient"):
        raise SpaceError(
            f"schedule asks for classifier '{stage.guide}'; give it among the networks"
        )
    return guide


def reads_labels(schedule: StepSchedule, nets: Mapping[str, Net | Classifier]) -> bool:
    """Whether sampling a schedule needs labels."""
    return any(
        stage.guide is not None or (stage.net in nets and nets[stage.net].card.classes)
        for stage in schedule.stages
    )
