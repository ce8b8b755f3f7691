"""Whole image files of eight formats, and seeded ways to damage them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

ENDINGS = {
    "JPEG": ".jpg", "PNG": ".png", "PPM": ".ppm", "PGM": ".pgm", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tiff",
    "GIF": ".gif",
}  # fmt: skip
NUMBERS = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def whole(kind: str) -> list[bytes]:
    """Files of that format, of the modes and with the extras that it knows."""
    ramp = np.linspace(0, 255, 24 * 20).astype(np.uint8).reshape(20, 24)
    colours = Image.fromarray(np.stack([ramp, ramp.T.reshape(20, 24), 255 - ramp], -1))
    grey, clear, wide = Image.fromarray(ramp), colours.copy(), Image.fromarray(ramp.astype(np.uint16) * 257)
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 20, zip=True)
    text.add_itxt("Titel", "Wörter", zip=True)
    images: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "JPEG": [(colours, {"exif": exif}), (grey, {"progressive": True}), (colours.convert("CMYK"), {})],
        "PNG": [(colours, {"pnginfo": text, "exif": exif}), (clear, {}), (wide, {}),
                (grey.convert("P"), {"transparency": 3})],
        "PPM": [(colours, {}), (grey.convert("1"), {})],
        "PGM": [(grey, {}), (wide, {})],
        "BMP": [(colours, {}), (clear, {}), (grey.convert("P"), {})],
        "WEBP": [(colours, {"exif": exif}), (clear, {"lossless": True})],
        "TIFF": [(colours, {"exif": exif}), (wide, {"compression": "tiff_lzw"}), (colours, {"compression": "jpeg"}),
                 (Image.fromarray(ramp.astype(np.float32) / 255), {}), (grey.convert("1"), {"compression": "group4"})],
        "GIF": [(colours, {}), (grey, {"save_all": True, "append_images": [grey.rotate(90)], "transparency": 0})],
    }  # fmt: skip
    result = []
    for image, options in images[kind]:
        file = BytesIO()
        image.save(file, "PPM" if kind == "PGM" else kind, **options)
        result.append(file.getvalue())
    if kind in ("PPM", "PGM"):
        numbers = b" ".join(b"%d" % (i % 200) for i in range(12 * (3 if kind == "PPM" else 1)))
        result += [b"P%d # plain\n4 3\n200\n" % (3 if kind == "PPM" else 2) + numbers]
        result += [b"P%d\n4 3\n4095\n" % (6 if kind == "PPM" else 5) + bytes(range(24)) * (3 if kind == "PPM" else 1)]
    return result


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The same with one to four faults, most of them near its beginning."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(data), dice.choice((32, 256, len(data)))) or 1) if data else 0
        fault = dice.randrange(7)
        if fault == 0:
            data[at : at + 1] = bytes([dice.randrange(256)])
        elif fault == 1:
            del data[dice.randrange(len(data) + 1) :]
        elif fault == 2:
            data[at:at] = dice.randbytes(dice.randint(1, 64))
        elif fault == 3:
            del data[at : at + dice.randint(1, 64)]
        elif fault == 4:
            data[at : at + 4] = dice.choice(NUMBERS).to_bytes(4, dice.choice(("little", "big")))
        elif fault == 5:
            data[at : at + 8] = dice.choice((b"\0" * 8, b"\xff" * 8, b" -9 1e9 ", b"99999999"))
        else:
            data[at:at] = data[at : at + dice.randint(1, 256)]
    return _signed(bytes(data)) if dice.random() < 0.5 else bytes(data)


def _signed(content: bytes) -> bytes:
    """A PNG with sums that are right again, so that more than those is looked at."""
    data, at = bytearray(content), 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 <= len(data):
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def damaged_files(kind: str, count: int, home: Path, seed: int = 0) -> Iterator[Path]:
    """One after the other in the same place."""
    dice = random.Random(f"{kind} {seed}")
    files = whole(kind)
    path = home / f"damaged{ENDINGS[kind]}"
    for _ in range(count):
        path.write_bytes(damaged(dice.choice(files), dice))
        yield path
