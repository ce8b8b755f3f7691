"""Detection: boxes as others write them down, where they go, what is lost, what is measured, and whole commands."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.models.detection import _utils
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from hydratune.core.batching import batch_rows, check_batch
from hydratune.core.objects import Objects
from hydratune.core.ragged import Ragged
from hydratune.core.types import Batch, Levels
from hydratune.data.images.annotations import coco, voc
from hydratune.data.images.augment import Augment
from hydratune.data.images.detection import CocoDetection, VocDetection, objects_of
from hydratune.data.images.frame import Frame
from hydratune.data.stream import Batches, Placement
from hydratune.tasks.average_precision import average_precision
from hydratune.tasks.detection import Located, detections
from hydratune.tasks.pyramid import padded
from hydratune.tasks.retinanet import (
    BETWEEN,
    NONE,
    Anchors,
    Predicted,
    RetinaNet,
    Retinanet,
    decoded,
    encoded,
    matched,
    retinanet_loss,
)
from tests.boxes import COLOURS, RUN, coco_home, levels, record, targets
from tests.conftest import hydratune
from tests.tiny import CPU

pytest.importorskip("faster_coco_eval")


def changed(home: Path, change: Any, part: str = "train") -> Path:
    path = home / "annotations" / f"instances_{part}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return home


def dataset(root: Path, **options: Any) -> CocoDetection:
    return CocoDetection(Retinanet(), Augment(), str(root), **{"size": 64, "workers": 1, **options})


# ---- as others write them down


def test_coco_is_read_with_its_own_numbers_of_classes(tmp_path: Path) -> None:
    data = dataset(coco_home(tmp_path))
    assert data.spec().class_names == ("red", "blue") and len(data.split("train")) == 12
    boxes = data.split("train").read_objects(torch.tensor([0]))
    raw = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    first = [a for a in raw["annotations"] if a["image_id"] == 0]
    scale = 64 / 80  # 80 x 60 in a square of 64: 6 pixels above and below
    for row, own in zip(boxes.boxes.values.tolist(), first, strict=True):
        x, y, w, h = own["bbox"]
        assert row[:4] == pytest.approx([x * scale, y * scale + 8, (x + w) * scale, (y + h) * scale + 8], abs=1e-4)
        assert row[4] == {3: 0, 7: 1}[own["category_id"]] and row[5] == 0
    assert boxes.sizes.tolist() == [[80, 60]]


def test_the_boxes_lie_where_their_colours_are(tmp_path: Path) -> None:
    data = dataset(coco_home(tmp_path), size=[96, 64])
    split = data.split("train")
    images = split.read(torch.arange(len(split)))
    for i in range(len(split)):
        for left, top, right, bottom, label, _ in split.read_objects(torch.tensor([i])).boxes.values.tolist():
            inside = images[i, :, round((top + bottom) / 2), round((left + right) / 2)].tolist()
            assert inside == pytest.approx(COLOURS[data.spec().class_names[int(label)]], abs=6)


@pytest.mark.parametrize(
    "layout", ["train/_annotations.coco.json", "train.json", "annotations/instances_train2017.json"]
)
def test_layouts_of_coco(tmp_path: Path, layout: str) -> None:
    home = coco_home(tmp_path / "a", ("train",))
    folder = {"train/_annotations.coco.json": "train", "train.json": "images"}.get(layout, "train2017")
    (home / "images").rename(home / "pictures")
    (home / folder).mkdir(exist_ok=True)
    for path in (home / "pictures").iterdir():
        path.rename(home / folder / path.name)
    (home / layout).parent.mkdir(exist_ok=True)
    (home / "annotations/instances_train.json").rename(home / layout)
    found = coco(home)
    assert list(found.parts) == ["train"] and all(own.path.is_file() for own in found.parts["train"])


def test_boxes_that_are_none_are_named_and_budgeted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(content: Any) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 10]
        content["annotations"][1]["bbox"] = [900, 900, 5, 5]
        content["annotations"][2]["bbox"] = [1, 1, float("nan"), 5]

    home = changed(coco_home(tmp_path), spoil)
    with pytest.raises(ValueError, match=r"skip_broken=2: 3 boxes are none\. train0\.png: the box \(5, 5, 5, 15\)"):
        dataset(home, skip_broken=2).split("train")
    split = dataset(home, skip_broken=3).split("train")
    assert "train1.png" in capsys.readouterr().out
    assert len(split) == 12 and len(split.objects.boxes.values) == 21


def test_an_image_without_boxes_stays(tmp_path: Path) -> None:
    def empty(content: Any) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 0]

    data = dataset(changed(coco_home(tmp_path), empty))
    split = data.split("train")
    assert split.read_objects(torch.tensor([0])).boxes.values.shape == (0, 6)
    assert "1 images have none" in data.split_summary(split)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("images"), "it has no images and annotations"),
        (lambda c: c["annotations"][0].update(image_id=99), "has boxes of image 99, which it does not list"),
        (lambda c: c["annotations"][0].update(category_id=99), "is not as COCO's files are"),
        (
            lambda c: c["images"][0].update(width=90),
            r"is of \(80, 60\) pixels, and its boxes were drawn on one of \(90",
        ),
        (lambda c: c["images"][0].update(file_name="gone.png"), "gone.png"),
    ],
)
def test_a_file_that_is_not_coco_s_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    data = dataset(changed(coco_home(tmp_path), change))
    with pytest.raises(ValueError, match=said):
        data.check(test=False)


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    home = coco_home(tmp_path)
    split = dataset(home, classes=["blue"]).split("train")
    assert set(split.objects.boxes.values[:, 4].tolist()) == {0.0} and len(split) == 12
    with pytest.raises(ValueError, match="there is no green, but red, blue"):
        dataset(home, classes=["green"]).spec()


def test_other_boxes_are_other_data(tmp_path: Path) -> None:
    home = coco_home(tmp_path)
    before = dataset(home).files()
    changed(home, lambda c: c["annotations"][0].update(bbox=[1, 2, 9, 9]))
    assert dataset(home).files() != before


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_that_were_drawn_on_a_picture_lying_on_its_side_turn_with_it(tmp_path: Path, orientation: int) -> None:
    """Where the annotation has the size of the stored pixels; where it has that of the upright ones, they stay."""
    pixels = np.full((40, 60, 3), 128, dtype=np.uint8)
    pixels[5:15, 30:50] = (220, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    own = {"image_id": 1, "category_id": 1, "bbox": [30, 5, 20, 10]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}], "annotations": [own],
        "categories": [{"id": 1, "name": "red"}],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = dataset(tmp_path, size=[60, 40])
    split = data.of_files([tmp_path / "images" / "a.png"], torch.zeros(1))
    image = split.read(torch.tensor([0]))[0]
    red = (image[0] > 180).nonzero()
    left, top, right, bottom = split.objects.boxes.values[0, :4].tolist()
    assert [left, top, right, bottom] == [red[:, 1].min(), red[:, 0].min(), red[:, 1].max() + 1, red[:, 0].max() + 1]


VOC = """<annotation><size><width>80</width><height>60</height></size>
<object><name>red</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
<object><name>blue</name><difficult>1</difficult><bndbox><xmin>31</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


