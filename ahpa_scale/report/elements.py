# SPDX-License-Identifier: Apache-2.0
"""HTML as a tree: every text in it is escaped, and secrets and control characters are masked."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from ahpa_scale.printable import printable

Content = Element | str | None
#: A cell with more characters is wrapped.
_LONG = 40


def node(tag: str, *content: Content, **attributes: str) -> Element:
    """An element.

    Args:
        tag: its name.
        content: texts and elements in order; None is left out.
        attributes: by name; a final underscore is dropped (``class_``), other underscores become
            hyphens.
    """
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    element = Element(tag, {name: printable(value) for name, value in names.items()})
    for part in content:
        if isinstance(part, Element):
            element.append(part)
        elif part is not None:
            _add_text(element, printable(part))
    return element


def table(
    header: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Iterable[int] = ()
) -> Element:
    """A table that scrolls by itself where it is too wide.

    Args:
        header: a word for each column.
        rows: cells.
        numbers: columns that are aligned to the right.
    """
    right = set(numbers)

    def look(place: int, cell: Content) -> dict[str, str]:
        long = isinstance(cell, str) and len(cell) > _LONG
        return {"class_": "number"} if place in right else {"class_": "long"} if long else {}

    def line(tag: str, cells: Sequence[Content]) -> Element:
        looks = [look(place, cell) for place, cell in enumerate(cells)]
        return node(
            "tr", *(node(tag, cell, **given) for cell, given in zip(cells, looks, strict=True))
        )

    head, body = (
        node("thead", line("th", header)),
        node("tbody", *(line("td", row) for row in rows)),
    )
    return node("div", node("table", head, body), class_="scroll", tabindex="0")


def data(identity: str, value: Any) -> Element:
    """A script element that holds JSON, in which nothing ends the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return _raw("script", text, {"type": "application/json", "id": identity})


def document(title: str, style: str, body: Sequence[Element], scripts: Sequence[str]) -> str:
    """A whole page that loads nothing, and runs nothing but these scripts.

    Args:
        title: of the page.
        style: CSS, trusted.
        body: its elements.
        scripts: JavaScript, trusted.
    """
    # An end tag within a script would end it, whatever it stands in there.
    safe = [script.replace("</script", "<\\/script") for script in scripts]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in safe)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    page = Element("html", {"lang": "en"})
    head = SubElement(page, "head")
    head.append(node("meta", charset="utf-8"))
    head.append(Element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}))
    head.append(node("meta", name="viewport", content="width=device-width, initial-scale=1"))
    head.append(node("meta", name="generator", content="ahpa-scale report"))
    head.append(node("title", title))
    head.append(_raw("style", style))
    tail = [_raw("script", script) for script in safe]
    page.append(node("body", *body, *tail))
    return f"<!doctype html>\n{tostring(page, encoding='unicode', method='html')}\n"


def _raw(tag: str, text: str, attributes: dict[str, str] | None = None) -> Element:
    """An element whose text is written as it is: browsers read script and style so."""
    element = Element(tag, attributes or {})
    element.text = text
    return element


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _add_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text
