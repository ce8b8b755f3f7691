"""What an image file shows is what the network sees: scaled by what the file says, upright, on white; or refused."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from hydratune.data.images.decode import decode

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def grey(path: Path, white: float | None = None) -> Tensor:
    """[8, 8], of an image that has that size and no colour."""
    pixels = decode(path, 8, white)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    return pixels[0]


def scaled(values: Any) -> Tensor:
    """[8, 8] of 0 to 1 -> 0 to 255"""
    return torch.from_numpy(np.rint(np.asarray(values, np.float64) * 255).clip(0, 255).astype(np.uint8))


def saved(path: Path, values: Any, **options: Any) -> Path:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)
    return path


def tiff(path: Path, tags: dict[int, tuple[str, tuple[int, ...]]], pixels: bytes, order: str = "<") -> Path:
    """A TIFF of 8 x 8 in one strip; `tags`: {number: (type of struct, values)} besides those of its size."""
    size = {"H": 3, "I": 4, "d": 12}
    every = {256: ("I", (8,)), 257: ("I", (8,)), 259: ("H", (1,)), 273: ("I", (8,)), 278: ("I", (8,)),
             279: ("I", (len(pixels),)), **tags}  # fmt: skip
    start = 8 + len(pixels) + len(pixels) % 2
    extra_at, entries, extra = start + 2 + 12 * len(every) + 4, b"", b""
    for number, (kind, values) in sorted(every.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        entries += struct.pack(f"{order}HHI", number, size[kind], len(values))
        if len(packed) > 4:
            entries += struct.pack(f"{order}I", extra_at + len(extra))
            extra += packed
        else:
            entries += packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    directory = struct.pack(f"{order}H", len(every)) + entries + struct.pack(f"{order}I", 0)
    path.write_bytes(head + pixels + b"\0" * (len(pixels) % 2) + directory + extra)
    return path


def grey_tiff(path: Path, bits: int, pixels: bytes, photometric: int = 1, order: str = "<", **more: Any) -> Path:
    tags = {258: ("H", (bits,)), 262: ("H", (photometric,)), 277: ("H", (1,)), **more.get("tags", {})}
    return tiff(path, tags, pixels, order)


# ---- numbers


def test_fractions_are_shades_and_not_black(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", RAMP.astype(np.float32))
    assert torch.equal(grey(path), scaled(RAMP))
    assert torch.equal(grey(path, white=0.5), scaled(RAMP * 2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (RAMP * 200, r"a\.tif has values from 0 to 200, .*dataset\.white=255 says"),
        (RAMP - 0.5, r"a\.tif has values from -0\.5 to 0\.5, and nothing says which is black"),
        (RAMP * np.nan, r"a\.tif has values that are no numbers"),
        (RAMP * 1e30, r"a\.tif has values from 0 to 1e\+30"),
    ],
)
def test_fractions_that_could_be_anything_are_refused(values: Any, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", values.astype(np.float32))
    with pytest.raises(ValueError, match=said):
        decode(path, 8)


def test_what_is_white_may_be_said(tmp_path: Path) -> None:
    values = (RAMP * 311 - 20).astype(np.float32)
    assert torch.equal(grey(saved(tmp_path / "a.tif", values), white=200), scaled(values / 200))
    whole = saved(tmp_path / "b.tif", (RAMP * 70000).astype(np.int32))
    assert torch.equal(grey(whole, white=70000), scaled((RAMP * 70000).astype(np.int32) / 70000))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("largest", [1000, 4095])
def test_twelve_bits_in_sixteen_are_asked_about(ending: str, largest: int, tmp_path: Path) -> None:
    values = (RAMP * largest).astype(np.uint16)
    path = saved(tmp_path / f"a.{ending}", values)
    with pytest.raises(ValueError, match=rf"a\.{ending} has values that reach {largest} of 65535, .*white=(1023|4095)"):
        decode(path, 8)
    assert torch.equal(grey(path, white=4095), scaled(values / 4095))
    assert torch.equal(grey(path, white=65535), scaled(values / 65535))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_that_are_used_are_rounded(ending: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    assert torch.equal(grey(saved(tmp_path / f"a.{ending}", values)), scaled(values / 65535))
    black = saved(tmp_path / f"b.{ending}", np.zeros((8, 8), np.uint16))
    assert not grey(black).any()


@pytest.mark.parametrize("maxval", [1023, 4095, 255, 100])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pgm_says_what_is_white(maxval: int, plain: bool, tmp_path: Path) -> None:
    values = np.rint(RAMP * maxval / 2).astype(">u2" if maxval > 255 else np.uint8)
    path = tmp_path / "a.pgm"
    body = b" ".join(b"%d" % v for v in values.flatten()) if plain else values.tobytes()
    path.write_bytes(b"P%d 8 8 %d\n" % (2 if plain else 5, maxval) + body)
    assert (grey(path).int() - scaled(values / maxval).int()).abs().max() <= 1  # PIL rounds in between
    if maxval > 255:
        assert (grey(path, white=maxval / 2).int() - scaled(values / maxval * 2).int()).abs().max() <= 1


def test_whole_numbers_need_a_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", (RAMP * 70000).astype(np.int32))
    with pytest.raises(ValueError, match=r"a\.tif has values from 0 to 70000, .*dataset\.white=70000 says"):
        decode(path, 8)
    signed = grey_tiff(tmp_path / "b.tif", 16, np.arange(-10, 54).astype("<i2").tobytes(), tags={339: ("H", (2,))})
    with pytest.raises(ValueError, match=r"b\.tif has values from -10 to 53, and nothing says which is black"):
        decode(signed, 8)
    large = np.linspace(0, 2**32 - 1, 64).astype("<u4")
    unsigned = grey_tiff(tmp_path / "c.tif", 32, large.tobytes())
    assert torch.equal(grey(unsigned, white=2**32 - 1), scaled(large.reshape(8, 8) / (2**32 - 1)))


def test_bytes_with_a_sign_are_not_turned_round(tmp_path: Path) -> None:
    values = np.arange(-32, 32).astype(np.int8)
    path = grey_tiff(tmp_path / "a.tif", 8, values.tobytes(), tags={339: ("H", (2,))})
    with pytest.raises(ValueError, match="from -32 to 31, and nothing says which is black"):
        decode(path, 8)
    assert torch.equal(grey(path, white=31), scaled(values.reshape(8, 8) / 31))


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        ((RAMP * 4095).astype(np.uint16), {281: 4095}, RAMP),
        ((RAMP * 2000).astype(np.int32), {281: 4095}, RAMP * 2000 / 4095),
        ((RAMP * 255).astype(np.float32), {340: 0.0, 341: 255.0}, RAMP),
        ((RAMP * 2 - 1).astype(np.float32), {340: -1.0, 341: 1.0}, RAMP),
    ],
)
def test_the_tags_of_a_tiff_say_what_is_white(values: Any, tags: Any, expected: Any, tmp_path: Path) -> None:
    seen = grey(saved(tmp_path / "a.tif", values, tiffinfo=tags)).int()
    assert (seen - scaled(expected).int()).abs().max() <= 1


def test_tags_that_cannot_be_meant(tmp_path: Path) -> None:
    beyond = saved(tmp_path / "a.tif", (RAMP * 9000).astype(np.uint16), tiffinfo={281: 4095})
    with pytest.raises(ValueError, match=r"has values from 0 to 9000, and says that they lie between 0 and 4095"):
        decode(beyond, 8)
    # the largest value of this one image would scale each image differently
    own = saved(tmp_path / "b.tif", (RAMP * 3871).astype(np.uint16), tiffinfo={280: 0, 281: 3871})
    with pytest.raises(ValueError, match=r"reach 3871 of 65535, .*dataset\.white=4095"):
        decode(own, 8)


def test_twelve_bits_that_are_stored_as_such(tmp_path: Path) -> None:
    values = (RAMP * 4095).astype(np.uint16).flatten()
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    path = grey_tiff(tmp_path / "a.tif", 12, packed)
    assert torch.equal(grey(path), scaled(values.reshape(8, 8) / 4095))


@pytest.mark.parametrize(("kind", "bits"), [("<u2", 16), ("<f4", 32)])
def test_white_may_be_the_smallest(kind: str, bits: int, tmp_path: Path) -> None:
    top = 65535 if bits == 16 else 1
    tags = {} if bits == 16 else {339: ("H", (3,))}
    path = grey_tiff(tmp_path / "a.tif", bits, (RAMP * top).astype(kind).tobytes(), photometric=0, tags=tags)
    assert torch.equal(grey(path), 255 - scaled((RAMP * top).astype(kind) / top))


def with_chunk(path: Path, name: bytes, body: bytes) -> Path:
    """The PNG with one chunk more, before its pixels."""
    content = path.read_bytes()
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content[:33] + chunk + content[33:])
    return path


def test_a_png_says_how_many_of_its_bits_count(tmp_path: Path) -> None:
    values = (RAMP * 4095).astype(np.uint16)
    raw = with_chunk(saved(tmp_path / "a.png", values), b"sBIT", b"\x0c")  # as they came from the camera
    spread = with_chunk(saved(tmp_path / "b.png", values << 4 | values >> 8), b"sBIT", b"\x0c")  # as they should be
    dark = with_chunk(saved(tmp_path / "c.png", (values >> 4) << 4), b"sBIT", b"\x0c")
    assert torch.equal(grey(raw), scaled(values / 4095))
    assert torch.equal(grey(spread), scaled(values / 4095))
    assert torch.equal(grey(dark), scaled(((values >> 4) << 4) / 65535))


def colours_of_16(path: Path, values: Any) -> Path:
    """A PNG of [8, 8, 3] of 16 bits, which PIL does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    )
    return path


