"""Language modelling: masked words (BERT), and the next one (GPT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss
from hydratune.core.markdown import markdown_table
from hydratune.core.ragged import inside
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Asked, Task
from hydratune.core.types import Batch, Features, Padded, Spec, Summary, TextSpec
from hydratune.distributed.runtime import Runtime
from hydratune.tasks.text import token_loss

LONGEST = 10_000  # tokens of a prompt, and of what is made from it: each takes a pass of its own


class Language(Task):
    """Cross-entropy of tokens. Their mean log-likelihood in nats selects, which is -log(perplexity)."""

    monitor = "log_likelihood"
    monitors = ("log_likelihood",)
    question: str

    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        raise ValueError("model: has no head for language; model=hf or one of the bert and gpt models has")

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """outputs: [B, M, V] logits of the targets [B, M], -100: none"""
        return token_loss(outputs, batch.targets)

    def metrics(self, spec: TextSpec, device: torch.device) -> LanguageMetrics:  # type: ignore[override]
        return LanguageMetrics(spec, device, self.question == "causal")


class MaskedLanguage(Language):
    """Words that were hidden (Devlin et al. 2018, arXiv 1810.04805): of the chosen 80% are masked, 10% are others."""

    kind = question = "masked"
    random = True

    def __init__(self, share: float = 0.15) -> None:
        """share: of a sequence's tokens that are chosen, rounded, and at least one; others in every epoch."""
        if not 0 < share < 1:
            raise ValueError(f"dataset.task.share={share}: a share between 0 and 1")
        self.share = share

    def make_inputs(
        self, values: Tensor, lengths: Tensor, labels: None, noise: Any, spec: TextSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens with masks [B, T], chosen positions [B, M], what was there [B, M], -100 beyond a sequence's own)"""
        if "mask" not in spec.special:
            raise ValueError("dataset.tokenizer: has no mask token; kind=wordpiece has one")
        width = values.shape[1]
        eligible = inside(lengths, width)
        for number in spec.special.values():
            eligible &= values != number
        # An upper bound that is known without asking the device; a sequence of special tokens alone is asked nothing
        most = max(round(self.share * width), 1)
        counts = (self.share * eligible.sum(1)).round().long().clamp(min=1, max=most)
        keys = torch.where(eligible, noise.uniform("choice"), 2.0)
        least, asked = keys.topk(most, largest=False)
        chosen = (torch.arange(most, device=values.device) < counts.unsqueeze(1)) & (least < 2)
        there = values.gather(1, asked)
        fate, other = (noise.uniform(name).gather(1, asked) for name in ("fate", "other"))
        shown = torch.where(fate < 0.8, spec.special["mask"], (other * spec.vocab_size).long())
        shown = torch.where(chosen & (fate < 0.9), shown, there)
        return values.scatter(1, asked, shown), asked, torch.where(chosen, there, -100)

    @torch.no_grad()
    def predict(self, forward: Any, views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """The likeliest token in the place of each mask, and what else is likely."""
        inputs: Padded = views[0].inputs
        spec: Any = asked.spec
        logits, tokenizer = forward(inputs), asked.source.tokenizer
        result = []
        for values, length, row in zip(inputs.values, inputs.lengths.tolist(), logits, strict=True):
            values = values[:length].clone()
            at = (values == spec.special["mask"]).nonzero().flatten()
            shares, best = row[at].double().softmax(1).topk(min(5, row.shape[1]))
            values[at] = best[:, 0]
            found = [
                [{"token": tokenizer.decode([n], special=True), "probability": float(p)} for n, p in pairs]
                for pairs in (zip(ids.tolist(), ps, strict=True) for ids, ps in zip(best, shares, strict=True))
            ]
            result.append({"filled": tokenizer.decode(values.tolist()), "masks": found})
        return result


class CausalLanguage(Language):
    """The next token. `prompt`, `generate`: tokens of a beginning, and of what is made from it, at every evaluation."""

    kind = question = "causal"

    def __init__(self, prompt: int = 16, generate: int = 48, temperature: float = 0.8) -> None:
        for key, value, least in (("prompt", prompt, 1), ("generate", generate, 0)):
            if not least <= value <= LONGEST:
                raise ValueError(f"dataset.task.{key}={value}: from {least} to {LONGEST:,} tokens")
        if not 0 < temperature < math.inf:
            raise ValueError(f"dataset.task.temperature={temperature}: must be above 0, and a number")
        self.prompt, self.generate, self.temperature = prompt, generate, temperature

    def make_inputs(
        self, values: Tensor, lengths: Tensor, labels: Tensor, noise: Any, spec: TextSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """labels: [B, T] the token after each one"""
        return values, values.new_empty(len(values), 0), labels

    @torch.no_grad()
    def previews(self, forward: Any, stream: Any) -> dict[str, Summary]:
        """What the network makes of the beginnings of two samples; the same draws at every step."""
        if not self.generate:
            return {}
        two = [0, len(stream.split) // 2]
        length, starts = min(self.prompt, int(stream.split.lengths[two].min())), stream.split.starts[two]
        tokens = torch.stack([stream.split.tokens[a : a + length] for a in starts.tolist()]).long().to(stream.device)
        draws = torch.Generator().manual_seed(derive_seed("generate"))
        for _ in range(self.generate):
            tokens = torch.cat([tokens, self._next(forward, tokens[:, -stream.spec.max_length :], draws)], 1)
        halves = [(row[:length], row[length:]) for row in tokens.tolist()]
        rows = [[repr(stream.tokenizer.decode(part)) for part in row] for row in halves]
        return {"generated": markdown_table(("begins", "goes on"), rows)}

    @torch.no_grad()
    def predict(self, forward: Any, views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """What the network makes of each beginning: `generate` tokens, drawn from (sample, position)."""
        spec: Any = asked.spec
        batch, longest = views[0], spec.max_length
        result = []
        for values, length, sample in zip(
            batch.inputs.values, batch.inputs.lengths.tolist(), batch.ids.tolist(), strict=True
        ):
            tokens = values[:length].unsqueeze(0)
            draws = torch.Generator().manual_seed(derive_seed("generate", sample))
            for _ in range(self.generate):
                tokens = torch.cat([tokens, self._next(forward, tokens[:, -longest:], draws)], 1)
                if int(tokens[0, -1]) == spec.special.get("eos"):
                    break
            result.append({"generated": asked.source.tokenizer.decode(tokens[0, length:].tolist())})
        return result

    def _next(self, forward: Any, seen: Tensor, draws: torch.Generator) -> Tensor:
        """[B, 1] the tokens behind [B, T], drawn at the task's temperature."""
        lengths = torch.full((len(seen),), seen.shape[1], device=seen.device)
        logits = forward(Padded(seen, lengths, lengths.new_empty(len(seen), 0)))[:, -1].float().cpu()
        chosen = torch.multinomial(F.softmax(logits / self.temperature, 1), 1, generator=draws)
        return chosen.to(seen.device)


class LanguageMetrics:
    """Sums on the device. every: each token is predicted from those before it, so that there are bits per byte of text,
    where tokens stand for bytes.
    """

    def __init__(self, spec: TextSpec, device: torch.device, every: bool, keep: int = 8) -> None:
        self.spec, self.keep = spec, keep
        zeros = torch.zeros(4, dtype=torch.float64, device=device)
        self._loss, self._count, self._hits, self._bytes = zeros.unbind()
        self._token_bytes = torch.tensor(spec.token_bytes if every else (), device=device)
        self._samples: list[tuple[Tensor, Tensor, Tensor]] = []  # of the last batch: ids, targets, predicted

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """outputs: [B, M, V]"""
        targets = batch.targets
        loss, asked, predicted = token_loss(outputs, targets), targets != -100, outputs.argmax(2)
        self._loss += loss.total().double()
        self._count += asked.sum()
        self._hits += (asked & (predicted == targets)).sum()
        if len(self._token_bytes):
            self._bytes += self._token_bytes[targets.clamp_min(0)].mul(asked).sum()
        self._samples = [(batch.ids[: self.keep], targets[: self.keep], predicted[: self.keep])]

    def over_ranks(self, runtime: Runtime) -> None:
        runtime.sum_over_ranks([self._loss, self._count, self._hits, self._bytes])

    def compute(self) -> dict[str, float]:
        total, count, hits, size = torch.stack([self._loss, self._count, self._hits, self._bytes]).tolist()
        loss = total / max(count, 1)
        values = {
            "loss": loss,
            "log_likelihood": -loss,
            "perplexity": math.exp(min(loss, 700)),
            "accuracy": hits / max(count, 1),
        }
        return {**values, "bits_per_byte": total / math.log(2) / size} if size else values

    def warnings(self) -> list[str]:
        return []

    def show(self, stream: Any) -> dict[str, Summary]:
        ids, targets, predicted = self._samples[0]
        captions = []
        for wanted, said in zip(targets.tolist(), predicted.tolist(), strict=True):
            pairs = [(a, b) for a, b in zip(wanted, said, strict=True) if a != -100][:12]
            words = [[stream.tokenizer.decode([n], special=True).strip() for n in pair] for pair in pairs]
            captions.append(" ".join(a if a == b else f"{a}({b}?)" for a, b in words))
        return {"predicted": stream.shown(ids.tolist(), captions)}
