"""FCOS: its loss beside torchvision's, what each place stands for, and whole commands."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS as TheirFCOS

from hydratune.core.batching import batch_rows
from hydratune.core.objects import Objects
from hydratune.core.types import Batch, ImageSpec, Levels
from hydratune.tasks.fcos import CROWD, FCOS, NONE, Fcos, Places, boxes_of, fcos_loss, matched
from tests.boxes import RUN, coco_home, levels, record, targets
from tests.conftest import hydratune
from tests.tiny import CPU

pytest.importorskip("faster_coco_eval")


def net(size: int = 96, classes: int = 3) -> FCOS:
    torch.manual_seed(0)
    return FCOS(levels(1, size), (size, size), classes, 64)


def theirs(head: FCOS, outputs: Places, given: Objects) -> dict[str, Tensor]:
    """torchvision's own loss of the same outputs."""
    listed = [given.boxes.of(i) for i in range(len(given.boxes.lengths))]
    told = [{"boxes": t[:, :4], "labels": t[:, 4].long()} for t in listed]
    strides = (outputs.cells[0, :, 2] - outputs.cells[0, :, 0]).unique(return_counts=True)[1].tolist()
    own = SimpleNamespace(center_sampling_radius=1.5, head=head.predict)
    raw = {"cls_logits": outputs.scores, "bbox_regression": outputs.sides, "bbox_ctrness": outputs.centred}
    result: dict[str, Tensor] = TheirFCOS.compute_loss(own, told, raw, list(outputs.cells), strides)  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize("counts", [[3, 0, 2, 5], [1], [4, 4], [0, 0]])
def test_the_loss_is_torchvision_s(counts: list[int]) -> None:
    head, given = net(), targets(counts)
    outputs = head(levels(len(counts)))
    own, other = fcos_loss(outputs, given), theirs(head, outputs, given)
    names = {"classification": "classification", "box": "bbox_regression", "centre": "bbox_ctrness"}
    for ours, their in names.items():
        assert float(own.terms[ours].mean().detach()) == pytest.approx(float(other[their].detach()), rel=1e-5, abs=1e-7)
    mine = torch.autograd.grad(own.mean(), list(head.parameters()), retain_graph=True)
    their_gradients = torch.autograd.grad(sum(other.values()), list(head.parameters()))  # type: ignore[arg-type]
    for a, b in zip(mine, their_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    """Sums and counts are added up, and divided once: the places of a batch, not those of its parts."""
    given, head = targets([3, 0, 4, 1]), net()
    batch = Batch(levels(4), given, torch.arange(4))
    whole = fcos_loss(head(batch.inputs), given).terms
    parts = []
    for first, last in ((0, 1), (1, 3), (3, 4)):
        part = batch_rows(batch, first, last)
        parts.append(fcos_loss(head(Levels(*part.inputs)), part.targets).terms)
    for name, term in whole.items():
        assert sum(float(own[name].sum.detach()) for own in parts) == pytest.approx(float(term.sum.detach()), rel=1e-5)
        assert sum(int(own[name].count) for own in parts) == int(term.count) > 0


def test_of_several_boxes_a_place_stands_for_the_smallest() -> None:
    cells, ranges = torch.tensor([[12.0, 12, 20, 20]]), torch.tensor([[0.0, 64]])
    boxes = torch.tensor([[[0.0, 0, 32, 32, 0, 0], [8, 8, 24, 24, 1, 0], [0, 0, 200, 200, 1, 0]]])
    assert matched(cells, ranges, boxes, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1]]
    assert matched(cells, ranges, boxes, torch.tensor([[True, False, True]])).tolist() == [[0]]
    assert matched(cells, ranges, boxes, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[NONE]]
    assert matched(cells, torch.tensor([[64.0, 128]]), boxes, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[NONE]]


