# SPDX-License-Identifier: Apache-2.0
"""A report as a list of blocks, written as Markdown and as one self-contained HTML page.

Text has two marks, `code` in backticks and **bold** in double asterisks. A table's cell may have
several lines.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2rem 0 .5rem; }
h2 { border-bottom: 1px solid #bbb; padding-bottom: .25rem; }
p, li { max-width: 60rem; }
code { background: #f1f1f1; padding: 0 .2em; border-radius: 3px; font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .75rem 0;
  font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: right;
  white-space: nowrap; vertical-align: top; }
th { border-bottom-color: #888; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #444; font-size: .875rem; max-width: 60rem; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table: the first column holds words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows)


@dataclass(frozen=True)
class Image:
    """A PNG with its caption; `name` becomes ``figures/<name>.png``."""

    name: str
    png: bytes
    caption: str


Block = Heading | Paragraph | Bullets | Table | Image


def slug(text: str) -> str:
    """A file name made of the text: letters, digits, dots, dashes; different texts may collide."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower() or "figure"


def to_markdown(blocks: Sequence[Block]) -> str:
    """The whole report; images are links into ``figures``."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """The whole report in one page that loads nothing."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(map(_html, blocks)) + "\n</body>\n</html>\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows):
            rule = "|".join([":---", *["---:"] * (len(header) - 1)])
            lines = [_line(header), f"|{rule}|", *map(_line, rows)]
            return "\n".join(lines)
        case Image(name, _, caption):
            short = _plain(caption).split(". ")[0].rstrip(".")
            return f"![{short}](figures/{name}.png)\n\n{caption}"


def _line(cells: Sequence[str]) -> str:
    clean = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return "| " + " | ".join(clean) + " |"


def _plain(text: str) -> str:
    """The text without marks, and without brackets, which would end a Markdown image's text."""
    return re.sub(r"`|\*\*", "", text).replace("[", "(").replace("]", ")")


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_marks(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_marks(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_marks(item)}</li>" for item in items) + "\n</ul>"
        case Table(header, rows):
            body = "\n".join(_html_row(row, "td") for row in rows)
            return (
                f'<div class="wide"><table>\n<thead>{_html_row(header, "th")}</thead>\n'
                f"<tbody>\n{body}\n</tbody>\n</table></div>"
            )
        case Image(_, png, caption):
            data = base64.b64encode(png).decode("ascii")
            alt = html.escape(_plain(caption), quote=True)
            return (
                f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
                f"<figcaption>{_marks(caption)}</figcaption></figure>"
            )


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells) + "</tr>"


def _cell(text: str) -> str:
    return _marks(text).replace("\n", "<br>")


def _marks(text: str) -> str:
    """Escape the text, then set the two marks; nothing inside code is bold."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        f"<code>{html.escape(part[1:-1])}</code>"
        if part.startswith("`") and part.endswith("`") and len(part) > 1
        else re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(part))
        for part in parts
    )
