"""The search space: integer genes, and what each genome means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from stepsearch.core.bank import Bank
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.kinds import DISTILLED, RELAY, SINGLE
from stepsearch.core.protocols import Genome

T = TypeVar("T")
NO_GUIDANCE = "none"
MONOTONE = ("non-increasing", "non-decreasing")  # from the first call, at most noise, to the last

# A name, alone or with arguments; an argument that is a Range, or a tuple of them, is one gene or
# several.
Setting = str | tuple[str, Mapping[str, Any]]


def named(setting: Setting) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of a setting."""
    return (setting, {}) if isinstance(setting, str) else setting


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric gene: `steps` values from `low` to `high`, evenly, or evenly in the logarithm."""

    low: float
    high: float
    steps: int
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SpaceError(f"range: min must lie below max, got {self.low} and {self.high}")
        if type(self.steps) is not int or self.steps < 2:
            raise SpaceError(f"range: at least 2 values are needed, got {self.steps}")
        if self.log and self.low <= 0:
            raise SpaceError(f"range: a logarithmic range starts above 0, got {self.low}")

    def value(self, i: int) -> float:
        """Value i of 0 .. steps - 1; whole where it can be, rounded so that 0.1 + 0.2 is 0.3.

        Six significant digits in a logarithmic range, else twelve of the larger end.
        """
        if i in (0, self.steps - 1):
            return self.high if i else self.low
        part = i / (self.steps - 1)
        if type(self.low) is type(self.high) is int and not self.log:
            whole, rest = divmod(i * (self.high - self.low), self.steps - 1)
            if not rest:
                return self.low + whole
        if self.log:
            value = float(f"{self.low * (self.high / self.low) ** part:.6g}")
        else:
            digits = 12 - math.ceil(math.log10(max(abs(self.low), abs(self.high))))
            value = round(self.low + part * (self.high - self.low), digits)
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one genome asks for; `build_schedule` compiles it to the calls that are made.

    `widths` is one entry per width gene. With `per_call` there are as many as calls in the longest
    schedule of the space, whose call e reads gene e; a shorter one reads the gene of the nearest
    noise level. Otherwise genes are equal parts of the network's range of log noise level, most
    noise first. `second` is the second stage of a relay, whose grid
    starts where it takes over. A `distilled` network has widths of its own.
    """

    supernet: str
    solver: str
    solver_args: Mapping[str, Any] = field(hash=False)
    calls: int
    grid: str
    widths: tuple[float, ...]
    per_call: bool = False
    grid_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    guidance: Guidance | None = None
    distilled: bool = False
    second: Candidate | None = None

    @property
    def kind(self) -> str:
        """One of `core.kinds.KINDS`."""
        return RELAY if self.second is not None else DISTILLED if self.distilled else SINGLE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, inverse of `from_dict`."""
        data = asdict(replace(self, second=None))
        if self.guidance is not None and math.isinf(self.guidance.high):
            del data["guidance"]["high"]  # JSON knows no infinity
        del data["second"]
        if not self.distilled:
            del data["distilled"]
        return data if self.second is None else data | {"second": self.second.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Read `to_dict` output back; TypeError or KeyError where it is something else."""
        fields = dict(data)
        fields["widths"] = tuple(data["widths"])
        for name in ("solver_args", "grid_args"):
            fields[name] = {k: _untuple(v) for k, v in data.get(name, {}).items()}
        if data.get("guidance") is not None:
            fields["guidance"] = Guidance(**data["guidance"])
        if "second" in data:
            fields["second"] = cls.from_dict(data["second"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Listed choices per gene; a genome holds one index per gene, in the order of `genes`.

    A solver, grid or guidance is a name, alone or with arguments; arguments that are Ranges are
    genes of their own. With `monotone` widths are sorted over time, whatever the genes say. With a
    bank, supernet and values choose the network. A supernet of `relay.firsts` is followed by a
    second stage, whose genes are in effect for it alone; one of `distilled.supernets` takes all
    but itself from the genes of `distilled`.
    """

    supernets: tuple[str, ...]
    calls: tuple[int, ...]
    grids: tuple[Setting, ...] = field(hash=False)
    solvers: tuple[Setting, ...] = field(hash=False)
    width_choices: tuple[float, ...]
    width_genes: int
    per_call: bool = False
    monotone: str | None = None
    guidances: tuple[Setting, ...] = field(default=(NO_GUIDANCE,), hash=False)
    bank: Bank | None = None
    relay: Relaying | None = None
    distilled: SearchSpace | None = None

    def __post_init__(self) -> None:
        for name in ("supernets", "calls", "grids", "solvers", "width_choices", "guidances"):
            if not getattr(self, name):
                raise SpaceError(f"space: {name} is empty; list at least one choice")
        if self.width_genes < 1:
            raise SpaceError(f"space: width_genes must be at least 1, got {self.width_genes}")
        if self.monotone not in (None, *MONOTONE):
            raise SpaceError(f"space: monotone is one of {MONOTONE}, got {self.monotone!r}")
        if self.bank is not None:
            count = len(self.supernets) * math.prod(n for _, n in self.bank.genes)
            if len(self.bank.networks) != count:
                raise SpaceError(f"space: {len(self.bank.networks)} networks, {count} are needed")

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
        guidance = (("guidance", len(self.guidances)),) if len(self.guidances) > 1 else ()
        ranges = ((name, r.steps) for name, r in self._ranges())
        own = (*head, *widths, *guidance, *self._bank_genes, *ranges)
        return (*own, *(gene for part in self._parts for gene in part))

    @property
    def _parts(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Genes of a second stage, and of distilled networks, which gene `supernet` chooses."""
        relay = () if self.relay is None else self.relay.genes
        few = () if self.distilled is None else self.distilled.genes[1:]
        return relay, tuple((f"{DISTILLED}_{name}", n) for name, n in few)

    @property
    def _bank_genes(self) -> tuple[tuple[str, int], ...]:
        return () if self.bank is None else self.bank.genes

    def _ranges(self) -> Iterator[tuple[str, Range]]:
        """Every Range with the name of its gene, in a fixed order."""
        for kind in ("grids", "solvers", "guidances"):
            for i, (name, args) in enumerate(map(named, getattr(self, kind))):
                for key, value in args.items():
                    yield from _range_genes(f"{kind[:-1]}_{i}_{name}_{key}", value)

    def decode(self, genome: Genome) -> Candidate:
        """The candidate that `genome` means; SpaceError where an index is out of range."""
        genes = self.genes
        if len(genome) != len(genes) or any(
            not 0 <= g < n for g, (_, n) in zip(genome, genes, strict=False)
        ):
            sizes = [n for _, n in genes]
            raise SpaceError(f"genome {tuple(genome)} does not fit genes of sizes {sizes}")
        values = dict(zip((name for name, _ in genes), genome, strict=True))
        network, (second, few) = self._network(values), map(len, self._parts)
        if self.distilled is not None and network in self.distilled.supernets:
            chosen = self.distilled.decode((0, *genome[len(genome) - few :]))
            return replace(chosen, supernet=network, distilled=True)
        solver, solver_args = self._setting("solver", values)
        grid, grid_args = self._setting("grid", values)
        guidance, guidance_args = self._setting("guidance", values)
        widths = [self.width_choices[values[f"width_{i}"]] for i in range(self.width_genes)]
        if self.monotone is not None:
            widths.sort(reverse=self.monotone == MONOTONE[0])
        none = guidance == NO_GUIDANCE
        candidate = Candidate(
            supernet=network,
            solver=solver,
            solver_args=solver_args,
            calls=self.calls[values["calls"]],
            grid=grid,
            grid_args=grid_args,
            widths=tuple(widths),
            per_call=self.per_call,
            guidance=None if none else Guidance.of(guidance, guidance_args),
        )
        if self.relay is None or network not in self.relay.firsts:
            return candidate
        last = len(genome) - few
        return self.relay.decode(candidate, genome[last - second : last])

    def _network(self, values: Mapping[str, int]) -> str:
        """Name of the network that the genes choose."""
        if self.bank is None:
            return self.supernets[values["supernet"]]
        return self.bank.network(values["supernet"], [values[n] for n, _ in self.bank.genes])

    def _setting(self, kind: str, values: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
        """Name and arguments that the genes choose, every Range replaced by its value."""
        i = values.get(kind, 0)
        name, args = named(getattr(self, f"{kind}s")[i])
        chosen: dict[str, Any] = {}
        for key, value in args.items():
            found = [r.value(values[n]) for n, r in _range_genes(f"{kind}_{i}_{name}_{key}", value)]
            single = found[0] if isinstance(value, Range) else tuple(found)
            chosen[key] = single if found else value
        return name, chosen

    def uniform_genomes(self, limit: int) -> list[Genome]:
        """Uniform-width strategies, the baselines that a search starts from and is judged by.

        Each is one width throughout, with the first listed supernet, grid, solver and guidance and
        every range at its middle. All widths come once with the middle number of calls;
        further numbers of calls follow, as whole sets of widths, while they fit into `limit`. Where
        not even one set fits, widths are spread evenly from the narrowest to the widest.
        """
        n = len(self.width_choices)
        count = min(n, max(limit, 1))
        picked = sorted({round(i * (n - 1) / max(count - 1, 1)) for i in range(count)})
        sets = max(1, limit // n)
        middle = len(self.calls) // 2
        order = sorted(range(len(self.calls)), key=lambda i: (i != middle, -self.calls[i]))
        return [self._uniform(width, calls) for calls in order[:sets] for width in picked]

    def setting_genomes(self, limit: int) -> list[Genome]:
        """One strategy of the middle width for every other supernet, grid, solver and guidance.

        They tell a search early what each setting is worth, at the middle number of calls. Where
        there are more than `limit`, they are taken evenly from the list. Of a bank every other
        network comes first, then every other grid, solver and guidance on the first network. A
        distilled network comes with every number of its calls instead.
        """
        sizes = (len(s) for s in (self.supernets, self.grids, self.solvers, self.guidances))
        others = list[tuple[Any, ...]](itertools.product(*map(range, sizes)))[1:]
        if self.distilled is not None:
            few = [i for i, s in enumerate(self.supernets) if s in self.distilled.supernets]
            others = [setting for setting in others if setting[0] not in few]
            calls = range(len(self.distilled.calls))
            others = [(i, 0, 0, 0, (), n) for i in few for n in calls] + others
        if self.bank is None:
            return [self._tried(*setting) for setting in _evenly(others, limit)]
        places = map(self.bank.places, self.bank.members[1:])
        networks = _evenly([(net, 0, 0, 0, values) for net, *values in places], limit)
        plain = [setting for setting in others if not setting[0]]
        return [self._tried(*s) for s in (*networks, *_evenly(plain, limit - len(networks)))]

    def _tried(self, *setting: Any) -> Genome:
        """A genome of the middle width and the middle number of calls."""
        return self._uniform(len(self.width_choices) // 2, len(self.calls) // 2, *setting)

    def _uniform(
        self,
        width: int,
        calls: int,
        supernet: int = 0,
        grid: int = 0,
        solver: int = 0,
        guidance: int = 0,
        trained: Sequence[int] = (),
        few_calls: int = 0,
    ) -> Genome:
        """A genome of one width, every range at its middle; `trained` are values of the bank, and
        `few_calls` the number of calls of a distilled network, by its place."""
        head = (supernet, calls, grid, solver, *(width,) * self.width_genes)
        kind = (guidance,) if len(self.guidances) > 1 else ()
        values = trained or (0,) * len(self._bank_genes)
        own = (*head, *kind, *values, *(r.steps // 2 for _, r in self._ranges()))
        share = width / max(len(self.width_choices) - 1, 1)
        relay = () if self.relay is None else self.relay.uniform(share)
        few = () if self.distilled is None else self.distilled._uniform(0, few_calls)[1:]
        return (*own, *relay, *few)


@dataclass(frozen=True, slots=True)
class Relaying:
    """The second stage of a relay: where it takes over, and a space of its own.

    Solver and grids of `space` are those of second stages; `starts` are noise levels.
    """

    firsts: tuple[str, ...]  # networks of low resolution, all those that a bank makes of them
    starts: tuple[float, ...]
    space: SearchSpace

    @property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """(name, number of choices) of every gene."""
        return ((f"{RELAY}_start", len(self.starts)), *self._inner)

    @property
    def _inner(self) -> Iterator[tuple[str, int]]:
        return ((f"{RELAY}_{name}", n) for name, n in self.space.genes)

    def decode(self, first: Candidate, genome: Genome) -> Candidate:
        """The candidate whose first stage is given; what guides it guides both stages."""
        second = self.space.decode(genome[1:])
        grid = {**second.grid_args, "start": self.starts[genome[0]]}
        return replace(first, second=replace(second, grid_args=grid, guidance=first.guidance))

    def uniform(self, share: float) -> Genome:
        """The middle of everything, at the width that lies `share` of the way up the choices."""
        space = self.space
        width = round(share * (len(space.width_choices) - 1))
        return (len(self.starts) // 2, *space._uniform(width, len(space.calls) // 2))


def _evenly(entries: Sequence[T], limit: int) -> list[T]:
    """At most `limit` entries, evenly from the list."""
    count = min(max(limit, 0), len(entries))
    return [entries[i * len(entries) // count] for i in range(count)]


def _range_genes(name: str, value: Any) -> Iterator[tuple[str, Range]]:
    """The genes of one argument."""
    if isinstance(value, Range):
        yield name, value
    elif isinstance(value, tuple) and value and all(isinstance(v, Range) for v in value):
        yield from ((f"{name}_{i}", r) for i, r in enumerate(value))


def _untuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
