"""An image file as the rectangle of pixels that a network sees."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hydratune.data.images.depth import Unscaled, depth_of, narrowed, raw_mode
from hydratune.data.images.frame import GREY, Frame, Size
from hydratune.data.images.png import without_text

# by their endings' formats alone: PIL would hand PostScript, whatever it is called, to another program
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
ORIENTATION, WIDTH, HEIGHT, COLOURS = 0x0112, 256, 257, 320  # tags of EXIF and of TIFF
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = [TURNED[i] for i in (5, 6, 7, 8)]
QUIET = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)  # as the module warnings keeps it


Box = tuple[float, float, float, float]  # left, top, right, bottom


class Unreadable(Exception):
    """A file that is no whole image; says which, and why."""


def decode(path: Path, size: Size, white: float | None = None) -> Tensor:
    """[3, H, W] uint8, as the frame fits it; what is transparent is white.

    size: pixels of a square, or a frame. white: the value that is white in images of more than 8 bits; None: what the
    file says.
    Raises ValueError with the path for a file that is no whole image, and for one whose values nobody can scale.
    """
    try:
        return pixels(path, Frame.of(size), white)
    except Unreadable as error:
        raise ValueError(str(error)) from None


def pixels(path: Path, frame: Frame, white: float | None) -> Tensor:
    """The same, but raises Unreadable for a file that is no whole image."""
    with _named(path):
        try:
            return _framed(path, path, frame, white)
        except ValueError as error:
            # PIL does not unpack long texts, and leaves the image too; its pixels are what is wanted
            content = without_text(path) if "MAX_TEXT" in str(error) else None
            if content is None:
                raise
            return _framed(BytesIO(content), path, frame, white)


def check_header(path: Path) -> None:
    """Raises ValueError for a file that does not begin as an image."""
    try:
        with _named(path):
            Image.open(path, formats=FORMATS).close()
    except Unreadable as error:
        raise ValueError(str(error)) from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever PIL raises names the file; what it only warns of is nothing that is looked at here."""
    if warnings.filters[:1] != [QUIET]:
        warnings.filterwarnings("ignore", module=r"PIL\b")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise Unreadable(f"dataset: {path} is not a readable image (it is no regular file)")
        yield
    except Unreadable:
        raise
    except Unscaled as error:
        raise ValueError(f"dataset: {path} {error}") from None
    except Exception as error:
        raise Unreadable(f"dataset: {path} is not a readable image ({_why(path, error)})") from None


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "it is a link that leads nowhere"
    if isinstance(error, UnidentifiedImageError):
        return f"PIL reads it as none of {', '.join(FORMATS)}"
    message = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    plain = isinstance(error, OSError | SyntaxError | ValueError) and message
    return message if plain else f"{type(error).__name__} {message}".strip()


def _framed(source: Path | BytesIO, path: Path, frame: Frame, white: float | None) -> Tensor:
    with Image.open(source, formats=FORMATS) as file:
        file.draft("RGB", (frame.width * 2, frame.height * 2))  # a JPEG is decoded at the smallest sufficient scale
        depth, raw = depth_of(file, path), raw_mode(file)
        file.load()
        image = _upright(file)
        if not depth.ordinary:
            image = narrowed(image, depth, white)
        return _cut(_opaque(image, raw), frame)


def _cut(image: Image.Image, frame: Frame) -> Tensor:
    """[3, H, W] uint8"""
    if frame.fit != "letterbox":
        seen = frame.cut(image, Image.Resampling.BILINEAR, (GREY, GREY, GREY))
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()
    left, top, right, bottom = frame.placed(*image.size)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    # three times as fast as PIL, with the same filter; a value may differ by one
    part = F.interpolate(whole, (bottom - top, right - left), mode="bilinear", antialias=True)[0]
    canvas = torch.full((3, frame.height, frame.width), GREY, dtype=torch.uint8)
    canvas[:, top:bottom, left:right] = part
    return canvas


