"""Other people's words as they are shown: secrets hidden, nothing in them that a terminal or Markdown would obey."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydratune.core.secrets import hidden

# What moves a cursor, colours, turns the direction of writing or is no character at all; not \t and \n
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def as_shown(text: str) -> str:
    """Plain text, with `\\x1b` where a terminal would see an escape."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], hidden(text).replace("\r\n", "\n"))


def in_markdown(text: str) -> str:
    """A line of Markdown, or a table's cell, that reads as this text: no column, code, tag or link of its own."""
    text = re.sub(r"\s*\n\s*", " ", as_shown(text))
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;").replace("](", "]\\(")
    return re.sub(r"(\\*)([|`*]|(?<![^\W_])_|_(?![^\W_]))", lambda found: f"{2 * found[1]}\\{found[2]}", text)


def fenced(text: str, language: str) -> str:
    """A block of code in Markdown, whatever fences stand in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{as_shown(text)}\n{fence}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are text."""
    head, *body = ([in_markdown(str(cell)) for cell in row] for row in (columns, *rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(columns), *body))


def number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def harmless(cell: str) -> str:
    """In a line of CSV. What a spreadsheet would compute is a word to it behind an apostrophe (as OWASP has it for CSV
    injection); numbers stay as they are.
    """
    cell = re.sub(r"[\r\n]+", " ", cell)
    return f"'{cell}" if re.match(r"[=+\-@\t].", cell) and number(cell) is None else cell
