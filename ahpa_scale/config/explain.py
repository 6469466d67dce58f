# SPDX-License-Identifier: Apache-2.0
"""Pydantic's findings in the user's words: which key, what is wrong, the nearest right thing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ahpa_scale.config.errors import choices, nearest
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.fields import Section

Location = tuple[int | str, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section (key: value)",
    "model_type": "a section (key: value)",
    "model_attributes_type": "a section (key: value)",
}
_RANGES = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_KINDS = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list"}


def dotted(location: Location) -> str:
    """``('optimizer', 'betas', 0)`` -> ``optimizer.betas[0]``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The finding to show: dotted key and what is wrong.

    Unknown keys come first: a misspelt required key is both unknown and missing, and the first says
    more.
    """
    findings = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    finding = min(findings, key=lambda e: e["type"] not in ("extra_forbidden", "invalid_key"))
    location = tuple(part for part in finding["loc"] if part != "[key]")
    return dotted(location), _problem(finding, location)


def _problem(finding: ErrorDetails, location: Location) -> str:
    kind, value, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        return unknown_key(location)
    if kind == "missing":
        if isinstance(location[-1], int):
            return "the list is too short"
        field = _section(location[:-1]).model_fields[str(location[-1])]
        return f"this key is required: {field.description}"
    if kind in _EXPECTED:
        return _wrong_type(value, kind, location)
    if kind in _RANGES:
        name, words = _RANGES[kind]
        return f"{shown(value)} must be {words} {context[name]}"
    if kind == "literal_error":
        return f"{shown(value)} is not known; {choices(str(value), _options(context))}"
    if kind == "finite_number":
        return f"{shown(value)} is not a finite number"
    if kind in ("string_too_short", "too_short"):
        return f"{shown(value)} must not be empty"
    if kind == "too_long":
        return f"{shown(value)} must have {context['max_length']} values"
    return finding["msg"].removeprefix("Value error, ")


def _options(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", context["expected"])


def _wrong_type(value: Any, kind: str, location: Location) -> str:
    if value is None:
        return f"null is not allowed here; expected {_EXPECTED[kind]}"
    given = _KINDS.get(
        type(value), "a section" if isinstance(value, dict) else type(value).__name__
    )
    hint = ""
    if kind == "string_type" and not isinstance(value, (dict, list)):
        # A number in quotes may still lack its unit; the message then asks for that.
        return _objection(location, str(value)) or (
            f"{shown(value)} is {given}, where text is expected: put it in quotes"
        )
    if isinstance(value, str) and kind in ("int_type", "float_type") and _is_number(value):
        hint = ": remove the quotes"
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f": write {int(value)}"
    return f"{shown(value)} is {given}, where {_EXPECTED[kind]} is expected{hint}"


def _objection(location: Location, text: str) -> str | None:
    """The schema's objection to `text` at `location`; None if it has none."""
    content: Any = text
    for part in reversed(location):
        content = {part: content}
    try:
        Config.model_validate(content)
    except ValidationError as error:
        for finding in error.errors():
            if finding["loc"] == location and finding["type"] == "value_error":
                return _problem(finding, location)
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def shown(value: Any) -> str:
    """A short rendering of a value for messages."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_key(location: Location) -> str:
    """Says that a key is unknown and which valid one is nearest, here or in another section."""
    name, siblings = str(location[-1]), list(_section(location[:-1]).model_fields)
    close = nearest(name, siblings, cutoff=0.7)
    if close is None:
        elsewhere = [key for key in all_keys() if key.rpartition(".")[2] == name]
        close = elsewhere[0] if elsewhere else nearest(name, siblings, cutoff=0.5)
    if close is not None:
        return f"unknown key; the nearest valid one is {close!r}"
    return f"unknown key; the valid ones here are: {', '.join(siblings)}"


def _section(location: Location) -> type[Section]:
    """The class of the section at `location`."""
    section: type[Section] = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        inner = _section_class(annotation) or section_in_list(annotation)
        assert inner is not None
        section = inner
    return section


def _section_class(annotation: Any) -> type[Section] | None:
    """The section that a key holds; None for any other key."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def section_in_list(annotation: Any) -> type[Section] | None:
    """The section that each item of a list holds; None for any other key."""
    for inner in get_args(annotation):
        found = _section_class(inner) or section_in_list(inner)
        if found is not None:
            return found
    return None


def all_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = _section_class(field.annotation)
        if inner is not None:
            yield from all_keys(inner, f"{prefix}{name}.")
