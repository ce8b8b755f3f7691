"""Files of text, read strictly: what is missing, ambiguous or garbled is refused with the place where it is."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydratune.data.parts import is_hidden, part_called, part_named, refuse_twice

TABLES = (".csv", ".tsv", ".jsonl", ".json")
SUBJECTS = ("training", "testing")  # what one file of text beside others may be about
BYTE_ORDER = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_text(path: Path) -> str:
    """Raises ValueError for a file that is not there, is empty, or is not UTF-8, naming the line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"dataset.path={path}: cannot be read ({error.strerror})") from None
    if not content.strip():
        raise ValueError(f"dataset: {path} is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        other = BYTE_ORDER.get(content[:2], "cp1252")
        raise ValueError(
            f"dataset: {path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; "
            f"iconv -f {other} -t utf-8 would convert it"
        ) from None


def lines_of(content: str) -> list[str]:
    """Without their ends. str.splitlines would also cut at letters that stand within a text, such as U+2028."""
    return re.split(r"\r\n|\n|\r", content)


def digest_of(parts: Iterable[str]) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(f"{len(part)}:".encode())
        result.update(part.encode())
    return result.hexdigest()


# ---- which files are train, val and test


class Parts(NamedTuple):
    """Which files are train, val and test, and which are none of these."""

    files: Mapping[str, Sequence[Path]]
    left_alone: Sequence[Path] = ()


def parts_of(path: Path, endings: Sequence[str], labelled: bool = True) -> Parts:
    """A file is train; of a folder, what is called so.

    Those that are called exactly train, val (dev) or test, or lie in folders that are; where no train is among them and
    every file's name begins or ends so, as of train-00000-of-00001 and wiki.train, these; else all of it is train.

    Raises ValueError where two names mean one part, and where some are called val or test and none train, unless it is
    text without labels: nobody can tell chapters from parts then.
    """
    if path.is_file():
        return Parts({"train": [path]})
    if not path.is_dir():
        raise ValueError(f"dataset.path={path}: no such file or folder")
    every = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix.lower() in endings]
    every = [p for p in every if not any(is_hidden(name) for name in p.relative_to(path).parts)]
    if not every:
        raise ValueError(f"dataset.path={path}: holds no {' or '.join(endings)} files")
    exact: dict[str | None, list[Path]] = {}
    alike: dict[str | None, list[Path]] = {}
    whole = set()
    subject = True
    for file in every:
        *folders, _ = file.relative_to(path).parts
        name = folders[0] if folders else file.stem
        if part_called(name):
            whole.add(name)
            subject &= not folders and name.lower() in SUBJECTS
        exact.setdefault(part_called(name), []).append(file)
        alike.setdefault(part_named(name), []).append(file)
    if len(whole) == 1 and subject and None in exact:
        exact = {None: every}
    if "train" in exact:
        refuse_twice(whole, f"dataset.path={path}")
        return Parts({part: files for part, files in exact.items() if part}, tuple(exact.get(None, ())))
    if "train" in alike and len(alike) > 1 and None not in alike:
        return Parts({part: files for part, files in alike.items() if part})
    meant = [file for part, files in exact.items() if part for file in files]
    if meant and labelled:
        raise ValueError(f"dataset.path={path}: has {meant[0].relative_to(path)}, but nothing that is called train")
    return Parts({"train": every})


# ---- tables

Row = tuple[str, Mapping[Any, Any]]  # where it stands, and its cells by the columns' names, or numbers from 0


def table_rows(path: Path, header: bool, quote: str | None, columns: Sequence[Any]) -> Iterator[Row]:
    """Of CSV, TSV, JSON lines, or a JSON list of objects. Rows of nothing are left out.

    columns: those that will be asked for. Raises ValueError where a header has one of them twice.
    """
    content = read_text(path)
    if path.suffix.lower().startswith(".json"):
        return _json_rows(path, content)
    return _separated_rows(path, content, header, quote, columns)


def _separated_rows(path: Path, content: str, header: bool, quote: str | None, columns: Sequence[Any]) -> Iterator[Row]:
    tabs = path.suffix.lower() != ".csv"
    mark = ('"' if not tabs else None) if quote == "auto" else quote
    how: dict[str, Any] = {"quotechar": mark} if mark else {"quoting": csv.QUOTE_NONE}
    csv.field_size_limit(2**24)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t" if tabs else ",", strict=True, **how)
    names: list[str] = []
    width = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not width:
                width = len(cells)
                if width == 1 and not tabs and (";" in cells[0] or "\t" in cells[0]):
                    raise ValueError(
                        f"dataset: {path} has no commas between its values; save it with commas, or as .tsv"
                    )
                if header:
                    names = [cell.strip() for cell in cells]
                    _refuse_twice(path, names, columns)
                    continue
            if len(cells) != width:
                hint = "; values that hold a comma need quotes" if len(cells) > width and not tabs and mark else ""
                count = f"{len(cells)} value{'s' * (len(cells) > 1)} for {width} column{'s' * (width > 1)}"
                raise ValueError(f"dataset: {path} line {reader.line_num} has {count}{hint}")
            yield f"{path} line {reader.line_num}", {**dict(enumerate(cells)), **dict(zip(names, cells, strict=False))}
    except csv.Error as error:
        hint = " (a quote within a value is doubled; dataset.quote=null takes quotes for letters)" if mark else ""
        raise ValueError(f"dataset: {path} line {reader.line_num}: {error}{hint}") from None


def _refuse_twice(path: Path, names: Sequence[str], columns: Sequence[Any]) -> None:
    for wanted in columns:
        at = [str(i) for i, name in enumerate(names) if name == wanted]
        if len(at) > 1:
            raise ValueError(
                f"dataset: {path} has {len(at)} columns called {wanted}; say which by its number, {' or '.join(at)}"
            )


def _json_rows(path: Path, content: str) -> Iterator[Row]:
    if content.lstrip().startswith("["):
        try:
            entries = [(f"{path} entry {i}", entry) for i, entry in enumerate(json.loads(content), 1)]
        except json.JSONDecodeError as error:
            raise ValueError(f"dataset: {path} line {error.lineno} is no JSON ({error.msg})") from None
    else:
        entries = [(f"{path} line {i}", line) for i, line in enumerate(lines_of(content), 1) if line.strip()]
    for where, entry in entries:
        try:
            row = json.loads(entry) if isinstance(entry, str) else entry
        except json.JSONDecodeError as error:
            raise ValueError(f"dataset: {where} is no JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise ValueError(f"dataset: {where} is no JSON object")
        yield where, row


def cell(value: Any, where: str) -> str:
    """A value as text. Raises ValueError for what is none, naming where it stands."""
    if value is None or not isinstance(value, (str, int, float)):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"dataset: {where} holds {kind}, and no text or number")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"dataset: {where} holds half of a letter (a lone surrogate)") from None
    return text
