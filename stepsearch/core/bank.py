"""Networks of one supernet that were trained differently; which one to use is a gene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepsearch.core.errors import SpaceError


@dataclass(frozen=True, slots=True)
class Bank:
    """Networks of one supernet that differ in how they were trained; the values are genes.

    `settings` are keys of a recipe's `train` section with the values to choose from; a key of one
    value is the same for all networks and no gene. `networks` names the network of every supernet
    and combination of values, the last value first to change; combinations that train the same
    share a network.
    """

    settings: tuple[tuple[str, tuple[Any, ...]], ...]
    networks: tuple[str, ...]

    def __post_init__(self) -> None:
        for key, values in self.settings:
            if not values:
                raise SpaceError(f"bank: {key} is empty; list at least one value")
        size = math.prod(len(values) for _, values in self.settings)
        if not self.networks or len(self.networks) % size:
            raise SpaceError(f"bank: {len(self.networks)} networks for {size} combinations")

    @property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """(name, number of choices): the key with dots as underscores."""
        return tuple((k.replace(".", "_"), len(v)) for k, v in self.settings if len(v) > 1)

    @property
    def members(self) -> tuple[str, ...]:
        """Every network once."""
        return tuple(dict.fromkeys(self.networks))

    def network(self, supernet: int, chosen: Sequence[int]) -> str:
        """The network of a supernet and the value of every gene, both by their place."""
        place = supernet
        for value, (_, size) in zip(chosen, self.genes, strict=True):
            place = place * size + value
        return self.networks[place]

    def places(self, network: str) -> tuple[int, ...]:
        """The supernet and the values, by their place, that choose a network first."""
        place, values = self.networks.index(network), list[int]()
        for _, size in reversed(self.genes):
            place, value = divmod(place, size)
            values.append(value)
        return (place, *reversed(values))

    def values(self, network: str) -> dict[str, Any]:
        """What was trained differently, of a network of this bank."""
        varied = [setting for setting in self.settings if len(setting[1]) > 1]
        chosen = self.places(network)[1:]
        return {key: values[i] for (key, values), i in zip(varied, chosen, strict=True)}