def voc_home(home: Path, text: str = VOC, parts: tuple[str, ...] = ("train", "val")) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    for part in parts:
        Image.new("RGB", (80, 60)).save(home / "JPEGImages" / f"{part}1.jpg")
        (home / "Annotations" / f"{part}1.xml").write_text(text)
        (home / "ImageSets/Main" / f"{part}.txt").write_text(f"{part}1\n")
    return home


def test_voc_counts_from_one_and_what_is_difficult_is_not_scored(tmp_path: Path) -> None:
    own = voc(voc_home(tmp_path)).parts["train"][0]
    assert list(own.boxes) == [(0, 0, 20, 30), (30, 10, 50, 40)] and list(own.crowds) == [False, True]
    data = VocDetection(Retinanet(), Augment(), str(tmp_path), size=64)
    assert data.spec().class_names == ("blue", "red") and "1 are not scored" in data.split_summary(data.split("train"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "declares entities"),
        ("<annotation>", "is not as Pascal VOC's files are"),
        (VOC.replace("<xmin>1</xmin>", ""), "no xmin in bndbox"),
        (VOC.replace("<xmin>1</xmin>", "<xmin>20</xmin>"), "skip_broken=0: 2 boxes are none"),
    ],
)
def test_a_file_that_is_not_voc_s_is_refused(tmp_path: Path, text: str, said: str) -> None:
    data = VocDetection(Retinanet(), Augment(), str(voc_home(tmp_path, text)), size=64)
    with pytest.raises(ValueError, match=said):
        data.spec()


