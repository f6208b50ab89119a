"""How many different schedules a space holds: genomes that mean the same run are one."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stepsearch.build import build_schedule
from stepsearch.core.errors import SpaceError
from stepsearch.core.genes import width_groups
from stepsearch.core.kinds import DISTILLED, RELAY
from stepsearch.core.protocols import Genome, NetCard
from stepsearch.core.space import SearchSpace

BUILDS = 40_000  # schedules compiled for an exact count; beyond, settings are drawn
DRAWS = 400  # settings of an estimate


@dataclass(frozen=True, slots=True)
class Size:
    """Schedules of a space, whatever its constraints; `error` is 0 where they were counted."""

    schedules: float
    error: float = 0.0  # standard error of an estimate
    genomes: int = 0

    @property
    def exact(self) -> bool:
        """Whether every setting was looked at."""
        return self.error == 0


def space_size(space: SearchSpace, cards: Mapping[str, NetCard], rng: np.random.Generator) -> Size:
    """Count schedules, setting by setting: with one of everything but widths, a schedule is told by
    the width of each call, and genes that no call reads say nothing.

    Where there are too many settings an estimate of as many as DRAWS: the mean, over settings, of
    the schedules of each divided by the number of settings that mean the same.
    """
    names, sizes = zip(*space.genes, strict=True)
    groups = width_groups(names)
    free = [i for i in range(len(sizes)) if not any(i in group for group in groups)]
    settings, genomes = math.prod(sizes[i] for i in free), math.prod(sizes)
    compiled = _compiler(space, cards)
    probe = _Probe(compiled, sizes, groups, [_sorts(space, names[g[0]]) for g in groups], free)
    if settings * (1 + len(sizes)) <= BUILDS:
        found: dict[str, int] = {}
        for genome in probe.genomes(itertools.product(*(range(sizes[i]) for i in free))):
            key = compiled(genome)
            if key is not None and key not in found:
                found[key] = probe.widths(genome)
        return Size(sum(found.values()), genomes=genomes)
    drawn = (tuple(int(rng.integers(sizes[i])) for i in free) for _ in range(DRAWS))
    shares = [
        0.0 if compiled(genome) is None else probe.widths(genome) / probe.alike(genome)
        for genome in probe.genomes(drawn)
    ]
    mean, spread = statistics.fmean(shares), statistics.stdev(shares)
    return Size(settings * mean, settings * spread / math.sqrt(DRAWS), genomes)


def _compiler(space: SearchSpace, cards: Mapping[str, NetCard]) -> Callable[[Genome], str | None]:
    """genome -> key of its schedule, widths unsorted; None where nothing can carry it out."""
    unsorted = _unsorted(space)

    def compiled(genome: Genome) -> str | None:
        try:
            return build_schedule(unsorted.decode(genome), cards).key()
        except SpaceError:
            return None

    return compiled


def _unsorted(space: SearchSpace) -> SearchSpace:
    """The space without sorting of widths, so that a call reads one gene."""
    relay, few = space.relay, space.distilled
    return replace(
        space,
        monotone=None,
        relay=None if relay is None else replace(relay, space=_unsorted(relay.space)),
        distilled=None if few is None else _unsorted(few),
    )


def _sorts(space: SearchSpace, gene: str) -> bool:
    """Whether widths of the part that a gene belongs to are sorted."""
    part: SearchSpace | None = space
    if gene.startswith(f"{RELAY}_") and space.relay is not None:
        part = space.relay.space
    elif gene.startswith(f"{DISTILLED}_"):
        part = space.distilled
    return part is not None and part.monotone is not None


@dataclass(frozen=True, slots=True)
class _Probe:
    """Finds out what a setting reads, by changing one gene at a time."""

    compiled: Callable[[Genome], str | None]
    sizes: Sequence[int]
    groups: Sequence[Sequence[int]]  # genes of widths, one group a network's part
    sorts: Sequence[bool]  # whether a group's widths are sorted before they are read
    free: Sequence[int]  # all other genes

    def genomes(self, settings: Iterator[tuple[int, ...]]) -> Iterator[Genome]:
        """Genomes of settings, every width the first."""
        for setting in settings:
            genome = [0] * len(self.sizes)
            for place, value in zip(self.free, setting, strict=True):
                genome[place] = value
            yield tuple(genome)

    def widths(self, genome: Genome) -> int:
        """Different sequences of widths that the calls of a setting can have."""
        parts = zip(self.groups, self.sorts, strict=True)
        return math.prod(self._of_group(genome, group, sorts) for group, sorts in parts)

    def _of_group(self, genome: Genome, group: Sequence[int], sorts: bool) -> int:
        choices = self.sizes[group[0]]
        key = self.compiled(genome)
        read = 0
        if choices > 1:
            read = sum(self.compiled(_changed(genome, place, 1)) != key for place in group)
        # sorted widths are told by how many there are of each
        return math.comb(choices + read - 1, read) if sorts else choices**read

    def alike(self, genome: Genome) -> int:
        """Settings that mean the same, if genes that say nothing here do so independently."""
        key = self.compiled(genome)
        return math.prod(
            sum(self.compiled(_changed(genome, i, v)) == key for v in range(self.sizes[i]))
            for i in self.free
        )


def _changed(genome: Genome, place: int, value: int) -> Genome:
    return (*genome[:place], value, *genome[place + 1 :])