def test_colours_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.stack([RAMP * 65535] * 3, -1).astype(np.uint16)
    assert (decode(colours_of_16(tmp_path / "a.png", values), 8)[0].int() - scaled(RAMP).int()).abs().max() <= 1
    twelve = colours_of_16(tmp_path / "b.png", values >> 4)
    with pytest.raises(ValueError, match=r"b\.png has colours that stay below 4096 of 65535, .*dataset\.white=65535"):
        decode(twelve, 8)
    assert decode(twelve, 8, 65535).max() == 15
    with pytest.raises(ValueError, match=r"b\.png has colours of 16 bits, .*no dataset\.white=4095"):
        decode(twelve, 8, 4095)
    path = tmp_path / "c.ppm"
    path.write_bytes(b"P6 8 8 65535\n" + (values >> 4).astype(">u2").tobytes())
    with pytest.raises(ValueError, match=r"c\.ppm has colours that stay below"):
        decode(path, 8)
    path.write_bytes(b"P6 8 8 4095\n" + (values >> 4).astype(">u2").tobytes())
    assert (grey(path).int() - scaled(RAMP).int()).abs().max() <= 1


def test_planes_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    """PIL reads every second byte of them."""
    planes = np.stack([RAMP * 65535] * 3).astype("<u2").tobytes()
    offsets = tuple(8 + 128 * i for i in range(3))
    path = tiff(
        tmp_path / "a.tif",
        {258: ("H", (16,) * 3), 262: ("H", (2,)), 277: ("H", (3,)), 284: ("H", (2,)), 273: ("I", offsets),
         279: ("I", (128,) * 3)},
        planes,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.tif holds each colour's 16 bits apart"):
        decode(path, 8)


def test_a_colour_map_of_bytes_is_not_black(tmp_path: Path) -> None:
    """Its values should be of 16 bits, and are not in what many programs write."""
    steps = tuple(range(256))
    path = grey_tiff(tmp_path / "a.tif", 8, bytes(range(0, 256, 4)), photometric=3, tags={320: ("H", steps * 3)})
    assert grey(path).flatten().tolist() == list(range(0, 256, 4))


# ---- modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_opaque_images_are_what_pil_makes_of_them(mode: str, tmp_path: Path) -> None:
    colour = Image.fromarray(np.stack([RAMP * 255, RAMP.T * 255, 255 - RAMP * 255], -1).astype(np.uint8))
    image = colour.convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    path = saved(tmp_path / "a.tif", image)
    with Image.open(path) as file:
        expected = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode(path, 8), expected)


