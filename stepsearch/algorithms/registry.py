"""What an algorithm is built from, and the registry that it is filed in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from stepsearch.core.protocols import Algorithm, Genome
from stepsearch.core.registry import Registry
from stepsearch.core.settings import SearchSettings


@dataclass(frozen=True, slots=True)
class Problem:
    """The search as an algorithm sees it.

    `identity` names what a genome means, so that two genomes with one schedule are one trial; it is
    None where a constraint rules the genome out.
    """

    sizes: tuple[int, ...]  # number of choices per gene
    first: tuple[Genome, ...]  # to be asked first
    objectives: int
    identity: Callable[[Genome], Hashable | None]


ALGORITHMS: Registry[Callable[[Problem, SearchSettings], Algorithm]] = Registry("algorithm")
