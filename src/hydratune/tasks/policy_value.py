"""Policy and value: which move to make, and how the game will end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss, Term
from hydratune.core.markdown import markdown_table
from hydratune.core.task import Asked, Task
from hydratune.core.types import MOVE_FORBIDDEN, MOVE_UNKNOWN, Batch, Features, PositionTargets, Spec, Summary
from hydratune.data.boards.board_dataset import OUTCOMES, BoardStream
from hydratune.distributed.runtime import Runtime
from hydratune.record import boards
from hydratune.tasks.choices import check_choice

SHOWN = 8  # boards


class PolicyValue(Task):
    """Cross-entropy of the moves and of loss, draw and win, two terms (Silver et al. 2017).

    What selects: move_accuracy, the share of positions in which the likeliest move is as good as the best, of those
    that are solved; or agreement with the likeliest move that was to be learned; or negative_loss.
    """

    kind = "policy_value"
    monitors = ("move_accuracy", "agreement", "value_accuracy", "negative_loss")

    def __init__(
        self, value_weight: float = 1.0, monitor: str = "move_accuracy", width: int = 8, hidden: int = 64
    ) -> None:
        """value_weight: of the value's term in the loss. width: channels that policy and value take from the body;
        hidden: units of the value's layer.
        """
        if not 0 <= value_weight < math.inf:
            raise ValueError(f"dataset.task.value_weight={value_weight}: at least 0")
        check_choice("monitor", monitor, self.monitors)
        if width < 1 or hidden < 1:
            raise ValueError(f"dataset.task.width={width}, dataset.task.hidden={hidden}: at least 1")
        self.value_weight, self.monitor, self.width, self.hidden = value_weight, monitor, width, hidden

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        """features: [1, C, H, W], not pooled."""
        if not isinstance(features, Tensor) or features.ndim != 4:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"model: this task wants a body that returns [B, C, H, W], it returns {got}")
        return PolicyValueHead(features, spec.num_classes, self.width, self.hidden)

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        logits, value = outputs
        targets: PositionTargets = batch.targets
        logs = legal_logits(logits, targets.moves).log_softmax(1)
        known = targets.policy.sum(1)  # 1, or 0 where no move is to be learned
        policy = -(targets.policy * logs.clamp_min(-1e4)).sum()
        outcome = -(targets.value * value.float().log_softmax(1)).sum()
        return Loss({"policy": Term(policy, known.sum()), "value": Term(outcome, len(value), self.value_weight)})

    def metrics(self, spec: Spec, device: torch.device) -> PolicyValueMetrics:
        return PolicyValueMetrics(self, spec)

    def predict(self, forward: Any, views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """The best move, and what is expected of it."""
        logits, value = forward(views[0].inputs)
        shares = legal_logits(logits, views[0].targets.moves).softmax(1).cpu()
        expected = (value.float().softmax(1).cpu() @ OUTCOMES).tolist()
        best = shares.argmax(1).tolist()
        return [
            {"move": asked.spec.class_names[m], "probability": float(shares[i, m]), "value": expected[i]}
            for i, m in enumerate(best)
        ]

    def exported(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"policy_logits": outputs[0], "value_logits": outputs[1]}

    def previews(self, forward: Any, stream: BoardStream) -> Mapping[str, Summary]:
        """Boards with what the network thinks of each move."""
        ids = torch.linspace(0, len(stream.split) - 1, min(SHOWN, len(stream.split))).long().to(stream.device)
        planes = stream.seen(ids)
        logits, value = forward(planes)
        shares = legal_logits(logits, stream.known(ids).moves).softmax(1).cpu()
        return {
            "opinion": boards.drawn(
                planes.cpu(), shares, value.float().softmax(1).cpu() @ OUTCOMES, stream.game.action_names
            )
        }


Outputs = tuple[Tensor, Tensor]  # logits of moves [B, A], of loss, draw and win [B, 3]


class PolicyValueHead(nn.Module):
    """A 1x1 convolution for each, then a Linear for the moves, and two layers for the value."""

    def __init__(self, features: Tensor, moves: int, width: int, hidden: int) -> None:
        super().__init__()
        _, channels, height, across = features.shape
        cells = width * height * across
        self.policy_conv, self.value_conv = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1)
        self.policy = nn.Linear(cells, moves)
        self.value1, self.value2 = nn.Linear(cells, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Outputs:
        """[B, C, H, W] -> ([B, A], [B, 3])"""
        policy = self.policy(F.relu(self.policy_conv(x)).flatten(1))
        value = F.relu(self.value1(F.relu(self.value_conv(x)).flatten(1)))
        return policy, self.value2(value)


def legal_logits(logits: Tensor, moves: Tensor) -> Tensor:
    """[B, A] float32, minus infinity where a move is not legal"""
    return logits.float().masked_fill(moves == MOVE_FORBIDDEN, -torch.inf)


class PolicyValueMetrics:
    """A few numbers of every position; sums in float64 at the end, whatever the batches were."""

    def __init__(self, task: PolicyValue, spec: Spec) -> None:
        self.task, self.spec = task, spec
        self._rows: list[tuple[Tensor, Tensor]] = []  # ids [B]; [B, 6]
        self._values: Tensor | None = None

    def update(self, outputs: Outputs, batch: Batch) -> None:
        targets: PositionTargets = batch.targets
        logits = legal_logits(outputs[0], targets.moves)
        value = outputs[1].float()
        chosen = logits.argmax(1)
        led = targets.moves.gather(1, chosen[:, None])[:, 0]
        solved = ((targets.moves != MOVE_UNKNOWN) & (targets.moves != MOVE_FORBIDDEN)).any(1)
        best = targets.moves.masked_fill(targets.moves >= MOVE_UNKNOWN, -2).amax(1)
        known = targets.policy.sum(1) > 0
        agrees = targets.policy.gather(1, chosen[:, None])[:, 0] >= targets.policy.amax(1)
        columns = (
            solved, led == best, known, agrees, value.argmax(1) == targets.value.argmax(1),
            -(targets.policy * logits.log_softmax(1).clamp_min(-1e4)).sum(1),
            -(targets.value * value.log_softmax(1)).sum(1),
        )  # fmt: skip
        self._rows.append((batch.ids, torch.stack([c.double() for c in columns], 1)))

    def over_ranks(self, runtime: Runtime) -> None:
        rows = zip(*self._rows, strict=True)
        self._rows = [tuple(runtime.joined(torch.cat(parts)) for parts in rows)]  # type: ignore[list-item]

    def compute(self) -> dict[str, float]:
        ids, values = (torch.cat(parts).cpu() for parts in zip(*self._rows, strict=True))
        values = self._values = values[ids.argsort()]
        solved, right, known, agrees, value, policy_loss, value_loss = values.T
        losses = float(policy_loss.sum() / known.sum().clamp_min(1)), float(value_loss.mean())
        total = losses[0] + self.task.value_weight * losses[1]
        found = {
            "loss": total,
            "policy_loss": losses[0],
            "value_loss": losses[1],
            "agreement": float((agrees * known).sum() / known.sum().clamp_min(1)),
            "value_accuracy": float(value.mean()),
            "negative_loss": -total,
        }
        if bool(solved.any()) or self.task.monitor == "move_accuracy":
            found["move_accuracy"] = float((right * solved).sum() / solved.sum().clamp_min(1))
        return found

    def warnings(self) -> list[str]:
        assert self._values is not None
        if self.task.monitor == "move_accuracy" and not bool(self._values[:, 0].any()):
            return ["no position is solved, so that move_accuracy is 0; dataset.task.monitor=negative_loss can select"]
        return []

    def show(self, stream: BoardStream) -> dict[str, Summary]:
        """Wrong moves by kind of position, and positions where the network is wrong."""
        assert self._values is not None
        wrong = (self._values[:, 0] == 1) & (self._values[:, 1] == 0)
        shown: dict[str, Summary] = {}
        rows = wrong_by_kind(stream.split, self._values[:, 0] == 1, wrong)
        if rows:
            shown["wrong_moves"] = markdown_table(("positions", "number", "wrong moves"), rows)
        if bool(wrong.any()):
            ids = wrong.nonzero().flatten()[:SHOWN].tolist()
            shown["worst_mistakes"] = stream.shown(ids, ["what is right"] * len(ids))
        return shown


def wrong_by_kind(split: Any, solved: Tensor, wrong: Tensor) -> list[tuple[str, str, str]]:
    """(kind, number, share of wrong moves) of those that there are."""
    found = []
    for number, name in enumerate(split.kind_names):
        own = solved & (split.kinds == number)
        if int(own.sum()):
            found.append((name, f"{int(own.sum()):,}", f"{float(wrong[own].double().mean()):.1%}"))
    return found
