"""What the multistep solvers share: a call at every node and a mean of the last predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepsearch.core.schedule import Call
from stepsearch.solvers.registry import check_distinct

if TYPE_CHECKING:
    from torch import Tensor


def every_node(owner: str, levels: Sequence[float], n_calls: int) -> tuple[Call, ...]:
    """A call at every node but the end; SpaceError where two neighbouring levels are equal."""
    check_distinct(owner, levels)
    return tuple(Call(level) for level in levels[:n_calls])


def weighted(weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    """The sum of `outputs`, each times its weight."""
    first, *rest = (weight * output for weight, output in zip(weights, outputs, strict=True))
    return sum(rest, start=first)
