"""How the families of transformers are cut: embeddings, each block, and the head; the last block gathers the outputs.

Between the groups travel `Padded` features: values [B, T, D], lengths [B], from which each block makes its mask, and
the positions that the head is asked for. Decoders need no mask: what is filled up lies on the right, where none looks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.data.padding import inside
from hydratune.types import Padded

Groups = list[tuple[str, nn.Module]]
Family = Callable[[Any, str], tuple[Groups, nn.Module]]
OFFSET = ("roberta", "xlm-roberta", "camembert")


def family(model_type: str, question: str) -> Family:
    """How it is cut; any other than the known ones into its body and its head, which shares nothing below that.

    Raises ValueError for one that is not made for the question.
    """
    families: dict[str, Family] = {
        **dict.fromkeys(ENCODERS, _bert),
        "distilbert": _distilbert,
        "gpt2": _gpt2,
        **dict.fromkeys(DECODERS, _llama),
    }
    if model_type not in families:
        return _any
    causal = model_type == "gpt2" or model_type in DECODERS
    if (question == "masked" and causal) or (question == "causal" and not causal):
        fitting = [m for m in families if (m == "gpt2" or m in DECODERS) == (question == "causal")]
        raise ValueError(f"model: {model_type} is not made for {question} language modelling; {', '.join(fitting)} are")
    return families[model_type]


ENCODERS = ("bert", *OFFSET)
DECODERS = ("llama", "mistral", "qwen2", "qwen3")


# ---- groups


class OnValues(nn.Module):
    """A layer that takes the values alone: embeddings of padded tokens, a decoder's last norm."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Padded) -> Padded:
        return features._replace(values=self.layer(features.values))


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
        rows = torch.arange(len(features.values), device=features.values.device)
        return self.norm(features.values[rows, features.lengths - 1])


# ---- heads


class AtTokens(nn.Module):
    """`head` at the positions that are asked for: Padded [B, T, D] -> [B, M, K], or [B, T, K] where all are."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Padded) -> Tensor:
        return self.head(_asked_for(features.values, features.asked))


def _asked_for(values: Tensor, asked: Tensor) -> Tensor:
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


class Whole(nn.Module):
    """A model that is not cut: padded token numbers [B, T] -> features [B, T, D]"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Padded) -> Padded:
        there = inside(tokens.lengths, tokens.values.shape[1])
        output = self.model(input_ids=tokens.values, attention_mask=there.long())
        return tokens._replace(values=output[0])


class _Given(nn.Module):
    """Stands where a model's body was, and says what its body has said."""

    hidden: Tensor

    def forward(self, *args: Any, **more: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


class Rest(nn.Module):
    """All that a model does after its body: Padded [B, T, D] -> [B, K], or [B, T, K]"""

    def __init__(self, source: Any, question: str) -> None:
        super().__init__()
        self.rest = copy.copy(source)  # its own list of modules; the modules are the source's
        self.rest._modules = {**source._modules, source.base_model_prefix: _Given()}
        self.question, self.prefix, self.pad = question, source.base_model_prefix, source.config.pad_token_id or 0

    def forward(self, features: Padded) -> Tensor:
        there = inside(features.lengths, features.values.shape[1])
        tokens = torch.where(there, self.pad + 1, self.pad)  # where a text ends is seen by them
        self.rest._modules[self.prefix].hidden = features.values
        outputs = self.rest(input_ids=tokens, attention_mask=there.long()).logits
        self.rest._modules[self.prefix].hidden = None
        return outputs if self.question == "sequence" else _asked_for(outputs, features.asked)


# ---- families


def _ending(groups: Groups, layer: nn.Module) -> Groups:
    """With what follows the blocks in the last one's group: the last group is a block to whoever fine-tunes it."""
    name, last = groups[-1]
    return [*groups[:-1], (name, nn.Sequential(last, layer))]


def _any(source: Any, question: str) -> tuple[Groups, nn.Module]:
    kind, model = source.config.model_type, getattr(source, source.base_model_prefix, None)
    groups: Groups = [("body", Whole(model))] if model is not None else []
    head = Rest(source, question)
    tokens = torch.full((2, 3), head.pad + 1)
    example = Padded(tokens, torch.tensor([3, 2]), tokens.new_empty(2, 0))
    try:
        with torch.no_grad():
            head.eval()(groups[0][1].eval()(example))
    except Exception as error:
        said = str(error).splitlines()[:1]
        raise ValueError(f"model: {kind} cannot be divided into a body and a head ({' '.join(said)})") from None
    return groups, head


def _bert(source: Any, question: str) -> tuple[Groups, nn.Module]:
    model = getattr(source, source.base_model_prefix)
    groups: Groups = [("embeddings", OnValues(model.embeddings))]
    groups += [(f"block{i}", EncoderBlock(layer)) for i, layer in enumerate(model.encoder.layer)]
    if question == "sequence":
        groups = _ending(groups, FirstToken())
        plain = source.config.model_type == "bert"
        return groups, BertPooled(source) if plain else RobertaPooled(source.classifier)
    if question == "token":
        return groups, AtTokens(nn.Sequential(source.dropout, source.classifier))
    return groups, AtTokens(source.cls if source.config.model_type == "bert" else source.lm_head)


def _distilbert(source: Any, question: str) -> tuple[Groups, nn.Module]:
    model = source.distilbert
    groups: Groups = [("embeddings", OnValues(model.embeddings))]
    groups += [(f"block{i}", EncoderBlock(layer)) for i, layer in enumerate(model.transformer.layer)]
    if question == "sequence":
        groups = _ending(groups, FirstToken())
        return groups, nn.Sequential(source.pre_classifier, nn.ReLU(), source.dropout, source.classifier)
    if question == "token":
        return groups, AtTokens(nn.Sequential(source.dropout, source.classifier))
    layers = (source.vocab_transform, source.activation, source.vocab_layer_norm, source.vocab_projector)
    return groups, AtTokens(nn.Sequential(*layers))


def _gpt2(source: Any, question: str) -> tuple[Groups, nn.Module]:
    model = source.transformer
    groups: Groups = [("embeddings", OnValues(GPT2Embeddings(model)))]
    groups += [(f"block{i}", DecoderBlock(block)) for i, block in enumerate(model.h)]
    return _decoder(groups, model.ln_f, source, question)


def _llama(source: Any, question: str) -> tuple[Groups, nn.Module]:
    model = source.model
    groups: Groups = [("embeddings", OnValues(model.embed_tokens))]
    groups += [(f"block{i}", DecoderBlock(block, model.rotary_emb)) for i, block in enumerate(model.layers)]
    return _decoder(groups, model.norm, source, question)


def _decoder(groups: Groups, norm: nn.Module, source: Any, question: str) -> tuple[Groups, nn.Module]:
    if question == "sequence":
        return _ending(groups, LastToken(norm)), source.score
    groups = _ending(groups, OnValues(norm))
    if question == "token":
        last = source.classifier if source.config.model_type == "gpt2" else source.score
        return groups, AtTokens(nn.Sequential(source.dropout, last))
    return groups, AtTokens(source.lm_head)
