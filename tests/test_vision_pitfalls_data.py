"""Those of the pitfalls of test_vision_pitfalls that lie in files: class numbers, crowds, EXIF, masks, splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hydratune.data.images.annotations import Annotated
from hydratune.data.images.augment import Augment
from hydratune.data.images.decode import decode, given, size_of
from hydratune.data.images.detection import CocoDetection, objects_of
from hydratune.data.images.frame import Frame
from hydratune.data.images.masks import ImageMasks, read_mask
from hydratune.tasks.retinanet import Retinanet
from hydratune.tasks.segmentation import Segmentation
from tests.boxes import RUN, coco_home
from tests.conftest import hydratune

pytest.importorskip("faster_coco_eval")


def dataset(root: Path, **options: Any) -> CocoDetection:
    return CocoDetection(Retinanet(), Augment(), str(root), **{"size": 64, "workers": 1, **options})


def changed(home: Path, change: Callable[[list[dict[str, Any]]], Any], part: str = "train") -> Path:
    """With other annotations."""
    path = home / "annotations" / f"instances_{part}.json"
    content = json.loads(path.read_text())
    change(content["annotations"])
    path.write_text(json.dumps(content))
    return home


def crowded(annotations: list[dict[str, Any]]) -> None:
    for own in annotations:
        own["iscrowd"] = 1


# 9
def test_9_a_class_number_above_2048_is_exact() -> None:
    """Boxes and class numbers share a tensor, which 16 bits would round."""
    own = Annotated(Path("a"), (64, 64), [(1, 2, 30, 41)], ["2999"], [False])
    found = objects_of([own], [str(i) for i in range(3000)], Frame(64, 64, "letterbox"))
    assert found.boxes.values.tolist() == [[1, 2, 30, 41, 2999, 0]]


def test_9_numbers_that_eight_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    """300 would be class 44."""
    Image.fromarray(np.array([[0, 300], [1, 2]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has numbers from 0 to 300; a mask has 0 to 255"):
        read_mask(tmp_path / "a.png", 2, ignore=255, classes=200)
    Image.fromarray(np.array([[0, 199], [1, 2]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", 2, ignore=255, classes=200).tolist() == [[0, 199], [1, 2]]


# 10: 7.8% of COCO's images have one
def test_10_a_crowd_is_known_as_one_and_no_anchor_is_made_for_it(tmp_path: Path) -> None:
    def first(annotations: list[dict[str, Any]]) -> None:
        annotations[0].update(iscrowd=1, bbox=[0, 0, 80, 60])

    data = dataset(changed(coco_home(tmp_path), first))
    split = data.split("train")
    assert split.objects.boxes.values[:, 5].tolist() == [1.0] + [0.0] * 23
    assert max(max(sides) for sides in data.spec().boxes) < 30 and "1 are not scored" in data.split_summary(split)


# 11: yolov5#405, D-FINE#308
def red(path: Path, orientation: int) -> None:
    """A rectangle of 20 x 10 at (30, 5) of 60 x 40 pixels as they are stored."""
    pixels = np.full((40, 60, 3), 128, dtype=np.uint8)
    pixels[5:15, 30:50] = (220, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}
    Image.fromarray(pixels).save(path, exif=exif, **options.get(path.suffix, {}))


def upright_box(path: Path, orientation: int) -> list[int]:
    where = (decode(path, Frame(60, 40) if orientation > 4 else Frame(40, 60)).float()[0] > 180).nonzero()
    (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
    return [left, top, right + 1, bottom + 1]


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("drawn", ["upright", "stored", "unsaid"])
def test_11_boxes_lie_on_the_picture_as_it_is_seen(tmp_path: Path, ending: str, orientation: int, drawn: str) -> None:
    """What was drawn on the upright picture stays, as what says no size does; on the stored one it is turned."""
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"a.{ending}"
    red(path, orientation)
    expected = upright_box(path, orientation)
    turned = orientation > 4
    left, top, right, bottom = [30, 5, 50, 15] if drawn == "stored" and turned else expected
    size = {"width": 60, "height": 40} if drawn == "stored" or not turned else {"width": 40, "height": 60}
    content = {
        "images": [{"id": 1, "file_name": path.name, **({} if drawn == "unsaid" else size)}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [left, top, right - left, bottom - top]}],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    split = dataset(tmp_path, size=[60, 40] if turned else [40, 60]).of_files([path], torch.zeros(1))
    assert split.objects.boxes.values[0, :4].tolist() == expected
    assert split.objects.sizes.tolist() == [[40, 60] if turned else [60, 40]]


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
@pytest.mark.parametrize("drawn", ["upright", "stored", "tagged"])
def test_11_a_mask_lies_on_its_picture(tmp_path: Path, ending: str, orientation: int, drawn: str) -> None:
    """Whether it was drawn on the upright picture, on the stored one, or has the picture's own tag."""
    if drawn == "stored" and orientation < 5:
        pytest.skip("its size does not tell which of them it was drawn on")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "images" / f"a.{ending}"
    red(path, orientation)
    numbers = np.zeros((40, 60), dtype=np.uint8)
    numbers[5:15, 30:50] = 1
    exif = Image.Exif()
    if drawn == "upright":
        left, top, right, bottom = upright_box(path, orientation)
        numbers = np.zeros((60, 40) if orientation > 4 else (40, 60), dtype=np.uint8)
        numbers[top:bottom, left:right] = 1
    elif drawn == "tagged":
        exif[0x0112] = orientation
    Image.fromarray(numbers).save(tmp_path / "masks" / "a.png", exif=exif)
    size = [60, 40] if orientation > 4 else [40, 60]
    for memory in (0, 64):
        data = ImageMasks(Segmentation(), Augment(), str(tmp_path), size=size, memory_mb=memory)
        split: Any = data.of_files([path], torch.zeros(1))
        bright = split.read(torch.tensor([0]))[0, 0] > 180
        agreed = (split.read_masks(torch.tensor([0]))[0] == 1) == bright
        assert bool(agreed.all()) if ending != "jpg" else agreed.float().mean() > 0.98
    assert mismatches(tmp_path) == ""


