"""Names of earlier versions: what old configurations and records say, as it is called today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydratune.config.public import PUBLIC
from hydratune.config.schema import TARGET

# Where classes lived when YAML named their modules: module -> the room that has their public names
_MODULES = {
    "data.augment": "data", "data.folder": "data", "data.shapes": "data", "data.images": "data",
    "data.labelled_text": "data", "data.corpus": "data", "data.sentences": "data", "data.hub": "data",
    "data.tokenizer": "data", "tasks.classification": "tasks", "tasks.text": "tasks", "tasks.language": "tasks",
    "models.simple_cnn": "models", "models.resnet9": "models", "models.small_resnet": "models",
    "models.torchvision_models": "models", "models.huggingface": "models", "freeze.strategies": "freeze",
    "freeze.schedules": "freeze", "freeze.lora": "freeze", "optim": "optim", "engine.settings": "engine",
    "runtime": "distributed", "sweep.settings": "sweep",
}  # fmt: skip
_RENAMED = {"Nothing": "NoFreeze", "Steps": "MultiStep"}
_RECORD = {"made_of": "provenance", "asked": "config_hash", "beside": "trained_with"}


def public_target(target: str) -> str:
    """The public name of what an older version named by its module; any other target as it is."""
    module, _, name = target.removeprefix("hydratune.").rpartition(".")
    if not target.startswith("hydratune.") or target in PUBLIC or module not in _MODULES:
        return target
    today = f"hydratune.{_MODULES[module]}.{_RENAMED.get(name, name)}"
    return today if today in PUBLIC else target


def upgraded(node: Any) -> Any:
    """A configuration, or a part of it, with the names of today."""
    if isinstance(node, list | tuple):
        return [upgraded(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    result = {key: upgraded(value) for key, value in node.items()}
    if isinstance(result.get(TARGET), str):
        result[TARGET] = public_target(result[TARGET])
    return result


def upgraded_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with the names of today."""
    result = {_RECORD.get(key, key): value for key, value in record.items()}
    if isinstance(result.get("provenance"), Mapping):
        result["provenance"] = upgraded(result["provenance"])
    return result
