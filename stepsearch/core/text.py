"""Words of messages."""

from __future__ import annotations

from collections.abc import Iterable


def some(names: Iterable[str]) -> str:
    """Three names at most, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
