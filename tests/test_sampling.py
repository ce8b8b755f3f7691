"""Class-balanced sampling: what an epoch draws, of images and of texts, and that it is a function of its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hydratune.core.types import Backbone, Batch, ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.folder import ImageFolder
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.images.shapes import Shapes
from hydratune.data.sampling import class_balanced, drawing
from hydratune.data.stream import Batches, Placement
from hydratune.data.text.text_stream import TextStream
from hydratune.tasks.classification import Classification
from hydratune.tasks.language import MaskedLanguage
from hydratune.tasks.multilabel import MultiLabel
from hydratune.tasks.regression import Regression
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.conftest import hydratune
from tests.test_data import picture
from tests.text.small import Tags, Texts
from tests.tiny import CPU

SPEC = ImageSpec((3, 8, 8), ("a", "b", "c", "d"), (0.5,) * 3, (0.25,) * 3)
LABELS = torch.tensor([0] * 40 + [1] * 9 + [3] * 3)[torch.randperm(52, generator=torch.Generator().manual_seed(1))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what an epoch draws


def test_every_class_is_drawn_as_often_and_its_samples_too() -> None:
    for seed in range(20):
        drawn = class_balanced(LABELS, generator(seed))
        assert len(drawn) == len(LABELS)
        of_class = LABELS[drawn].bincount()
        assert set(of_class.tolist()) <= {0, 17, 18} and int(of_class.sum()) == 52
        times = drawn.bincount(minlength=52)
        for label, size in ((0, 40), (1, 9), (3, 3)):
            own = times[label == LABELS]
            quota = int(of_class[label])
            assert len(own) == size and int(own.min()) == quota // size and int(own.max()) == -(-quota // size)


def test_the_remainder_and_the_parts_of_common_classes_come_to_all_in_turn() -> None:
    drawn = torch.stack([class_balanced(LABELS, generator(seed)) for seed in range(600)])
    of_class = LABELS[drawn].flatten().bincount().double() / 600
    assert of_class[[0, 1, 3]].tolist() == pytest.approx([52 / 3] * 3, abs=0.1)
    times = drawn.flatten().bincount(minlength=52).double()[LABELS == 0] / 600
    assert float(times.min()) > 0.35 and float(times.max()) < 0.52  # 0.433 of each epoch


def test_a_balanced_set_is_drawn_once_each() -> None:
    labels = torch.arange(30) % 3
    assert class_balanced(labels, generator()).sort().values.tolist() == list(range(30))
    assert drawing(LABELS) == (
        "an epoch draws 17 of each class (class_balanced): a sample of the rarest 5.8 times, one of the commonest 0.4 "
        "times"
    )


# ---- streams


def stream(augment: Augment | None = None, balanced: bool = True, batch: int = 8, **place: Any) -> ImageStream:
    images = torch.randint(0, 256, (len(LABELS), 3, 8, 8), generator=generator(), dtype=torch.uint8)
    batches = Batches(batch, 0, True, balanced)
    return ImageStream(MemorySplit(images, LABELS), SPEC, batches, Placement(CPU, **place), 3, augment)


MOVES = Augment(flip=True, crop_padding=2, rotate=10)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    s = stream()
    assert torch.equal(s.order(3), stream().order(3)) and not torch.equal(s.order(3), s.order(4))
    assert stream(balanced=False).order(0).sort().values.tolist() == list(range(52))
    ids = torch.cat([b.ids for b in s.batches(0, s.steps_per_epoch * 50)])
    assert (LABELS[ids].bincount().double() / len(ids))[[0, 1, 3]].tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


@pytest.mark.parametrize("augment", [None, MOVES, Augment(flip=True, mixup=0.3), Augment(crop_padding=2, views=2)])
@pytest.mark.parametrize("first", [1, 5, 6, 13])
def test_a_stream_goes_on_from_any_step_bit_for_bit(first: int, augment: Augment | None) -> None:
    whole, rest = list(stream(augment).batches(0, 15)), list(stream(augment).batches(first, 15))
    assert len(rest) == 15 - first
    for a, b in zip(whole[first:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("augment", [MOVES, Augment(flip=True, crop_padding=2, mixup=0.3)])
def test_processes_share_the_batches_of_one(augment: Augment) -> None:
    alone = list(stream(augment).batches(2, 9))
    shared = [list(stream(augment, rank=r, world=3).batches(2, 9)) for r in range(3)]
    for i, batch in enumerate(alone):
        parts: list[Batch] = [own[i] for own in shared]
        assert torch.equal(batch.inputs, torch.cat([p.inputs for p in parts]))
        assert torch.equal(batch.ids, torch.cat([p.ids for p in parts]))


def repeated(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """The inputs of two draws of one sample in an epoch."""
    ids, inputs = (torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "inputs"))
    rare = int(ids.bincount().argmax())
    first, second = (ids == rare).nonzero().flatten()[:2].tolist()
    return inputs[first], inputs[second]


def test_a_sample_that_comes_again_is_augmented_anew() -> None:
    s = stream(MOVES)
    first, second = repeated(list(s.batches(0, s.steps_per_epoch)))
    assert not torch.equal(first, second)


def test_fixed_views_are_those_of_a_cache() -> None:
    """One view in an epoch, also of what comes again: a table of them has the rows of the batches."""
    s = stream(Augment(flip=True, crop_padding=2, views=2))
    first, second = repeated(list(s.batches(0, s.steps_per_epoch)))
    assert torch.equal(first, second)
    table = torch.cat(list(s.unique_inputs(16)))
    for batch, rows in zip(s.batches(0, 18), s.rows(0, 18), strict=True):
        kept = s.labelled(table[rows.at], rows)
        assert torch.equal(kept.inputs, batch.inputs) and torch.equal(kept.targets, batch.targets)


def test_files_that_are_read_as_needed_give_what_memory_gives(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / ("cat" if i < 16 else "dog") / f"{i}.png", (200, 5 * i, 0))

    def batches(memory_mb: int) -> list[Batch]:
        data = ImageFolder(Classification(), MOVES, str(tmp_path), size=8, memory_mb=memory_mb,
                           sampling="class_balanced")  # fmt: skip
        split = data.split("train")
        assert not data.stream(
            data.split("val"), Backbone(torch.nn.Identity(), []), Batches(4), Placement(CPU)
        ).balanced
        made = data.stream(split, Backbone(torch.nn.Identity(), []), Batches(4, 0, True), Placement(CPU))
        return list(made.batches(0, 9))

    kept, read = batches(64), batches(0)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(kept, read, strict=True))
    assert torch.cat([b.targets for b in kept]).double().mean() == pytest.approx(0.5, abs=0.2)


# ---- texts


def texts(**more: Any) -> Texts:
    words = ["alpha", "beta", "gamma", "delta"]
    rows = [(" ".join(words[(i + j) % 4] for j in range(1 + i % 7)), "rare" if i % 10 == 0 else "usual")
            for i in range(100)]  # fmt: skip
    return Texts(SequenceClassification(), {"train": rows, "val": rows[:20], "test": rows[:20]}, **more)


def test_texts_are_drawn_alike_and_still_lie_by_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path))
    data = texts(sampling="class_balanced")

    def made(first: int, last: int) -> list[Batch]:
        split = data.split("train")
        batches = data.sampled(Batches(8, 0, True))
        stream = TextStream(split, data.spec(), data.task, data.tokenizer, batches, Placement(CPU), 50)
        return list(stream.batches(first, last))

    whole, rest = made(0, 24), made(7, 24)
    for a, b in zip(whole[7:], rest, strict=True):
        assert torch.equal(a.inputs.values, b.inputs.values) and torch.equal(a.targets, b.targets)
    targets = torch.cat([b.targets for b in whole])
    assert targets.double().mean() == pytest.approx(0.5, abs=0.08)
    spread = [int(b.inputs.lengths.max() - b.inputs.lengths.min()) for b in whole]
    assert sum(spread) / len(spread) < 2
    plain = texts().sampled(Batches(8, 0, True))
    assert not plain.balanced and not data.sampled(Batches(8)).balanced


# ---- what is refused and what is told


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda how: Shapes(Regression(), Augment(), sampling=how), "values"),
        (lambda how: Shapes(MultiLabel(), Augment(), sampling=how), "labels"),
        (lambda how: Tags(TokenClassification(), {}, sampling=how), "tags"),
        (lambda how: Texts(MaskedLanguage(), {}, sampling=how), "masked"),
    ],
)
def test_a_task_without_one_class_for_each_sample_is_refused(make: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.sampling=class_balanced: .* this task asks for {kind}"):
        make("class_balanced")
    with pytest.raises(ValueError, match=r"dataset\.sampling=balanced: one of shuffle, class_balanced"):
        make("balanced")


@pytest.mark.parametrize("task", ["segmentation", "retinanet"])
def test_masks_and_boxes_are_refused_by_name(task: str, tmp_path: Path) -> None:
    dataset = {"segmentation": "image_masks", "retinanet": "coco"}[task]
    done = hydratune("stage=pretrain", f"dataset={dataset}", "dataset.root=.", "model=resnet9_w16",
                     "dataset.sampling=class_balanced", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and "dataset.sampling=class_balanced: needs one class for each" in done.stderr


def uneven(home: Path) -> list[str]:
    """Thirty pictures of one class and six of another, and how they are trained on."""
    chance = torch.Generator().manual_seed(0)
    for i in range(36):
        shade = tuple(torch.randint(0, 255, (3,), generator=chance).tolist())
        picture(home / "photos" / ("cat" if i < 30 else "dog") / f"{i}.png", shade, (12, 12))
    return ["stage=finetune", "init_from=null", "dataset=image_folder", "dataset.root=photos", "dataset.size=12",
            "model=resnet9_w16", "model.width=8", "batch_size=8", "steps=9", "dataset.val_share=0.2",
            "runtime.precision=fp32", "runtime.layout=contiguous", "dataset.sampling=class_balanced"]  # fmt: skip


def test_a_run_tells_what_it_draws_and_caches_change_nothing(tmp_path: Path) -> None:
    line = [*uneven(tmp_path), "freeze=head_only", "dataset.augment.views=2"]
    said = re.compile(r"^train: an epoch draws 13 of each class \(class_balanced\): a sample of the rarest", re.M)
    digests = {}
    for cache in ("off", "memory"):
        done = hydratune(*line, f"freeze.cache={cache}", f"hydra.run.dir={cache}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert said.search(done.stdout), done.stdout
        assert "val: an epoch" not in done.stdout
        digests[cache] = (tmp_path / cache / "run.json").read_text().partition('"sha256": "')[2][:64]
    assert digests["off"] == digests["memory"] != ""


def test_a_run_that_was_stopped_goes_on_bitwise(tmp_path: Path) -> None:
    line = [*uneven(tmp_path), "engine.save_every=4", "engine.eval_every=4", "freeze=none"]
    whole = hydratune(*line, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    half = hydratune(*line, "steps=4", "hydra.run.dir=half", cwd=tmp_path)
    assert half.returncode == 0, half.stderr
    more = hydratune("resume=half", "steps=9", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    (a, b) = ((tmp_path / name / "checkpoints/step-00000009/manifest.json").read_text() for name in ("whole", "half"))
    pick = re.compile(r'"model.safetensors".*?"sha256": "(\w+)"', re.S)
    assert pick.search(a) and pick.search(a)[1] == pick.search(b)[1]  # type: ignore[index]
