"""Folders of images: which files are which part and class, how they are known again, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hydratune.data import hashes
from hydratune.data.images.augment import Augment
from hydratune.data.images.folder import ImageFolder
from hydratune.data.images.torchvision_images import TorchvisionImages
from hydratune.tasks.classification import Classification

HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}


def picture(path: Path, value: int = 0) -> Path:
    """8 x 8 of one colour; a BMP of any colour has the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 255 - value, value)).save(path)
    return path


def pictures(root: Path, *folders: str, count: int = 4, start: int = 0) -> Path:
    for number, folder in enumerate(folders):
        for i in range(count):
            picture(root / folder / f"{i}.bmp", (start + 20 * number + i) % 256)
    return root


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(Classification(), Augment(), str(root), **{"size": 8, **HALF, **options})


def sizes(data: ImageFolder) -> dict[str, list[int]]:
    """Images of each class in each part that the source has."""
    classes = len(data.spec().class_names)
    return {part: labels.bincount(minlength=classes).tolist() for part, (_, labels) in data.index().parts.items()}


def repainted(root: Path, start: int) -> None:
    """Other pixels under the same names, sizes and times, as cp -p would leave them."""
    for path in sorted(root.rglob("*.bmp")):
        before = path.stat()
        image = Image.open(path)
        picture(path, (image.getpixel((0, 0))[0] + start) % 256)  # type: ignore[index]
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of the test's own, in which a file is as good as settled at once."""
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    return tmp_path / "cache"


# ---- contents


def test_the_same_names_and_sizes_with_other_pixels_are_other_data(tmp_path: Path) -> None:
    a, b = pictures(tmp_path / "a", "cat", "dog"), pictures(tmp_path / "b", "cat", "dog", start=100)
    assert folder(a).files() != folder(b).files()
    moved = Path(shutil.copytree(a, tmp_path / "elsewhere" / "deep"))
    assert folder(a).files() == folder(moved).files()
    (moved / "cat" / "0.bmp").rename(moved / "cat" / "9.bmp")
    assert folder(a).files() != folder(moved).files()


def test_parts_and_labels_belong_to_what_data_is(tmp_path: Path) -> None:
    plain = pictures(tmp_path / "a", "cat", "dog")
    other = Path(shutil.copytree(plain, tmp_path / "b"))
    (other / "cat").rename(other / "x"), (other / "dog").rename(other / "cat"), (other / "x").rename(other / "dog")
    assert len({folder(plain).files(), folder(other).files()}) == 2
    parts = pictures(tmp_path / "c", "train/cat", "train/dog", "test/cat", "test/dog")
    before = folder(parts).files()
    (parts / "test").rename(parts / "val")
    assert folder(parts).files() != before


def test_pixels_replaced_in_place_are_seen(tmp_path: Path, cache: Path) -> None:
    root = pictures(tmp_path / "a", "cat", "dog")
    before = folder(root).files()
    assert folder(root).files() == before and list((cache / "hashes").iterdir())
    repainted(root, 100)
    assert folder(root).files() != before


def test_what_is_remembered_is_not_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "a", "cat", "dog")
    before = folder(root).files()
    monkeypatch.setattr(hashes, "_hash", lambda path: pytest.fail(f"reads {path}"))
    assert folder(root).files() == before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path / "cache"))
    path = picture(tmp_path / "a.bmp")
    os.utime(path, (0, 0))  # its contents are old, its name is new: what is copied with its times
    digest = hashes.hashed(path)
    assert len(digest) == 64 and not (tmp_path / "cache" / "hashes").exists()


@pytest.mark.parametrize("damage", ["bytes", "cut", "empty", "other", "folder", "unwritable"])
def test_an_index_that_is_damaged_only_costs_time(damage: str, tmp_path: Path, cache: Path) -> None:
    root = pictures(tmp_path / "a", "cat", "dog")
    before = folder(root).files()
    for index in (cache / "hashes").iterdir():
        content = index.read_bytes()
        index.unlink()
        if damage == "bytes":
            index.write_bytes(content.replace(b"bmp", b"bmq").replace(b"a", b"b"))
        elif damage == "folder":
            index.mkdir()
        elif damage == "other":
            index.write_bytes(b"\xff\n{not json")
        elif damage != "unwritable":
            index.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    if damage == "unwritable":
        shutil.rmtree(cache)
        cache.write_text("no folder")
    assert folder(root).files() == before == folder(root).files()


