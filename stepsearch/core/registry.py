"""Named extension points: a file registers itself, and contract tests run over every name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Generic, TypeVar

from stepsearch.core.errors import SpaceError

T = TypeVar("T")


def did_you_mean(value: object, known: Mapping[str, object] | list[str]) -> str:
    """A suggestion with a leading space, or an empty string when nothing is near."""
    near = difflib.get_close_matches(str(value), list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to implementations whose KeyError is a sentence."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: file `item` under `name`; a name taken twice is a programming error."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            hint = did_you_mean(name, self._items)
            known = ", ".join(sorted(self._items))
            raise SpaceError(f"unknown {self.kind} '{name}'{hint}; known: {known}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)


def discover(package: ModuleType) -> None:
    """Import every module of `package`, so that a new file is registered by being there."""
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
