"""Castagnoli's sums (RFC 3720, appendix B.4), by which TensorFlow's checkpoints tell what has changed since.

A sum is linear in what it is of. So that of a long text is made of those of its pieces, which NumPy makes side by side,
two bytes a step: some hundred megabytes a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

PIECE, TOGETHER = 1024, 2**14  # bytes of a piece; pieces at a time
FEWEST = 8  # pieces that are worth it


def crc32c(content: bytes) -> int:
    value, at = 0xFFFFFFFF, 0
    while (pieces := min((len(content) - at) // PIECE, TOGETHER)) >= FEWEST:
        value = _joined(_side_by_side(content, at, pieces, value))
        at += pieces * PIECE
    table = _table()
    for byte in memoryview(content)[at:]:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def masked(value: int) -> int:
    """As LevelDB and TensorFlow store it."""
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _side_by_side(content: bytes, at: int, pieces: int, value: int) -> Any:
    """The register after each piece. value: before the first; before the others it is 0."""
    words = np.frombuffer(content, "<u2", pieces * PIECE // 2, at).reshape(pieces, -1)
    table, found = _table_of_words(), np.zeros(pieces, np.uint32)
    found[0] = value
    for column in np.ascontiguousarray(words.T):
        found = table[(found ^ column) & 0xFFFF] ^ (found >> 16)
    return found


def _joined(found: Any) -> int:
    """The register after all of the pieces: two and two become one."""
    level = 0
    while len(found) > 1:
        if len(found) % 2:
            found = np.concatenate([np.zeros(1, np.uint32), found])  # nothing before the first changes nothing
        first, found = found[::2], found[1::2].copy()
        for bit, image in enumerate(_past(level)):
            found ^= (first >> bit & 1) * np.uint32(image)
        level += 1
    return int(found[0])


@cache
def _past(level: int) -> tuple[int, ...]:
    """What becomes of each bit of a register while PIECE * 2**level bytes of zeros go by."""
    if level:
        half = _past(level - 1)
        return tuple(_image(half, image) for image in half)
    table, images = _table(), [1 << bit for bit in range(32)]
    for _ in range(PIECE):
        images = [table[image & 0xFF] ^ (image >> 8) for image in images]
    return tuple(images)


def _image(images: tuple[int, ...], value: int) -> int:
    found = 0
    for bit, image in enumerate(images):
        found ^= image if value >> bit & 1 else 0
    return found


@cache
def _table() -> list[int]:
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


@cache
def _table_of_words() -> Any:
    bytes_ = np.array(_table(), np.uint32)
    after = bytes_[np.arange(2**16) & 0xFF]  # the lower byte, then the upper one
    return bytes_[(after ^ (np.arange(2**16, dtype=np.uint32) >> 8)) & 0xFF] ^ (after >> 8)
