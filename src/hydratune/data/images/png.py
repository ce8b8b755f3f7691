"""What PIL does not tell of a PNG, read from its chunks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # none of them is seen in the pixels
LARGEST = 64 * 2**20  # bytes of text, unpacked; a bomb has more
PIECE = 2**20


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, where it begins, where it ends) of each whole chunk"""
    at = len(SIGNATURE)
    while content.startswith(SIGNATURE) and at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if end > len(content):
            return
        yield content[at + 4 : at + 8], at, end
        at = end


def significant_bits(path: Path) -> int | None:
    """Of a value of the first channel, as the chunk sBIT says; it stands before the pixels. None: it does not."""
    with open(path, "rb") as file:
        head = file.read(PIECE)
    for name, begin, end in _chunks(head):
        if name == b"sBIT" and end - begin > 12:
            return head[begin + 8]
    return None


def without_text(path: Path) -> bytes | None:
    """The file without its texts and its colour profile; None where it is no PNG or has none of them.

    Raises ValueError for texts that are unpacked to more than 64 MiB.
    """
    content = path.read_bytes()
    chunks = list(_chunks(content))
    texts = [(name, content[begin + 8 : end - 4]) for name, begin, end in chunks if name in TEXTS]
    if not texts:
        return None
    if sum(_unpacked(name, body) for name, body in texts) > LARGEST:
        raise ValueError(f"its texts are unpacked to more than {LARGEST // 2**20} MiB")
    kept = [content[begin:end] for name, begin, end in chunks if name not in TEXTS]
    return SIGNATURE + b"".join(kept) + content[chunks[-1][2] :]


def _compressed(name: bytes, body: bytes) -> bytes:
    """The part of a text that zlib unpacks."""
    _, _, rest = body.partition(b"\0")  # behind its keyword
    if name == b"iTXt":
        _, *texts = rest[2:].split(b"\0", 2)[1:]  # behind its language and the keyword in that
        return texts[0] if rest[:1] == b"\1" and texts else b""
    return b"" if name == b"tEXt" else rest[1:]


def _unpacked(name: bytes, body: bytes) -> int:
    """Bytes of a text, counted no further than a little beyond LARGEST."""
    total, left, unpacker = len(body), _compressed(name, body), zlib.decompressobj()
    try:
        while left and not unpacker.eof and total <= LARGEST:
            total += len(unpacker.decompress(left, PIECE))
            left = unpacker.unconsumed_tail
    except zlib.error:
        pass
    return total
