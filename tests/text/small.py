"""Networks and data of text that take milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.types import Backbone, Padded, TextSpec
from hydratune.data.text.labelled import LabelledTexts, TaggedSentences
from hydratune.data.text.tokenizer import Tokenizer, TokenizerRecipe
from hydratune.models.network import Network, build_network
from hydratune.models.text.huggingface import huggingface

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SIZES),
    "roberta": ("RobertaConfig", SIZES),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaConfig", {**SIZES, "num_key_value_heads": 1}),
    "mistral": ("MistralConfig", {**SIZES, "num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**SIZES, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {**SIZES, "num_key_value_heads": 2, "head_dim": 16}),
}
SPECIAL = {"pad": 1, "mask": 4, "bos": 2, "eos": 3}


def config(family: str, **more: Any) -> Any:
    import transformers

    name, values = CONFIGS[family]
    return getattr(transformers, name)(**{**values, **more})


def spec(question: str, vocab_size: int = 100, max_length: int = 16) -> TextSpec:
    return TextSpec(vocab_size, max_length, SPECIAL, ("a", "b", "c") if question in ("sequence", "token") else ())


def body_of(family: str, question: str, **more: Any) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return huggingface(config=config(family, **more), text_spec=spec(question), question=question)


def network_of(family: str, question: str, **more: Any) -> tuple[Backbone, Network]:
    body = body_of(family, question, **more)
    assert body.head is not None
    return body, build_network(body, body.head)


def tokens(lengths: tuple[int, ...] = (10, 7, 4), seed: int = 0) -> Padded:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(5, 100, (len(lengths), max(lengths)), generator=g)
    sizes = torch.tensor(lengths)
    values[torch.arange(max(lengths)) >= sizes[:, None]] = SPECIAL["pad"]
    return Padded(values, sizes, sizes.new_empty(len(lengths), 0))


def inside(batch: Padded) -> Tensor:
    return torch.arange(batch.values.shape[1]) < batch.lengths[:, None]


class Texts(LabelledTexts):
    """Rows that a test gives."""

    def __init__(
        self, task: Any, rows: dict[str, list[Any]], recipe: TokenizerRecipe | None = None, **more: Any
    ) -> None:
        given = {"max_length": 16, "bucket": 4, **more}
        super().__init__(task, recipe or TokenizerRecipe(vocab_size=200), **given)
        self.val_share = self.test_share = 0.2
        self._rows = rows

    def rows(self) -> dict[str, list[Any]]:
        return self._rows


class Tags(TaggedSentences):
    def __init__(self, task: Any, rows: dict[str, list[Any]], **more: Any) -> None:
        given = {"max_length": 16, "bucket": 4, **more}
        recipe = TokenizerRecipe(vocab_size=120, lowercase=False)
        super().__init__(task, recipe, **given)
        self.val_share = self.test_share = 0.2
        self._rows = rows

    def rows(self) -> dict[str, list[Any]]:
        return self._rows


def sentences(count: int = 60) -> list[tuple[str, str]]:
    """Of several lengths, with a label that follows from the words."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    rows = []
    for i in range(count):
        text = " ".join(words[(i * 7 + j * 3) % 6] for j in range(1 + i * 5 % 9))
        rows.append((text, "yes" if "alpha" in text else "no"))
    return rows


def trained(directory: Path, texts: Iterable[str], **recipe: Any) -> Tokenizer:
    return TokenizerRecipe(**{"vocab_size": 200, **recipe}).tokenizer(lambda: texts, f"{directory}", None)
