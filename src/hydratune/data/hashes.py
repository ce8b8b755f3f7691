"""SHA-256 of files, remembered for as long as nothing about a file says that it may have changed.

hashes/<digest of a folder's real path>   the SHA-256 of what follows: JSON, by the name of each file in that folder,
                                          what was seen of it, and its SHA-256

Several processes may read and write at once: what is written is whole or not there. What is damaged, or cannot be
written, is only computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydratune.core.paths import cache_home

SETTLED = 2.0  # seconds without a change, after which another change would be seen in the times of a file
UNUSED = 180 * 24 * 3600.0  # seconds after which what was remembered of a folder is forgotten
CHUNK = 2**20  # bytes read at once
RUN = 64  # files that a thread takes at once

Seen = str  # size, inode, times in ns of the last change of the contents and of anything; empty: no regular file


def hashes(paths: Sequence[Path], threads: int) -> list[str]:
    """SHA-256 of the contents of each; empty for what is no file that can be read."""
    folders: dict[str, list[int]] = {}
    names = [os.fspath(path).rpartition("/") for path in paths]
    for i, (folder, _, _) in enumerate(names):
        folders.setdefault(folder, []).append(i)
    result = [""] * len(paths)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for folder, members in folders.items():
            told = _of_folder(folder or ".", [names[i][2] for i in members], pool)
            for i, digest in zip(members, told, strict=True):
                result[i] = digest
    return result


def hashed(path: Path) -> str:
    """SHA-256 of one file. Raises ValueError where it cannot be read."""
    (found,) = hashes([path], 1)
    if not found:
        raise ValueError(f"dataset: {path} cannot be read")
    return found


def _of_folder(folder: str, names: Sequence[str], pool: ThreadPoolExecutor) -> list[str]:
    real = os.path.realpath(folder)
    index = cache_home() / "hashes" / hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    known = _read(index)
    seen = [_seen(f"{real}/{name}") for name in names]
    entries = [known.get(name, "") for name in names]
    result = [e[len(s) + 1 :] if s and e.startswith(f"{s} ") else "" for e, s in zip(entries, seen, strict=True)]
    new = [i for i, s in enumerate(seen) if s and not result[i]]
    runs = [new[at : at + RUN] for at in range(0, len(new), RUN)]
    found = pool.map(lambda run: [_hash(f"{real}/{names[i]}") for i in run], runs)
    fresh: dict[str, str] = {}
    for i, (digest, lasting) in zip(new, (one for run in found for one in run), strict=True):
        result[i] = digest
        if lasting:
            fresh[names[i]] = f"{lasting} {digest}"
    if fresh:
        _write(index, {**{name: e for name, e in known.items() if os.path.lexists(f"{real}/{name}")}, **fresh})
    return result


def _seen(path: str) -> Seen:
    try:
        return _told(os.stat(path))
    except OSError:
        return ""


def _told(status: os.stat_result) -> Seen:
    if not stat.S_ISREG(status.st_mode):
        return ""
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def _hash(path: str) -> tuple[str, Seen]:
    """(its SHA-256, what to remember it by: nothing where a change just now could not be told from one that follows)"""
    try:
        # a pipe that took the place of the file would be waited for
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            began, status = time.time_ns(), os.fstat(file)
            before = _told(status)
            if not before:
                return "", ""
            digest = hashlib.sha256()
            while chunk := os.read(file, min(status.st_size + 1, CHUNK)):
                digest.update(chunk)
            after = _told(os.fstat(file))
        finally:
            os.close(file)
    except OSError:
        return "", ""
    settled = before == after and began - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED * 1e9
    return digest.hexdigest(), before if settled else ""


def _read(index: Path) -> dict[str, str]:
    try:
        check, _, text = index.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != check:
            return {}
        with contextlib.suppress(OSError):
            os.utime(index)
        known: dict[str, str] = json.loads(text)
        return known
    except (OSError, ValueError):
        return {}


def _write(index: Path, known: dict[str, str]) -> None:
    partial = index.with_name(f"{index.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        text = json.dumps(known, separators=(",", ":")).encode()
        if not index.parent.is_dir():
            index.parent.mkdir(parents=True, exist_ok=True)
        elif not index.exists():
            _forget(index.parent)
        partial.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        os.replace(partial, index)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _forget(home: Path) -> None:
    with os.scandir(home) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > UNUSED:
                    os.unlink(entry.path)
