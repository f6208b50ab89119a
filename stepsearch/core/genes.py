"""What the names of genes say about them."""

from __future__ import annotations

from collections.abc import Sequence

from stepsearch.core.kinds import DISTILLED, RELAY

PREFIXES = ("", f"{RELAY}_", f"{DISTILLED}_")  # of the network itself, and of the other parts
CHOICES = ("grid_", "solver_", "guidance_")  # followed by more, a gene is an argument's range


def width_groups(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Places of the genes that hold widths, a group for each part of a schedule that has some."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        head, found, tail = name.rpartition("width_")
        if found and tail.isdigit() and head in PREFIXES:
            groups.setdefault(head, []).append(place)
    return tuple(map(tuple, groups.values()))


def ordered_genes(names: Sequence[str]) -> tuple[bool, ...]:
    """Per gene, whether near choices are near things: widths, calls, starts and ranges are, while
    networks, grids and solvers are not."""
    return tuple(map(_is_ordered, names))


def _is_ordered(name: str) -> bool:
    for prefix in PREFIXES[1:]:
        name = name.removeprefix(prefix)
    is_width = name.startswith("width_") and name[len("width_") :].isdigit()
    return is_width or name in ("calls", "start") or name.startswith(CHOICES)
