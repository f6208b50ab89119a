"""env.json: what a run was made with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import Recipe, RunSettings, content_hash
from stepsearch.evaluate import EvaluatorSpec


def environment(
    settings: RunSettings,
    cards: Mapping[str, NetCard],
    spec: EvaluatorSpec,
    facts: Mapping[str, float],
) -> str:
    """Versions, seeds, hashes of networks and statistics, hardware, facts of the data."""
    packages = ("stepsearch", "torch", "numpy", "scipy", "pymoo", "optuna", "ray", "pandas")
    data: dict[str, Any] = {
        "generations": settings.search.generations,  # may be raised later, which changes no hash
        "space_sha256": content_hash(settings.content()),
        "supernets": _identities(settings.recipes, cards),
        "metric_id": spec.metric_id,
        "objectives": list(settings.objectives),
        "data_sha256": spec.data_sha256,
        "features": settings.evaluation.features,
        "device": spec.device,
        "seeds": {"search": settings.search.seed, "evaluation": settings.evaluation.seed},
        "facts": dict(facts),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": hardware(),
    }
    for kind in ("guides", "seconds"):
        if getattr(settings, kind):
            data[kind] = _identities(getattr(settings, kind), cards)
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _identities(
    recipes: Sequence[Recipe], cards: Mapping[str, NetCard]
) -> dict[str, dict[str, str]]:
    return {r.name: {"key": cards[r.name].key, "sha256": cards[r.name].sha256} for r in recipes}


def hardware() -> dict[str, Any]:
    """What times in the tables were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }
