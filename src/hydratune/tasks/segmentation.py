"""Semantic segmentation: which of K classes every pixel belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss, Term
from hydratune.core.markdown import markdown_table
from hydratune.core.task import Asked, Task
from hydratune.core.types import Batch, Features, Spec, Summary
from hydratune.distributed.runtime import Runtime
from hydratune.record import pictures
from hydratune.tasks.choices import check_choice, check_class_weights
from hydratune.tasks.heads import HEADS, dense_head, first_level

IGNORED = 255  # in the masks of batches, whatever number the files have for it
MONITORS = ("miou", "pixel_accuracy")


class Segmentation(Task):
    """Cross-entropy of every pixel that is not ignored; mean IoU, IoU per class and pixel accuracy."""

    kind = "pixels"
    monitors = MONITORS
    dense = True

    def __init__(
        self,
        label_smoothing: float = 0.0,
        monitor: str = "miou",
        head: str = "linear",
        dice: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """monitor: miou or pixel_accuracy, the metric of validation that selects. head: linear (a 1x1 convolution of
        each level), unet or deeplab. dice: weight of a soft Dice loss beside the cross-entropy (arXiv 1606.04797).
        class_weights: of each class in the cross-entropy.
        """
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"dataset.task.label_smoothing={label_smoothing}: between 0 and 1")
        if not 0 <= dice < math.inf:
            raise ValueError(f"dataset.task.dice={dice}: a weight, at least 0")
        check_class_weights(class_weights)
        for key, value, known in (("monitor", monitor, MONITORS), ("head", head, HEADS)):
            check_choice(key, value, known)
        self.label_smoothing, self.monitor, self.head, self.dice = label_smoothing, monitor, head, dice
        self.class_weights = None if class_weights is None else tuple(class_weights)

    def first_level(self, strides: Sequence[int]) -> int:
        return first_level(self.head, strides)

    def build_head(self, features: Features, spec: Any) -> nn.Module:
        if self.class_weights is not None and len(self.class_weights) != spec.num_classes:
            raise ValueError(
                f"dataset.task.class_weights={list(self.class_weights)}: {len(self.class_weights)} numbers for "
                f"{spec.num_classes} classes"
            )
        return dense_head(self.head, features, spec.num_classes)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs: [B, K, h, w] logits; targets [B, H, W], 255: ignored"""
        wanted = batch.targets.long()
        logits = upsampled(outputs, wanted)
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        total = F.cross_entropy(
            logits, wanted, weights, reduction="sum", ignore_index=IGNORED, label_smoothing=self.label_smoothing
        )
        asked = wanted != IGNORED
        # As torch's mean: of a weighted loss by the sum of the weights
        count = asked.sum() if weights is None else (weights[wanted.where(asked, 0)] * asked).sum()
        if not self.dice:
            return Loss.of(total, count)
        return Loss({"cross_entropy": Term(total, count), "dice": _dice(logits, wanted, asked, self.dice)})

    def predict(self, forward: Callable[[Features], Any], views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """A mask of each image as the network sees it, and the share of each class that is in it."""
        (batch,) = views
        size, names = batch.inputs.shape[2:], asked.spec.class_names
        logits = F.interpolate(forward(batch.inputs).float(), size=size, mode="bilinear", align_corners=False)
        result = []
        for mask in logits.argmax(1).to(torch.uint8).cpu():
            counts = torch.bincount(mask.flatten(), minlength=len(names))
            shares = {f"share({name})": n / mask.numel() for name, n in zip(names, counts.tolist(), strict=True)}
            result.append({"mask": mask, **shares})
        return result

    def metrics(self, spec: Spec, device: torch.device) -> SegmentationMetrics:
        return SegmentationMetrics(spec, device)


def _dice(logits: Tensor, wanted: Tensor, asked: Tensor, weight: float) -> Term:
    """1 - Dice of probabilities and truth, the mean over the classes that an image has, over images that have any."""
    probabilities = logits.softmax(1) * asked.unsqueeze(1)
    truth = F.one_hot(wanted.where(asked, 0), logits.shape[1]).movedim(-1, 1) * asked.unsqueeze(1)
    both, either = (probabilities * truth).sum((2, 3)), (probabilities + truth).sum((2, 3))
    there = truth.any(3).any(2)
    missed = (1 - 2 * both / either.clamp_min(1e-6)) * there
    each = missed.sum(1) / there.sum(1).clamp_min(1)
    return Term(each.sum(), there.any(1).sum(), weight)


def upsampled(outputs: Tensor, masks: Tensor) -> Tensor:
    """Logits at the resolution of the masks, in float32."""
    return F.interpolate(outputs.float(), size=masks.shape[1:], mode="bilinear", align_corners=False)


class SegmentationMetrics:
    """A confusion matrix of pixels on the device, and what was said of the first samples."""

    def __init__(self, spec: Spec, device: torch.device, keep: int = 6) -> None:
        k = spec.num_classes
        self.spec, self.keep = spec, keep
        self.confusion = torch.zeros(k, k, dtype=torch.int64, device=device)  # [true, predicted]
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._first: list[tuple[Tensor, Tensor, Tensor]] = []  # ids, true and predicted masks of the first samples

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, K, h, w] logits"""
        wanted = batch.targets.long()
        logits = upsampled(outputs, wanted)
        self._loss += F.cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORED).double()
        predicted = logits.argmax(1)
        asked = wanted != IGNORED
        k = logits.shape[1]
        self.confusion += torch.bincount(wanted[asked] * k + predicted[asked], minlength=k * k).view(k, k)
        seen = sum(len(ids) for ids, _, _ in self._first)
        if seen < self.keep:
            some = slice(self.keep - seen)
            self._first.append((batch.ids[some], batch.targets[some], predicted[some].to(torch.uint8)))

    def over_ranks(self, runtime: Runtime) -> None:
        runtime.sum_over_ranks([self.confusion])
        runtime.sum_over_ranks([self._loss])

    def compute(self) -> dict[str, float]:
        matrix = self.confusion.double().cpu()
        hits, true, given = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        there = true + given > 0
        self._iou = hits / (true + given - hits).clamp_min(1)
        return {
            "loss": float(self._loss) / max(float(true.sum()), 1.0),
            "miou": float(self._iou[there].mean()) if there.any() else 0.0,
            "pixel_accuracy": float(hits.sum() / true.sum().clamp_min(1)),
        }

    def warnings(self) -> list[str]:
        if int((self.confusion.sum(0) > 0).sum()) > 1:
            return []
        return ["every pixel of val gets one class: freeze=none, more epochs or another rate may learn more"]

    def show(self, stream: Any) -> dict[str, Summary]:
        counts = self.confusion.sum(1).tolist()
        rows = [
            (name, f"{iou:.4f}", f"{count:,}")
            for name, iou, count in zip(self.spec.class_names, self._iou.tolist(), counts, strict=True)
        ]
        shown: dict[str, Summary] = {
            "per_class": markdown_table(("class", "IoU", "pixels"), rows),
            "confusion": pictures.confusion(self.confusion, self.spec.class_names),
        }
        ids, true, given = (torch.cat(parts) for parts in zip(*self._first, strict=True))
        images = stream.visible(ids)
        shown["segmented"] = pictures.side_by_side(images, [true, given], ("image", "truth", "prediction"))
        return shown
