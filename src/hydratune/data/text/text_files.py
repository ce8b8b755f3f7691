"""Files of text, read strictly: what is missing, ambiguous or garbled is refused with the place where it is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hydratune.data.parts import is_hidden, part_called, part_named, refuse_twice

SUBJECTS = ("training", "testing")  # what one file of text beside others may be about
BYTE_ORDER = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
MARK = b"\xef\xbb\xbf"  # of UTF-8, at the beginning of a file


def shown(path: Path) -> str:
    """In a sentence. A name whose bytes are not UTF-8 could not be printed as it is."""
    return os.fsencode(path).decode(errors="backslashreplace")


def read_text(path: Path) -> str:
    """Raises ValueError for a file that is not there, is empty, or is no text in UTF-8, naming the line."""
    name = shown(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # nobody may ever write into a pipe
            raise ValueError(f"dataset.path={name}: is no regular file")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"dataset.path={name}: cannot be read ({error.strerror})") from None
    order = BYTE_ORDER.get(content[:2])
    content = content.removeprefix(MARK)
    if not content.strip():
        raise ValueError(f"dataset: {name} is empty")
    if order is None and (first := content.find(b"\0")) >= 0:
        line = content[:first].count(b"\n") + 1
        raise ValueError(
            f"dataset: {name} holds a zero byte in line {line}, as no text does; if it is UTF-16, "
            "iconv -f utf-16le -t utf-8 would convert it"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"dataset: {name} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; "
            f"iconv -f {order or 'cp1252'} -t utf-8 would convert it"
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
