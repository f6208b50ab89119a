"""Trials: what was measured of a schedule, and the columns that a reader of CSV sees."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.protocols import Genome
from stepsearch.core.schedule import run_length
from stepsearch.core.space import Candidate

COLUMNS = [
    "trial_id",
    "key",
    "generation",
    "state",
    "rank",
    "is_pareto",
    "fid",
    "fid_se",
    "kid",
    "gflops_per_image",
    "counting",
    "nfe",
    "latency_ms",
    "peak_memory_mb",
    "kind",
    "supernet",
    "immiscible_batch",
    "train",
    "solver",
    "solver_args",
    "pfdiff_k",
    "pfdiff_l",
    "pfdiff_c",
    "grid",
    "grid_args",
    "relay_start",
    "relay_supernet",
    "relay_calls",
    "relay_solver_args",
    "relay_grid",
    "relay_grid_args",
    "guidance",
    "guidance_low",
    "guidance_high",
    "guide",
    "widths",
    "mean_width",
    "n_samples",
    "n_sampled",
    "seed",
    "metric_id",
    "seconds",
    "started_at",
    "fail_kind",
    "error",
]
MEASURED = ("fid", "fid_se", "kid", "gflops_per_image", "latency_ms", "peak_memory_mb")
TIME_COLUMNS = (
    "latency_ms",
    "peak_memory_mb",
    "seconds",
    "started_at",
)  # the only ones that two equal runs differ in
COMPLETE, FAILED, SCREENED = "COMPLETE", "FAIL", "SCREENED"
RUNG = re.compile(r"(?:fid|kid)_(\d+)$")  # the name of a rung's value, see Rung.name
FAIL_KINDS = ("error", "nonfinite", "memory", "timeout", "died")


class NonFinite(ValueError):
    """Numbers that are none: the same arithmetic would give them again."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A scored schedule; `values` maps objective and diagnostic names to finite numbers."""

    values: Mapping[str, float] = field(hash=False)
    n_samples: int
    seed: int
    metric_id: str
    seconds: float
    started_at: str  # UTC, ISO 8601
    counting: str = FULL_COUNT  # how `gflops_per_image` counts

    def __post_init__(self) -> None:
        bad = {k: v for k, v in self.values.items() if not math.isfinite(v)}
        if bad:
            raise NonFinite(f"objectives must be finite, got {bad}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that could not be scored after `attempts` tries."""

    error: str
    attempts: int
    seconds: float = 0.0
    started_at: str = ""
    kind: str = "error"  # one of FAIL_KINDS
    values: Mapping[str, float] = field(default_factory=dict, hash=False)  # of rungs before


@dataclass(frozen=True, slots=True)
class Screened:
    """A schedule that a rung of the fidelity ladder let go no further; `values` by `Rung.name`."""

    values: Mapping[str, float] = field(hash=False)
    n_samples: int
    seconds: float
    started_at: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One schedule of one run with its result, numbered in the order of asking."""

    trial_id: int
    generation: int
    key: str
    schedule: str  # StepSchedule.to_json()
    candidate: Candidate
    call_widths: tuple[float, ...]
    result: Measurement | Failure | Screened
    trained: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of RunSettings.trained
    genome: Genome = ()  # empty in journals of the first version

    @property
    def complete(self) -> bool:
        """True where there is a measurement."""
        return isinstance(self.result, Measurement)

    @property
    def failed(self) -> bool:
        """True where it could not be measured."""
        return isinstance(self.result, Failure)

    @property
    def state(self) -> str:
        """COMPLETE, FAILED or SCREENED."""
        return STATES[type(self.result)]

    @property
    def sampled(self) -> int:
        """Images that were sampled in all, those of the rungs before included."""
        rungs = sum(int(found[1]) for name in self.result.values if (found := RUNG.match(name)))
        return rungs + (self.result.n_samples if isinstance(self.result, Measurement) else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, inverse of `from_dict`."""
        data = asdict(self) | {"candidate": self.candidate.to_dict()}
        data["state"] = self.state
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Read a journal entry; KeyError, TypeError or ValueError where it is not one."""
        fields = dict(data)
        kinds = {state: kind for kind, state in STATES.items()}
        fields["result"] = kinds[fields.pop("state")](**fields["result"])
        fields["candidate"] = Candidate.from_dict(fields["candidate"])
        fields["call_widths"] = tuple(fields["call_widths"])
        fields["genome"] = tuple(fields.get("genome", ()))
        return cls(**fields)

    def row(self, rank: int | None) -> dict[str, Any]:
        """The trial's line of trials.csv; what does not apply is None."""
        c, r = self.candidate, self.result
        args = c.solver_args if c.solver == "pfdiff" else {}
        trained = dict(self.trained)
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "trial_id": self.trial_id,
            "key": self.key,
            "generation": self.generation,
            "state": self.state,
            "rank": rank,
            "is_pareto": rank == 0,
            "nfe": len(self.call_widths),
            "kind": c.kind,
            "supernet": c.supernet,
            "immiscible_batch": trained.pop("immiscible.pool", None),
            "train": _arguments(trained),
            "solver": c.solver,
            "solver_args": _arguments(c.solver_args),
            "pfdiff_k": args.get("k"),
            "pfdiff_l": args.get("l"),
            "pfdiff_c": args.get("c"),
            "grid": c.grid,
            "grid_args": _arguments(c.grid_args),
            "widths": run_length(self.call_widths),
            "mean_width": sum(self.call_widths) / len(self.call_widths),
            "seconds": r.seconds or None,
            "started_at": r.started_at or None,
        }
        if (g := c.guidance) is not None:
            row |= {"guidance": g.scale, "guide": g.net or g.kind, "guidance_low": g.low or None}
            row |= {"guidance_high": g.high if math.isfinite(g.high) else None}
        if (second := c.second) is not None:
            grid = {k: v for k, v in second.grid_args.items() if k != "start"}
            row |= {"relay_start": second.grid_args["start"], "relay_supernet": second.supernet}
            row |= {"relay_calls": second.calls, "relay_grid": second.grid}
            row |= {"relay_grid_args": _arguments(grid)}
            row |= {"relay_solver_args": _arguments(second.solver_args)}
        if isinstance(r, Measurement):
            row |= {name: r.values.get(name) for name in MEASURED}
            row |= {"n_samples": r.n_samples, "seed": r.seed, "metric_id": r.metric_id}
            row["counting"] = r.counting if "gflops_per_image" in r.values else None
        elif isinstance(r, Failure):
            row |= {"error": r.error, "fail_kind": r.kind}
        else:
            row |= {"n_samples": r.n_samples, "gflops_per_image": r.values.get("gflops_per_image")}
        row["n_sampled"] = self.sampled or None
        return row


STATES = {Measurement: COMPLETE, Failure: FAILED, Screened: SCREENED}


def _arguments(args: Mapping[str, Any]) -> str | None:
    """Arguments as text, 'order=3;variant=bh2'; None where there are none."""
    parts = (f"{name}={_shown(value)}" for name, value in sorted(args.items()))
    return ";".join(parts) if args else None


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "|".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
