"""stepsearch: which network width each diffusion step should use, jointly with the solver."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Call": "core.schedule",
    "Candidate": "core.space",
    "GaussianMixture": "nets.gaussian",
    "SearchSpace": "core.space",
    "Stage": "core.schedule",
    "StepSchedule": "core.schedule",
    "adapt": "nets.adapters",
    "assign_noise": "training.immiscible",
    "block_noise": "core.relay",
    "build_schedule": "build",
    "convert": "nets.pretrained",
    "frechet_distance": "objectives.fid",
    "hypervolume": "core.pareto",
    "integrate": "solvers.integrate",
    "load_net": "nets.load",
    "load_run": "store",
    "pareto_front": "core.pareto",
    "patch_blur": "core.relay",
    "plan_stage": "build",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `stepsearch --help` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stepsearch' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stepsearch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