def test_blood_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ones: 364 images in three parts, of whose boxes two have no area."""
    import os

    root = Path(os.environ.get("HYDRATUNE_DATA", "data")) / "bccd"
    if not root.is_dir():
        pytest.skip("bccd is not there (HYDRATUNE_DATA)")
    data = VocDetection(Retinanet(), Augment(), str(root), size=96, skip_broken=2)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [205, 87, 72]
    assert data.spec().class_names == ("Platelets", "RBC", "WBC")


# ---- geometry


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("size", [(80, 60), (60, 80), (200, 31), (64, 48)])
def test_a_frame_and_its_inverse(fit: str, size: tuple[int, int]) -> None:
    frame = Frame(48, 64, fit)
    left, top, right, bottom = frame.taken(*size)
    boxes = torch.tensor([[left, top, right, bottom], [left + 1.5, top + 2, left + 9, top + 8]], dtype=torch.float64)
    placed = frame.boxes(boxes, *size)
    assert torch.allclose(placed[0], torch.tensor(frame.placed(*size), dtype=torch.float64))
    assert torch.allclose(frame.boxes_back(placed, *size), boxes)


def test_a_letterbox_keeps_all_of_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (40, 10), (255, 0, 0)).save(tmp_path / "a.png")
    from hydratune.data.images.decode import decode

    image = decode(tmp_path / "a.png", Frame(20, 20, "letterbox"))
    assert image.shape == (3, 20, 20)
    assert (image[:, 8:12] == torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)[:, :, :1]).all()
    assert (image[:, 0] == 114).all() and (image[:, 19] == 114).all()


AUGMENTS = {
    "flip": Augment(flip=True),
    "crop": Augment(crop_padding=9),
    "resized": Augment(resized_crop=(0.5, 1.0)),
    "all": Augment(flip=True, crop_padding=5, resized_crop=(0.6, 1.0)),
    "moves": Augment(trivial=True),
    "turned": Augment(rotate=30, vertical_flip=True),
    "turned and resized": Augment(rotate=20, vertical_flip=True, flip=True, crop_padding=3, resized_crop=(0.6, 1.0)),
}


@pytest.mark.parametrize("name", list(AUGMENTS))
def test_boxes_follow_their_image(tmp_path: Path, name: str) -> None:
    """A white rectangle on black is found where its box says, in every view."""
    augment = AUGMENTS[name]
    chance = random.Random(1)
    (tmp_path / "images").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "white"}]}
    for i in range(24):
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        left, top, width, height = (chance.randrange(8, 24) for _ in range(4))
        pixels[top : top + height, left : left + width] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        content["annotations"].append({"image_id": i, "category_id": 1, "bbox": [left, top, width, height]})
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoDetection(Retinanet(), augment, str(tmp_path), size=64, mean=[0.0] * 3, std=[1.0] * 3)
    files = data.of_files([tmp_path / "images" / f"{i}.png" for i in range(24)], torch.zeros(24))
    from hydratune.core.types import Backbone

    body = Backbone(torch.nn.Identity(), [])
    stream = data.stream(files, body, Batches(8, 3, training=True), Placement(CPU))
    seen = 0
    for batch in stream.batches(0, 9):
        check_batch(batch)
        for i, image in enumerate(batch.inputs):
            own = batch.targets.boxes.of(i)
            white = (image[0] > 0.5).nonzero().float()
            if not len(own) or len(white) < 20:
                continue
            left, top = white.amin(0).flip(0).tolist()
            right, bottom = (white.amax(0).flip(0) + 1).tolist()
            operation = name in ("moves", "turned", "turned and resized")  # a turned rectangle is within its box
            assert own[0, :4].tolist() == pytest.approx([left, top, right, bottom], abs=2.0 if operation else 1.1)
            seen += 1
    assert seen > 40


def test_what_is_cut_too_much_is_dropped() -> None:
    objects = Objects(
        Ragged(torch.tensor([[0.0, 0, 10, 10, 0, 0], [20, 20, 30, 30, 1, 0]]), torch.tensor([1, 1])), torch.ones(2, 2)
    )
    draws = torch.full((2, 20), 0.99)
    moved = Augment(crop_padding=8).objects(objects, draws, (32, 32))
    assert moved.boxes.lengths.tolist() == [0, 1]  # the first is moved up and to the left by 8, which leaves 2 x 2
    assert moved.boxes.values[0, :4].tolist() == [12, 12, 22, 22]


# ---- loss


def net(size: int = 96, classes: int = 3) -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(levels(1, size), (size, size), classes, 16, Anchors.usual(5))


def theirs(outputs: Predicted, given: Objects) -> dict[str, Tensor]:
    """torchvision's own loss of the same outputs."""
    own = SimpleNamespace(
        proposal_matcher=_utils.Matcher(0.5, 0.4, allow_low_quality_matches=True),
        head=RetinaNetHead(16, 9, 3),
        BETWEEN_THRESHOLDS=-2,
    )
    listed = [given.boxes.of(i) for i in range(len(given.boxes.lengths))]
    told = [{"boxes": t[:, :4], "labels": t[:, 4].long()} for t in listed]
    result: dict[str, Tensor] = TheirRetinaNet.compute_loss(
        own,
        told,
        {"cls_logits": outputs.scores, "bbox_regression": outputs.boxes},
        list(outputs.anchors),  # type: ignore[arg-type]
    )
    return result


