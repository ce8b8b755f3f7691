"""Archives of images, taken apart once: nothing of them lands outside, no links, and no more than their size allows."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hydratune.core.secrets import hidden
from hydratune.data.hashes import hashed

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
MEMBERS = 2_000_000
SMALL = 2**28  # bytes that any archive may hold
RATIO = 50  # times its own size, which any may hold too: images hardly shrink
# What readers raise; RuntimeError where a zip is encrypted or packed in a way of its own
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def unpacked(path: Path, home: Path) -> Path:
    """The folder of its contents under `home`, made the first time that these contents are seen.

    Raises ValueError for what should not be opened.
    """
    size_of_all, key = path.stat().st_size, hashed(path)[:16]
    final = home / (f"{path.name.split('.')[0]}-{key}" if hidden(str(path)) == str(path) else key)
    if final.is_dir():
        return final
    home.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=home, prefix=".unpacking-"))
    try:
        members = _from_zip(path, partial) if path.suffix.lower() == ".zip" else _from_tar(path, partial)
        count = total = 0
        for size in members:
            count, total = count + 1, total + size
            if count > MEMBERS or total > max(SMALL, RATIO * size_of_all):
                raise ValueError(f"{path}: holds more than an archive of its size should ({count} files, {total} B)")
        os.rename(partial, final)
    except DAMAGED as error:
        if not final.is_dir():  # else another process was quicker
            raise ValueError(f"{path}: cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _from_tar(path: Path, target: Path) -> Iterator[int]:
    """Extracts a member when asked for the next; its size comes before it is written."""
    with tarfile.open(path) as archive:
        for member in archive:
            _refuse(path, member.name, not (member.isfile() or member.isdir()))
            yield member.size
            archive.extract(member, target, set_attrs=False, filter="data")
        while archive.fileobj is not None and (rest := archive.fileobj.read(SMALL >> 8)):
            yield len(rest)  # to the end, where the sum of what was unpacked is compared


def _from_zip(path: Path, target: Path) -> Iterator[int]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _refuse(path, member.filename, kind not in (0, stat.S_IFREG, stat.S_IFDIR))
            yield member.file_size
            archive.extract(member, target)


def _refuse(path: Path, name: str, special: bool) -> None:
    where = PurePosixPath(name.replace("\\", "/"))
    if special:
        raise ValueError(f"{path}: {name!r} is a link or a device; an archive of images holds files and folders")
    if where.is_absolute() or ".." in where.parts or ":" in name or "\0" in name:
        raise ValueError(f"{path}: {name!r} would land outside the folder that it is unpacked to")
