"""Transformers of Hugging Face's library, cut into layer groups; its own heads answer the task's question.

Every tensor keeps the name that it has there, so published weights load and what is exported is read back.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hydratune.data.padding import rounded
from hydratune.data.tokenizer import library
from hydratune.models import text_groups
from hydratune.types import Body, TextSpec

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
) -> Body:
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
    known = chosen.to_dict()
    for key, value in (options or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"model.options.{key}={value}: no such key of {chosen.model_type}; nearest: {near}")
        setattr(chosen, key, value)
    _fit(chosen, text_spec, own=config is not None, name=name or "config")
    family = text_groups.family(chosen.model_type, question)
    try:
        source = getattr(transformers, CLASSES[question]).from_config(chosen)  # SDPA attention where the model has it
    except ValueError as error:
        raise ValueError(
            f"model: {chosen.model_type} has no head for this task ({str(error).splitlines()[0]})"
        ) from None
    source = source.float()
    groups, head = family(source, question)
    loader = (lambda: _weights(name)) if name is not None and weights else None

    def export(directory: Path, tensors: Mapping[str, Tensor]) -> None:
        _export(source, directory, tensors)

    return Body(source, groups, head_name="", head=head, weights=loader, export=export)


def _read(transformers: Any, name: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name={name}: no such directory, and it could not be had from the hub "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def _fit(config: Any, text: TextSpec, own: bool, name: str) -> None:
    """The configuration for this vocabulary and these classes; one that comes with weights keeps its vocabulary."""
    if own:
        config.vocab_size = text.vocab_size
    elif config.vocab_size < text.vocab_size:
        raise ValueError(
            f"model.name={name}: knows {config.vocab_size} tokens, but the tokenizer has {text.vocab_size}; "
            "dataset.tokenizer.name should be the model's own"
        )
    positions: int = getattr(config, "max_position_embeddings", None) or rounded(text.max_length)
    # RoBERTa's positions begin behind the padding token's number
    room = positions - config.pad_token_id - 1 if config.model_type in text_groups.OFFSET else positions
    if own and room < rounded(text.max_length):
        config.max_position_embeddings = rounded(text.max_length) + positions - room
    elif room < rounded(text.max_length):
        raise ValueError(f"dataset.max_length={text.max_length}: {name} has positions for {room // 16 * 16} tokens")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < text.max_length:
        raise ValueError(f"dataset.max_length={text.max_length}: {name} attends to {window} tokens at most")
    config.use_cache = False
    config.pad_token_id = text.special.get("pad", config.pad_token_id)
    if own:
        for key in ("bos", "eos"):
            setattr(config, f"{key}_token_id", text.special.get(key))
    if text.class_names:
        config.id2label = dict(enumerate(text.class_names))
        config.label2id = {label: i for i, label in enumerate(text.class_names)}


def _weights(name: str) -> tuple[str, Mapping[str, Tensor]]:
    """(where from, tensors) of a directory or the hub; safetensors and nothing else."""
    from safetensors.torch import load_file

    home = Path(name).expanduser()
    if not home.is_dir():
        from huggingface_hub import snapshot_download

        try:
            home = Path(snapshot_download(name, allow_patterns=["*.safetensors", FILES[1]]))
        except Exception as error:
            raise ValueError(f"model.name={name}: its weights could not be had from the hub ({error})") from None
    single, index = (home / file for file in FILES)
    if single.is_file():
        return str(single), _as_saved_now(load_file(single))
    if not index.is_file():
        raise ValueError(f"model.name={name}: {home} holds no model.safetensors; other formats are not read")
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return str(index), _as_saved_now({k: t for part in parts for k, t in load_file(home / Path(part).name).items()})


def _as_saved_now(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Old files call a norm's weight and bias gamma and beta."""
    renamed = {"gamma": "weight", "beta": "bias"}
    return {
        ".".join([*k.split(".")[:-1], renamed.get(k.split(".")[-1], k.split(".")[-1])]): t.float() if
        t.is_floating_point() else t for k, t in tensors.items()
    }  # fmt: skip


def _export(source: nn.Module, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """A directory that AutoModel...from_pretrained loads, with the names that the classes go by."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config: Any = source.config
    config.architectures = [type(source).__name__]
    config.save_pretrained(directory)
    save_file({k: t.contiguous() for k, t in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
