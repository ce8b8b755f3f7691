"""Segmentation: where masks lie, their joint geometry, metrics, levels, and whole commands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hydratune.core.types import Batch, ImageSpec, Levels
from hydratune.data.images.augment import Augment
from hydratune.data.images.mask_layout import mask_layout
from hydratune.data.images.masks import ImageMasks, read_mask
from hydratune.data.stream import Batches, Placement
from hydratune.models.vision.levels import wanted_levels
from hydratune.models.vision.resnet9 import resnet9
from hydratune.models.vision.small_resnet import small_resnet
from hydratune.models.vision.torchvision_models import torchvision_model
from hydratune.tasks.classification import Classification
from hydratune.tasks.segmentation import Segmentation
from tests.conftest import hydratune
from tests.tiny import CPU

COMMAND = ["dataset=image_masks", "dataset.root=scenes", "dataset.size=32", "model=resnet9_w16", "model.width=8",
           "batch_size=8", "runtime.precision=fp32", "runtime.layout=contiguous"]  # fmt: skip


def scene(chance: random.Random, size: int = 32) -> tuple[Image.Image, Image.Image]:
    """A square on a ground; where it is, the mask says 1, and on its border 255."""
    pixels = np.full((size, size, 3), 40, dtype=np.uint8)
    mask = np.zeros((size, size), dtype=np.uint8)
    top, left = chance.randrange(size // 2), chance.randrange(size // 2)
    inside = slice(top, top + size // 2), slice(left, left + size // 2)
    pixels[inside], mask[inside] = 220, 1
    mask[top, inside[1]] = 255
    return Image.fromarray(pixels), Image.fromarray(mask)


def scenes(home: Path, layout: str = "images/{}|masks/{}", parts: tuple[str, ...] = ("",), count: int = 24) -> Path:
    chance = random.Random(0)
    for part in parts:
        folders = [home / "scenes" / place.format(part) for place in layout.split("|")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = scene(chance)
            image.save(folders[0] / f"scene{i}.png")
            mask.save(folders[1] / f"scene{i}.png")
    return home / "scenes"


# ---- where masks lie


@pytest.mark.parametrize(
    ("layout", "parts", "wanted"),
    [
        ("images/{}|masks/{}", ("",), {"train"}),
        ("Images/{}|Annotations/{}", ("train", "dev", "test"), {"train", "val", "test"}),
        ("{}/images|{}/masks", ("train", "val"), {"train", "val"}),
        ("{}|{}annot", ("train", "val", "test"), {"train", "val", "test"}),
        ("{}|{}_masks", ("training",), {"train"}),
    ],
)
def test_layouts(tmp_path: Path, layout: str, parts: tuple[str, ...], wanted: set[str]) -> None:
    found = mask_layout(scenes(tmp_path, layout, parts, 3))
    assert found.parts.keys() == wanted and all(len(pairs) == 3 for pairs in found.parts.values())
    assert all(image.stem == mask.stem for pairs in found.parts.values() for image, mask in pairs)


def test_masks_may_be_called_so(tmp_path: Path) -> None:
    root = scenes(tmp_path, count=2)
    for mask in sorted((root / "masks").iterdir()):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    (root / "masks" / "other.png").write_bytes((root / "masks" / "scene0_mask.png").read_bytes())
    found = mask_layout(root)
    assert len(found.parts["train"]) == 2 and found.others == ["other.png"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "masks" / "scene1.png").unlink(), "scene1.png has no mask"),
        (lambda root: (root / "masks" / "scene1_mask.png").write_bytes(b""), "has two masks"),
        (lambda root: (root / "masks").rename(root / "other"), "it should hold images/ and masks/"),
        (lambda root: (root / "images" / "val").mkdir(), "do not have the same parts: val"),
    ],
)
def test_what_is_no_layout_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    root = scenes(tmp_path, count=3)
    spoil(root)
    with pytest.raises(ValueError, match=said):
        mask_layout(root)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Image.new("RGB", (8, 8)), "is a picture in colours"),
        (lambda: Image.new("L", (8, 8), 7), "has the class number 7, and there are 2 classes"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=said):
        read_mask(tmp_path / "a.png", 8, ignore=255, classes=2)


def test_a_palette_holds_numbers_and_any_of_them_may_be_ignored(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [11, 2]], dtype=np.uint8), mode="P")
    image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", 2, ignore=11, classes=3).tolist() == [[0, 1], [255, 2]]


def test_a_mask_of_another_size_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    root = scenes(tmp_path, count=12)
    Image.new("L", (30, 32)).save(root / "masks" / "scene3.png")
    data = ImageMasks(Segmentation(), Augment(), str(root), size=16)
    with pytest.raises(ValueError, match="scene3.png is of .* pixels and its mask of"):
        data.check(test=False)


def test_masks_are_known_by_their_contents(tmp_path: Path) -> None:
    root = scenes(tmp_path, count=12)
    before = ImageMasks(Segmentation(), Augment(), str(root), size=16).files()
    _, mask = scene(random.Random(5))
    mask.save(root / "masks" / "scene3.png")
    assert ImageMasks(Segmentation(), Augment(), str(root), size=16).files() != before


def test_a_task_that_is_not_dense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset/task=segmentation is one"):
        ImageMasks(Classification(), Augment(), str(tmp_path))
    with pytest.raises(ValueError, match="cannot be mixed"):
        ImageMasks(Segmentation(), Augment(mixup=0.2), str(tmp_path))


# ---- joint geometry


AUGMENTS = {
    "flip and crop": Augment(flip=True, crop_padding=3),
    "resized crop": Augment(resized_crop=(0.3, 1.0)),
    "trivial": Augment(trivial=True),
    "turned": Augment(rotate=45, vertical_flip=True),
    "turned and resized": Augment(rotate=20, vertical_flip=True, resized_crop=(0.3, 1.0)),
    "all": Augment(flip=True, crop_padding=2, resized_crop=(0.5, 1.0), trivial=True, jitter=0.1, erase=0.3),
}


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("name", AUGMENTS)
def test_masks_follow_their_images(tmp_path: Path, name: str, memory: bool) -> None:
    """The square is bright: wherever the mask says 1 the image is, but for what interpolation mixes at borders."""
    root = scenes(tmp_path, count=24)
    options: dict[str, Any] = {"size": 32, "memory_mb": 2048 if memory else 0, "mean": [0.0] * 3, "std": [1.0] * 3}
    data = ImageMasks(Segmentation(), AUGMENTS[name], str(root), val_share=0.2, test_share=0.2, **options)
    stream = data.stream(data.split("train"), resnet9(8, dense=True), Batches(8, 0, True), Placement(CPU))
    agreed = asked = moved = 0
    for batch in stream.batches(0, 6):
        bright = batch.inputs.mean(1) > 0.5
        scored = batch.targets != 255
        if name in ("trivial", "all"):  # some of its operations turn what is bright
            plain = [i for i in range(len(bright)) if batch.inputs[i].std() > 0.2]
            bright, scored, targets = bright[plain], scored[plain], batch.targets[plain]
        else:
            targets = batch.targets
        agreed += int(((targets == 1) == bright)[scored].sum())
        asked += int(scored.sum())
        moved += int((targets == 1).any())
    assert moved and agreed / asked > (0.75 if name in ("trivial", "all") else 0.95), agreed / asked


def test_targets_belong_to_the_view(tmp_path: Path) -> None:
    """From a table of cached views, each view of an image comes with its own mask."""
    root = scenes(tmp_path, count=20)
    augment = Augment(flip=True, resized_crop=(0.4, 1.0), views=3)
    data = ImageMasks(Segmentation(), augment, str(root), size=32)
    stream = data.stream(data.split("train"), resnet9(8, dense=True), Batches(4, 0, True), Placement(CPU))
    table = torch.cat(list(stream.unique_inputs(5)))
    different = False
    for batch, rows in zip(stream.batches(0, 12), stream.rows(0, 12), strict=True):
        kept = stream.labelled(table[rows.at], rows)
        assert torch.equal(kept.inputs, batch.inputs) and torch.equal(kept.targets, batch.targets)
        different |= not torch.equal(kept.targets, stream.targets(rows.ids, (rows.view + 1) % 3))
    assert different


# ---- levels and the head


@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (lambda: resnet9(8, dense=True), [2, 4, 8]),
        (lambda: small_resnet(8, dense=True), [1, 2, 4]),
        (lambda: torchvision_model("resnet18", input_shape=(3, 96, 96), dense=True), [2, 4, 8, 16, 32]),
        (lambda: torchvision_model("vgg11", input_shape=(3, 96, 96), dense=True), [2, 4, 8, 16, 32]),
    ],
)
def test_levels_have_the_strides_that_are_measured(make: Any, strides: list[int]) -> None:
    example = torch.zeros(1, 3, 96, 96)
    features = outputs(make(), example)
    assert isinstance(features, Levels) and [96 // level.shape[2] for level in features.kept] == strides
    spec = ImageSpec((3, 96, 96), tuple("abc"), (0.0,) * 3, (1.0,) * 3)
    # A linear head leaves a level of half the resolution to the others, where there are enough without it.
    quarter = 4 if len(strides) > 4 else strides[0]
    for head, finest in (("linear", quarter), ("unet", strides[0]), ("deeplab", quarter)):
        task = Segmentation(head=head)
        wanted = outputs(wanted_levels(make(), example, task.first_level), example)
        assert [96 // level.shape[2] for level in wanted.kept] == strides[strides.index(finest) :]
        made = task.build_head(wanted, spec).eval()
        assert made(wanted).shape == (1, 3, 96 // finest, 96 // finest), head


def outputs(body: Any, features: Any) -> Any:
    for _, module in body.groups:
        features = module.eval()(features)
    return features


def test_a_body_without_levels_is_refused() -> None:
    spec = ImageSpec((3, 8, 8), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match="resnet, vgg and most of timm's have them"):
        Segmentation().build_head(torch.zeros(1, 8), spec)
    with pytest.raises(ValueError, match="offers no levels"):
        torchvision_model("mobilenet_v3_small", input_shape=(3, 96, 96), dense=True)


def test_iou_is_counted_over_all_pixels_that_are_scored() -> None:
    spec = ImageSpec((3, 2, 2), ("a", "b", "never"), (0.0,) * 3, (1.0,) * 3)
    metrics = Segmentation().metrics(spec, CPU)
    true = torch.tensor([[[0, 1], [1, 255]], [[0, 0], [1, 1]]], dtype=torch.uint8)
    given = torch.tensor([[[0, 1], [0, 1]], [[0, 0], [1, 0]]])
    logits = torch.nn.functional.one_hot(given, 3).permute(0, 3, 1, 2).float() * 10
    for i in range(2):
        metrics.update(logits[i : i + 1], Batch(None, true[i : i + 1], torch.tensor([i])))
    values = metrics.compute()
    assert values["pixel_accuracy"] == pytest.approx(5 / 7)
    assert values["miou"] == pytest.approx((3 / 5 + 2 / 4) / 2)  # the class that is nowhere does not count


# ---- whole commands


def record(home: Path, name: str) -> dict[str, Any]:
    (path,) = home.glob(f"outputs/*/{name}/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_net_learns_where_the_squares_are(tmp_path: Path) -> None:
    scenes(tmp_path, "{}|{}annot", ("train", "val", "test"), 24)
    done = hydratune(
        "stage=pretrain", *COMMAND, "epochs=12", "optimizer=adamw", "optimizer.lr=0.01", "name=run",
        "dataset.augment.resized_crop=[0.6,1.0]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kept = record(tmp_path, "run")
    assert kept["monitor"] == "miou" and kept["metrics"]["test_miou"] > 0.7, kept["metrics"]
    events = next((tmp_path / "outputs/pretrain/run").glob("events*")).read_bytes()
    assert b"val/segmented" in events and b"val/per_class" in events


def test_a_frozen_trunk_is_cached_and_changes_nothing(tmp_path: Path) -> None:
    scenes(tmp_path)
    found = {}
    for cache in ("off", "memory"):
        done = hydratune(
            "stage=finetune", "init_from=null", *COMMAND, "steps=8", "engine.eval_every=4", f"name={cache}",
            "freeze=head_only", f"freeze.cache={cache}", "dataset.augment.views=2", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found[cache] = record(tmp_path, cache)
    assert found["off"]["metrics"] == found["memory"]["metrics"]
    assert found["off"]["checkpoint"]["sha256"] == found["memory"]["checkpoint"]["sha256"]


def test_a_sweep_of_two_rates_by_two_strategies(tmp_path: Path) -> None:
    scenes(tmp_path)
    done = hydratune(
        "-m", "stage=finetune", "init_from=null", *COMMAND, "steps=4", "engine.eval_every=2",
        "freeze=head_only,last_groups", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "sweep" / "leaderboard.csv").read_text().count("complete") == 4


@pytest.mark.parametrize("head", ["linear", "unet", "deeplab"])
def test_a_batch_of_one_trains(head: str) -> None:
    """BatchNorm has one value a channel where everything is pooled to one place."""
    example = torch.rand(1, 3, 64, 64)
    features = outputs(resnet9(8, dense=True), example)
    task = Segmentation(head=head, dice=1.0)
    made = task.build_head(features, ImageSpec((3, 64, 64), ("a", "b"), (0.0,) * 3, (1.0,) * 3)).train()
    batch = Batch(features, torch.randint(0, 2, (1, 64, 64)), torch.zeros(1))
    loss = task.loss(made(Levels(*(tuple(t.detach() for t in features.kept), features.x.detach()))), batch)
    loss.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in made.parameters())


def test_dice_is_of_the_classes_that_an_image_has() -> None:
    task = Segmentation(dice=0.5)
    masks = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    masks[0, :2], masks[0, 2:] = 0, 1  # half and half
    masks[1] = 2  # one class alone
    sure = torch.zeros(3, 3, 4, 4)
    for i in (0, 1):
        sure[i] = 50.0 * torch.nn.functional.one_hot(masks[i].long().clamp(max=2), 3).movedim(-1, 0)
    right = task.loss(sure, Batch(None, masks, torch.arange(3))).terms["dice"]
    assert float(right.sum) == pytest.approx(0, abs=1e-4) and int(right.count) == 2 and right.weight == 0.5
    wrong = task.loss(sure.roll(1, 1), Batch(None, masks, torch.arange(3))).terms["dice"]
    assert float(wrong.mean()) == pytest.approx(1, abs=1e-4)
    nothing = task.loss(sure, Batch(None, torch.full((3, 4, 4), 255), torch.arange(3)))
    assert float(nothing.mean()) == 0.0  # all of it is ignored


def test_class_weights_weigh_as_torch_s_mean_does() -> None:
    masks = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    masks[0, 0] = 255
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    own = Segmentation(class_weights=[1.0, 2.0, 5.0]).loss(logits, Batch(None, masks, torch.arange(2))).mean()
    expected = torch.nn.functional.cross_entropy(logits, masks, torch.tensor([1.0, 2.0, 5.0]), ignore_index=255)
    assert float(own) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="2 numbers for 3 classes"):
        spec = ImageSpec((3, 64, 64), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)
        Segmentation(class_weights=[1.0, 2.0]).build_head(
            outputs(resnet9(8, dense=True), torch.rand(1, 3, 64, 64)), spec
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "unett"}, "dataset.task.head=unett: nearest: unet"),
        ({"head": "mask"}, "one of linear, unet, deeplab"),
        ({"dice": -1.0}, "a weight, at least 0"),
        ({"class_weights": [-1.0, 1.0]}, "a weight per class, at least 0"),
    ],
)
def test_options_that_are_none(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Segmentation(**options)
