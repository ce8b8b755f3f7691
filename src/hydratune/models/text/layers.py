"""What transformers are made of between the library's layers: masks, pooling, and heads that answer where asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.ragged import inside
from hydratune.core.types import Padded


class OnValues(nn.Module):
    """A layer that takes the values alone: embeddings of padded tokens, a decoder's last norm."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Padded) -> Padded:
        return features._replace(values=self.layer(features.values))


class Segments(nn.Module):
    """An encoder's embeddings; of pairs, those of the second text have another type. separator: its token's number."""

    def __init__(self, layer: nn.Module, separator: int | None) -> None:
        super().__init__()
        self.layer, self.separator = layer, separator

    def forward(self, tokens: Padded) -> Padded:
        if self.separator is None:
            return tokens._replace(values=self.layer(tokens.values))
        return tokens._replace(values=self.layer(tokens.values, token_type_ids=types_of(tokens, self.separator)))


def types_of(tokens: Padded, separator: int) -> Tensor:
    """[B, T] 0 up to the first separator, 1 behind it; in a single text that is its end."""
    ends = tokens.values == separator
    second = (ends.cumsum(1) - ends.long()).clamp_max(1)
    return second * inside(tokens.lengths, tokens.values.shape[1])


class EncoderBlock(nn.Module):
    """Every token attends to all that are not filled up."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: Padded) -> Padded:
        there = inside(features.lengths, features.values.shape[1])
        output = self.block(features.values, there[:, None, None, :])
        return features._replace(values=output[0] if isinstance(output, tuple) else output)


class DecoderBlock(nn.Module):
    """Every token attends to those before it; `rotary` turns positions into angles, where the family has such."""

    def __init__(self, block: nn.Module, rotary: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.rotary = block, rotary

    def forward(self, features: Padded) -> Padded:
        values = features.values
        more: dict[str, Any] = {}
        if self.rotary is not None:
            positions = torch.arange(values.shape[1], device=values.device).unsqueeze(0)
            more = {"position_embeddings": self.rotary(values, position_ids=positions), "position_ids": positions}
        output = self.block(values, attention_mask=None, **more)
        return features._replace(values=output[0] if isinstance(output, tuple) else output)


class GPT2Embeddings(nn.Module):
    """Token and position embeddings. [B, T] -> [B, T, D]"""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = model.wte, model.wpe, model.drop

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        return self.drop(self.wte(tokens) + self.wpe(positions))


class FirstToken(nn.Module):
    """Padded [B, T, D] -> [B, D], what an encoder says of the whole."""

    def forward(self, features: Padded) -> Tensor:
        return features.values[:, 0]


class LastToken(nn.Module):
    """Padded [B, T, D] -> [B, D], the normed features of the last token, which alone has seen all."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, features: Padded) -> Tensor:
        rows = torch.arange(features.values.shape[0], device=features.values.device)
        return self.norm(features.values[rows, features.lengths - 1])


# ---- heads


class AtTokens(nn.Module):
    """`head` at the positions that are asked for: Padded [B, T, D] -> [B, M, K], or [B, T, K] where all are."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Padded) -> Tensor:
        return self.head(asked_for(features.values, features.asked))


def asked_for(values: Tensor, asked: Tensor) -> Tensor:
    """[B, T, D] at the positions [B, M]; all of it where there are none."""
    return values.gather(1, asked.unsqueeze(2).expand(-1, -1, values.shape[2])) if asked.shape[1] else values


class BertPooled(nn.Module):
    """[B, D] -> [B, K] by way of a dense layer with tanh."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.pooler, self.dropout, self.classifier = source.bert.pooler, source.dropout, source.classifier

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pooler(features.unsqueeze(1))))


class RobertaPooled(nn.Module):
    """The same for RoBERTa, whose head takes the sequence."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features.unsqueeze(1))
