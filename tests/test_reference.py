# SPDX-License-Identifier: Apache-2.0
"""The generated pages of the manual say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ahpa_scale.config.schema import Config
from tools.reference import commands_page, keys_page

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(("name", "page"), [("keys.md", keys_page), ("commands.md", commands_page)])
def test_a_generated_page_is_current(name: str, page):
    assert (DOCS / name).read_text() == page(), "run: python -m tools.reference"


def test_every_key_has_a_row_with_type_default_and_effect():
    def leaves(schema: dict, place: str = "") -> set[str]:
        found = set()
        for name, child in schema["properties"].items():
            key = f"{place}.{name}".lstrip(".")
            options = [child, *child.get("anyOf", []), *child.get("allOf", [])]
            references = [one["$ref"].rsplit("/", 1)[1] for one in options if "$ref" in one]
            inner = [
                whole["$defs"][one] for one in references if "properties" in whole["$defs"][one]
            ]
            found |= leaves(inner[0], key) if inner else {key}
        return found

    whole = Config.model_json_schema()
    rows = {row[1]: row for row in re.finditer(r"^\| `([\w.]+)` \|(.+)\|$", keys_page(), re.M)}
    assert leaves(whole) <= rows.keys()
    for row in rows.values():
        kind, default, effect, since = (cell.strip() for cell in row[2].split(" | "))
        assert kind
        assert default
        assert effect
        assert re.fullmatch(r"\d+\.\d+\.\d+", since)
