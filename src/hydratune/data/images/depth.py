"""Images of more than 8 bits a value, brought to 8 by what their files say is white; never by a guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hydratune.data.images.png import significant_bits

BITS, PHOTOMETRIC, PLANAR, FORMAT = 258, 262, 284, 339  # tags of TIFF
RANGES = ((340, 341), (280, 281))  # smallest and largest value, of any kind and of whole numbers
SIGNED = 2  # a sample format
DARK = 2**12  # 16 bits with nothing beyond are 12 more likely than a picture so dark
FULL = 2**16 - 1
WHITES = (1, 255, 1023, 4095, 16383, FULL)  # what usually is
BLOCK = 2**20  # values that are scaled at once


class Unscaled(Exception):
    """Of a whole image: nobody says what its values mean. Goes on after the image's name: has values from ..."""


@dataclass(frozen=True)
class Depth:
    """What a file says of its values.

    unit: how many of the file's own numbers one of PIL's is, who scales some. black, white: of the file's own numbers;
    white is None where it does not say. inverted: the smallest is white. significant: bits that a value really has.
    """

    bits: int = 8
    signed: bool = False
    unit: float = 1.0
    black: float = 0.0
    white: float | None = None
    inverted: bool = False
    significant: int | None = None

    @property
    def ordinary(self) -> bool:
        return self.bits <= 8 and not self.signed


def depth_of(file: Any, path: Path) -> Depth:
    """Of an image that PIL has opened and not loaded yet. Raises Unscaled for one that PIL would read as noise."""
    if file.format == "PNG":
        return Depth(16, significant=significant_bits(path)) if raw_mode(file).endswith(";16B") else Depth()
    if file.format == "PPM":
        return _of_ppm(file)
    return _of_tiff(file) if file.format == "TIFF" else Depth()


def raw_mode(file: Any) -> str:
    """How PIL is about to unpack it: RGB;16B, L;4."""
    arguments = file.tile[0][3] if file.tile else ""
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _of_ppm(file: Any) -> Depth:
    if file.mode == "F":
        return Depth(32, unit=file.info.get("scale", 1.0))
    decoder, _, _, arguments = file.tile[0]
    largest = arguments[-1] if decoder != "raw" else FULL if raw_mode(file) == "I;16B" else 255
    if largest == FULL:  # which any writer of 16 bits puts there, whatever they hold
        return Depth(16)
    return Depth(16, unit=largest / FULL, white=largest) if file.mode == "I" else Depth()


def _of_tiff(file: Any) -> Depth:
    tags = file.tag_v2
    bits, signed = int(_first(tags.get(BITS), 1)), _first(tags.get(FORMAT), 1) == SIGNED
    if bits == 16 and len(file.getbands()) > 1 and tags.get(PLANAR) == 2 and file.tile[0][0] == "raw":
        raise Unscaled("holds each colour's 16 bits apart, which PIL reads as noise; save it with 8")
    if bits <= 8 and not signed:
        return Depth()
    black, white = 0.0, 2.0**bits - 1 if bits < 16 and not signed else None
    for low, high in RANGES:
        least, most = _first(tags.get(low), 0.0), _first(tags.get(high), 0.0)
        # another one is not what is white, but the largest value that this one image has
        if most > 0 and math.log2(most + 1) % 1 == 0 and least in (0, -most, -most - 1):
            black, white = least, most
            break
    return Depth(bits, signed, 1.0, black, white, inverted=tags.get(PHOTOMETRIC) == 0)


def _first(value: Any, default: float) -> float:
    """A tag as a number, the first where each channel has one."""
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else default


def narrowed(image: Image.Image, depth: Depth, white: float | None) -> Image.Image:
    """The same with 8 bits. white: what is white in it, whatever the file says.

    Raises Unscaled where nobody says what is white, and where values lie beyond what the file says.
    """
    if len(image.getbands()) > 1:
        _refuse_dark(image, white)
        return image
    values = np.asarray(image)
    if depth.signed and depth.bits == 8:
        values = values.view(np.int8)
    elif not depth.signed and depth.bits == 32 and values.dtype == np.int32:
        values = values.view(np.uint32)
    black, top = (0.0, white) if white is not None else _range_of(values, depth)
    scaled = np.empty(values.shape, np.uint8)
    rows = max(BLOCK // max(values.shape[1], 1), 1)
    for at in range(0, len(values), rows):
        part = (values[at : at + rows].astype(np.float64) * depth.unit - black) * (255 / (top - black))
        if not np.isfinite(part).all():
            raise Unscaled("has values that are no numbers (NaN or infinite)")
        scaled[at : at + rows] = np.rint(part).clip(0, 255)
    if depth.inverted:
        scaled = 255 - scaled
    if isinstance(key := image.info.get("transparency"), int):  # the value that is seen through
        scaled[values == key] = 255
    return Image.fromarray(scaled)


def _range_of(values: Any, depth: Depth) -> tuple[float, float]:
    """(what is black, what is white)"""
    low, high = float(values.min()) * depth.unit, float(values.max()) * depth.unit
    seen = f"has values from {low:g} to {high:g}"
    if depth.white is not None:
        if low < depth.black or high > depth.white * (1 + 1e-6):
            raise Unscaled(f"{seen}, and says that they lie between {depth.black:g} and {depth.white:g}")
        return depth.black, depth.white
    if not math.isfinite(low) or not math.isfinite(high):
        raise Unscaled("has values that are no numbers (NaN or infinite)")
    if low < 0:
        raise Unscaled(
            f"{seen}, and nothing says which is black; save it with 0 for black, or dataset.white=N takes all below 0 "
            "for black and N for white"
        )
    likely = next((w for w in WHITES if high <= w), high)
    hint = f"nothing says which is white; dataset.white={likely:.10g} says that {likely:.10g} is"
    if high == 0 or (values.dtype.kind == "f" and high <= 1):
        return 0.0, 1.0
    if depth.bits != 16 or depth.signed:
        raise Unscaled(f"{seen}, and {hint}")
    if depth.significant is not None and depth.significant < 16:
        # Such values should have been spread over 16 bits, which leaves the lowest ones next to empty
        raw = high < 2**depth.significant and bool((values % 2 ** (16 - depth.significant) > 1).any())
        return 0.0, 2.0**depth.significant - 1 if raw else FULL
    if high < DARK:
        message = f"has values that reach {high:g} of {FULL}"
        raise Unscaled(f"{message}, and {hint}, and dataset.white={FULL} that it is really so dark")
    return 0.0, FULL


def _refuse_dark(image: Image.Image, white: float | None) -> None:
    """Of several channels of 16 bits PIL keeps the high bytes."""
    if white not in (None, FULL):
        raise Unscaled(f"has colours of 16 bits, of which the high byte is read: no dataset.white={white:g} suits them")
    extrema: Any = image.getextrema()
    high = max(most for _, most in extrema)
    if white is None and 0 < high < (DARK >> 8) + (image.format == "PPM"):  # of which it is rounded
        raise Unscaled(
            f"has colours that stay below {(high + 1) << 8} of {FULL}, of which the high byte is read; save it with 8 "
            f"bits, or with values up to {FULL}; dataset.white={FULL} says that it is really so dark"
        )
