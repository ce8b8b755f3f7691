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

from hydratune.core.ragged import inside
from hydratune.core.types import Padded
from hydratune.models.text.layers import (
    AtTokens,
    BertPooled,
    DecoderBlock,
    EncoderBlock,
    FirstToken,
    GPT2Embeddings,
    LastToken,
    OnValues,
    RobertaPooled,
    Segments,
    asked_for,
    types_of,
)

Groups = list[tuple[str, nn.Module]]
Family = Callable[[Any, str, int | None], tuple[Groups, nn.Module]]
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


# ---- a model that is not cut


class Whole(nn.Module):
    """A model that is not cut: padded token numbers [B, T] -> features [B, T, D]"""

    def __init__(self, model: nn.Module, separator: int | None = None) -> None:
        super().__init__()
        self.model, self.separator = model, separator

    def forward(self, tokens: Padded) -> Padded:
        there = inside(tokens.lengths, tokens.values.shape[1])
        more = {} if self.separator is None else {"token_type_ids": types_of(tokens, self.separator)}
        output = self.model(input_ids=tokens.values, attention_mask=there.long(), **more)
        return tokens._replace(values=output[0])


class _Given(nn.Module):
    """Stands where a model's body was, and says what its body has said."""

    hidden: Tensor

    def forward(self, *args: Any, **more: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)


class Rest(nn.Module):
    """All that a model does after its body: Padded [B, T, D] -> [B, K], or [B, T, K]"""

    def __init__(self, source: Any, question: str) -> None:
        super().__init__()
        self.rest = copy.copy(source)  # its own list of modules; the modules are the source's
        self.rest._modules = {**source._modules, source.base_model_prefix: _Given()}
        self.question, self.prefix, self.pad = question, source.base_model_prefix, source.config.pad_token_id or 0
        self.rest.config = copy.deepcopy(source.config)
        self.rest.config.get_text_config().pad_token_id = self.pad

    def forward(self, features: Padded) -> Tensor:
        there = inside(features.lengths, features.values.shape[1])
        tokens = torch.where(there, self.pad + 1, self.pad)  # where a text ends is seen by them
        self.rest._modules[self.prefix].hidden = features.values
        outputs = self.rest(input_ids=tokens, attention_mask=there.long()).logits
        self.rest._modules[self.prefix].hidden = None
        return outputs if self.question == "sequence" else asked_for(outputs, features.asked)


# ---- families


def _ending(groups: Groups, layer: nn.Module) -> Groups:
    """With what follows the blocks in the last one's group: the last group is a block to whoever fine-tunes it."""
    name, last = groups[-1]
    return [*groups[:-1], (name, nn.Sequential(last, layer))]


def _any(source: Any, question: str, separator: int | None) -> tuple[Groups, nn.Module]:
    kind, model = source.config.model_type, getattr(source, source.base_model_prefix, None)
    groups: Groups = [("body", Whole(model, separator))] if model is not None else []
    head = Rest(source, question)
    # The second one is filled up; beside it the same without that, and with another last token.
    tokens = torch.full((3, 3), head.pad + 1)
    tokens[1, 2], tokens[2, 2] = head.pad, head.pad + 2
    example = Padded(tokens, torch.tensor([3, 2, 3]), tokens.new_empty(3, 0))
    short = Padded(tokens[1:2, :2], torch.tensor([2]), tokens.new_empty(1, 0))
    try:
        with torch.no_grad():
            outputs, alone = (head.eval()(groups[0][1].eval()(given)) for given in (example, short))
    except Exception as error:
        reason = str(error).splitlines()[:1]
        raise ValueError(f"model: {kind} cannot be divided into a body and a head ({' '.join(reason)})") from None
    if question == "causal" and not torch.allclose(outputs[0, :2], outputs[2, :2], atol=1e-4):
        raise ValueError(f"model: {kind} sees the tokens that it should predict; it is not made for causal modelling")
    if not torch.allclose(outputs[1] if question == "sequence" else outputs[1, :2], alone[0], atol=1e-4):
        raise ValueError(f"model: {kind} takes what is filled up on the right for text")
    return groups, head


def _bert(source: Any, question: str, separator: int | None) -> tuple[Groups, nn.Module]:
    model = getattr(source, source.base_model_prefix)
    plain = source.config.model_type == "bert"
    groups: Groups = [("embeddings", Segments(model.embeddings, separator))]
    groups += [(f"block{i}", EncoderBlock(layer)) for i, layer in enumerate(model.encoder.layer)]
    if question == "sequence":
        groups = _ending(groups, FirstToken())
        return groups, BertPooled(source) if plain else RobertaPooled(source.classifier)
    if question == "token":
        return groups, AtTokens(nn.Sequential(source.dropout, source.classifier))
    return groups, AtTokens(source.cls if plain else source.lm_head)


def _distilbert(source: Any, question: str, separator: int | None) -> tuple[Groups, nn.Module]:
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


def _gpt2(source: Any, question: str, separator: int | None) -> tuple[Groups, nn.Module]:
    model = source.transformer
    groups: Groups = [("embeddings", OnValues(GPT2Embeddings(model)))]
    groups += [(f"block{i}", DecoderBlock(block)) for i, block in enumerate(model.h)]
    return _decoder(groups, model.ln_f, source, question)


def _llama(source: Any, question: str, separator: int | None) -> tuple[Groups, nn.Module]:
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
