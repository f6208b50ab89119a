"""YAML with places: every value knows its file, line and column, and every key is accounted for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import did_you_mean

T = TypeVar("T")
OVERRIDE = "override "
LIMIT = 1_000_000  # bytes of a settings file
DEPTH = 20  # of nesting; PyYAML's time grows with its square
TAGS = {f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-3 is a number, yes and off are text; no dates, no tags of Python."""


class Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` or YAML 1.1 would read as something else."""


_Loader.yaml_implicit_resolvers = {}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
for _tag, _pattern, _first in (
    ("bool", re.compile(r"(true|false)$"), "tf"),
    ("null", re.compile(r"(null|~|)$"), ["n", "~", ""]),
    ("int", re.compile(r"[-+]?[0-9]+$"), "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a settings file, with the dotted path and the place it was read at."""

    node: Node
    path: str
    source: str  # file, or the override as typed

    def error(self, message: str) -> ConfigError:
        """An error that names the place and the path of this value."""
        return ConfigError(": ".join(filter(None, (_place(self), self.path, message))))

    def scalar(self) -> Any:
        """A plain Python scalar; ConfigError for lists, mappings and foreign tags."""
        node = self.node
        if not isinstance(node, ScalarNode):
            raise self.error(f"expected a single value, got {self.shown()}")
        kind = node.tag.rpartition(":")[2]
        text = str(node.value)
        if kind in ("bool", "null"):
            return {"true": True, "false": False}.get(text)
        if kind == "str" or node.style in ("'", '"', "|", ">"):
            return text
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:  # a tag on other text, or thousands of digits
            raise self.error(f"{textwrap.shorten(text, 40)!r} is no {kind}") from None

    def shown(self) -> str:
        """The value in a few words, for messages."""
        if isinstance(self.node, ScalarNode):
            return repr(self.scalar())
        return "a list" if isinstance(self.node, SequenceNode) else "a mapping"

    def text(self) -> str:
        """A non-empty string."""
        value = self.scalar()
        if not isinstance(value, str) or not value:
            raise self.error(f"expected text, got {value!r}")
        return value

    def flag(self) -> bool:
        """true or false."""
        value = self.scalar()
        if not isinstance(value, bool):
            raise self.error(f"expected true or false, got {value!r}")
        return value

    def whole(self, low: int, high: int = 2**63 - 1) -> int:
        """A whole number in [low, high]."""
        value = self.scalar()
        if type(value) is not int:
            raise self.error(f"expected a whole number, got {value!r}")
        if not low <= value <= high:
            bounds = f"at least {low}" if high == 2**63 - 1 else f"between {low} and {high}"
            raise self.error(f"must be {bounds}, got {value}")
        return value

    def number(self, low: float, high: float, *, open_low: bool = False) -> float:
        """A finite number in [low, high], or (low, high] with `open_low`."""
        value = self.scalar()
        if type(value) not in (int, float):
            raise self.error(f"expected a number, got {value!r}")
        if not (low < value if open_low else low <= value) or value > high:
            raise self.error(f"must lie in {'(' if open_low else '['}{low}, {high}], got {value}")
        return float(value)

    def one_of(self, known: list[str]) -> str:
        """One of the listed words."""
        value = self.text()
        if value not in known:
            hint = did_you_mean(value, known)
            raise self.error(f"unknown value '{value}'{hint}; known: {', '.join(known)}")
        return value

    def items(self) -> list[Value]:
        """Entries of a non-empty list."""
        if not isinstance(self.node, SequenceNode):
            raise self.error(f"expected a list, got {self.shown()}")
        if not self.node.value:
            raise self.error("expected at least one entry, got an empty list")
        return [Value(n, f"{self.path}[{i}]", self.source) for i, n in enumerate(self.node.value)]

    def distinct(self, read: Callable[[Value], T]) -> tuple[T, ...]:
        """Entries of a list read one by one, none of them twice."""
        seen: list[T] = []
        for item in self.items():
            value = read(item)
            if value in seen:
                raise item.error(f"{item.shown()} is listed twice; remove one")
            seen.append(value)
        return tuple(seen)

    def section(self) -> Section:
        """This value as a mapping."""
        return Section(self)


def _place(value: Value) -> str:
    return _at(value.source, value.node.start_mark)


def _at(source: str, mark: Any) -> str:
    """file:line:column; an override is its own place."""
    if mark is None or source.startswith(OVERRIDE):
        return source
    return f"{source}:{mark.line + 1}:{mark.column + 1}"


class Section:
    """A mapping whose keys are taken one by one; `close` refuses what nobody asked for."""

    def __init__(self, value: Value) -> None:
        if not isinstance(value.node, MappingNode):
            raise value.error(f"expected a mapping of keys, got {value.shown()}")
        self.value = value
        self._values: dict[str, Value] = {}
        self._keys: dict[str, Value] = {}
        self._asked: list[str] = []
        for key, node in value.node.value:
            name = Value(key, value.path, value.source).text()
            path = f"{value.path}.{name}" if value.path else name
            if name in self._values:
                first = _place(self._keys[name])
                raise Value(key, path, value.source).error(
                    f"duplicate key '{name}', first given at {first}; remove one"
                )
            source = getattr(node, "override", value.source)
            self._values[name] = Value(node, path, source)
            self._keys[name] = Value(key, path, source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str) -> Value | None:
        """The value under `name`, or None where the key is absent."""
        self._asked.append(name)
        return self._values.get(name)

    def need(self, name: str) -> Value:
        """The value under `name`; ConfigError where the key is absent."""
        value = self.get(name)
        if value is None:
            for other in self._values:
                if did_you_mean(other, [name]) and other not in self._asked:
                    raise self._keys[other].error(
                        f"unknown key '{other}'{did_you_mean(other, [name])}"
                    )
            raise self.value.error(f"key '{name}' is missing")
        return value

    def close(self) -> None:
        """ConfigError for a key that was never asked for."""
        for name, key in self._keys.items():
            if name not in self._asked:
                hint = did_you_mean(name, self._asked)
                known = ", ".join(dict.fromkeys(self._asked))
                raise key.error(f"unknown key '{name}'{hint}; known: {known}")


def read_yaml(path: Path, overrides: list[str] | None = None) -> Value:
    """Parse a settings file and put `a.b=value` overrides into it; ConfigError for bad input."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; check the path") from None
    if len(raw) > LIMIT:
        raise ConfigError(f"{path}: {len(raw)} bytes is no settings file; the limit is {LIMIT}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    node = _compose(text, str(path))
    if node is None:
        raise ConfigError(f"{path}: the file is empty; see `stepsearch ls` for examples")
    root = Value(node, "", str(path))
    for override in overrides or []:
        _override(root, override)
    return root


def _compose(text: str, source: str) -> Node | None:
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                place = _at(source, event.start_mark)
                raise ConfigError(f"{place}: YAML syntax: nested deeper than {DEPTH} levels")
            tag = getattr(event, "tag", None)
            if tag not in (None, "!") and tag not in TAGS:
                raise ConfigError(
                    f"{_at(source, event.start_mark)}: tag {tag} is not allowed here; write a "
                    f"plain value"
                )
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{_at(source, event.start_mark)}: aliases (*{event.anchor}) are not "
                    f"supported; write the value out"
                )
        return yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = _at(source, error.problem_mark or error.context_mark)
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: YAML syntax: {what}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        place = source if source.startswith(OVERRIDE) else f"{source}:{line}:{column}"
        raise ConfigError(
            f"{place}: YAML syntax: character #x{error.character:04x} is not allowed; remove it"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{source}: YAML syntax: {first}") from None


def _override(root: Value, text: str) -> None:
    """Put `a.b=value` into the tree; the key may be new, its section may not be a list."""
    source = f"{OVERRIDE}'{text}'"
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{source}: expected key=value, e.g. search.population=8")
    node = _compose(value, source)
    if node is None:
        raise ConfigError(f"{source}: the value is empty")
    here = root.node
    *parents, last = key.split(".")
    for i, name in enumerate(parents):
        if not isinstance(here, MappingNode):
            raise ConfigError(f"{source}: '{'.'.join(parents[:i])}' has no keys of its own")
        below = _child(here, name)
        if below is None:
            below = MappingNode("tag:yaml.org,2002:map", [], node.start_mark, node.end_mark)
            _put(here, name, below, source)
        here = below
    if not isinstance(here, MappingNode):
        raise ConfigError(f"{source}: '{'.'.join(parents)}' has no keys of its own")
    _put(here, last, node, source)


def _child(mapping: MappingNode, name: str) -> Node | None:
    return next((v for k, v in mapping.value if k.value == name), None)


def _put(mapping: MappingNode, name: str, node: Node, source: str) -> None:
    key = ScalarNode("tag:yaml.org,2002:str", name, node.start_mark, node.end_mark)
    node.override = source  # type: ignore[attr-defined]
    kept = [(k, v) for k, v in mapping.value if k.value != name]
    mapping.value = [*kept, (key, node)]
