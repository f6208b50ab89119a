"""The search space: integer genes, and what each genome means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.protocols import Genome


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one genome asks for; `build_schedule` compiles it to the calls that are made.

    `widths` is one entry per width gene. With `per_call` gene e of M serves the calls at that
    fraction of the trajectory; otherwise genes are equal parts of the network's range of log
    noise level, most noise first.
    """

    supernet: str
    solver: str
    solver_args: Mapping[str, Any] = field(hash=False)
    calls: int
    grid: str
    widths: tuple[float, ...]
    per_call: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Read `to_dict` output back; TypeError or KeyError where it is something else."""
        return cls(**{**data, "widths": tuple(data["widths"])})


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Listed choices per gene; a genome holds one index per gene, in the order of `genes`."""

    supernets: tuple[str, ...]
    calls: tuple[int, ...]
    grids: tuple[str, ...]
    solvers: tuple[tuple[str, Mapping[str, Any]], ...] = field(hash=False)
    width_choices: tuple[float, ...]
    width_genes: int
    per_call: bool = False

    def __post_init__(self) -> None:
        for name in ("supernets", "calls", "grids", "solvers", "width_choices"):
            if not getattr(self, name):
                raise SpaceError(f"space: {name} is empty; list at least one choice")
        if self.width_genes < 1:
            raise SpaceError(f"space: width_genes must be at least 1, got {self.width_genes}")

    @property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """(name, number of choices) of every gene."""
        head = (
            ("supernet", len(self.supernets)),
            ("calls", len(self.calls)),
            ("grid", len(self.grids)),
            ("solver", len(self.solvers)),
        )
        widths = ((f"width_{i}", len(self.width_choices)) for i in range(self.width_genes))
        return (*head, *widths)

    def decode(self, genome: Genome) -> Candidate:
        """The candidate that `genome` means; SpaceError where an index is out of range."""
        sizes = [n for _, n in self.genes]
        if len(genome) != len(sizes) or any(
            not 0 <= g < n for g, n in zip(genome, sizes, strict=False)
        ):
            raise SpaceError(f"genome {tuple(genome)} does not fit genes of sizes {sizes}")
        supernet, calls, grid, solver, *widths = genome
        name, args = self.solvers[solver]
        return Candidate(
            supernet=self.supernets[supernet],
            solver=name,
            solver_args=dict(args),
            calls=self.calls[calls],
            grid=self.grids[grid],
            widths=tuple(self.width_choices[w] for w in widths),
            per_call=self.per_call,
        )

    def uniform_genomes(self, limit: int) -> list[Genome]:
        """Uniform-width strategies, the baselines that a search starts from and is judged by.

        Each is one width throughout, with the first listed supernet, grid and solver. All widths
        come once with the middle number of calls; further numbers of calls follow, as whole sets
        of widths, while they fit into `limit`. Where not even one set fits, widths are spread
        evenly from the narrowest to the widest.
        """
        n = len(self.width_choices)
        count = min(n, max(limit, 1))
        picked = sorted({round(i * (n - 1) / max(count - 1, 1)) for i in range(count)})
        sets = max(1, limit // n)
        middle = len(self.calls) // 2
        order = sorted(range(len(self.calls)), key=lambda i: (i != middle, -self.calls[i]))
        return [
            (0, calls, 0, 0) + (width,) * self.width_genes
            for calls in order[:sets]
            for width in picked
        ]
