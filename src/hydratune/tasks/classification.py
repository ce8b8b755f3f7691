"""Classification: which of K classes an image belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from hydratune.record import pictures
from hydratune.tasks.choices import check_class_weights
from hydratune.tasks.columns import others
from hydratune.tasks.heads import linear_head


class Classification(Task):
    """Cross-entropy; accuracy, top-5, macro F1, Matthews' correlation and accuracy per class."""

    kind = "classes"
    monitors: tuple[str, ...] = ("accuracy", "macro_f1", "mcc")
    mixes = True

    def __init__(
        self, label_smoothing: float = 0.0, head_init: str = "standard", monitor: str = "accuracy",
        class_weights: Sequence[float] | None = None, focal: float = 0.0,
    ) -> None:  # fmt: skip
        """head_init: standard (torch's) or zero (as BiT-HyperRule has it, arXiv 1912.11370). monitor: the metric of
        validation that selects.

        class_weights: of each class in the loss, whose mean is over their sum. focal: gamma, by which what is known
        already counts less (arXiv 1708.02002); 0: cross-entropy.
        """
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"dataset.task.label_smoothing={label_smoothing}: between 0 and 1")
        if head_init not in ("standard", "zero"):
            raise ValueError(f"dataset.task.head_init={head_init}: standard or zero")
        if monitor not in self.monitors:
            raise ValueError(f"dataset.task.monitor={monitor}: one of {', '.join(self.monitors)}")
        check_class_weights(class_weights)
        if not 0 <= focal < math.inf:
            raise ValueError(f"dataset.task.focal={focal}: at least 0")
        self.label_smoothing, self.head_init, self.monitor = label_smoothing, head_init, monitor
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.focal = focal

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        """features: [1, D] of one sample. A Linear D -> K."""
        self._check_weights(spec)
        return linear_head(features, spec.num_classes, self.head_init == "zero")

    def _check_weights(self, spec: Spec) -> None:
        if self.class_weights is not None and len(self.class_weights) != spec.num_classes:
            raise ValueError(
                f"dataset.task.class_weights={list(self.class_weights)}: {len(self.class_weights)} numbers for "
                f"{spec.num_classes} classes"
            )

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs: [B, K] logits; float32 whatever the network computes in."""
        if self.class_weights is None and not self.focal:
            wanted = batch.targets
            total = F.cross_entropy(outputs.float(), wanted, reduction="sum", label_smoothing=self.label_smoothing)
            return Loss.of(total, len(outputs))
        logs = outputs.float().log_softmax(1)
        given = batch.targets
        shares = given.float() if given.is_floating_point() else F.one_hot(given, logs.shape[1]).float()
        weights = logs.new_ones(logs.shape[1]) if self.class_weights is None else logs.new_tensor(self.class_weights)
        count = (shares * weights).sum()  # as torch's weighted mean
        smooth = shares * (1 - self.label_smoothing) + self.label_smoothing / logs.shape[1]
        return Loss.of(-(smooth * weights * (1 - logs.exp()) ** self.focal * logs).sum(), count)

    def scores(self, outputs: Tensor) -> Tensor:
        """outputs: [B, K] logits. Probabilities, in float64: no two logits become one."""
        return outputs.double().softmax(1)

    def rows(self, scores: Tensor, batch: Batch, asked: Asked) -> list[dict[str, Any]]:
        """The class, its probability and those of all; of many classes the next best."""
        names = asked.spec.class_names
        best, rows = scores.argmax(1).tolist(), scores.tolist()
        true = batch.targets.tolist() if asked.labelled else []
        found = [
            {"class": names[k], "probability": row[k], **others(names, row)} for k, row in zip(best, rows, strict=True)
        ]
        return [{**row, "true": names[t]} for row, t in zip(found, true, strict=True)] if true else found

    def metrics(self, spec: Spec, device: torch.device) -> ClassificationMetrics:
        self._check_weights(spec)
        return ClassificationMetrics(spec, device)


def _matthews(hits: Tensor, true: Tensor, said: Tensor) -> float:
    """Correlation of K classes (Gorodkin 2004, as scikit-learn has it): 0 where one of the two never changes."""
    count, both = true.sum(), (true * said).sum()
    spread = (count**2 - (said**2).sum()) * (count**2 - (true**2).sum())
    return float((hits.sum() * count - both) / spread.sqrt()) if spread > 0 else 0.0


class ClassificationMetrics:
    """A confusion matrix and counters on the device; nothing is read back before `compute`.

    Also keeps the `keep` worst mistakes and the logits' verdicts that the pictures are made of.
    """

    def __init__(self, spec: Spec, device: torch.device, keep: int = 16) -> None:
        k = spec.num_classes
        self.spec, self.keep = spec, keep
        self.confusion = torch.zeros(k, k, dtype=torch.int64, device=device)  # [true, predicted]
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._count = 0
        self.worst: list[tuple[float, int, int, int]] = []  # (loss, sample, true, predicted)
        self._losses: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, K] logits; targets [B] class numbers."""
        logits, targets = outputs.float(), batch.targets
        k = logits.shape[1]
        losses = F.cross_entropy(logits, targets, reduction="none")
        predicted = logits.argmax(1)
        self.confusion += torch.bincount(targets * k + predicted, minlength=k * k).view(k, k)
        self._loss += losses.sum(dtype=torch.float64)
        # In the top five unless five others are above: ties count for the sample, without a sort.
        true = logits.gather(1, targets.unsqueeze(1))
        self._top5 += ((logits > true).sum(1) < 5).sum()
        self._count += len(targets)
        wrong = torch.where(predicted != targets, losses, -1.0)
        top = wrong.topk(min(self.keep, len(wrong)))
        self._losses.append((top.values, batch.ids[top.indices], targets[top.indices], predicted[top.indices]))

    def over_ranks(self, runtime: Runtime) -> None:
        """Take up what the other ranks have seen."""
        runtime.sum_over_ranks([self.confusion, self._top5])
        runtime.sum_over_ranks([self._loss])
        rows = zip(*self._losses, strict=True)
        self._losses = [tuple(runtime.joined(torch.cat(parts)) for parts in rows)]  # type: ignore[list-item]
        self._count = int(self.confusion.sum())

    def compute(self) -> dict[str, float]:
        assert self._count
        matrix = self.confusion.double().cpu()
        hits, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        present = true > 0
        f1 = (2 * hits / (true + said).clamp_min(1))[present | (said > 0)]
        values, ids, targets, predicted = (torch.cat(parts) for parts in zip(*self._losses, strict=True))
        top = values.topk(min(self.keep, len(values)))
        rows = zip(top.values.tolist(), *(t[top.indices].tolist() for t in (ids, targets, predicted)), strict=True)
        self.worst = [row for row in rows if row[0] >= 0]
        top5 = {"top5": float(self._top5) / self._count} if len(matrix) > 5 else {}
        return {
            "loss": float(self._loss) / self._count,
            "accuracy": float(hits.sum()) / self._count,
            **top5,
            "macro_f1": float(f1.mean()),
            "mcc": _matthews(hits, true, said),
        }

    def warnings(self) -> list[str]:
        if int((self.confusion.sum(0) > 0).sum()) > 1:
            return []
        return ["every sample of val gets one class: freeze=none, more epochs or another rate may learn more"]

    def show(self, stream: Stream) -> dict[str, Summary]:
        names, shares = self.spec.class_names, self.per_class()
        rows = [(name, f"{share:.4f}") for name, share in shares.items()]
        shown: dict[str, Summary] = {
            "per_class": markdown_table(("class", "accuracy"), rows),
            "confusion": pictures.confusion(self.confusion, names),
        }
        if self.worst:
            captions = [f"{names[true][:22]}\ntaken for {names[said][:22]}" for _, _, true, said in self.worst]
            shown["worst_mistakes"] = stream.shown([row[1] for row in self.worst], captions)
        # Numbers last: pictures push what was written before them to the disk, and a run killed at its end tells that
        # end again.
        if len(shares) <= 30:
            shown["class"] = shares
        return shown

    def per_class(self) -> dict[str, float]:
        """Accuracy (recall) of every class that has samples."""
        matrix = self.confusion.double().cpu()
        shares = (matrix.diagonal() / matrix.sum(1)).tolist()
        return {name: s for name, s in zip(self.spec.class_names, shares, strict=True) if s == s}
