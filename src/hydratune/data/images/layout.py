"""Which folders of images are parts and which are classes; what could be either is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydratune.data.images.walk import EXTENSIONS, Folder, endings, listed, walk
from hydratune.data.parts import part_called, refuse_twice

SHOULD = (
    f"it should hold a folder of images per class ({', '.join(EXTENSIONS)}), or parts such as train and test of those"
)


@dataclass(frozen=True)
class Layout:
    """parts: {part: {class: images}}; classes in the order of their numbers; others: what is left alone."""

    parts: Mapping[str, Mapping[str, Sequence[Path]]]
    classes: Sequence[str]
    others: Sequence[str]


def layout_of(root: Path, known: Sequence[str] | None = None) -> Layout:
    """A folder per class, or parts that hold those. Raises ValueError where it is neither, or could be both.

    known: the classes that there are, of which some may be missing here.
    """
    if not root.is_dir():
        message = "is a file, and no archive of a known kind" if root.is_file() else "no such folder"
        raise ValueError(f"dataset.root={root}: {message}; {SHOULD}")
    whole = walk(root)
    folders = whole.inner()
    holding = [name for name, folder in folders.items() if folder.images]
    if not holding:
        loose = f"found no images but {listed(whole.loose)}, in no folder" if whole.loose else "found no images"
        raise ValueError(f"dataset.root={root}: {loose}{_but(whole.others)}; {SHOULD}")
    # What is called train and holds images directly is a class: of pictures of trains
    parts = [name for name in holding if part_called(name) and len(folders[name].loose) < len(folders[name].images)]
    if parts:
        return _of_parts(whole, folders, parts, known)
    flat = [name for name in holding if part_called(name)]
    if len(flat) == len(holding) or len({part_called(name) for name in flat}) > 1:
        raise ValueError(f"dataset.root={root}: {listed(flat)} hold images, but no folders of them; {SHOULD}")
    for name in holding if len(holding) > 1 else ():
        _refuse_parts_within(folders[name])
    classes = _classes(whole, folders, known)
    return Layout({"train": _images(folders, classes)}, classes, sorted([*whole.others, *whole.loose]))


def _of_parts(
    whole: Folder, folders: Mapping[str, Folder], names: Sequence[str], known: Sequence[str] | None
) -> Layout:
    message = f"dataset.root={whole.path}"
    refuse_twice(names, message)
    for name in folders:
        if name not in names and (folders[name].images or part_called(name)):
            _refuse_beside(message, folders[name], names)
    parts = {str(part_called(name)): folders[name] for name in names}
    if "train" not in parts and known is None:
        raise ValueError(f"{message}: {listed(names)} hold folders of images as parts do, but none is called train")
    inner = {part: folder.inner() for part, folder in parts.items()}
    first = "train" if "train" in parts else next(iter(parts))
    classes = _classes(parts[first], inner[first], known)
    others = [*whole.loose, *(other for other in whole.others if other.partition("/")[0] not in names)]
    for part, folder in parts.items():
        if foreign := [name for name, own in inner[part].items() if own.images and name not in classes]:
            whose = "dataset.classes" if known else "train"
            raise ValueError(f"{message}: {folder.path} has classes that {whose} has not: {listed(foreign)}")
        others += [f"{folder.path.name}/{other}" for other in (*folder.others, *folder.loose)]
    return Layout({part: _images(inner[part], classes) for part in parts}, classes, sorted(others))


def _images(folders: Mapping[str, Folder], classes: Sequence[str]) -> dict[str, list[Path]]:
    return {name: [folders[name].path / i for i in folders[name].images] if name in folders else [] for name in classes}


def _refuse_beside(message: str, folder: Folder, parts: Sequence[str]) -> None:
    name = folder.path.name
    if not folder.images:
        raise ValueError(f"{message}: {name} is called like a part, and holds no images{_but(folder.others)}")
    if part_called(name):
        raise ValueError(
            f"{message}: the images of {name} lie in no folders of classes, as those of {listed(parts)} do"
        )
    raise ValueError(
        f"{message}: {name} lies beside {listed(parts)}; it should hold folders of classes, or parts such as train and "
        "test that hold those, and not both"
    )


def _classes(folder: Folder, inner: Mapping[str, Folder], known: Sequence[str] | None) -> list[str]:
    """Numbers in their order, else by the alphabet; those that are known in theirs."""
    names = sorted(inner)
    for own in inner.values():
        if not own.images:
            raise ValueError(f"dataset.root: {own.path} holds no images, as a class should{_but(own.others)}")
    if known is not None:
        if foreign := [name for name in names if name not in known]:
            raise ValueError(
                f"dataset.root: {folder.path} has the class {foreign[0]}, which is none of the known ones: "
                f"{', '.join(known[:20])}"
            )
        return list(known)
    if len(names) < 2:
        own = inner[names[0]]
        hint = f"; dataset.root={own.path} would take the folders in it" if len(own.loose) < len(own.images) else ""
        raise ValueError(
            f"dataset.root: {folder.path} has the one class {names[0]}; there is nothing to tell apart{hint}"
        )
    return sorted(names, key=lambda name: (int(name), name)) if all(name.isdecimal() for name in names) else names


def _refuse_parts_within(folder: Folder) -> None:
    """A folder of a class whose folders are parts, all of which would be train."""
    within = [name for name, own in folder.inner().items() if own.images and part_called(name)]
    if len({part_called(name) for name in within}) > 1:
        raise ValueError(
            f"dataset.root: {folder.path} holds {listed(within)}; classes lie in parts, and not parts in classes"
        )


def _but(others: Sequence[str]) -> str:
    return f" ({found})" if (found := endings(others)) else ""
