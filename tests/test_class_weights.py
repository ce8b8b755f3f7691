"""Weights of classes and focal loss, beside torch's own and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hydratune.core.types import Batch
from hydratune.tasks.classification import Classification
from tests.conftest import TINY, hydratune


def given(targets: torch.Tensor) -> tuple[torch.Tensor, Batch]:
    logits = torch.randn(len(targets), 3, generator=torch.Generator().manual_seed(0)) * 2
    return logits, Batch(logits, targets, torch.arange(len(targets)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 3.0, 0.0]])
def test_a_weighted_loss_is_torch_s(weights: list[float], smoothing: float) -> None:
    logits, batch = given(torch.tensor([0, 1, 1, 2, 0]))
    own = Classification(smoothing, class_weights=weights).loss(logits, batch)
    expected = F.cross_entropy(logits, batch.targets, torch.tensor(weights), label_smoothing=smoothing)
    assert float(own.mean()) == pytest.approx(float(expected), rel=1e-6)


def test_parts_add_up_to_the_batch() -> None:
    logits, batch = given(torch.tensor([0, 1, 1, 2, 0]))
    task = Classification(class_weights=[0.2, 3.0, 1.0], focal=2.0)
    whole = task.loss(logits, batch).terms["loss"]
    parts = [
        task.loss(logits[a:b], Batch(logits[a:b], batch.targets[a:b], batch.ids[a:b])) for a, b in ((0, 2), (2, 5))
    ]
    terms = [part.terms["loss"] for part in parts]
    assert float(sum(t.sum for t in terms)) == pytest.approx(float(whole.sum), rel=1e-6)
    assert float(sum(t.count for t in terms)) == pytest.approx(float(whole.count), rel=1e-6)


def test_what_is_known_already_counts_less() -> None:
    """Equation 4: (1 - p)^gamma times the cross-entropy of each."""
    logits, batch = given(torch.tensor([0, 1, 2]))
    p = logits.softmax(1)[range(3), batch.targets]
    assert float(Classification(focal=2.0).loss(logits, batch).mean()) == pytest.approx(
        float((-((1 - p) ** 2) * p.log()).mean()), rel=1e-6
    )


def test_targets_that_were_mixed() -> None:
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    logits, batch = given(mixed)
    own = Classification(class_weights=[1.0, 2.0, 4.0]).loss(logits, batch)
    expected = F.cross_entropy(logits, mixed, torch.tensor([1.0, 2.0, 4.0]), reduction="sum")
    assert float(own.terms["loss"].sum) == pytest.approx(float(expected), rel=1e-6)
    assert float(own.terms["loss"].count) == pytest.approx(0.7 + 0.3 * 2 + 4)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for key, said in (
        ("class_weights=[1,2]", "2 numbers for 10 classes"),
        ("class_weights=[-1,2]", "a weight per class, at least 0"),
        ("focal=-1", "dataset.task.focal=-1"),
    ):
        line = [*TINY, "stage=pretrain", "model=mlp", "steps=1", f"dataset.task.{key}"]
        done = hydratune(*line, "hydra.run.dir=run", cwd=tmp_path)
        assert done.returncode != 0 and said in done.stderr, done.stderr
