"""Regression: numbers for each sample."""

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
from hydratune.tasks.heads import linear_head

LOSSES = ("mse", "huber")
MONITORS = ("r2", "negative_mae", "negative_rmse")  # larger is better
SHOWN = 2000  # points of a scatter plot


class Regression(Task):
    """Mean squared error or Huber's loss of standardised targets; MAE, RMSE and R2 in the targets' own units."""

    kind = "values"
    monitors = MONITORS
    question = "sequence"
    mixes = True

    def __init__(self, loss: str = "mse", delta: float = 1.0, monitor: str = "r2") -> None:
        """loss: mse, or huber with its `delta`, in standard deviations of train. monitor: r2, negative_mae or
        negative_rmse.
        """
        if loss not in LOSSES:
            raise ValueError(f"dataset.task.loss={loss}: one of {', '.join(LOSSES)}")
        if not 0 < delta < math.inf:
            raise ValueError(f"dataset.task.delta={delta}: must be above 0")
        if monitor not in MONITORS:
            raise ValueError(f"dataset.task.monitor={monitor}: one of {', '.join(MONITORS)}")
        self.name, self.delta, self.monitor = loss, delta, monitor

    def answers(self, spec: Spec) -> Sequence[str]:
        if spec.targets is None:
            raise ValueError(
                "dataset.task: regression wants numbers, and this data set has none; dataset=image_csv has"
            )
        return spec.targets.names

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        return linear_head(features, len(self.answers(spec)))

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs, targets: [B, K]"""
        values = outputs.float()
        if self.name == "huber":
            total = F.huber_loss(values, batch.targets, reduction="sum", delta=self.delta)
        else:
            total = F.mse_loss(values, batch.targets, reduction="sum")
        return Loss.of(total, values.numel())

    def scores(self, outputs: Tensor) -> Tensor:
        """outputs: [B, K] standardised numbers"""
        return outputs.double()

    def rows(self, scores: Tensor, batch: Batch, asked: Asked) -> list[dict[str, Any]]:
        """Each number in its own unit."""
        targets = asked.spec.targets
        assert targets is not None
        mean, std = torch.tensor(targets.mean), torch.tensor(targets.std)
        result = [self._named("", targets.names, row) for row in (scores.cpu() * std + mean).tolist()]
        if asked.labelled:
            for row, true in zip(result, (batch.targets.cpu().double() * std + mean).tolist(), strict=True):
                row |= self._named("true ", targets.names, true)
        return result

    @staticmethod
    def _named(prefix: str, names: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
        return {f"{prefix}{name}": value for name, value in zip(names, values, strict=True)}

    def metrics(self, spec: Spec, device: torch.device) -> RegressionMetrics:
        return RegressionMetrics(spec, self)


class RegressionMetrics:
    """Keeps true and predicted numbers of every sample, in the targets' own units."""

    def __init__(self, spec: Spec, task: Regression) -> None:
        assert spec.targets is not None
        self.spec, self.task = spec, task
        self._names = spec.targets.names
        self._mean, self._std = torch.tensor(spec.targets.mean), torch.tensor(spec.targets.std)
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []  # ids [B], true and predicted [B, K], standardised
        self._each: dict[str, tuple[float, float, float]] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, K]"""
        self._rows.append((batch.ids, batch.targets.float(), outputs.float()))

    def over_ranks(self, runtime: Runtime) -> None:
        rows = zip(*self._rows, strict=True)
        self._rows = [tuple(runtime.joined(torch.cat(parts)) for parts in rows)]  # type: ignore[list-item]

    def compute(self) -> dict[str, float]:
        ids, true, predicted = (torch.cat(parts).cpu().double() for parts in zip(*self._rows, strict=True))
        order = ids.argsort()  # sums do not depend on the order of evaluation
        self._true, self._predicted = (t[order] * self._std + self._mean for t in (true, predicted))
        self._ids = ids[order].long()
        error = self._predicted - self._true
        mae, rmse = error.abs().mean(0), error.square().mean(0).sqrt()
        spread = (self._true - self._true.mean(0)).square().sum(0)
        r2 = 1 - error.square().sum(0) / spread.clamp_min(1e-300)
        columns = zip(mae.tolist(), rmse.tolist(), r2.tolist(), strict=True)
        self._each = dict(zip(self._names, columns, strict=True))
        batch = Batch(None, true[order], self._ids)
        values = {
            "loss": float(self.task.loss(predicted[order], batch).mean()),
            "r2": float(r2.mean()),
            "mae": float(mae.mean()),
            "rmse": float(rmse.mean()),
        }
        return {**values, "negative_mae": -values["mae"], "negative_rmse": -values["rmse"]}

    def warnings(self) -> list[str]:
        worse = [name for name, (_, _, r2) in self._each.items() if r2 <= 0]
        return [f"{', '.join(worse)}: no better than the mean (R2 at or below 0)"] if worse else []

    def show(self, stream: Stream) -> dict[str, Summary]:
        rows = [(name, *(f"{v:.4g}" for v in values)) for name, values in self._each.items()]
        shown: dict[str, Summary] = {"per_target": markdown_table(("target", "MAE", "RMSE", "R2"), rows)}
        step = max(len(self._ids) // SHOWN, 1)
        for i, name in enumerate(self._names):
            shown[f"scatter/{name}"] = pictures.scatter(self._true[::step, i], self._predicted[::step, i], name)
        worst = ((self._predicted - self._true) / self._std).abs().amax(1).topk(min(16, len(self._ids))).indices
        captions = [
            "\n".join(f"{n[:14]} {t:.4g}, said {p:.4g}" for n, t, p in zip(self._names[:2], *pair, strict=False))
            for pair in zip(self._true[worst].tolist(), self._predicted[worst].tolist(), strict=True)
        ]
        shown["worst_mistakes"] = stream.shown(self._ids[worst].tolist(), captions)
        return shown