@pytest.mark.parametrize("counts", [[3, 1, 4], [0, 2, 0], [0, 0], [12]])
def test_the_loss_is_torchvision_s(counts: list[int]) -> None:
    given, head = targets(counts), net()
    outputs = head(levels(len(counts)))
    own, other = retinanet_loss(outputs, given), theirs(outputs, given)
    assert float(own.terms["classification"].mean().detach()) == pytest.approx(
        float(other["classification"].detach()), rel=1e-5
    )
    assert float(own.terms["box"].mean().detach()) == pytest.approx(float(other["bbox_regression"].detach()), rel=1e-5)
    mine = torch.autograd.grad(own.mean(), list(head.parameters()), retain_graph=True)
    their = torch.autograd.grad(sum(other.values()), list(head.parameters()))  # type: ignore[arg-type]
    for a, b in zip(mine, their, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    given, head = targets([3, 0, 4, 1]), net()
    batch = Batch(levels(4), given, torch.arange(4))
    whole = retinanet_loss(head(batch.inputs), given).total().detach()
    parts = []
    for first, last in ((0, 1), (1, 3), (3, 4)):
        part = batch_rows(batch, first, last)
        parts.append(retinanet_loss(head(Levels(*part.inputs)), part.targets).total().detach())
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_matching_is_torchvision_s() -> None:
    given = targets([5, 0, 3])
    anchors = net().anchors
    own = matched(anchors, padded(given), torch.tensor([[True] * 5, [False] * 5, [True] * 3 + [False] * 2]))
    matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for i in (0, 2):
        assert torch.equal(own[i], matcher(box_iou(given.boxes.of(i)[:, :4], anchors)))
    assert bool((own[1] == NONE).all())


def test_what_a_crowd_covers_is_neither_right_nor_wrong() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [60, 60, 80, 80], [2, 2, 10, 10]])
    crowd = torch.tensor([[[0.0, 0, 50, 50, 0, 1]]])
    assert matched(anchors, crowd, torch.tensor([[True]])).tolist() == [[BETWEEN, NONE, BETWEEN]]


