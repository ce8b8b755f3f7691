"""Data: what is generated, split, ordered and augmented is a pure function, and right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.core.types import Batch, ImageSpec
from hydratune.data.dataset import stratified_split
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_split import FileSplit
from hydratune.data.images.folder import ImageFolder
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.images.shapes import SHIFTS, Shapes
from hydratune.data.images.torchvision_images import TorchvisionImages
from hydratune.data.stream import Batches, Placement
from hydratune.tasks.classification import Classification

CPU = torch.device("cpu")
SPEC = ImageSpec((3, 8, 8), ("a", "b"), (0.5,) * 3, (0.25,) * 3)


def shapes(classes: int = 10, train: int = 300, shift: str = "none", **options: int) -> Shapes:
    return Shapes(Classification(), Augment(), classes, train=train, val=100, test=100, shift=shift, **options)


def sha(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:16]


# ---- shapes


def test_shapes_are_the_same_bytes_on_every_machine() -> None:
    """Integer arithmetic only: these digests hold whatever the processor."""
    assert sha(*shapes(10).read("train")) == "ca09f9f0148167ca"
    assert sha(*shapes(100).read("train")) == "fff1877ba0793138"


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("shift", SHIFTS)
def test_shapes_are_balanced_and_named(classes: int, shift: str) -> None:
    data = shapes(classes, train=400, shift=shift)
    images, labels = data.read("train")
    assert images.shape == (400, 3, 32, 32) and images.dtype == torch.uint8
    count = torch.bincount(labels, minlength=data.spec().num_classes)
    assert len(count) == data.spec().num_classes == len(set(data.spec().class_names))
    assert count.min() == count.max()


def test_shifts_change_what_they_say() -> None:
    plain, noisy = shapes(100), shapes(100, shift="input")
    feature, output = shapes(100, shift="feature"), shapes(100, shift="output")
    (x, y), (xi, yi), (xf, yf), (xo, yo) = (d.read("test") for d in (plain, noisy, feature, output))
    assert torch.equal(y, yi) and not torch.equal(x, xi)
    assert torch.equal(y, yf) and not torch.equal(x, xf)
    assert torch.equal(x, xo) and int(yo.max()) == 49
    pairs = {(int(a), int(b)) for a, b in zip(y, yo, strict=True)}
    assert len(pairs) == 100  # every old class has one new one


def test_splits_do_not_share_pictures_or_change_one_another() -> None:
    small, large = shapes(train=100), shapes(train=300)
    assert torch.equal(small.read("val")[0], large.read("val")[0])
    train = {sha(i) for i in large.read("train")[0]}
    assert not train & {sha(i) for i in large.read("test")[0]}


@pytest.mark.parametrize(("key", "value"), [("classes", 7), ("shift", "sideways")])
def test_shapes_refuse_nonsense(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{key}={value}"):
        Shapes(Classification(), Augment(), **{key: value})  # type: ignore[arg-type]


# ---- splits


def test_carve_is_stratified_seeded_and_disjoint() -> None:
    labels = torch.arange(10).repeat_interleave(torch.arange(1, 11) * 10)
    kept, carved = stratified_split(labels, 0.1, seed=0)
    assert sorted([*kept.tolist(), *carved.tolist()]) == list(range(len(labels)))
    assert torch.bincount(labels[carved]).tolist() == list(range(1, 11))
    assert torch.equal(carved, stratified_split(labels, 0.1, seed=0)[1])
    assert not torch.equal(carved, stratified_split(labels, 0.1, seed=1)[1])


def test_carve_leaves_a_class_of_one_in_train() -> None:
    kept, carved = stratified_split(torch.tensor([0, 1, 1, 1]), 0.5, seed=0)
    assert 0 in kept.tolist() and len(carved) in (1, 2)


# ---- stream


def stream(
    augment: Augment | None = None, n: int = 20, batch_size: int = 6, seed: int = 0, **options: Any
) -> ImageStream:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=g, dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(n) % 2)
    return ImageStream(split, SPEC, Batches(batch_size, seed), Placement(CPU, **options), 3, augment)


FULL = Augment(flip=True, crop_padding=2, resized_crop=(0.5, 1.0), jitter=0.3, erase=0.5, mixup=0.2, cutmix=1.0)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    s = stream()
    assert torch.equal(s.order(1), stream().order(1))
    assert not torch.equal(s.order(0), s.order(1))
    assert not torch.equal(s.order(0), stream(seed=1).order(0))
    assert sorted(s.order(3).tolist()) == list(range(20))


@pytest.mark.parametrize("first", [1, 2, 3, 5])
def test_a_stream_resumes_at_any_step_bit_for_bit(first: int) -> None:
    whole = list(stream(FULL).batches(0, 8))
    rest = list(stream(FULL).batches(first, 8))
    assert len(whole) == 8 and len(rest) == 8 - first
    for a, b in zip(whole[first:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and torch.equal(a.ids, b.ids)


@pytest.mark.scenario(12)
def test_epochs_see_other_augmentations() -> None:
    s = stream(Augment(crop_padding=2), n=6)
    first, second = list(s.batches(0, 2))
    a, b = first.ids.argsort(), second.ids.argsort()
    assert not torch.equal(first.inputs[a], second.inputs[b])


def test_training_leaves_out_the_last_small_batch_and_evaluation_nothing() -> None:
    s = stream(n=20, batch_size=6)
    assert s.steps_per_epoch == 3
    assert [len(b.ids) for b in s.batches(0, 6)] == [6] * 6
    assert torch.cat([b.ids for b in s.eval_batches()]).tolist() == list(range(20))
    assert stream(n=4, batch_size=6).steps_per_epoch == 1  # smaller than a batch: all of it is one


def test_normalisation() -> None:
    s = stream()
    batch = next(s.eval_batches())
    expected = (s.split.read(batch.ids).float() / 255 - 0.5) / 0.25
    assert torch.allclose(batch.inputs, expected, atol=1e-6)


def test_a_grey_image_becomes_three_channels_where_the_network_wants_them() -> None:
    spec = ImageSpec((1, 8, 8), ("a", "b"), (0.5,), (0.25,))
    split = MemorySplit(torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    assert next(ImageStream(split, spec, Batches(4), Placement(CPU), 3).eval_batches()).inputs.shape == (4, 3, 8, 8)
    assert next(ImageStream(split, spec, Batches(4), Placement(CPU), None).eval_batches()).inputs.shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match="wants 1 channels"):
        ImageStream(stream().split, SPEC, Batches(4), Placement(CPU), 1)


# ---- augmentation


def test_crop_and_flip_equal_a_loop_over_samples() -> None:
    augment = Augment(flip=True, crop_padding=3)
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=g, dtype=torch.uint8)
    draws = augment.table(0, 0, 12)
    rows = torch.tensor([4, 0, 11, 7])
    result = augment.pixels(augment.pad(images), rows, draws[rows])
    for r, out in zip(rows.tolist(), result, strict=True):
        y, x = int(draws[r, 1] * 7), int(draws[r, 2] * 7)
        padded = torch.nn.functional.pad(images[r], (3, 3, 3, 3))
        expected = padded[:, y : y + 8, x : x + 8]
        assert torch.equal(out, expected.flip(2) if draws[r, 0] < 0.5 else expected)


def test_every_place_of_the_crop_is_reached() -> None:
    draws = Augment(crop_padding=2).table(0, 0, 2000)
    places = (draws[:, 1:3] * 5).long()
    assert {tuple(p) for p in places.tolist()} == {(y, x) for y in range(5) for x in range(5)}


def test_jitter_matches_torchvision() -> None:
    from torchvision.transforms.v2 import functional as V

    images = torch.rand(3, 3, 8, 8)
    draws = torch.tensor([[0.1, 0.9, 0.3]]).repeat(3, 1)
    from hydratune.data.images.colour import jitter as _jitter

    b, c, s = (1 + 0.4 * (2 * v - 1) for v in (0.1, 0.9, 0.3))
    expected = V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(images, b), c), s)
    assert torch.allclose(_jitter(images, draws, 0.4), expected, atol=2e-3)  # torchvision rounds its grey weights


def test_erasing_blanks_a_rectangle_of_the_share_it_says() -> None:
    augment = Augment(erase=1.0)
    images = torch.ones(400, 3, 16, 16)
    blank = augment.blank(images, augment.table(0, 0, 400)) == 0
    shares = blank[:, 0].float().mean((1, 2))
    assert shares.min() > 0.0 and shares.max() <= 0.36 and 0.1 < shares.mean() < 0.25
    assert torch.equal(blank[:, 0], blank[:, 2])
    assert not (Augment(erase=0.3).blank(images, augment.table(0, 0, 400)) == 0).flatten(1).any(1).all()


@pytest.mark.parametrize("augment", [Augment(mixup=0.5), Augment(cutmix=1.0)])
def test_mixing_keeps_the_books(augment: Augment) -> None:
    """Targets weigh the two labels as the pixels are weighed."""
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 16, 16)
    targets = torch.arange(6)
    mixed, soft = augment.mix(images, targets, 6, seed=0, step=3)
    assert torch.allclose(soft.sum(1), torch.ones(6))
    assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(6.0), atol=1e-5)
    again, _ = augment.mix(images, targets, 6, seed=0, step=3)
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, augment.mix(images, targets, 6, seed=0, step=4)[0])


def test_an_augmentation_says_how_many_versions_of_an_image_it_makes() -> None:
    assert Augment().distinct == 1 and Augment(views=3).distinct == 1
    assert (
        FULL.distinct is None and Augment(mixup=0.1).distinct is None and Augment(views=2, cutmix=1.0).distinct is None
    )
    assert Augment(flip=True, views=3).distinct == 3


def test_fixed_views_come_round_again() -> None:
    augment = Augment(flip=True, crop_padding=2, views=2)
    tables = [augment.table(0, epoch, 5) for epoch in range(4)]
    assert torch.equal(tables[0], tables[2]) and torch.equal(tables[1], tables[3])
    assert not torch.equal(tables[0], tables[1])


@pytest.mark.parametrize(
    "options", [{"erase": 2.0}, {"crop_padding": -1}, {"resized_crop": (0.9, 0.2)}, {"mixup": -1.0}]
)
def test_augment_refuses_nonsense(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.augment\.{next(iter(options))}="):
        Augment(**options)  # type: ignore[arg-type]


# ---- files


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 14)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def folder(root: Path, memory_mb: int = 64) -> ImageFolder:
    return ImageFolder(
        Classification(), Augment(), str(root), size=8, val_share=0.25, test_share=0.25, memory_mb=memory_mb
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(8):
        picture(tmp_path / "cat" / f"{i}.png", (200, i, 0))
        picture(tmp_path / "dog" / "deep" / f"{i}.jpg", (0, 10 * i, 200))
    return tmp_path


def test_image_folder_carves_every_split(photos: Path) -> None:
    data = folder(photos)
    spec = data.spec()
    assert spec.class_names == ("cat", "dog") and spec.input_shape == (3, 8, 8)
    sizes = {name: torch.bincount(data.read(name)[1]).tolist() for name in ("train", "val", "test")}
    assert sizes == {"train": [4, 4], "val": [2, 2], "test": [2, 2]}
    images, labels = data.read("train")
    assert images.shape == (8, 3, 8, 8) and (images[labels == 0][:, 0] > 150).all()


def test_decoding_as_needed_gives_what_memory_gives(photos: Path) -> None:
    kept, streamed = folder(photos).split("train"), folder(photos, memory_mb=0).split("train")
    assert isinstance(kept, MemorySplit) and isinstance(streamed, FileSplit)
    spec = folder(photos).spec()
    augment = Augment(flip=True, crop_padding=1)
    a, b = (list(ImageStream(s, spec, Batches(3), Placement(CPU), 3, augment).batches(0, 4)) for s in (kept, streamed))
    assert all(torch.equal(x.inputs, y.inputs) and torch.equal(x.ids, y.ids) for x, y in zip(a, b, strict=True))


@pytest.mark.scenario(12)
def test_workers_do_not_change_the_order(photos: Path) -> None:
    paths, labels = folder(photos)._files["train"]
    ids = list(torch.arange(8).flip(0).split(3))
    one, four = (list(FileSplit(paths, labels, 8, w).read_ahead(ids)) for w in (1, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


@pytest.mark.scenario(13)
@pytest.mark.parametrize("content", [b"", b"\x89PNG not really"])
def test_a_broken_image_is_named(photos: Path, content: bytes) -> None:
    (photos / "cat" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png is not a readable image"):
        for name in ("train", "val", "test"):
            folder(photos).read(name)


def test_an_absent_or_empty_folder_says_what_should_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="should hold a folder of images per class"):
        folder(tmp_path / "nowhere").spec()
    with pytest.raises(ValueError, match="found no images"):
        folder(tmp_path).spec()


def test_the_digest_of_files_sees_what_changed(photos: Path) -> None:
    before = folder(photos).files()
    assert before == folder(photos).files()
    picture(photos / "cat" / "new.png", (1, 2, 3))
    assert before != folder(photos).files()


def test_an_absent_download_says_what_to_put_where(tmp_path: Path) -> None:
    data = TorchvisionImages(
        Classification(), Augment(), "cifar10", str(tmp_path), [0.5] * 3, [0.2] * 3, download=False
    )
    with pytest.raises(ValueError, match=r"CIFAR10 is not in dataset\.root=.*cifar-10-batches-py"):
        data.spec()


def test_fashion_mnist_as_torchvision_reads_it(data_root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    data = TorchvisionImages(Classification(), Augment(), "fashion_mnist", str(data_root), [0.286], [0.353])
    images, labels = data.read("test")
    assert torch.equal(images[:, 0], FashionMNIST(str(data_root), train=False).data)
    source = FashionMNIST(str(data_root), train=False)
    assert torch.equal(labels, source.targets) and data.spec().class_names == tuple(source.classes)
    train, val = data.read("train")[1], data.read("val")[1]
    assert len(train) == 54_000 and torch.bincount(val).tolist() == [600] * 10


def test_a_truncated_idx_file_is_named(tmp_path: Path) -> None:
    from hydratune.data.images.torchvision_images import _read_idx

    whole = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
    (tmp_path / "labels").write_bytes(whole)
    assert _read_idx(tmp_path / "labels").tolist() == [7, 8, 9]
    for broken in (whole[:-1], b"\1" + whole[1:], whole[:6]):
        (tmp_path / "labels").write_bytes(broken)
        with pytest.raises(ValueError, match="labels is not a whole idx file"):
            _read_idx(tmp_path / "labels")


# ---- metrics


def test_classification_metrics_by_hand() -> None:
    spec = ImageSpec((3, 1, 1), tuple("abcdef"), (0.5,), (0.5,))
    logits = torch.tensor([[9.0, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 9], [0, 9, 0, 0, 0, 0]])
    targets = torch.tensor([0, 5, 5, 2])
    metrics = Classification().metrics(spec, CPU)
    for part in (slice(0, 3), slice(3, 4)):
        n = torch.arange(4)[part]
        metrics.update(logits[part], Batch(torch.zeros(len(n), 3, 1, 1), targets[part], n))
    values = metrics.compute()
    assert values["accuracy"] == 0.5 and values["top5"] == 0.75
    assert values["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-6)
    # F1: a 2/3, b 0 (said, never true), c 0, f 2/3
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0 + 0 + 2 / 3) / 4)
    assert metrics.per_class() == {"a": 1.0, "c": 0.0, "f": 0.5}
    assert [row[1] for row in metrics.worst] == [3, 1]
