"""Multi-label classification: which of K labels a sample has, any number of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss
from hydratune.core.markdown import markdown_table
from hydratune.core.task import Asked, Task
from hydratune.core.types import Batch, Features, Spec, Summary
from hydratune.data.stream import Stream
from hydratune.distributed.runtime import Runtime
from hydratune.tasks.columns import named, others
from hydratune.tasks.heads import linear_head

MONITORS = ("map", "macro_f1", "micro_f1")
THRESHOLDS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


class MultiLabel(Task):
    """Binary cross-entropy per label; mean average precision, and F1 at a threshold that validation chooses."""

    kind = "labels"
    monitors = MONITORS
    question = "sequence"
    mixes = True

    def __init__(self, threshold: float | None = None, monitor: str = "map", head_init: str = "standard") -> None:
        """threshold: of the probability from which a label counts as given; null: the one of 0.05, 0.1, ... 0.95 with
        the largest micro F1 on what is evaluated. head_init: standard or zero.
        """
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"dataset.task.threshold={threshold}: a probability between 0 and 1, or null")
        if monitor not in MONITORS:
            raise ValueError(f"dataset.task.monitor={monitor}: one of {', '.join(MONITORS)}")
        if head_init not in ("standard", "zero"):
            raise ValueError(f"dataset.task.head_init={head_init}: standard or zero")
        self.threshold, self.monitor, self.head_init = threshold, monitor, head_init

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        return linear_head(features, spec.num_classes, self.head_init == "zero")

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs: [B, K] logits; targets [B, K] in 0..1"""
        total = F.binary_cross_entropy_with_logits(outputs.float(), batch.targets, reduction="sum")
        return Loss.of(total, outputs.numel())

    def scores(self, outputs: Tensor) -> Tensor:
        """outputs: [B, K] logits. Probabilities of each label."""
        return outputs.double().sigmoid()

    def rows(self, scores: Tensor, batch: Batch, asked: Asked) -> list[dict[str, Any]]:
        """The labels from the threshold on that validation chose, and the probability of each."""
        names, threshold = asked.spec.class_names, self.threshold or asked.seen.get("val_threshold", 0.5)
        found = [
            {"labels": named(names, [p >= threshold for p in row]), **others(names, row)} for row in scores.tolist()
        ]
        if asked.labelled:
            for row, true in zip(found, (batch.targets > 0.5).tolist(), strict=True):
                row["true"] = named(names, true)
        return found

    def metrics(self, spec: Spec, device: torch.device) -> MultiLabelMetrics:
        return MultiLabelMetrics(spec, self)


class MultiLabelMetrics:
    """Keeps the logits of every sample; average precision needs their order."""

    def __init__(self, spec: Spec, task: MultiLabel) -> None:
        self.spec, self.task = spec, task
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []  # ids [B], true and logits [B, K]
        self.threshold = 0.5 if task.threshold is None else task.threshold

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, K] logits"""
        self._rows.append((batch.ids, batch.targets, outputs.float()))

    def over_ranks(self, runtime: Runtime) -> None:
        rows = zip(*self._rows, strict=True)
        self._rows = [tuple(runtime.joined(torch.cat(parts)) for parts in rows)]  # type: ignore[list-item]

    def compute(self) -> dict[str, float]:
        ids, true, logits = (torch.cat(parts).cpu().double() for parts in zip(*self._rows, strict=True))
        order = ids.argsort()
        self._ids, self._true, logits = ids[order].long(), true[order], logits[order]
        self._probabilities = logits.sigmoid()
        if self.task.threshold is None:
            scores = [_micro_f1(self._true, self._probabilities >= t) for t in THRESHOLDS]
            self.threshold = float(THRESHOLDS[int(torch.tensor(scores).argmax())])
        given = self._probabilities >= self.threshold
        self._precision = average_precision(self._true, self._probabilities)
        self._f1 = _f1(self._true, given)
        there = self._true.sum(0) > 0
        loss = F.binary_cross_entropy_with_logits(logits, self._true)
        return {
            "loss": float(loss),
            "map": float(self._precision[there].mean()) if there.any() else 0.0,
            "macro_f1": float(self._f1[there].mean()) if there.any() else 0.0,
            "micro_f1": _micro_f1(self._true, given),
            "exact_match": float((given == (self._true > 0.5)).all(1).double().mean()),
            "threshold": self.threshold,
        }

    def warnings(self) -> list[str]:
        given = self._probabilities >= self.threshold
        return [] if given.any() else ["no sample of val gets any label: more epochs or another rate may learn more"]

    def show(self, stream: Stream) -> dict[str, Summary]:
        names = self.spec.class_names
        values = zip(self._precision.tolist(), self._f1.tolist(), self._true.sum(0).int().tolist(), strict=True)
        rows = [(n, f"{p:.4f}", f"{f:.4f}", count) for n, (p, f, count) in zip(names, values, strict=True)]
        columns = ("label", "average precision", f"F1 at {self.threshold:.2f}", "count")
        shown: dict[str, Summary] = {"per_label": markdown_table(columns, rows)}
        wrong = (self._probabilities - self._true).abs().amax(1).topk(min(16, len(self._ids))).indices
        captions = [self._caption(i) for i in wrong.tolist()]
        shown["worst_mistakes"] = stream.shown(self._ids[wrong].tolist(), captions)
        return shown

    def _caption(self, row: int) -> str:
        """What the sample has, and what it was given."""

        def named(chosen: Any) -> str:
            found = [n for n, c in zip(self.spec.class_names, chosen.tolist(), strict=True) if c]
            return (", ".join(found) or "nothing")[:22]

        return f"{named(self._true[row] > 0.5)}\ngiven {named(self._probabilities[row] >= self.threshold)}"


def average_precision(true: Tensor, scores: Tensor) -> Tensor:
    """[K] of [N, K]: the mean of the precision at each sample that has the label, samples in order of their score, ties
    counted together (scikit-learn's average_precision_score). 0 where none has it.
    """
    result = torch.zeros(true.shape[1], dtype=torch.float64)
    for k in range(true.shape[1]):
        order = scores[:, k].argsort(descending=True, stable=True)
        hits, values = (true[order, k] > 0.5).double(), scores[order, k]
        last = torch.ones(len(values), dtype=torch.bool)
        last[:-1] = values[1:] != values[:-1]  # of those that share a score
        found, ranks = hits.cumsum(0)[last], torch.arange(1, len(values) + 1, dtype=torch.float64)[last]
        if len(found) and found[-1] > 0:
            gained = torch.diff(found, prepend=torch.zeros(1, dtype=torch.float64))
            result[k] = (gained * found / ranks).sum() / found[-1]
    return result


def _f1(true: Tensor, given: Tensor) -> Tensor:
    """[K] of each label."""
    positive = true > 0.5
    hits = (positive & given).sum(0).double()
    return 2 * hits / (positive.sum(0) + given.sum(0)).clamp_min(1)


def _micro_f1(true: Tensor, given: Tensor) -> float:
    """Of all labels of all samples together."""
    positive = true > 0.5
    return float(2 * (positive & given).sum() / (positive.sum() + given.sum()).clamp_min(1))
