"""Transformers of Hugging Face's library, cut into layer groups; its own heads answer the task's question.

Every tensor keeps the name that it has there, so published weights load and what is exported is read back.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hydratune.core.paths import expanded
from hydratune.core.ragged import rounded
from hydratune.core.types import Backbone, TextSpec
from hydratune.data.text.tokenizer import library, unread
from hydratune.models.text import families

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
}
FILES = ("model.safetensors", "model.safetensors.index.json")


def huggingface(
    name: str | None = None,
    config: PretrainedConfig | None = None,
    options: Mapping[str, Any] | None = None,
    weights: bool = True,
    *,
    text_spec: TextSpec,
    question: str,
) -> Backbone:
    """An encoder or decoder with the head for `question`: sequence, token, masked or causal.

    name: of the hub, or a directory with config.json and model.safetensors. config: instead of that a configuration, a
    network from scratch. options: changes to the configuration, such as {hidden_dropout_prob: 0.0}. weights: whether
    those of `name` are loaded. Raises ValueError for a family that is not known, for weights that are not safetensors,
    and where the tokenizer has tokens that the model does not know.
    """
    transformers = library()
    if (name is None) == (config is None):
        raise ValueError("model: either name (of the hub, or a directory) or config, and not both")
    chosen = _read(transformers, name) if name is not None else config
    assert chosen is not None
    known, classes = chosen.to_dict(), _classes(chosen) if question in ("sequence", "token") else None
    for key, value in (options or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"model.options.{key}={value}: no such key of {chosen.model_type}; nearest: {near}")
        setattr(chosen, key, value)
    use_cache = getattr(chosen, "use_cache", None)
    _fit(chosen, text_spec, own=config is not None, name=name or "config")
    family = families.family(chosen.model_type, question)
    try:
        # SDPA attention where the model has it
        source = getattr(transformers, CLASSES[question]).from_config(chosen, dtype=torch.float32)
    except ValueError as error:
        message = str(error).splitlines()[0]
        if "Unrecognized configuration class" not in message:
            raise ValueError(f"model.config: {chosen.model_type} cannot be built so ({message})") from None
        raise ValueError(f"model: {chosen.model_type} has no head for this task ({message})") from None
    typed = text_spec.pairs and getattr(chosen, "type_vocab_size", 0) > 1 and chosen.model_type not in families.OFFSET
    groups, head = family(source, question, text_spec.special.get("sep") if typed else None)
    loader = (lambda: _weights(name, source)) if name is not None and weights else None

    def export(directory: Path, tensors: Mapping[str, Tensor]) -> None:
        more = {} if use_cache is None else {"use_cache": use_cache}
        if source.config.pad_token_id is None:  # the library's heads look for the end of a text by it
            more["pad_token_id"] = text_spec.special.get("pad", text_spec.special.get("eos"))
        _export(source, directory, tensors, more)
        if typed:  # transformers' tokenizer tells the model of them where it is told to
            _tell_types(directory / "tokenizer_config.json")

    return Backbone(source, groups, head_name="", head=head, weights=loader, classes=classes, export=export)


def _read(transformers: Any, name: str) -> Any:
    try:
        home = expanded(name)
        return transformers.AutoConfig.from_pretrained(home if home.is_dir() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.name={name}: no model could be read there ({unread(name, error)})") from None


def _fit(config: Any, text: TextSpec, own: bool, name: str) -> None:
    """The configuration for this vocabulary and these classes; one that comes with weights keeps its vocabulary."""
    if own:  # else its numbers are what its weights were trained with
        config.vocab_size = text.vocab_size
        for key in ("pad", "bos", "eos"):
            setattr(config, f"{key}_token_id", text.special.get(key))
    elif config.vocab_size < text.vocab_size:
        raise ValueError(
            f"model.name={name}: knows {config.vocab_size} tokens, but the tokenizer has {text.vocab_size}; "
            "dataset.tokenizer.name should be the model's own"
        )
    known = getattr(config, "max_position_embeddings", None) or -1  # XLNet says -1: there is no end of them
    positions: int = known if known > 0 else rounded(text.max_length)
    # RoBERTa's positions begin behind the padding token's number
    room = positions - (config.pad_token_id or 0) - 1 if config.model_type in families.OFFSET else positions
    if own and room < rounded(text.max_length):
        config.max_position_embeddings = rounded(text.max_length) + positions - room
    elif room < rounded(text.max_length):
        raise ValueError(f"dataset.max_length={text.max_length}: {name} has positions for {room // 16 * 16} tokens")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < text.max_length:
        raise ValueError(f"dataset.max_length={text.max_length}: {name} attends to {window} tokens at most")
    config.use_cache = False
    if names := text.class_names or (text.targets.names if text.targets else ()):
        config.id2label = dict(enumerate(names))
        config.label2id = {label: i for i, label in enumerate(names)}


def _classes(config: Any) -> list[str] | None:
    """What a published head was made for, if its configuration names them."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)] if config.id2label else []
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _weights(name: str, source: Any) -> tuple[str, Mapping[str, Tensor]]:
    """(where from, tensors) of a directory or the hub, as they are called in `source`; safetensors and nothing else."""
    from safetensors.torch import load_file

    home = expanded(name)
    if not home.is_dir():
        from huggingface_hub import snapshot_download

        try:
            home = Path(snapshot_download(name, allow_patterns=["*.safetensors", FILES[1]]))
        except Exception as error:
            raise ValueError(f"model.name={name}: its weights could not be had from the hub ({error})") from None
    single, index = (home / file for file in FILES)
    if single.is_file():
        return str(single), _as_called_here(_as_saved_now(load_file(single)), source)
    if not index.is_file():
        raise ValueError(f"model.name={name}: {home} holds no model.safetensors; other formats are not read")
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {k: t for part in parts for k, t in load_file(home / Path(part).name).items()}
    return str(index), _as_called_here(_as_saved_now(tensors), source)


def _as_called_here(tensors: Mapping[str, Tensor], source: Any) -> Mapping[str, Tensor]:
    """A file of the body alone, such as gpt2's, has its tensors without the body's name in front."""
    own, prefix = source.state_dict().keys(), f"{source.base_model_prefix}."
    whole = {k if k in own else f"{prefix}{k}": t for k, t in tensors.items()}
    return whole if len(own & whole.keys()) > len(own & tensors.keys()) else tensors


def _as_saved_now(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Old files call a norm's weight and bias gamma and beta."""
    renamed = {"gamma": "weight", "beta": "bias"}
    return {
        ".".join([*k.split(".")[:-1], renamed.get(k.split(".")[-1], k.split(".")[-1])]): t.float() if
        t.is_floating_point() else t for k, t in tensors.items()
    }  # fmt: skip


def _export(source: nn.Module, directory: Path, tensors: Mapping[str, Tensor], more: Mapping[str, Any]) -> None:
    """A directory that AutoModel...from_pretrained loads, with the names that the classes go by.

    more: what the configuration says otherwise than the network that was trained.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config: Any = copy.deepcopy(source.config)
    for key, value in {**more, "architectures": [type(source).__name__]}.items():
        setattr(config, key, value)
    config.save_pretrained(directory)
    save_file({k: t.contiguous() for k, t in tensors.items()}, directory / "model.safetensors", {"format": "pt"})


def _tell_types(file: Path) -> None:
    if file.is_file():
        names = ["input_ids", "token_type_ids", "attention_mask"]
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}, indent=2))