def test_what_a_crowd_covers_is_neither_right_nor_wrong() -> None:
    cells = torch.tensor([[16.0, 16, 24, 24], [60, 60, 68, 68], [12, 12, 20, 20]])
    own = torch.tensor([[[0.0, 0, 50, 50, 0, 1], [10, 10, 22, 22, 0, 0]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    assert matched(cells, torch.tensor([[0.0, 64]] * 3), own, there).tolist() == [[1, NONE, 1]]
    assert matched(cells, torch.tensor([[0.0, 64]] * 3), own[:, :1], there[:, :1]).tolist() == [[CROWD, NONE, CROWD]]


def test_what_is_said_of_a_box_is_read_back() -> None:
    cells = torch.tensor([[12.0, 12, 20, 20]])
    assert boxes_of(torch.tensor([[1.0, 0.5, 2, 0]]), cells).tolist() == [[8, 12, 32, 16]]


def test_its_scores_are_those_of_torchvision() -> None:
    outputs = net()(levels(2))
    located = Fcos(width=64).located(outputs)
    expected = (outputs.scores.sigmoid() * outputs.centred.sigmoid()).sqrt()
    assert torch.equal(located.scores, expected) and located.boxes.shape == (*expected.shape[:2], 4)


def test_which_level_has_which_boxes() -> None:
    spec = ImageSpec((3, 96, 96), ("a",), (0.5,) * 3, (0.5,) * 3, boxes=((20.0, 10.0), (200.0, 9.0)), fit="letterbox")
    told, warnings = Fcos().fits(spec)
    assert "| 8 px | 0 to 128 px | 50.0% |" in told and "| 16 px | 128 to 256 px | 50.0% |" in told and not warnings


def test_the_loss_of_validation_is_that_of_all_images_at_once() -> None:
    head, given = net(), targets([3, 0, 4, 1])
    spec = ImageSpec((3, 96, 96), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, boxes=((9.0, 9.0),), fit="letterbox")
    seen, batch = Fcos(width=64).metrics(spec, CPU), Batch(levels(4), given, torch.arange(4))
    with torch.no_grad():
        for first, last in ((0, 1), (1, 3), (3, 4)):
            part = batch_rows(batch, first, last)
            seen.update(head(Levels(*part.inputs)), part)
        whole = float(fcos_loss(head(batch.inputs), given).mean())
    assert seen.compute()["loss"] == pytest.approx(whole, rel=1e-5)


def test_a_width_that_its_norms_cannot_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.task\.width=70: a multiple of 32 from 64 on, such as 64"):
        Fcos(width=70)


FCOS_RUN = [*RUN, "dataset/task=fcos", "dataset.task.width=64"]


def test_it_learns_and_is_exported(tmp_path) -> None:  # type: ignore[no-untyped-def]
    coco_home(tmp_path / "boxes", count=40)
    line = [*FCOS_RUN, "epochs=60", "optimizer.lr=0.003", "dataset.augment.resized_crop=null", "engine.eval_every=200"]
    done = hydratune(*line, "test=true", "dataset.task.monitor=map50", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record(tmp_path / "run")["metrics"]["test_map50"] > 0.4
    made = hydratune("stage=export", "init_from=run", "format=torch_export", "hydra.run.dir=out", cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    scores, found = torch.export.load(tmp_path / "out/model.pt2").module()(torch.zeros(2, 3, 64, 64))
    assert scores.shape[::2] == (2, 2) and found.shape == (*scores.shape[:2], 4)


@pytest.mark.slow
def test_micro_batches_and_a_cached_trunk_change_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    coco_home(tmp_path / "boxes", count=16)
    line = [*FCOS_RUN, "steps=8", "engine.eval_every=8", "dataset.augment.resized_crop=null",
            "dataset.augment.flip=false", "freeze=head_only", "optimizer=sgd", "optimizer.lr=0.001"]  # fmt: skip
    for name, more in {"cached": [], "plain": ["freeze.cache=off"], "micro": ["engine.accumulate=2"]}.items():
        done = hydratune(*line, *more, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    cached, plain, micro = (record(tmp_path / name) for name in ("cached", "plain", "micro"))
    assert cached["metrics"]["val_map"] == plain["metrics"]["val_map"]
    assert cached["metrics"]["val_loss"] == pytest.approx(plain["metrics"]["val_loss"], rel=1e-6)
    assert micro["metrics"]["val_loss"] == pytest.approx(plain["metrics"]["val_loss"], rel=1e-6)