def mismatches(root: Path) -> str:
    from hydratune.data.images.masks import _mismatch

    return _mismatch((next((root / "images").iterdir()), root / "masks" / "a.png")) or ""


def test_11_a_mask_on_its_side_does_not_fit_a_picture_that_is_not_turned(tmp_path: Path) -> None:
    for folder, size in (("images", (60, 40)), ("masks", (40, 60))):
        (tmp_path / folder).mkdir()
        Image.new("L", size).save(tmp_path / folder / "a.png")
    assert "is of (60, 40) pixels and its mask of (40, 60)" in mismatches(tmp_path)


@pytest.mark.parametrize("loaded", [False, True])
def test_11_a_tiff_in_memory_is_turned_once(tmp_path: Path, loaded: bool) -> None:
    """PIL turns it by itself when it is loaded."""
    red(tmp_path / "a.tif", 6)
    with Image.open(tmp_path / "a.tif") as image:
        if loaded:
            image.load()
        assert size_of(image) == (40, 60) == size_of(str(tmp_path / "a.tif"))
        assert torch.equal(given(image, Frame(60, 40)), decode(tmp_path / "a.tif", Frame(60, 40)))


# 12: Pytorch-UNet#311
def test_12_a_mask_that_is_made_smaller_has_no_new_numbers_and_is_not_shifted(tmp_path: Path) -> None:
    """Between classes 0 and 14 lie thirteen others. What reads at a pixel's corner gives another picture mirrored."""
    numbers = torch.randint(0, 2, (66, 99), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 14
    found = []
    for turn in (numbers, numbers.flip(1), numbers.flip(0)):
        Image.fromarray(turn.numpy()).save(tmp_path / "a.png")
        found.append(read_mask(tmp_path / "a.png", [16, 24], ignore=255, classes=15))
    assert set(found[0].unique().tolist()) == {0, 14}
    assert torch.equal(found[0], found[1].flip(1)) and torch.equal(found[0], found[2].flip(0))


@pytest.mark.parametrize(
    "augment",
    [Augment(resized_crop=(0.2, 1.0)), Augment(flip=True, crop_padding=5, resized_crop=(0.5, 1.0), trivial=True)],
)
def test_12_an_augmented_mask_has_no_new_numbers_and_is_not_shifted(augment: Augment) -> None:
    numbers = torch.zeros(40, 33, 47, dtype=torch.uint8)
    numbers[:, 9:24, 13:30] = 14
    draws = torch.rand(40, 20, generator=torch.Generator().manual_seed(0))
    masks = augment.masks(numbers, draws, 255)
    assert set(masks.unique().tolist()) <= {0, 14, 255}
    if not augment.trivial:  # what is plainly within the image's bright part is within the mask's
        seen = augment.values(numbers.unsqueeze(1) / 14.0, draws).squeeze(1)
        assert bool((masks[seen > 0.999] == 14).all()) and bool((masks[seen < 0.001] == 0).all())
        assert float(((masks == 14) == (seen > 0.5)).float().mean()) > 0.995


# 14: a precision of -1
@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("change", [list.clear, crowded], ids=["none", "crowds"])
def test_14_a_split_without_boxes_is_named_before_anything_is_trained(tmp_path: Path, part: str, change: Any) -> None:
    data = dataset(changed(coco_home(tmp_path), change, part))
    with pytest.raises(ValueError, match=f"the {part} split has no boxes that are scored, so that no precision"):
        data.check(test=True)
    if part == "test":
        data.check(test=False)  # nobody reads it


def test_14_so_is_an_evaluation_set(tmp_path: Path) -> None:
    coco_home(tmp_path / "boxes", count=4)
    changed(coco_home(tmp_path / "other", ("train", "val"), count=4), list.clear, "val")
    line = [*RUN, "steps=1", "+dataset@evals.other=coco", "evals.other.root=other", "hydra.run.dir=run"]
    done = hydratune(*line, cwd=tmp_path)
    assert done.returncode == 2 and "evals.other: has no boxes that are scored" in done.stderr, done.stderr


def test_14_masks_that_are_all_void_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    """Their mIoU would be that of nothing."""
    for part, numbers in (("train", (0, 1)), ("val", (7, 255))):
        for name, number in zip("ab", numbers, strict=True):
            for folder, values in (("images", np.full((8, 8), 9)), ("masks", np.full((8, 8), number))):
                (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / part / folder / f"{name}.png")
    data = ImageMasks(Segmentation(), Augment(), str(tmp_path), ignore=7, size=8)
    with pytest.raises(ValueError, match=r"dataset.ignore=7: no mask of val has anything else, such as .*a.png"):
        data.check(test=False)
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "val" / "masks" / "b.png")
    data.check(test=False)
