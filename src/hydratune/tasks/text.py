"""Classification of whole texts, and of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss
from hydratune.core.markdown import markdown_table
from hydratune.core.task import Asked
from hydratune.core.types import Batch, Features, Spec, Summary, TextSpec
from hydratune.data.stream import Stream
from hydratune.distributed.runtime import Runtime
from hydratune.tasks.classification import Classification
from hydratune.tasks.entities import entities, scores


class SequenceClassification(Classification):
    """Which of K classes a text belongs to: accuracy, macro F1 and Matthews' correlation."""

    question = "sequence"
    mixes = False

    def __init__(self, label_smoothing: float = 0.0, monitor: str = "accuracy") -> None:
        super().__init__(label_smoothing, monitor=monitor)


class TokenClassification(SequenceClassification):
    """Which of K tags each word has, such as B-PER and I-PER; F1 of whole entities, as seqeval defines it.

    targets: [B, T], -100 at tokens that begin no word.
    """

    monitors = ("f1", "precision", "recall", "accuracy")
    kind = "tags"
    question = "token"

    def __init__(self, label_smoothing: float = 0.0, monitor: str = "f1") -> None:
        super().__init__(label_smoothing, monitor)

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        raise ValueError("model: has no head for tokens; model=hf or one of the bert and gpt models has")

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs: [B, T, K] logits"""
        return token_loss(outputs, batch.targets, self.label_smoothing)

    def scores(self, outputs: Tensor) -> Tensor:
        """outputs: [B, T, K] logits. Probabilities."""
        return outputs.double().softmax(2)

    def rows(self, scores: Tensor, batch: Batch, asked: Asked) -> list[dict[str, Any]]:
        """The tag of each word that has a token, and the entities that they make, where the words are known."""
        names, result = asked.spec.class_names, []
        words = getattr(asked.source, "words", None)
        for row, wanted, sample in zip(scores.cpu(), batch.targets.cpu(), batch.ids.tolist(), strict=True):
            probabilities, tags = row[wanted != -100].max(1)
            known = {"true": " ".join(names[t] for t in wanted[wanted != -100].tolist())} if asked.labelled else {}
            found = {} if words is None else {"entities": spans(tags, probabilities, names, *words(sample))}
            result.append({**found, "tags": " ".join(names[t] for t in tags.tolist()), **known})
        return result

    def metrics(self, spec: TextSpec, device: torch.device) -> TokenMetrics:  # type: ignore[override]
        return TokenMetrics(spec, device)


def token_loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of [B, T, K] logits, summed over the targets [B, T] that are not -100, and their number."""
    logits, wanted = outputs.flatten(0, 1).float(), targets.flatten()
    total = F.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100, label_smoothing=label_smoothing)
    return Loss.of(total, (wanted != -100).sum())


def spans(
    tags: Tensor, probabilities: Tensor, names: Sequence[str], text: str, words: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Entities in a text. words: where each begins and ends; the first of them have a tag each."""
    found = entities(tags, torch.zeros_like(tags), names)
    result = []
    for _, kind, first, last in sorted(found, key=lambda e: e[2]):
        start, end = words[first][0], words[last][1]
        score = float(probabilities[first : last + 1].mean())
        result.append({"type": kind, "text": text[start:end], "start": start, "end": end, "score": score})
    return result


class TokenMetrics:
    """Keeps true and predicted tags of every word; entities are counted in `compute`."""

    def __init__(self, spec: TextSpec, device: torch.device, keep: int = 12) -> None:
        self.spec, self.keep = spec, keep
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._words: list[Tensor] = []  # per batch [W, 3]: sample, true, predicted; in the order of the words
        self._scores: dict[str, tuple[float, float, float, int]] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, T, K]"""
        asked = batch.targets != -100
        self._loss += token_loss(outputs, batch.targets).total().double()
        sample = batch.ids.unsqueeze(1).expand_as(batch.targets)
        rows = (sample[asked], batch.targets[asked], outputs.argmax(2)[asked])
        self._words.append(torch.stack(rows, 1))

    def over_ranks(self, runtime: Runtime) -> None:
        runtime.sum_over_ranks([self._loss])
        self._words = [runtime.joined(torch.cat(self._words))]

    def compute(self) -> dict[str, float]:
        sample, true, said = torch.cat(self._words).cpu().unbind(1)
        names = self.spec.class_names
        wanted, given = entities(true, sample, names), entities(said, sample, names)
        self._scores = scores(wanted, given)
        self._wrong = sorted({row[0] for row in wanted ^ given})
        precision, recall, f1, _ = self._scores["all"]
        return {
            "loss": float(self._loss) / len(true),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "accuracy": float((true == said).double().mean()),
        }

    def warnings(self) -> list[str]:
        return []

    def show(self, stream: Stream) -> dict[str, Summary]:
        rows = [(k, *(f"{v:.4f}" for v in row[:3]), row[3]) for k, row in self._scores.items()]
        shown: dict[str, Summary] = {
            "per_entity": markdown_table(("entity", "precision", "recall", "F1", "count"), rows)
        }
        wrong = self._wrong[: self.keep]
        if wrong:
            shown["mistakes"] = stream.shown(wrong, [self._caption(i) for i in wrong])
        return shown

    def _caption(self, sample: int) -> str:
        """The words of a sample whose tags are wrong, by their place."""
        words = torch.cat(self._words).cpu()
        _, true, said = words[words[:, 0] == sample].unbind(1)
        names = self.spec.class_names
        pairs = enumerate(zip(true.tolist(), said.tolist(), strict=True), 1)
        return "; ".join(f"word {i}: {names[a]} taken for {names[b]}" for i, (a, b) in pairs if a != b)
