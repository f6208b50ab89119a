"""How long network calls take on one machine, measured once, so that latency is a sum of calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from stepsearch.core.errors import RunError
from stepsearch.core.protocols import NetCard


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Milliseconds per image of one call of each network, in the order of its card's widths."""

    hardware: str  # name of the processor, or of the GPU
    device: str
    batch: int  # images a call
    milliseconds: Mapping[str, tuple[float, ...]] = field(hash=False)  # by key of the network

    def to_json(self) -> str:
        """Readable JSON, inverse of `from_json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> LatencyTable:
        """Read a table; RunError, which names `place`, where the text is none."""
        try:
            data = json.loads(text)
            data["milliseconds"] = {k: tuple(v) for k, v in data["milliseconds"].items()}
            times = [t for row in data["milliseconds"].values() for t in row]
            if not all(math.isfinite(t) and t > 0 for t in times):
                raise ValueError("times must be positive")
            return cls(**data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{place}: no table of latencies ({type(error).__name__}: {error}); restore it, or "
                f"start a new run"
            ) from None


@dataclass(frozen=True, slots=True)
class TimedCard(NetCard):
    """A card with the times of one machine, which are no part of the network."""

    milliseconds: tuple[float, ...] = ()  # per image and call, at each of `widths`

    def milliseconds_at(self, width: float) -> float:
        """Of one call on one image, in a batch of the table's size."""
        return self.milliseconds[self.widths.index(self.check_width(width))]


def timed(card: NetCard, table: LatencyTable) -> TimedCard:
    """The card with its times; RunError where the table was measured with another network."""
    times = table.milliseconds.get(card.key, ())
    if len(times) != len(card.widths):
        raise RunError(
            f"latency.json: has {len(times)} times of network '{card.key}' with "
            f"{len(card.widths)} widths; it was measured with others: start a new run"
        )
    own = {f.name: getattr(card, f.name) for f in fields(NetCard)}
    return TimedCard(**own, milliseconds=times)
