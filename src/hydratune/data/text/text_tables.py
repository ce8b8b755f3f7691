"""Tables of texts: CSV and its like, and JSON. What could be read in two ways is refused with the place where it is."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from hydratune.data.text.text_files import lines_of, read_text, shown

TABLES = (".csv", ".tsv", ".jsonl", ".json")
TYPED = {"tab": "\t", "\\t": "\t"}  # what can be typed for a delimiter
SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\n|\r)')  # Excel's first line, which tells the delimiter
LARGEST = 2**24  # letters of a value
EXACT = 2.0**53  # from where on not every whole number is a float

Column = tuple[str, str | int]  # the key of the configuration that asks for it; its name, or number from 0
Row = tuple[str, Sequence[Any]]  # where it stands, and its values in the columns that were asked for


class Form(NamedTuple):
    """How a table with delimiters is written.

    header: whether the first row has names. quote: what stands around a value with a delimiter in it; auto: ", but
    nothing between tabs, unless the file is called .csv; None: nothing. delimiter: None: what the first line says,
    sep=;, or else a comma in .csv and a tab elsewhere.
    """

    header: bool = True
    quote: str | None = "auto"
    delimiter: str | None = None

    def check(self) -> None:
        """Raises ValueError for what cannot stand around or between values."""
        mark = TYPED.get(self.delimiter or "", self.delimiter)
        if mark is not None and (len(mark) != 1 or mark in "\r\n"):
            raise ValueError(f"dataset.delimiter={mark}: one character, tab, or null")
        if self.quote not in (None, "auto") and (len(self.quote) != 1 or self.quote in "\r\n"):
            raise ValueError(f"dataset.quote={self.quote}: one character, auto, or null")
        if mark is not None and mark in (self.quote, '"' if self.quote == "auto" else None):
            raise ValueError(f"dataset.delimiter={mark}: is what dataset.quote is, too")


def table_rows(path: Path, form: Form, columns: Sequence[Column]) -> Iterator[Row]:
    """Of CSV, TSV, JSON lines, or a JSON list of objects. Rows of nothing are left out.

    Raises ValueError for a column that is not there, or could be either of two.
    """
    content, ending = read_text(path), path.suffix.lower()
    if ending.startswith(".json"):
        return _json_rows(shown(path), content, columns)
    declared = SEPARATOR.match(content)
    usual = declared[1] if declared else "," if ending == ".csv" else "\t"
    delimiter = TYPED.get(form.delimiter or "", form.delimiter) or usual
    auto = None if delimiter == "\t" and ending != ".csv" else '"'
    own = Form(form.header, auto if form.quote == "auto" else form.quote, delimiter)
    return _separated_rows(shown(path), content, declared.end() if declared else 0, own, columns)


# ---- with delimiters


def _separated_rows(path: str, content: str, first: int, form: Form, columns: Sequence[Column]) -> Iterator[Row]:
    """first: where the table begins, behind a line that says what its delimiter is."""
    delimiter = form.delimiter
    assert delimiter is not None
    how: dict[str, Any] = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    csv.field_size_limit(LARGEST)
    reader = csv.reader(io.StringIO(content[first:], newline=""), delimiter=delimiter, strict=True, **how)
    names: list[str] = []
    at: list[int] = []
    width = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path} line {reader.line_num + bool(first)}"
            if not width:
                width = len(cells)
                if width == 1:
                    _refuse_undivided(path, cells[0], delimiter)
                if form.header:
                    names = [cell.strip() for cell in cells]
                    _refuse_twice(path, names, columns)
                    continue
            at = at or [_number_of(column, where, names, width) for column in columns]
            if len(cells) != width:
                more = len(cells) > width and form.quote
                hint = f"; values that hold {_called(delimiter)} need quotes" if more else ""
                count = f"{len(cells)} value{'s' * (len(cells) > 1)} for {width} column{'s' * (width > 1)}"
                raise ValueError(f"dataset: {where} has {count}{hint}")
            yield where, [cells[i] for i in at]
    except csv.Error as error:
        hint = " (a quote within a value is doubled; dataset.quote=null takes quotes for letters)" if form.quote else ""
        raise ValueError(f"dataset: {path} line {reader.line_num + bool(first)}: {error}{hint}") from None


def _called(delimiter: str) -> str:
    return {",": "a comma", "\t": "a tab", ";": "a semicolon"}.get(delimiter, repr(delimiter))


def _refuse_undivided(path: str, first: str, delimiter: str) -> None:
    """Raises ValueError where a first row is one value, and another delimiter would make more of it."""
    other = max("\t;|,", key=first.count)
    if other in first:
        message = _called(delimiter).removeprefix("a ")
        typed = "tab" if other == "\t" else f'"{other}"'
        raise ValueError(f"dataset: {path} has no {message}s between its values; 'dataset.delimiter={typed}' reads it")


def _refuse_twice(path: str, names: Sequence[str], columns: Sequence[Column]) -> None:
    for _, wanted in columns:
        at = [str(i) for i, name in enumerate(names) if name == wanted]
        if len(at) > 1:
            raise ValueError(
                f"dataset: {path} has {len(at)} columns called {wanted}; say which by its number, {' or '.join(at)}"
            )


def _number_of(asked: Column, where: str, names: Sequence[str], width: int) -> int:
    """Of a column. A number may be the name of one, as pandas writes them; a word of digits is only that."""
    key, column = asked
    if isinstance(column, str) and (names or not column.isdecimal()):
        if column in names:
            return names.index(column)
        raise _no_such(asked, where, names, width)
    number = int(column)
    named = names.index(str(number)) if str(number) in names else number
    if not (0 <= number < width or str(number) in names):
        raise _no_such(asked, where, names, width)
    if named != number and number < width:
        raise ValueError(
            f"dataset.{key}={number}: in {where} column number {number} is called {names[number]!r}, and number "
            f"{named} is called '{number}'; say which by its name in quotes, '\"{names[number]}\"' or '\"{number}\"'"
        )
    return named


def _no_such(asked: Column, where: str, names: Sequence[str], width: int = 0) -> ValueError:
    key, column = asked
    near = difflib.get_close_matches(str(column), names, n=1, cutoff=0.4)
    has = ", ".join(name for name in names if name) or f"columns 0 to {width - 1}"
    nearest = f"nearest: {near[0]}. " if near else ""
    return ValueError(f"dataset.{key}={column}: {where} has no such column; {nearest}it has {has}")


# ---- JSON


def _json_rows(path: str, content: str, columns: Sequence[Column]) -> Iterator[Row]:
    for where, row in _entries(path, content):
        if not isinstance(row, dict):
            raise ValueError(f"dataset: {where} is no JSON object")
        for key, column in columns:
            if str(column) not in row:
                raise _no_such((key, column), where, list(row))
        yield where, [row[str(column)] for _, column in columns]


def _entries(path: str, content: str) -> Iterator[tuple[str, Any]]:
    if content.lstrip().startswith("["):
        yield from ((f"{path} entry {i}", entry) for i, entry in enumerate(_parsed(content, path), 1))
        return
    lines = [(i, line) for i, line in enumerate(lines_of(content), 1) if line.strip()]
    if len(lines) > 1 and _is_object(content):
        raise ValueError(f"dataset: {path} is one JSON object; a list of objects is read, or an object in each line")
    for i, line in lines:
        yield f"{path} line {i}", _parsed(line, path, i)


def _parsed(text: str, path: str, line: int | None = None) -> Any:
    """line: where it stands, if it is one."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"dataset: {path} line {line or error.lineno} is no JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        message = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise ValueError(f"dataset: {path}{f' line {line}' if line else ''}: {message}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that is there twice, Python's parser takes the last value and others the first."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return row


def _is_object(content: str) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


# ---- values


def cell(value: Any, where: str) -> str:
    """A value as text: equal numbers are one word, whatever their type, and what is true is `true`.

    Raises ValueError for what is no text or number, naming where it stands.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"dataset: {where} holds {number}, and no text or number")
        return str(int(number) if number.is_integer() and abs(number) < EXACT else number)
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"dataset: {where} holds {kind}, and no text or number")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"dataset: {where} holds half of a letter (a lone surrogate)") from None
    return value


def class_name(value: Any, column: str | int, where: str) -> str:
    """A label as text, without blanks around it. Raises ValueError also for one of blanks alone."""
    name = cell(value, f"{column} of {where}").strip()
    if not name:
        raise ValueError(f"dataset.label={column}: is empty in {where}")
    return name
