"""Tensors of TensorFlow's checkpoints (V2): X.index, a table of where they lie, and X.data-00000-of-0000N.

The table is LevelDB's: blocks of sorted keys, each with the part that it does not share with the one before. Its values
are protocol buffers of numbers. Nothing is executed; the files that are opened are named by the index's own name, and
every place and size is looked at before it is used. No part of the files is read twice, so that a small index cannot
claim a lot. The blocks of the index and the numbers of every tensor that is read are checked by their sums (CRC-32C).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydratune.models.crc32c import crc32c, masked

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
LARGEST_INDEX = 2**24  # bytes
LONGEST_NAMES = 2**26  # bytes of all together; a name may share nearly all of the one before
MOST_FILES = 10_000
ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"  # of the names in checkpoints of objects
# Numbers of TensorFlow's types; strings, resources and what is quantised are no weights
TYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?", 14: "V2", 17: "u2", 19: "f2", 22: "u4",
         23: "u8"}  # fmt: skip
# What an optimizer and a training loop keep; under an optimizer's _trainable_variables Keras 3 has the model's own
OTHERS = re.compile(
    r"/\.OPTIMIZER_SLOT/|/(adam_[mv]|(Adam|RMSProp)(_\d+)?|Momentum|ExponentialMovingAverage)$|^optimizer/(?!_trainable_variables/)|"
    r"^(global_step|save_counter)$|(^|/)beta[12]_power(_\d+)?$"
)


class Entry(NamedTuple):
    """Where a tensor lies."""

    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sum: int
    sliced: bool


def tensorflow_tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, array) of every tensor of numbers that is not an optimizer's. path: of the .index file.

    Raises ValueError for whatever is not such a checkpoint.
    """
    if path.stat().st_size > LARGEST_INDEX:
        raise ValueError(f"its index has {path.stat().st_size:,} bytes, which is no index")
    values = dict(_values(path.read_bytes()))
    if "" not in values:
        raise ValueError("its index has no header")
    header = _header(values.pop(""))
    entries = {name: _entry(name, value) for name, value in values.items()}
    shards = [path.with_name(f"{path.stem}.data-{i:05d}-of-{header:05d}") for i in range(header)]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard.name} is not there; a checkpoint is its index and all of its data files")
    wanted, there = sum(e.size for e in entries.values()), sum(shard.stat().st_size for shard in shards)
    if wanted > there:
        raise ValueError(f"its tensors claim {wanted:,} bytes, and its data files have {there:,}")
    for name, entry in entries.items():
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
    if masked(crc32c(content)) != entry.sum:
        raise ValueError(
            f"{name} is not as it was written (its sum is another); fetch {shards[entry.shard].name} again"
        )
    if dtype.kind == "b":
        return (np.frombuffer(content, np.uint8) != 0).reshape(entry.shape)
    return np.frombuffer(content, dtype=dtype.newbyteorder("<") if dtype.kind != "V" else dtype).reshape(entry.shape)


# ---- the table


def _values(index: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and description of each tensor; under the empty name, that of the whole."""
    if len(index) < FOOTER or int.from_bytes(index[-8:], "little") != MAGIC:
        raise ValueError("its index is not one of TensorFlow's")
    _, at = _handle(index, len(index) - FOOTER)
    (place, size), _ = _handle(index, at)
    seen: set[str] = set()
    letters = end = 0
    for _, handle in _block(index, place, size):
        (place, size), _ = _handle(handle, 0)
        if place < end:
            raise ValueError("blocks of its index lie one upon another")
        end = place + size + TRAILER
        for key, value in _block(index, place, size):
            letters += len(key)
            if letters > LONGEST_NAMES:
                raise ValueError(f"the names in its index have more than {LONGEST_NAMES:,} letters")
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
            yield name, value


def _block(index: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values."""
    if place + size + TRAILER > len(index) - FOOTER or size < 4:
        raise ValueError("a block of its index lies beyond its end")
    block, kind = index[place : place + size], index[place + size]
    if kind != 0:
        raise ValueError(f"its index is compressed (kind {kind}), which TensorFlow's are not")
    if masked(crc32c(index[place : place + size + 1])) != int.from_bytes(index[place + size + 1 :][:4], "little"):
        raise ValueError("a block of its index is not as it was written")
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))
    if end < 0:
        raise ValueError("a block of its index has no room for what it claims")
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
    if not isinstance(count, int) or not 1 <= count <= MOST_FILES:
        raise ValueError(f"its index claims {count} data files")
    return count


def _entry(name: str, content: bytes) -> Entry:
    values: dict[int, Any] = {1: 0, 3: 0, 4: 0, 5: 0, 6: b""}
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
    told = int.from_bytes(values[6], "little")
    return Entry(values[1], tuple(shape), values[3], values[4], values[5], told, sliced)


def _size(name: str, content: Any) -> int:
    if not isinstance(content, bytes):
        raise ValueError(f"{name} is described as no tensor is")
    found = dict(_fields(content))
    size = found.get(1, 0)
    if not isinstance(size, int):
        raise ValueError(f"{name} is described as no tensor is")
    return size