def drawing() -> Image.Image:
    """A black stroke on nothing, whose colour is black too."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 3, 3] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "RGBA", {}), ("a.png", "LA", {}), ("a.tif", "RGBA", {}), ("a.tif", "LA", {}), ("a.tif", "PA", {}),
        ("a.webp", "RGBA", {"lossless": True, "exact": True}),
    ],
)  # fmt: skip
def test_what_is_transparent_is_white(name: str, mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    pixels = grey(saved(tmp_path / name, drawing().convert(mode), **options))
    assert not pixels[:, 3].any() and (pixels[:, [0, 1, 2, 4, 5, 6, 7]] == 255).all()


def test_one_colour_may_be_what_is_transparent(tmp_path: Path) -> None:
    stripes = np.full((8, 8), 90, np.uint8)
    stripes[:, ::2] = 0
    expected = [255, 90] * 4
    assert grey(saved(tmp_path / "l.png", stripes, transparency=0))[0].tolist() == expected
    palette = Image.fromarray(stripes).convert("P")
    assert grey(saved(tmp_path / "p.png", palette, transparency=0))[0].tolist() == expected
    assert grey(saved(tmp_path / "p.gif", palette, transparency=0))[0].tolist() == expected
    colours = saved(tmp_path / "c.png", np.stack([stripes] * 3, -1), transparency=(0, 0, 0))
    assert grey(colours)[0].tolist() == expected
    wide = saved(tmp_path / "w.png", stripes.astype(np.uint16) * 257)
    assert grey(with_chunk(wide, b"tRNS", struct.pack(">H", 0)))[0].tolist() == expected
    few = saved(tmp_path / "f.png", Image.fromarray(stripes // 30 * 17).convert("P"), bits=4)
    content = bytearray(few.read_bytes())
    assert content[24] == 4
    content[25] = 0  # four bits of grey, and no palette
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    at = content.index(b"PLTE") - 4
    del content[at : at + 12 + int.from_bytes(content[at : at + 4], "big")]
    few.write_bytes(bytes(content))
    seen = grey(few)[0].tolist()
    assert grey(with_chunk(few, b"tRNS", struct.pack(">H", seen[1] // 17)))[0].tolist() == [seen[0], 255] * 4


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (100, 0, 200, 128))
    assert decode(saved(tmp_path / "a.png", image), 8)[:, 0, 0].tolist() == [177, 127, 227]
    premultiplied = tiff(
        tmp_path / "a.tif",
        {258: ("H", (8,) * 2), 262: ("H", (1,)), 277: ("H", (2,)), 338: ("H", (1,))},
        bytes([50, 128]) * 64,
    )
    assert decode(premultiplied, 8)[:, 0, 0].tolist() == pytest.approx([177] * 3, abs=1)


# ---- which way is up


def halves() -> Image.Image:
    """White on the left."""
    return Image.fromarray(np.repeat([[255] * 8 + [0] * 8], 16, 0).astype(np.uint8))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_what_lies_on_its_side_is_turned(ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(saved(tmp_path / f"a.{ending}", halves(), exif=exif), 8)
    assert (pixels[:, :3] > 200).all() and (pixels[:, 5:] < 55).all()


def exif_with(*entries: tuple[int, int, int, bytes]) -> bytes:
    """(tag, type, count, four bytes)"""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 4


@pytest.mark.parametrize(
    "beside",
    [(0x011A, 2, 4, b"300\0"), (0x0128, 11, 1, struct.pack("<f", 2.5)), (0x0132, 4, 1, b"\1\0\0\0"),
     (0x8769, 2, 4, b"abc\0")],
)  # fmt: skip
def test_a_tag_of_the_wrong_type_spoils_no_photograph(beside: tuple[int, int, int, bytes], tmp_path: Path) -> None:
    entries = sorted([(0x0112, 3, 1, b"\6\0\0\0"), beside])
    pixels = decode(saved(tmp_path / "a.jpg", halves(), exif=exif_with(*entries)), 8)
    assert (pixels[:, :3] > 200).all() and (pixels[:, 5:] < 55).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0II", b"Exif\0\0nonsense" * 9, b"Exif\0\0II*\0\xff\xff\xff\xff\0\0\0\0\0\0"])
def test_exif_that_is_broken_turns_nothing(exif: bytes, tmp_path: Path) -> None:
    pixels = decode(saved(tmp_path / "a.jpg", halves(), exif=exif), 8)
    assert (pixels[:, :, :3] > 200).all()


# ---- texts, warnings, and what is none


def test_a_long_text_spoils_no_image(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.png", halves())
    for zipped in (False, True):
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "words " * 400_000, zip=zipped)
        text.add_itxt("Comment", "words " * 400_000, zip=zipped)
        long = saved(tmp_path / "long.png", halves(), pnginfo=text)
        assert torch.equal(decode(long, 8), decode(plain, 8))
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert before == (2**20, 64 * 2**20)


def test_a_bomb_of_text_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", halves())
    with_chunk(path, b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (80 * 2**20), 9))
    with pytest.raises(
        ValueError, match=r"a\.png is not a readable image \(its texts are unpacked to more than 64 MiB"
    ):
        decode(path, 8)


@pytest.mark.scenario(13)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ppm", b"P6\nabc 8\n255\n"), ("a.ppm", b"P6 8"), ("a.pgm", b"P2 2 2 255 1 x 3 4"), ("a.gif", b"GIF89a"),
        ("a.tif", b"II*\0" + b"\xff" * 40), ("a.tif", b"II*\0\x08\0\0\0\1\0\0\1\2\0\4\0\0\0abc\0\0\0\0\0"),
        ("a.bmp", b"BM" + b"\0" * 60), ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 17),
        ("a.webp", b"RIFF\4\0\0\0WEBPVP8 "), ("a.jpg", b"\xff\xd8\xff"), ("a.jpg", b""),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_it_the_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a readable image \(.+\)"):
        decode(tmp_path / name, 8)


def test_neither_a_pipe_nor_a_link_to_nowhere_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"a\.png is not a readable image \(it is no regular file"):
        decode(tmp_path / "a.png", 8)
    with pytest.raises(ValueError, match=r"b\.png is not a readable image \(it is a link that leads nowhere"):
        decode(tmp_path / "b.png", 8)


def test_warnings_of_pil_are_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    large = saved(tmp_path / "a.png", halves())
    pale = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("P")
    palette = saved(tmp_path / "b.png", pale, transparency=bytes([255] * 256))
    apng = with_chunk(saved(tmp_path / "c.png", halves()), b"acTL", b"\0" * 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(large, 8).shape == decode(apng, 8).shape == (3, 8, 8)
        assert torch.equal(decode(palette, 8)[0], scaled(RAMP * 0 + np.trunc(RAMP * 255) / 255))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image \(DecompressionBombError"):
        decode(large, 8)