def test_several_may_hash_the_same_files_at_once(tmp_path: Path, cache: Path) -> None:
    root = pictures(tmp_path / "a", "cat", "dog", count=40)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: folder(root).files(), range(32)))
    assert len(found) == 1
    assert not [path for path in (cache / "hashes").iterdir() if path.suffix]  # nothing half written is left


def test_what_is_gone_is_forgotten(tmp_path: Path, cache: Path) -> None:
    root = pictures(tmp_path / "a", "cat", "dog")
    folder(root).files()
    (root / "cat" / "0.bmp").unlink()
    picture(root / "cat" / "new.bmp", 77)
    folder(root).files()
    known = [set(json.loads(index.read_bytes().partition(b"\n")[2])) for index in (cache / "hashes").iterdir()]
    assert {"1.bmp", "2.bmp", "3.bmp", "new.bmp"} in known


def test_an_archive_is_known_by_its_contents(tmp_path: Path) -> None:
    found = []
    for start in (0, 100):
        home = pictures(tmp_path / f"{start}", "cat", "dog", start=start)
        made = Path(shutil.make_archive(str(tmp_path / "made"), "tar", home))
        path = tmp_path / "photos.tar"
        before = path.stat() if path.exists() else None
        path.write_bytes(made.read_bytes())
        if before is not None:
            assert path.stat().st_size == before.st_size
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        found.append((folder(path).files(), folder(home).files()))
    assert found[0][0] == found[0][1] and found[1][0] == found[1][1] and found[0][0] != found[1][0]


