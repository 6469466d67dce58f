# SPDX-License-Identifier: Apache-2.0
"""A YAML file -> nested values and the line of each key. Refuses files that would grow without
bound: aliases within aliases, deep nesting, interpolations of interpolations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ahpa_scale.config.errors import ConfigError, nearest

#: Most bytes of a file.
_LIMIT = 1 << 20
#: Most values of a file; each alias counts with all values that it stands for.
_MOST_VALUES = 20_000
_DEEPEST = 32
#: Most characters of all values after interpolations are resolved.
_MOST_CHARACTERS = 1 << 20
_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value")
}
_INTERPOLATION = re.compile(r"(?<!\\)\$\{")
_ENVIRONMENT = re.compile(r"oc\.env:\s*\w+")
_REFERENCE = re.compile(r"\.*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's content, interpolations unresolved, and for each dotted key ``file:line``.

    Raises:
        ConfigError: it cannot be read, or is no YAML of a run.
    """
    text = _text(path)
    sources = {"": str(path)}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigError(str(path), "", "the file is empty")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(str(path), "", "the file must hold 'key: value' lines")
        _check_nodes(root, str(path))
        _note_lines(root, "", str(path), sources)
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{error.context or ''} {error.problem}"
        raise ConfigError(f"{path}{line}", "", f"broken YAML: {problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(path), "", f"broken YAML: {error}") from None
    except RecursionError:
        raise ConfigError(str(path), "", "nested too deeply, or a part refers to itself") from None
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}, sources


def interpolations(content: Any, place: tuple[str | int, ...] = ()) -> dict[tuple[Any, ...], str]:
    """Values with ``${...}`` by their place: keys, and positions in lists."""
    if isinstance(content, str):
        return {place: content} if _INTERPOLATION.search(content) else {}
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(content, dict):
        pairs = iter(content.items())
    elif isinstance(content, list):
        pairs = iter(enumerate(content))
    texts: dict[tuple[Any, ...], str] = {}
    for key, value in pairs:
        texts |= interpolations(value, (*place, key))
    return texts


def check_growth(content: dict[str, Any]) -> None:
    """Refuses interpolations that resolve without end, or to far more than was written.

    Raises:
        GrowthError: it names the key and the reason.
    """
    _Growth(content).total()


class GrowthError(ValueError):
    """An interpolation that must not be resolved.

    Attributes:
        key: dotted key of the value.
        problem: the reason.
    """

    def __init__(self, place: tuple[Any, ...], problem: str) -> None:
        self.key, self.problem = ".".join(map(str, place)), problem
        super().__init__(f"{self.key}: {problem}")


class _Growth:
    """Counts the characters of resolved values without resolving any."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        self._known: dict[tuple[Any, ...], int] = {}
        self._open: set[tuple[Any, ...]] = set()

    def total(self) -> int:
        return self._size(self._content, ())

    def _size(self, value: Any, place: tuple[Any, ...]) -> int:
        if place in self._open:
            raise GrowthError(place, "refers to itself")
        if place not in self._known:
            self._open.add(place)
            self._known[place] = self._counted(value, place)
            self._open.discard(place)
        if self._known[place] > _MOST_CHARACTERS:
            raise GrowthError(place, "grows too large as it is resolved")
        return self._known[place]

    def _counted(self, value: Any, place: tuple[Any, ...]) -> int:
        if isinstance(value, dict):
            return 1 + sum(self._size(inner, (*place, key)) for key, inner in value.items())
        if isinstance(value, list):
            return 1 + sum(self._size(inner, (*place, i)) for i, inner in enumerate(value))
        text = str(value)
        size = len(text)
        if isinstance(value, str):
            for reference in _REFERENCE.findall(_ENVIRONMENT.sub("", _inside(value, place))):
                size += self._referred(reference, place)
        return size

    def _referred(self, reference: str, place: tuple[Any, ...]) -> int:
        """The size of the value that a word refers to; 0 if it refers to none."""
        name = reference.lstrip(".")
        dots = len(reference) - len(name)
        base = place[: len(place) - dots] if dots else ()
        value: Any = self._content
        for key in base:
            value = value[key]
        there = base
        for key in re.split(r"[.\[\]]+", name.rstrip("]")):
            part: Any = int(key) if isinstance(value, list) and key.isdecimal() else key
            inside = part in value if isinstance(value, dict) else _has(value, part)
            if not inside:
                return 0
            value, there = value[part], (*there, part)
        # A section that holds the reference would be resolved inside itself.
        if place[: len(there)] == there and len(there) < len(place):
            raise GrowthError(place, "refers to a section that it is part of")
        return self._size(value, there)


def _inside(text: str, place: tuple[Any, ...]) -> str:
    """What stands between the braces of a text's interpolations."""
    inside, depth, at = "", 0, 0
    while at < len(text):
        if _INTERPOLATION.match(text, at):
            if depth and re.match(r"[\w.]", text[at - 1]):
                raise GrowthError(place, "makes up the name that it refers to")
            depth, at, inside = depth + 1, at + 2, f"{inside} "
            continue
        depth -= depth > 0 and text[at] == "}"
        inside += text[at] if depth else ""
        at += 1
    return inside


def _has(value: Any, position: Any) -> bool:
    return isinstance(value, list) and isinstance(position, int) and position < len(value)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise ConfigError(str(path), "", f"more than {_LIMIT} bytes: this is no run's YAML")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), "", _missing_file(path)) from None
    except IsADirectoryError:
        raise ConfigError(str(path), "", "this is a folder; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"can't be read: {error.strerror}") from None


def _missing_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no such file: the folder {path.parent} does not exist"
    names = sorted(p.name for pattern in ("*.yaml", "*.yml") for p in path.parent.glob(pattern))
    close = nearest(path.name, names, cutoff=0.4)
    return f"no such file; the nearest is {path.parent / close}" if close else "no such file"


def _check_nodes(root: yaml.Node, file: str) -> None:
    """Refuses tags beyond YAML's plain ones, deep nesting, and aliases that multiply."""
    values: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        line = f"{file}:{node.start_mark.line + 1}"
        if node.tag not in _TAGS:
            raise ConfigError(line, "", f"broken YAML: the tag {node.tag} is no plain value's")
        if depth > _DEEPEST:
            raise ConfigError(line, "", f"nested deeper than {_DEEPEST}, or refers to itself")
        if id(node) not in values:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [
                part for entry in inner for part in (entry if isinstance(entry, tuple) else [entry])
            ]
            values[id(node)] = 1 + sum(count(part, depth + 1) for part in parts)
        if values[id(node)] > _MOST_VALUES:
            raise ConfigError(line, "", f"aliases make more than {_MOST_VALUES} values of it")
        return values[id(node)]

    count(root, 1)


def _note_lines(node: yaml.MappingNode, prefix: str, file: str, sources: dict[str, str]) -> None:
    """Record each key's line, and refuse keys that are written twice."""
    seen: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        key = f"{prefix}{name.value}" if isinstance(name, yaml.ScalarNode) else f"{prefix}?"
        if key in seen:
            raise ConfigError(f"{file}:{line}", key, f"written twice, first in line {seen[key]}")
        seen[key] = line
        sources[key] = f"{file}:{line}"
        if isinstance(value, yaml.MappingNode):
            _note_lines(value, f"{key}.", file, sources)
