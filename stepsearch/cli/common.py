"""What several commands share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepsearch.progress import Display

PATIENCE = 2.0  # seconds before progress is shown


def delayed(display: Display, name: str, total: int) -> Callable[[int], None]:
    """Shows progress from the third second on: what is over sooner needs none."""
    start, shown = time.monotonic(), False

    def advance(done: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start > PATIENCE:
            display.stage(name, total)
            shown = True
        if shown:
            display.advance(name, done, total)

    return advance


def roots() -> tuple[Path, Path, Path]:
    """Where spaces and recipes lie: here, in a checkout, in an installed package."""
    package = Path(__file__).parents[1]
    return Path(), package.parent, package / "recipes"