@pytest.mark.parametrize("kind", ["zip", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("damage", ["middle", "cut", "all"])
def test_an_archive_that_is_damaged_is_named(kind: str, damage: str, tmp_path: Path) -> None:
    home = pictures(tmp_path / "home", "cat", "dog")
    path = Path(shutil.make_archive(str(tmp_path / "photos"), kind, home))
    content, middle = bytearray(path.read_bytes()), path.stat().st_size // 2
    if damage == "middle":
        content[middle : middle + 8] = bytes(255 - value for value in content[middle : middle + 8])
    else:
        content[middle:] = b"" if damage == "cut" else b"\xa5" * middle
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be unpacked"):
        folder(path).spec()


def test_an_archive_with_a_password_is_named(tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", pictures(tmp_path / "home", "cat", "dog")))
    content = path.read_bytes()
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        first, *entries = content.split(mark)
        at = flags - len(mark)
        content = mark.join([first, *(e[:at] + bytes([e[at] | 1]) + e[at + 1 :] for e in entries)])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"photos\.zip: cannot be unpacked \(.*encrypted"):
        folder(path).spec()


def idx(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(values, np.uint8)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def mnist(root: Path, shade: int, test: bool = True) -> Path:
    home = root / "FashionMNIST" / "raw"
    for part, count in (("train", 40), ("t10k", 20))[: 1 + test]:
        idx(home / f"{part}-images-idx3-ubyte", np.full((count, 28, 28), shade))
        idx(home / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return root


def torchvision(root: Path, **options: Any) -> TorchvisionImages:
    options = {"mean": [0.3], "std": [0.3], "download": False, **options}
    return TorchvisionImages(Classification(), Augment(), "fashion_mnist", str(root), **options)


def test_files_of_torchvision_are_known_by_their_contents(tmp_path: Path) -> None:
    a, b = mnist(tmp_path / "a", 1), mnist(tmp_path / "b", 2)
    assert torchvision(a).files() != torchvision(b).files()
    assert torchvision(a).files() == torchvision(Path(shutil.copytree(a, tmp_path / "c"))).files()
    assert torchvision(a).read("train")[0].unique().tolist() == [1]
    mnist(a, 3)  # in one process, too
    assert torchvision(a).read("train")[0].unique().tolist() == [3]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar100", "cifar-100-python/test"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_every_file_of_torchvision_counts(name: str, file: str, tmp_path: Path) -> None:
    digests = set()
    for content in (None, b"a", b"b"):
        if content is not None:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(content)
        options = {"mean": [0.5] * 3, "std": [0.2] * 3, "download": False}
        digests.add(TorchvisionImages(Classification(), Augment(), name, str(tmp_path), **options).files())  # type: ignore[arg-type]
    assert len(digests) == 3


def test_files_of_torchvision_that_are_absent_or_odd_are_found_before_training(tmp_path: Path) -> None:
    root = mnist(tmp_path / "a", 1, test=False)
    data = torchvision(root)
    assert len(data.read("train")[1]) == 30 and data.check(False) == ()
    with pytest.raises(ValueError, match=r"FashionMNIST is not in dataset\.root="):
        data.check(True)
    raw = root / "FashionMNIST" / "raw"
    idx(raw / "train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(ValueError, match=r"images of \[40, 28, 28\] and 39 labels in train"):
        torchvision(root).read("train")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a whole idx file"):
        torchvision(root).read("train")


# ---- parts and classes


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "dev", "Test"),
        ("train", "valid", "test"),
    ],
)
def test_parts_are_found_however_they_are_called(train: str, val: str, test: str, tmp_path: Path) -> None:
    for name, count in ((train, 5), (val, 3), (test, 2)):
        pictures(tmp_path / name, "cat", "dog", count=count)
    data = folder(tmp_path)
    assert data.spec().class_names == ("cat", "dog")
    assert sizes(data) == {"train": [5, 5], "val": [3, 3], "test": [2, 2]}


def test_pictures_of_trains_are_a_class(tmp_path: Path) -> None:
    data = folder(pictures(tmp_path, "car", "bus", "train"))
    assert data.spec().class_names == ("bus", "car", "train") and sizes(data) == {"train": [4, 4, 4]}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["train", "test"], "test, train hold images, but no folders of them"),
        (["train", "trainannot", "test", "testannot"], "test, train hold images, but no folders of them"),
        (["train/a", "train/b", "Train/a", "Train/b"], "Train and train both mean train"),
        (["train/a", "train/b", "val/a", "dev/a"], "dev and val both mean val"),
        (["train/a", "train/b", "extra"], "extra lies beside train; it should hold"),
        (["train/a", "train/b", "c/d"], "c lies beside train; it should hold"),
        (["train/a", "train/b", "test"], "the images of test lie in no folders of classes"),
        (["test/a", "test/b", "cat"], "cat lies beside test"),
        (["test/a", "test/b"], "test hold folders of images as parts do, but none is called train"),
        (["train/a", "train/b", "test/c"], "test has classes that train has not: c"),
        (["a/train", "a/test", "b/train", "b/test"], "a holds test, train; classes lie in parts"),
        (["photos"], "has the one class photos; there is nothing to tell apart"),
        (["photos/cat", "photos/dog"], "has the one class photos; .*dataset.root=.*/photos would take"),
        (["photos/train/a", "photos/test/a"], "has the one class photos; .*dataset.root=.*/photos would take"),
        (["train/a", "test/a"], "train has the one class a"),
        ([], "found no images; it should hold a folder of images per class"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(folders: list[str], said: str, tmp_path: Path) -> None:
    pictures(tmp_path, *folders)
    with pytest.raises(ValueError, match=said):
        folder(tmp_path).spec()


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_of_no_images_is_refused(part: str, tmp_path: Path) -> None:
    pictures(tmp_path, "train/a", "train/b")
    (tmp_path / part / "a").mkdir(parents=True)
    (tmp_path / part / "a" / "x.heic").touch()
    with pytest.raises(ValueError, match=rf"{part} is called like a part, and holds no images \(1 \.heic\)"):
        folder(tmp_path).spec()


def test_a_class_of_no_images_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"/c holds no images, as a class should$"):
        folder(tmp_path).spec()
    for i in range(3):
        (tmp_path / "c" / f"{i}.JXR").touch()
    with pytest.raises(ValueError, match=r"/c holds no images, as a class should \(3 \.jxr\)$"):
        folder(tmp_path).spec()


@pytest.mark.parametrize("ending", ["jfif", "jpe", "pgm", "pbm", "pnm", "JPG", "tiff"])
def test_every_ending_of_the_formats_is_known(ending: str, tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "tiff": "TIFF"}.get(ending, "PPM")
    (tmp_path / "b").mkdir()
    for i in range(4):
        Image.new("1" if ending == "pbm" else "L", (8, 8), 255 * (i % 2)).save(tmp_path / "b" / f"{i}.{ending}", kind)
    data = folder(tmp_path)
    assert sizes(data) == {"train": [4, 4]} and len(data.read("train")[1]) == 4


def test_numbers_are_in_their_order(tmp_path: Path) -> None:
    assert folder(pictures(tmp_path / "a", "10", "9", "1", "2")).spec().class_names == ("1", "2", "9", "10")
    assert folder(pictures(tmp_path / "b", "10", "9", "x")).spec().class_names == ("10", "9", "x")


# ---- links, what is hidden, what is left alone


def test_files_behind_links_are_found_once(tmp_path: Path) -> None:
    pool = pictures(tmp_path / "pool", "cats", "dogs/deep")
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(pool / "cats")
    (root / "dog").mkdir()
    (root / "dog" / "linked").symlink_to(pool / "dogs")
    (root / "dog" / "linked again").symlink_to(pool / "dogs")
    (root / "dog" / "one.bmp").symlink_to(picture(tmp_path / "pool" / "one.bmp", 99))
    (root / "dog" / "loop").symlink_to(root)
    (root / "cat" / "itself").symlink_to(pool / "cats")
    data = folder(root)
    assert sizes(data) == {"train": [4, 5]}
    (said,) = data.check(False)
    assert "cat/itself/ (seen already), dog/linked again/ (seen already), dog/loop/ (seen already)" in said


def test_copies_that_nobody_meant_are_no_data(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog", "cat/.ipynb_checkpoints", "__MACOSX/cat", ".Trash/cat", "dog/@eaDir")
    picture(tmp_path / "cat" / "._0.bmp")
    data = folder(tmp_path)
    assert data.spec().class_names == ("cat", "dog") and sizes(data) == {"train": [4, 4]}


def test_what_is_left_alone_is_counted_and_named(tmp_path: Path) -> None:
    pictures(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", start=7)
    for name in ("readme.txt", "train/dog/notes.txt", "test/.hidden", "docs/a.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    picture(tmp_path / "train" / "loose.bmp", 200)
    (said,) = folder(tmp_path, test_share=0).check(False)[:1]
    assert said == (
        "5 files or folders are left alone: hidden, called like no image, or in no class "
        "(docs/a.pdf, readme.txt, test/.hidden and 2 more)"
    )


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"cat/pipe\.png is not a readable image"):
        folder(tmp_path).check(False)
    (tmp_path / "cat" / "pipe.png").unlink()
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"dog/gone\.png is not a readable image"):
        folder(tmp_path).check(False)
    os.mkfifo(tmp_path / "dog" / "pipe")
    data = folder(tmp_path, skip_broken=1)
    assert sum(len(data.read(part)[1]) for part in ("train", "val", "test")) == 8 and data.check(True)


@pytest.mark.parametrize("name", [b"caf\xe9", b"cat/\xff.bmp"])
def test_names_that_are_no_text_are_refused(name: bytes, tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog")
    path = os.path.join(os.fsencode(tmp_path), name)
    if name.endswith(b".bmp"):
        shutil.copy(tmp_path / "cat" / "0.bmp", path)
    else:
        shutil.copytree(tmp_path / "cat", os.fsdecode(path))
    with pytest.raises(ValueError, match=r"the name b'.*\\x.*' is not UTF-8"):
        folder(tmp_path).spec()


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "photos", "cat", "dog")
    mnist(tmp_path / "sets", 1)
    assert folder(Path("~/photos")).spec().class_names == ("cat", "dog")
    assert len(torchvision(Path("~/sets")).read("test")[1]) == 20


# ---- what is told


def test_counts_of_every_class_are_told(tmp_path: Path) -> None:
    pictures(tmp_path / "few", "cat", count=20)
    pictures(tmp_path / "few", "dog", count=10)
    for memory in (64, 0):
        data = folder(tmp_path / "few", val_share=0.2, test_share=0.2, memory_mb=memory)
        said = {part: data.split_summary(data.split(part)) for part in ("train", "val", "test")}
        assert said == {
            "train": "19 images; cat 13, dog 6",
            "val": "divided off train: 5 images; cat 3, dog 2",
            "test": "divided off train: 6 images; cat 4, dog 2",
        }
    for part, count in (("train", 3), ("val", 1)):
        pictures(tmp_path / "many" / part, *(f"c{i}" for i in range(13)), count=count)
    many = folder(tmp_path / "many", test_share=0)
    assert many.split_summary(many.split("train")) == "39 images; 13 classes of 3 to 3 images"
    assert many.split_summary(many.split("val")) == "13 images; 13 classes of 1 to 1 image"
    sets = torchvision(mnist(tmp_path / "sets", 1))
    assert sets.split_summary(sets.split("val")).startswith("divided off train: 10 images; T-shirt/top 1, ")


def test_what_is_there_twice_is_told_or_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path, "train/cat", "train/dog")
    for number, name in enumerate(("val/cat/0.bmp", "val/dog/0.bmp", "test/cat/0.bmp", "test/dog/0.bmp")):
        picture(root / name, 150 + number)
    assert folder(root).check(False) == []
    shutil.copy(root / "train" / "dog" / "1.bmp", root / "test" / "dog" / "copy.bmp")
    shutil.copy(root / "val" / "cat" / "0.bmp", root / "val" / "dog" / "another.bmp")
    assert folder(root).check(False) == [
        "1 of the 3 images of test are also in train", "1 images are there under more than one label",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"dataset\.duplicates=refuse: .*also in train"):
        folder(root, duplicates="refuse").check(False)
    with pytest.raises(ValueError, match="dataset.duplicates=keep: one of tell, refuse"):
        folder(root, duplicates="keep")


# ---- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, r"dataset\.size=0: from 1 to 4096 pixels$"),
        ({"size": -1}, r"dataset\.size=-1"),
        ({"size": 100_000}, r"dataset\.size=100000: from 1 to 4096 pixels; one image of 100000 would take 30\.0 GB"),
        ({"mean": [0.5]}, r"dataset\.mean=\[0\.5\]: 1 numbers for images of 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, r"dataset\.std=.*above 0"),
        ({"std": [0.5, 0.5, -1.0]}, r"dataset\.std="),
        ({"mean": [0.5, 0.5, float("nan")]}, r"dataset\.mean="),
        ({"white": 0.0}, r"dataset\.white=0\.0"),
        ({"white": float("nan")}, r"dataset\.white=nan"),
        ({"val_share": 0.0}, r"dataset\.val_share=0\.0"),
        ({"test_share": -0.1}, r"dataset\.test_share=-0\.1"),
        ({"test_share": 1.0}, r"dataset\.test_share=1\.0"),
        ({"workers": -1}, r"dataset\.workers=-1: at least 0"),
        ({"memory_mb": -1}, r"dataset\.memory_mb=-1: at least 0"),
        ({"skip_broken": -1}, r"dataset\.skip_broken=-1: at least 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_at_once(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        folder(tmp_path / "nowhere", **options)


def test_statistics_of_torchvision_have_its_channels() -> None:
    with pytest.raises(ValueError, match=r"dataset\.mean=\[0\.5, 0\.5, 0\.5\]: 3 numbers for images of 1 channels"):
        torchvision(Path("nowhere"), mean=[0.5] * 3)
    with pytest.raises(ValueError, match=r"dataset\.std=\[0\.0\]"):
        torchvision(Path("nowhere"), std=[0.0])


def test_only_what_is_null_is_measured(tmp_path: Path) -> None:
    spec = folder(pictures(tmp_path, "cat", "dog"), mean=[0.1, 0.2, 0.3], std=None).spec()
    assert spec.mean == (0.1, 0.2, 0.3) and len(spec.std) == 3


# ---- before anything is trained


def test_no_test_split_is_none(tmp_path: Path) -> None:
    data = folder(pictures(tmp_path, "cat", "dog", count=20), test_share=0)
    assert len(data.read("train")[1]) + len(data.read("val")[1]) == 40 and not data.check(False)
    for read in (lambda: data.check(True), lambda: data.split("test")):
        with pytest.raises(ValueError, match=r"dataset\.test_share=0: there is no test part.*test=false"):
            read()


@pytest.mark.parametrize("memory_mb", [64, 0])
@pytest.mark.parametrize("part", ["val", "test"])
def test_a_split_that_cannot_be_read_is_found_before_training(part: str, memory_mb: int, tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{own}/{name}" for own in ("train", "val", "test") for name in ("cat", "dog")))
    (tmp_path / part / "dog" / "1.bmp").write_bytes(b"nothing")
    data = folder(tmp_path, memory_mb=memory_mb)
    if part == "test":
        data.check(False)
    with pytest.raises(ValueError, match=rf"{part}/dog/1\.bmp is not a readable image"):
        data.check(True)


def test_a_test_split_of_nothing_is_found_before_training(tmp_path: Path) -> None:
    data = folder(pictures(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", count=1))
    with pytest.raises(ValueError, match="the test split is empty"):
        data.check(True)


@pytest.mark.scenario(13)
def test_each_file_that_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, "cat", "dog")
    for i in range(30):
        (tmp_path / "cat" / f"broken{i}.png").write_bytes(b"")
    assert len(folder(tmp_path, skip_broken=30, test_share=0).read("train")[1]) == 6
    said = capsys.readouterr().out
    assert all(f"broken{i}.png" in said for i in range(30))


def test_whole_images_that_nobody_can_scale_are_not_left_out_as_broken(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog")
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "cat" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png has values that reach 900"):
        folder(tmp_path, skip_broken=5).read("train")
    white = folder(tmp_path, white=1023)
    every = torch.cat([white.read(part)[0] for part in ("train", "val", "test")])
    assert (every == 224).all(1).any()