def test_boxes_and_their_code() -> None:
    boxes, anchors = targets([6]).boxes.values[:, :4], net().anchors[100:106]
    assert torch.allclose(decoded(encoded(boxes, anchors), anchors), boxes, atol=1e-4)
    coder = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert torch.allclose(encoded(boxes, anchors), coder.encode_single(boxes, anchors), atol=1e-6)


def test_the_surest_of_overlapping_boxes_is_kept() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [1, 1, 21, 21], [50, 50, 70, 70]])
    scores = torch.tensor([[[2.0, -9], [3.0, -9], [-9, 1.0]]])
    (found,) = detections(Located(scores.sigmoid(), anchors.unsqueeze(0)), (64, 64), 0.05, 0.5, 10)
    assert found[:, :4].tolist() == [[1, 1, 21, 21], [50, 50, 64, 64]]
    assert found[:, 4].tolist() == [0, 1] and found[:, 5].tolist() == pytest.approx([0.9526, 0.7311], abs=1e-4)


def test_anchors_are_as_small_and_as_long_as_the_boxes() -> None:
    boxes = [(10.0 + i, 2 * (10.0 + i)) for i in range(40)]
    found = Anchors.of(boxes, 5)
    assert found.sizes[0][0] == pytest.approx(15, abs=2) and len(found.sizes) == 5 and found.ratios[1] == 2.0
    assert found.share_matched(boxes) == 1.0 > Anchors.usual(5).share_matched([(4.0, 60.0)])


# ---- what is measured


def some(chance: random.Random, images: int, most: int, classes: int, last: Any) -> Tensor:
    rows = []
    for image in range(images):
        for _ in range(chance.randrange(most)):
            x, y, w, h = (chance.uniform(1, 60) for _ in range(4))
            scale = chance.choice([1, 1, 4])
            rows.append([image, x, y, x + w * scale, y + h * scale, chance.randrange(classes), last()])
    return torch.tensor(rows, dtype=torch.float64).view(-1, 7)


def pycocotools_says(truth: Tensor, found: Tensor, images: int, classes: int) -> list[float]:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def box(row: list[float]) -> dict[str, Any]:
        x, y, r, b = row[1:5]
        return {"image_id": int(row[0]), "category_id": int(row[5]), "bbox": [x, y, r - x, b - y]}

    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO()
        there.dataset = {
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
            "annotations": [
                {**(own := box(row)), "id": n + 1, "iscrowd": int(row[6]), "area": own["bbox"][2] * own["bbox"][3]}
                for n, row in enumerate(truth.tolist())
            ],
        }
        there.createIndex()
        judge = COCOeval(there, there.loadRes([{**box(row), "score": row[6]} for row in found.tolist()]), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:6]]


def check_precision(seed: int) -> None:
    chance = random.Random(seed)
    images, classes = chance.randrange(1, 6), chance.randrange(1, 4)
    truth = some(chance, images, 8, classes, lambda: float(chance.random() < 0.15))
    near = truth.clone()
    near[:, 1:5] += torch.tensor([[chance.uniform(-4, 4) for _ in range(4)] for _ in range(len(near))]).view(-1, 4)
    near = near[((near[:, 3] > near[:, 1]) & (near[:, 4] > near[:, 2]))]
    near[:, 6] = torch.tensor([chance.random() for _ in range(len(near))])
    found = torch.cat([near, some(chance, images, 6, classes, chance.random)])
    if not bool((truth[:, 6] == 0).any()) or not len(found):
        return
    own = average_precision(truth, found, list(range(images)), classes)
    expected = pycocotools_says(truth, found, images, classes)
    for mine, other in zip([own.mean, own.at_50, own.at_75, *own.by_size[1:]], expected, strict=True):
        assert (mine != mine and other == -1) or mine == pytest.approx(other, abs=1e-9)


