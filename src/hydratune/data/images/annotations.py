"""Boxes as others write them down: COCO's JSON, and Pascal VOC's XML. Nothing is read but what stands there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hydratune.data.images.walk import EXTENSIONS, listed
from hydratune.data.parts import NAMES, part_called

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Annotated:
    """A picture and its boxes. size: (width, height) that they were drawn on; None: that of the picture."""

    path: Path
    size: tuple[int, int] | None
    boxes: Sequence[Box] = ()
    names: Sequence[str] = ()
    crowds: Sequence[bool] = ()


@dataclass(frozen=True)
class Annotations:
    """parts: train, and val and test where they are given. faults: boxes that are none, each named."""

    parts: Mapping[str, Sequence[Annotated]]
    classes: Sequence[str]
    faults: Sequence[str] = ()


@dataclass
class _Reading:
    """What is found while annotations are read."""

    faults: list[str] = field(default_factory=list)

    def annotated(
        self, path: Path, size: tuple[int, int] | None, given: Sequence[tuple[str, Sequence[Any], bool]]
    ) -> Annotated:
        """given: (class, corners, whether it is a crowd) of each box, clipped to the picture."""
        kept: list[tuple[Box, str, bool]] = []
        for name, corners, crowd in given:
            box = _box(corners, size)
            if box is None:
                where = ", ".join(map(str, corners))
                self.faults.append(f"{path.name}: the box ({where}) of {name} has no area within the picture")
            else:
                kept.append((box, name, crowd))
        boxes, names, crowds = zip(*kept, strict=True) if kept else ((), (), ())
        return Annotated(path, size, boxes, names, crowds)


def _box(corners: Sequence[Any], size: tuple[int, int] | None) -> Box | None:
    """None for one that has no area."""
    try:
        left, top, right, bottom = (float(value) for value in corners)
    except (TypeError, ValueError):
        return None
    if not all(math.isfinite(value) for value in (left, top, right, bottom)):
        return None
    if size is not None:
        left, right = (min(max(value, 0.0), float(size[0])) for value in (left, right))
        top, bottom = (min(max(value, 0.0), float(size[1])) for value in (top, bottom))
    return (left, top, right, bottom) if right > left and bottom > top else None


# ---- COCO


def coco(root: Path) -> Annotations:
    """JSON files in the folder, in annotations/ or in a folder for each part; images beside them or in images/.

    Raises ValueError where there are none, and for one that is not as COCO's are.
    """
    files = _coco_files(root)
    reading, parts = _Reading(), {}
    categories: dict[Any, str] = {}
    for part, path in files.items():
        content = _coco_content(path)
        own = {c["id"]: str(c["name"]) for c in content.get("categories", ())}
        if clash := [i for i in own.keys() & categories.keys() if own[i] != categories[i]]:
            raise ValueError(
                f"dataset.root: category {clash[0]} is {categories[clash[0]]} in one file and {own[clash[0]]} in {path}"
            )
        categories.update(own)
        try:
            parts[part] = list(_coco_images(root, path, part, content, own, reading))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"dataset: {path} is not as COCO's files are ({type(error).__name__}: {error})") from None
    return Annotations(parts, [categories[i] for i in sorted(categories)], reading.faults)


def _coco_files(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise ValueError(f"dataset.root={root}: no such folder")
    folders = [root, root / "annotations", *(p for p in sorted(root.iterdir()) if p.is_dir() and part_called(p.name))]
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    boxes = [path for path in found if not path.stem.startswith(("captions", "person_keypoints", "panoptic", "stuff"))]
    parts: dict[str, Path] = {}
    for path in boxes:
        part = part_called(path.parent.name) or _part_in(path.stem) or "train"
        if part in parts:
            raise ValueError(f"dataset.root={root}: {parts[part].name} and {path.name} both are for {part}")
        parts[part] = path
    if "train" not in parts:
        raise ValueError(
            f"dataset.root={root}: no JSON file of COCO's kind for train, such as annotations/instances_train.json; "
            f"found {listed([p.name for p in found]) or 'none'}"
        )
    return parts


def _part_in(stem: str) -> str | None:
    """instances_val2017 -> val; trainval, which is one part, is train."""
    lowered = stem.lower()
    return next((part for part in ("train", "val", "test") if any(name in lowered for name in NAMES[part])), None)


def _coco_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset: {path} is no readable JSON ({error})") from None
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"dataset: {path} is not as COCO's files are: it has no images and annotations")
    return content


def _coco_images(
    root: Path, path: Path, part: str, content: Mapping[str, Any], names: Mapping[int, str], reading: _Reading
) -> Iterator[Annotated]:
    by_image: dict[Any, list[tuple[str, Sequence[Any], bool]]] = {}
    for own in content["annotations"]:
        x, y, width, height = own["bbox"]
        corners = (x, y, x + width, y + height)
        by_image.setdefault(own["image_id"], []).append((names[own["category_id"]], corners, bool(own.get("iscrowd"))))
    images = content["images"]
    if lost := by_image.keys() - {image["id"] for image in images}:
        raise ValueError(f"dataset: {path} has boxes of image {min(lost, key=str)}, which it does not list")
    home = _home_of(root, path, part, [str(image["file_name"]) for image in images])
    for image in images:
        size = (int(image["width"]), int(image["height"])) if "width" in image and "height" in image else None
        yield reading.annotated(home / str(image["file_name"]), size, by_image.get(image["id"], ()))


def _home_of(root: Path, path: Path, part: str, names: Sequence[str]) -> Path:
    """The folder that the names of images begin at."""
    if not names:
        raise ValueError(f"dataset: {path} lists no images")
    year = path.stem.rpartition("_")[2]
    places = [
        path.parent,
        root / "images",
        root,
        root / part,
        root / "images" / part,
        root / year,
        root / "images" / year,
    ]
    return next((place for place in places if (place / names[0]).is_file()), root / "images")


# ---- Pascal VOC


def voc(root: Path) -> Annotations:
    """JPEGImages, Annotations and ImageSets/Main/{train,val,test}.txt; without the last, all of them are train.

    Raises ValueError where these are not there, and for a file that is not as VOC's are.
    """
    home = next((p for p in (root, *sorted(root.glob("VOC*"))) if (p / "Annotations").is_dir()), None)
    if home is None:
        raise ValueError(f"dataset.root={root}: holds no Annotations/ and JPEGImages/, as Pascal VOC has them")
    images = {p.stem: p for p in sorted((home / "JPEGImages").glob("*")) if p.suffix.lower() in EXTENSIONS}
    reading, parts = _Reading(), {}
    for part, stems in _voc_parts(home).items():
        if missing := [stem for stem in stems if stem not in images]:
            raise ValueError(f"dataset: JPEGImages has no image {missing[0]}, which {part} lists")
        parts[part] = [_voc_image(images[stem], home / "Annotations" / f"{stem}.xml", reading) for stem in stems]
    classes = sorted({name for own in parts["train"] for name in own.names})
    for part, several in parts.items():
        for own in several:
            if unknown := set(own.names) - set(classes):
                raise ValueError(f"dataset: {own.path.name} of {part} has a {min(unknown)}, and train has none")
    return Annotations(parts, classes, reading.faults)


def _voc_parts(home: Path) -> dict[str, list[str]]:
    lists = {p.stem: p for p in sorted((home / "ImageSets" / "Main").glob("*.txt")) if part_called(p.stem)}
    parts = {part_called(stem) or "": p.read_text().split() for stem, p in lists.items()}
    if lists and "train" not in parts:
        raise ValueError(f"dataset.root: {home}/ImageSets/Main has {', '.join(lists)}, but no train.txt")
    return parts or {"train": sorted(p.stem for p in (home / "Annotations").glob("*.xml"))}


def _voc_image(image: Path, path: Path, reading: _Reading) -> Annotated:
    try:
        text = path.read_bytes()
        if b"<!" in text.replace(b"<!--", b""):  # entities may stand for gigabytes, or for other files
            raise ValueError("it declares entities, which VOC's files do not")
        tree = ElementTree.fromstring(text)
        size = tree.find("size")
        sides = None if size is None else (int(_text(size, "width")), int(_text(size, "height")))
        given = [_voc_box(found) for found in tree.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError, AttributeError) as error:
        raise ValueError(f"dataset: {path} is not as Pascal VOC's files are ({error})") from None
    return reading.annotated(image, sides if sides and all(sides) else None, given)


def _voc_box(found: ElementTree.Element) -> tuple[str, Sequence[Any], bool]:
    """Its pixels count from 1, and the last one belongs to the box. What is difficult is not scored."""
    box = found.find("bndbox")
    if box is None:
        raise ValueError("an object without a bndbox")
    left, top, right, bottom = (float(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
    first = (left - 1, top - 1) if right > left and bottom > top else (left, top)
    return _text(found, "name"), (*first, right, bottom), (found.findtext("difficult") or "0").strip() == "1"


def _text(node: ElementTree.Element, key: str) -> str:
    text = node.findtext(key)
    if text is None or not text.strip():
        raise ValueError(f"no {key} in {node.tag}")
    return text.strip()
