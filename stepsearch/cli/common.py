"""What several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from stepsearch.resources import Resources


def read_resources(args: argparse.Namespace) -> Resources:
    """Workers and where they are; ConfigError for a number that makes no sense."""
    from stepsearch.resources import Resources

    if args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    if args.gpus_per_worker is not None and args.gpus_per_worker < 0:
        raise ConfigError(f"--gpus-per-worker: must not be negative, got {args.gpus_per_worker:g}")
    return Resources(args.workers, args.executor, args.address, args.gpus_per_worker)


def run_folder(place: str) -> Path:
    """The folder of a run to read: what is at a URI is fetched first."""
    if "://" not in place:
        return Path(place)
    from stepsearch.remote import run_folder

    return run_folder(place)


def is_space(path: Path, overrides: Sequence[str]) -> bool:
    """Whether a file is a search space, and no recipe of a network."""
    from stepsearch.core.yamlfile import read_yaml

    keys = read_yaml(path, list(overrides)).section()
    return "supernets" in keys or "schedule" in keys


def find_network(name: str) -> Path | None:
    """What a path, or a NAME of `stepsearch ls`, stands for; None where it is neither."""
    paths = [Path(name), *(root / "supernets" / f"{name}.yaml" for root in roots())]
    return next((path for path in paths if path.is_file()), None)


def roots() -> tuple[Path, Path, Path]:
    """Where spaces and recipes lie: here, in a checkout, in an installed package."""
    package = Path(__file__).parents[1]
    return Path(), package.parent, package / "recipes"
