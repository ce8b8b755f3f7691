"""Where images and their masks lie: pairs by stem, in one of a few usual layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydratune.data.images.walk import EXTENSIONS, listed
from hydratune.data.parts import is_hidden, part_called

IMAGES = ("images", "image", "imgs", "jpegimages")
MASKS = ("masks", "mask", "labels", "annotations", "segmentationclass")
ENDINGS = ("annot", "annotations", "_masks", "_mask", "_labels")  # of a folder of masks beside that of the images
SUFFIXES = ("", "_mask", "_label", "_labels", "_gt")  # of a mask's stem
SHOULD = (
    "it should hold images/ and masks/ (perhaps with parts such as train and val in both), or train/ and trainannot/"
)

Pairs = Sequence[tuple[Path, Path]]  # images and their masks


@dataclass(frozen=True)
class MaskLayout:
    """others: masks that belong to no image."""

    parts: Mapping[str, Pairs]
    others: Sequence[str]


def mask_layout(root: Path) -> MaskLayout:
    """Raises ValueError where it is none of these, and for an image that has no mask, or two."""
    if not root.is_dir():
        raise ValueError(f"dataset.root={root}: no such folder; {SHOULD}")
    folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not is_hidden(p.name)}
    found = _images_and_masks(folders) or _parts_inside(folders) or _parts_beside(folders)
    if not found:
        raise ValueError(f"dataset.root={root}: found {listed(list(folders)) or 'no folder'}; {SHOULD}")
    if "train" not in found:
        raise ValueError(f"dataset.root={root}: has {', '.join(found)}, but no part that is called train")
    others: list[str] = []
    parts = {part: _paired(images, masks, others) for part, (images, masks) in found.items()}
    return MaskLayout(parts, others)


Found = dict[str, tuple[Path, Path]]  # part -> its folders of images and of masks


def _called(folders: Mapping[str, Path], names: Sequence[str]) -> Path | None:
    return next((path for name, path in folders.items() if name.lower() in names), None)


def _images_and_masks(folders: Mapping[str, Path]) -> Found:
    """images/ and masks/, perhaps with parts in both."""
    images, masks = _called(folders, IMAGES), _called(folders, MASKS)
    if images is None or masks is None:
        return {}
    inner = {part: p for p in sorted(images.iterdir()) if p.is_dir() and (part := part_called(p.name))}
    own = {part: p for p in sorted(masks.iterdir()) if p.is_dir() and (part := part_called(p.name))}
    if missing := sorted(inner.keys() ^ own.keys()):
        raise ValueError(f"dataset.root: {images} and {masks} do not have the same parts: {', '.join(missing)}")
    return {part: (inner[part], own[part]) for part in inner} or {"train": (images, masks)}


def _parts_inside(folders: Mapping[str, Path]) -> Found:
    """train/images and train/masks"""
    found = {}
    for name, folder in folders.items():
        part = part_called(name)
        inner = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()} if part else {}
        images, masks = _called(inner, IMAGES), _called(inner, MASKS)
        if part and images is not None and masks is not None:
            found[part] = (images, masks)
    return found


def _parts_beside(folders: Mapping[str, Path]) -> Found:
    """train/ and trainannot/"""
    found = {}
    for name, folder in folders.items():
        part = part_called(name)
        masks = next((folders[name + e] for e in ENDINGS if name + e in folders), None)
        if part and masks is not None:
            found[part] = (folder, masks)
    return found


def _paired(images: Path, masks: Path, others: list[str]) -> Pairs:
    """By stem, whatever folders they lie in below these two."""
    by_stem: dict[str, list[Path]] = {}
    for mask in _files(masks):
        by_stem.setdefault(_key(mask, masks), []).append(mask)
    pairs, taken = [], set()
    for image in _files(images):
        keys = [f"{_key(image, images)}{suffix}" for suffix in SUFFIXES]
        own = [mask for key in keys for mask in by_stem.get(key, ())]
        if len(own) != 1:
            message = f"no mask in {masks}" if not own else f"two masks, {own[0].name} and {own[1].name}"
            raise ValueError(f"dataset: {image} has {message}; they are matched by their names without the ending")
        pairs.append((image, own[0]))
        taken.add(own[0])
    if not pairs:
        raise ValueError(f"dataset.root: {images} holds no images ({', '.join(EXTENSIONS)})")
    others += [str(mask.relative_to(masks)) for several in by_stem.values() for mask in several if mask not in taken]
    return pairs


def _files(folder: Path) -> list[Path]:
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in EXTENSIONS and p.is_file()]
    return [p for p in found if not any(is_hidden(name) for name in p.relative_to(folder).parts)]


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
