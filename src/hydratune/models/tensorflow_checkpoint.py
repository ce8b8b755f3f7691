"""Tensors of TensorFlow's checkpoints (V2): X.index, a table of where they lie, and X.data-00000-of-0000N.

The table is LevelDB's: blocks of sorted keys, each with the part that it does not share with the one before. Its values
are protocol buffers of numbers. Nothing is executed; the files that are opened are named by the index's own name, and
every place and size is looked at before it is used. Blocks of the index are checked by their sums; of the data the
sizes are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
LARGEST_INDEX = 2**24  # bytes
ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"  # of the names in checkpoints of objects
# Numbers of TensorFlow's types; strings, resources and what is quantised are no weights
TYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?", 14: "V2", 17: "u2", 19: "f2", 22: "u4",
         23: "u8"}  # fmt: skip
# What an optimizer and a training loop keep
OTHERS = re.compile(
    r"/\.OPTIMIZER_SLOT/|/adam_[mv]$|/Adam(_\d+)?$|/Momentum$|/ExponentialMovingAverage$|^optimizer/|^global_step$|"
    r"^save_counter$|_power(_\d+)?$"
)


class Entry(NamedTuple):
    """Where a tensor lies."""

    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sliced: bool


def tensorflow_tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, array) of every tensor of numbers that is not an optimizer's. path: of the .index file.

    Raises ValueError for whatever is not such a checkpoint.
    """
    if path.stat().st_size > LARGEST_INDEX:
        raise ValueError(f"its index has {path.stat().st_size:,} bytes, which is no index")
    entries = dict(_entries(path.read_bytes()))
    header = entries.pop("", None)
    if not isinstance(header, int):
        raise ValueError("its index has no header")
    stem = path.name.removesuffix(".index")
    shards = [path.with_name(f"{stem}.data-{i:05d}-of-{header:05d}") for i in range(header)]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard.name} is not there; a checkpoint is its index and all of its data files")
    for name, entry in entries.items():
        assert isinstance(entry, Entry)
        if entry.type not in TYPES or OTHERS.search(own := name.removesuffix(ENDING)):
            continue
        yield own, _array(name, entry, shards)


def _array(name: str, entry: Entry, shards: list[Path]) -> Any:
    if entry.sliced:
        raise ValueError(f"{name} is kept in parts, which are not put together")
    if entry.shard >= len(shards):
        raise ValueError(f"{name} lies in file {entry.shard} of {len(shards)}")
    dtype = np.dtype(TYPES[entry.type])
    wanted, there = math.prod(entry.shape) * dtype.itemsize, shards[entry.shard].stat().st_size
    if wanted != entry.size or entry.offset + entry.size > there:
        raise ValueError(
            f"{name} claims {entry.size:,} bytes from {entry.offset:,} on for {list(entry.shape)}, in a file of "
            f"{there:,}"
        )
    with shards[entry.shard].open("rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.size)
    return np.frombuffer(content, dtype=dtype.newbyteorder("<") if dtype.kind != "V" else dtype).reshape(entry.shape)


# ---- the table


def _entries(index: bytes) -> Iterator[tuple[str, Entry | int]]:
    """Name and place of each tensor; under the empty name, the number of data files."""
    if len(index) < FOOTER or int.from_bytes(index[-8:], "little") != MAGIC:
        raise ValueError("its index is not one of TensorFlow's")
    _, at = _handle(index, len(index) - FOOTER)
    (place, size), _ = _handle(index, at)
    seen: set[str] = set()
    for _, handle in _block(index, place, size):
        (place, size), _ = _handle(handle, 0)
        for key, value in _block(index, place, size):
            if key.startswith(b"\0"):  # one of several parts
                own = key[1:].partition(b"\0")[0].decode(errors="replace")
                raise ValueError(f"{own} is kept in parts, which are not put together")
            try:
                name = key.decode()
            except UnicodeDecodeError:
                raise ValueError(f"a name in its index is no text ({key[:40]!r})") from None
            if name in seen:
                raise ValueError(f"{name} is in its index twice")
            seen.add(name)
            yield name, _entry(name, value) if name else _header(value)


def _block(index: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values."""
    if place + size + TRAILER > len(index) - FOOTER or size < 4:
        raise ValueError("a block of its index lies beyond its end")
    block, kind = index[place : place + size], index[place + size]
    if kind != 0:
        raise ValueError(f"its index is compressed (kind {kind}), which TensorFlow's are not")
    if _masked(crc32c(index[place : place + size + 1])) != int.from_bytes(index[place + size + 1 :][:4], "little"):
        raise ValueError("a block of its index is not as it was written")
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("a key of its index lies beyond its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    place, at = _varint(content, at)
    size, at = _varint(content, at)
    return (place, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(content):
            break
        value |= (content[at + i] & 0x7F) << (7 * i)
        if content[at + i] < 0x80:
            return value, at + i + 1
    raise ValueError("a number in its index has no end")


# ---- protocol buffers


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = _varint(content, at)
        elif not length:
            raise ValueError(f"its index has a field of kind {kind}, which there is none of")
        if at + length > len(content):
            raise ValueError("a field of its index lies beyond its end")
        yield tag >> 3, content[at : at + length]
        at += length


def _header(content: bytes) -> int:
    """How many data files there are."""
    found = dict(_fields(content))
    if found.get(2, 0) != 0:
        raise ValueError("its numbers are of a machine with another order of bytes")
    count = found.get(1, 1)
    if not isinstance(count, int) or not 1 <= count <= 99_999:
        raise ValueError(f"its index claims {count} data files")
    return count


def _entry(name: str, content: bytes) -> Entry:
    values: dict[int, Any] = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: list[int] = []
    sliced = False
    for number, value in _fields(content):
        if isinstance(value, int) != (number in (1, 3, 4, 5)):
            raise ValueError(f"{name} is described as no tensor is")
        if number == 2:
            shape = [_size(name, dim) for field, dim in _fields(value) if field == 2]
        elif number == 7:
            sliced = True
        elif number in values:
            values[number] = value
    if any(side >= 2**48 for side in (*shape, values[4], values[5])) or len(shape) > 32:
        raise ValueError(f"{name} claims a shape of {shape}")
    return Entry(values[1], tuple(shape), values[3], values[4], values[5], sliced)


def _size(name: str, content: Any) -> int:
    if not isinstance(content, bytes):
        raise ValueError(f"{name} is described as no tensor is")
    found = dict(_fields(content))
    size = found.get(1, 0)
    if not isinstance(size, int):
        raise ValueError(f"{name} is described as no tensor is")
    return size


# ---- sums


def _table() -> list[int]:
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


TABLE = _table()


def crc32c(content: bytes) -> int:
    """Castagnoli's (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked(value: int) -> int:
    """As LevelDB stores it."""
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
