"""What an algorithm is built from, and the registry that it is filed in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

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
    names: tuple[str, ...] = ()  # of the objectives, where they are known
    width_genes: tuple[tuple[int, ...], ...] = ()  # places of the width genes, network by network
    ordered: tuple[bool, ...] = ()  # per gene, whether near values mean near things; () = none


class AlgorithmClass(Protocol):
    """How an algorithm is made; ConfigError for settings that it cannot work with."""

    adaptive: bool
    steady: bool

    def __call__(self, problem: Problem, settings: SearchSettings) -> Algorithm:
        """A search that has asked nothing yet."""


ALGORITHMS: Registry[AlgorithmClass] = Registry("algorithm")