def test_average_precision_is_pycocotools() -> None:
    pytest.importorskip("pycocotools")
    for seed in range(40):
        check_precision(seed)


@pytest.mark.slow
def test_average_precision_is_pycocotools_in_500_cases() -> None:
    pytest.importorskip("pycocotools")
    for seed in range(40, 540):
        check_precision(seed)


def test_nothing_found_is_0_and_nothing_to_be_found_is_an_error() -> None:
    truth = torch.tensor([[0.0, 1, 1, 9, 9, 0, 0]])
    assert average_precision(truth, torch.zeros(0, 7), [0], 2).at_50 == 0.0
    from hydratune.core.types import ImageSpec

    spec = ImageSpec((3, 96, 96), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, boxes=((9.0, 9.0),), fit="letterbox")
    seen = Retinanet().metrics(spec, CPU)
    seen.update(net()(levels(2)), Batch(levels(2), targets([0, 0]), torch.arange(2)))
    with pytest.raises(ValueError, match="have no boxes, so that no precision can be measured"):
        seen.compute()


# ---- whole commands


def test_a_detector_learns_is_evaluated_and_predicts(tmp_path: Path) -> None:
    coco_home(tmp_path / "boxes", count=40)
    line = [*RUN, "epochs=60", "optimizer.lr=0.003", "dataset.augment.resized_crop=null", "engine.eval_every=200"]
    done = hydratune(*line, "test=true", "dataset.task.monitor=map50", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    own = record(tmp_path / "run")
    assert own["metrics"]["test_map50"] > 0.4, own["metrics"]
    again = hydratune("stage=evaluate", "init_from=run", "hydra.run.dir=evaluated", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    seen = record(tmp_path / "evaluated")["metrics"]
    assert seen["test_map50"] == own["metrics"]["test_map50"]
    asked = hydratune(
        "stage=predict", "init_from=run", "inputs=boxes/images", "hydra.run.dir=predicted", "format=jsonl", cwd=tmp_path
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    rows = [json.loads(row) for row in (tmp_path / "predicted/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 120
    raw = json.loads((tmp_path / "boxes/annotations/instances_test.json").read_text())
    truth = {"blue": 1, "red": 0}
    numbers = {image["file_name"]: i for i, image in enumerate(raw["images"])}
    found, wanted = [], []
    for row in rows:
        for box in row["boxes"] if row["file"] in numbers else ():
            x, y, w, h = box["bbox"]
            found.append([numbers[row["file"]], x, y, x + w, y + h, truth[box["class"]], box["score"]])
    for a in raw["annotations"]:
        x, y, w, h = a["bbox"]
        wanted.append([a["image_id"] // 10, x, y, x + w, y + h, {3: 0, 7: 1}[a["category_id"]], 0])
    precision = average_precision(torch.tensor(wanted), torch.tensor(found), list(range(40)), 2)
    # boxes are written with two digits
    assert precision.at_50 == pytest.approx(own["metrics"]["test_map50"], abs=0.01)


@pytest.mark.slow
def test_a_sweep_of_strategies_is_what_each_job_is_alone(tmp_path: Path) -> None:
    """A cached pyramid, a shared trunk, and each job by itself: the same bits."""
    coco_home(tmp_path / "boxes", count=16)
    line = [*RUN, "steps=12", "engine.eval_every=6", "dataset.augment.resized_crop=null", "dataset.augment.flip=false"]
    swept = hydratune(
        "-m",
        *line,
        "freeze=head_only,last_groups,lp_ft",
        "optimizer.lr=0.001,0.01",
        "hydra.sweep.dir=all",
        cwd=tmp_path,
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    for strategy in ("head_only", "last_groups", "lp_ft"):
        (of,) = (p for p in (tmp_path / "all").iterdir() if strategy in p.name and "0.01" in p.name)
        own = record(of)
        alone = hydratune(
            *line, f"freeze={strategy}", "optimizer.lr=0.01", "freeze.cache=off", *own["runtime"]["repeat"].split(),
            f"hydra.run.dir={strategy}", cwd=tmp_path,
        )  # fmt: skip
        assert alone.returncode == 0, alone.stderr
        assert record(tmp_path / strategy)["checkpoint"] == own["checkpoint"], strategy
        found = record(tmp_path / strategy)["metrics"]  # the test too, which in a sweep is the winner's alone
        assert all(found[key] == value for key, value in own["metrics"].items() if key.startswith("val_")), strategy


@pytest.mark.slow
def test_a_detector_that_was_stopped_goes_on_bitwise(tmp_path: Path) -> None:
    coco_home(tmp_path / "boxes", count=16)
    line = [*RUN, "steps=12", "engine.eval_every=4", "engine.save_every=3", "dataset.augment.crop_padding=4"]
    whole = hydratune(*line, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    first = hydratune(*line, "hydra.run.dir=broken", cwd=tmp_path)
    assert first.returncode == 0
    for path in (tmp_path / "broken" / "checkpoints").iterdir():  # as if it had been killed after step 6
        if path.is_dir() and path.name > "step-00000006":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    told = record(tmp_path / "broken") | {"status": "interrupted"}
    (tmp_path / "broken" / "run.json").write_text(json.dumps(told))
    again = hydratune("resume=broken", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert record(tmp_path / "broken")["checkpoint"] == record(tmp_path / "whole")["checkpoint"]


def test_without_the_judge_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.tasks import average_precision as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'hydratune\[detection\]'"):
        Retinanet()


def test_predictions_are_csv_too(tmp_path: Path) -> None:
    coco_home(tmp_path / "boxes", count=6)
    done = hydratune(*RUN, "steps=2", "hydra.run.dir=run", "test=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = hydratune("stage=predict", "init_from=run", "inputs=dataset:test", "hydra.run.dir=predicted", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    with (tmp_path / "predicted/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(len(json.loads(row["boxes"])) == int(row["count"]) for row in rows)
    asked = hydratune(
        "stage=predict", "init_from=run", "inputs=boxes/images", "format=coco", "hydra.run.dir=coco", cwd=tmp_path
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads((tmp_path / "coco/predictions.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["red", "blue"] and len(found["images"]) == 18
    (tmp_path / "again").mkdir()
    (tmp_path / "again/train.json").write_text(json.dumps(found))
    (tmp_path / "boxes/images").rename(tmp_path / "again/images")
    assert sum(len(own.boxes) for own in coco(tmp_path / "again").parts["train"]) == len(found["annotations"])


def test_a_detector_is_exported(tmp_path: Path) -> None:
    coco_home(tmp_path / "boxes", count=6)
    done = hydratune(*RUN, "steps=2", "hydra.run.dir=run", "test=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = hydratune("stage=export", "init_from=run", "format=torch_export", "hydra.run.dir=out", cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    described = json.loads((tmp_path / "out/model.json").read_text())
    assert described["outputs"] == ["scores", "boxes"] and described["answers"] == ["red", "blue"]
    scores, found = torch.export.load(tmp_path / "out/model.pt2").module()(torch.zeros(2, 3, 64, 64))
    assert scores.shape[::2] == (2, 2) and found.shape == (*scores.shape[:2], 4)
    assert bool(((scores >= 0) & (scores <= 1)).all())


def test_objects_of_a_crop_are_what_is_left_of_them() -> None:
    from hydratune.data.images.annotations import Annotated

    own = Annotated(Path("a"), (80, 40), [(0, 0, 10, 10), (15, 5, 30, 20)], ["a", "a"], [False, False])
    found = objects_of([own], ["a"], Frame(40, 40, "crop"))  # the middle: 20 to 60
    assert found.boxes.values[:, :4].tolist() == [[0, 5, 10, 20]] and found.boxes.lengths.tolist() == [1]