def given(image: Any, frame: Frame) -> Tensor:
    """The same of a picture in memory: PIL's, or a tensor [C, H, W], uint8 or from 0 to 1. Raises ValueError."""
    if isinstance(image, Tensor):
        if image.ndim == 2:
            image = image.unsqueeze(0)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
            raise ValueError(f"a tensor of {list(image.shape)} is no picture; [3, H, W] is, or [1, H, W]")
        if image.is_floating_point():
            if not bool(((image >= 0) & (image <= 1)).all()):
                raise ValueError("a picture of floats has values from 0 to 1; uint8 has them from 0 to 255")
            image = (image * 255).round()
        elif image.dtype != torch.uint8:
            raise ValueError(f"a picture of {image.dtype}; uint8 is one, or floats from 0 to 1")
        array = image.to("cpu", torch.uint8).permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()
        image = Image.fromarray(array)
    if not isinstance(image, Image.Image):
        raise ValueError(f"a {type(image).__name__} is no path, PIL image or tensor")
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"):
        raise ValueError(f"a picture of mode {image.mode}: nothing says which value is white; convert it to RGB")
    return _cut(_opaque(turned(image), ""), frame)


def size_of(image: Any) -> tuple[int, int]:
    """Width and height of a picture the right way up. A path comes as text."""
    if isinstance(image, Tensor):
        return image.shape[-1], image.shape[-2]
    if isinstance(image, str):
        with Image.open(image, formats=FORMATS) as file:
            return _turned_size(file)
    return _turned_size(image)


def sizes_of(path: Path) -> tuple[tuple[int, int], tuple[int, int], Image.Transpose | None]:
    """((width, height) as it is stored, the right way up, what turns the first into the second). Raises ValueError."""
    try:
        with _named(path), Image.open(path, formats=FORMATS) as file:
            return _stored_size(file), _turned_size(file), _turn(file)
    except Unreadable as error:
        raise ValueError(str(error)) from None


def turned_box(size: tuple[int, int], turn: Image.Transpose | None, box: Box) -> Box:
    """Of a picture of that size that lies on its side."""
    (width, height), (left, top, right, bottom) = size, box
    if turn == Image.Transpose.TRANSPOSE:
        return top, left, bottom, right
    if turn == Image.Transpose.ROTATE_270:
        return height - bottom, left, height - top, right
    if turn == Image.Transpose.TRANSVERSE:
        return height - bottom, width - right, height - top, width - left
    assert turn == Image.Transpose.ROTATE_90, turn
    return top, width - right, bottom, width - left


def _turned_size(image: Image.Image) -> tuple[int, int]:
    width, height = _stored_size(image)
    return (height, width) if _turn(image) in SIDEWAYS else (width, height)


def _stored_size(image: Any) -> tuple[int, int]:
    """Of a TIFF that is not loaded yet, PIL's size may be that of the picture the right way up."""
    if image.format == "TIFF" and _turn(image) is not None:
        return image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
    size: tuple[int, int] = image.size
    return size


def _upright(file: Any) -> Image.Image:
    """Telephones store which way is up beside the pixels."""
    image = turned(file)
    if file.format == "TIFF" and file.mode in ("P", "PA") and max(file.tag_v2[COLOURS]) < 256:
        # written with 8 bits for 16, by which every colour would be black
        image.putpalette(bytes(file.tag_v2[COLOURS]), "RGB;L")
    return image


def turned(image: Image.Image) -> Image.Image:
    """The right way up, as its own tag says."""
    image.load()  # which turns a TIFF, and takes the tag away
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNED.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read turns nothing
        return None


def _opaque(image: Image.Image, raw: str) -> Image.Image:
    """RGB, on white: what lies under what is transparent is nobody's picture."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    _spread_key(image, raw)
    whole = image.convert("LA") if image.mode == "La" else image
    rgba = whole.convert("RGBA")
    alpha = rgba.getchannel("A")
    extrema: Any = alpha.getextrema()
    empty = image.format == "BMP" and extrema == (0, 0)  # its fourth byte is mostly nothing at all
    if extrema[0] == 255 or empty:
        return whole.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(rgba.convert("RGB"), mask=alpha)
    return canvas


def _spread_key(image: Image.Image, raw: str) -> None:
    """The transparent colour of a PNG, brought to 8 bits as PIL has brought the pixels."""
    key = image.info.get("transparency")
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif isinstance(key, tuple) and raw.endswith(";16B"):
        image.info["transparency"] = tuple(value >> 8 for value in key)
