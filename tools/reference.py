# SPDX-License-Identifier: Apache-2.0
"""Writes the manual's two generated pages: every key, and every command.

python -m tools.reference
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ahpa_scale.cli import app
from ahpa_scale.config.explain import section_in_list
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.fields import Section

_DOCS = Path(__file__).parents[1] / "docs"
_WRITTEN_BY = "<!-- Written by `python -m tools.reference`; a test holds it to the code. -->\n"
#: First version of a key without `json_schema_extra={"since": ...}`.
_FIRST = "0.1.0"
_QUOTES = str.maketrans("'\"", "``")
_TYPES = {
    "TotalTime": "time",
    "Interval": "time",
    "BatchInterval": "time in batches",
    "Moment": "time or share of the run",
    "Until": "time, share of the run, `measured`",
    "Decay": "number or time",
    "Duration": "duration",
    "Size": "size",
    "Name": "name",
    "Text": "text",
    "LocalPath": "local path",
    "AnyPath": "path or URL",
    "DataPath": "data set",
    "DataStream": "sections",
    "VaePath": "VAE",
    "Microbatch": "whole number or `auto`",
    "Kind": "kind",
    "Block": "block, or group: block",
    "_Count": "whole number",
    "ClassIndex": "class",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
}


def keys_page() -> str:
    """``docs/keys.md``: type, default, effect and first version of every key of the schema."""
    parts = [
        "# Every key\n",
        _WRITTEN_BY,
        "A time is a Composer time string: `1000ba` (batches), `2ep` (epochs) or `4096sp` "
        "(samples).\nA share of the run is `0.5dur`. A duration is wall-clock time, such as "
        "`23h30m`. A size is a number of bytes, such as `64mb`.\n",
    ]
    for section, (kind, told) in _sections(Config).items():
        parts.append(f"## {f'`{section}`' if section else 'The run'}\n\n{told}\n")
        parts.append("| key | type | default | effect | since |\n|---|---|---|---|---|\n")
        prefix = f"{section}." if section else ""
        rows = [_key_row(kind, name, f"{prefix}{name}") for name in _leaves(kind)]
        parts[-1] += "".join(rows)
    return "\n".join(parts)


def commands_page() -> str:
    """``docs/commands.md``: arguments and options of every command."""
    parts = ["# Every command\n", _WRITTEN_BY]
    for name, command in _commands(typer.main.get_command(app), "ahpa-scale"):
        parts.append(f"## `{name}`\n\n{_cell(command.help or '')}\n")
        rows = [_option_row(param) for param in command.params if param.name != "help"]
        parts.append("| argument or option | default | meaning |\n|---|---|---|\n" + "".join(rows))
    return "\n".join(parts)


def _sections(kind: type[Section], place: str = "") -> dict[str, tuple[type[Section], str]]:
    """Every section of the schema that has its own keys, by its dotted place."""
    sections = {place: (kind, _cell(kind.__doc__ or ""))}
    for name, info in kind.model_fields.items():
        inner, listed = _section_of(info), section_in_list(info.annotation)
        if inner is not None:
            sections |= _sections(inner, f"{place}.{name}".lstrip("."))
        elif listed is not None:
            sections |= _sections(listed, f"{place}.{name}[0]")
    return sections


def _section_of(info: FieldInfo) -> type[Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _leaves(kind: type[Section]) -> list[str]:
    return [name for name, info in kind.model_fields.items() if _section_of(info) is None]


def _key_row(kind: type[Section], name: str, key: str) -> str:
    info = kind.model_fields[name]
    declared = next(k.__annotations__[name] for k in kind.__mro__ if name in k.__annotations__)
    extra: Any = info.json_schema_extra
    since = extra["since"] if isinstance(extra, dict) else _FIRST
    default = "required" if info.is_required() else f"`{_shown(info.get_default())}`"
    return (
        f"| `{key}` | {_type(str(declared))} | {default} | {_cell(info.description)} | {since} |\n"
    )


def _type(declared: str) -> str:
    """``Literal["a", "b"] | None`` -> ``a, b or null``."""
    inner = re.sub(r"Literal\[([^\]]*)\]", lambda m: m[1].translate(_QUOTES), declared)
    inner = re.sub(r"Annotated\[tuple\[\w+, \w+\], Field\(strict=False\)\]", "two numbers", inner)
    inner = re.sub(r"List\[(.*)\]", r"list of \1", inner)
    inner = re.sub(r"dict\[(\w+), (.*?)\](?= \||$)", r"\1: \2", inner)
    inner = inner.replace(" | ", " or ")
    return re.sub(r"(?<!`)\b[A-Za-z_]\w*\b(?!`)", lambda m: _TYPES.get(m[0], m[0]), inner)


def _shown(value: object) -> str:
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for each, below in inner.items():
        yield from _commands(below, f"{name} {each}")


def _option_row(option: Any) -> str:
    names = " / ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
    if option.param_type_name == "argument":
        names = f"`{option.name.upper()}`"
    default = option.show_default if isinstance(option.show_default, str) else option.default
    shown = "required" if option.required else "" if default is None else f"`{_shown(default)}`"
    return f"| {names} | {shown} | {_cell(getattr(option, 'help', None))} |\n"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "\\<")


def main() -> None:
    """Writes both pages."""
    for name, page in (("keys.md", keys_page()), ("commands.md", commands_page())):
        (_DOCS / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
