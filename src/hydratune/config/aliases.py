"""Names of earlier versions: what old configurations and records say, as it is called today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydratune.config.schema import TARGET

# Where classes lived when YAML named their modules
_MODULES = {
    "data.augment": ("Augment",), "data.folder": ("ImageFolder",), "data.shapes": ("Shapes",),
    "data.images": ("TorchvisionImages", "TorchvisionFiles"), "data.labelled_text": ("TextTable", "ColumnFiles"),
    "data.corpus": ("TextCorpus", "PythonDocumentation"), "data.hub": ("HubTexts",),
    "data.sentences": ("GeneratedSentiment", "GeneratedEntities"), "data.tokenizer": ("TokenizerRecipe",),
    "tasks.classification": ("Classification",), "tasks.text": ("SequenceClassification", "TokenClassification"),
    "tasks.language": ("MaskedLanguage", "CausalLanguage"), "models.simple_cnn": ("simple_cnn", "mlp"),
    "models.resnet9": ("resnet9",), "models.small_resnet": ("small_resnet",),
    "models.torchvision_models": ("torchvision_model",), "models.huggingface": ("huggingface",),
    "freeze.strategies": (
        "Nothing", "HeadOnly", "LastGroups", "FirstGroups", "Surgical", "BiasOnly", "NormOnly", "Pattern",
    ),
    "freeze.schedules": ("LpFt", "FreezeUnfreeze", "Gradual", "Progressive"), "freeze.lora": ("LoRA",),
    "optim": ("SGD", "AdamW", "Muon", "Torch", "Constant", "Cosine", "Linear", "Steps"),
    "engine.settings": ("Settings",), "runtime": ("Runtime",), "sweep.settings": ("SweepSettings", "Halving"),
}  # fmt: skip
_ROOMS = {"runtime": "distributed"}  # of modules that lay in no room
_RENAMED = {"Nothing": "NoFreeze", "Steps": "MultiStep"}
_TODAY = {
    f"hydratune.{module}.{name}": f"hydratune.{_ROOMS.get(module, module.partition('.')[0])}.{_RENAMED.get(name, name)}"
    for module, names in _MODULES.items()
    for name in names
}
_THEN = {today: then for then, today in _TODAY.items()}
# Keys that came later, with what they were before
_OWN_FILES = {"fit": "crop"}
_ADDED: dict[str, dict[str, Any]] = {
    "hydratune.data.TextTable": {"separator": "auto"},
    "hydratune.data.ImageFolder": _OWN_FILES,
    "hydratune.data.ImageTable": _OWN_FILES,
}
_RECORD = {"made_of": "provenance", "asked": "config_hash", "beside": "trained_with"}


def public_target(target: str) -> str:
    """The public name of what an older version named by its module; any other target as it is."""
    return _TODAY.get(target, target)


def upgraded(node: Any) -> Any:
    """A configuration, or a part of it, with the names of today."""
    if isinstance(node, list | tuple):
        return [upgraded(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    result = {key: upgraded(value) for key, value in node.items()}
    if isinstance(result.get(TARGET), str):
        result[TARGET] = public_target(result[TARGET])
        result = {**_ADDED.get(result[TARGET], {}), **result}
    return result


def former(node: Any) -> Any:
    """The inverse: as the version before would have written it."""
    if isinstance(node, list | tuple):
        return [former(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    added = _ADDED.get(str(node.get(TARGET)), {})
    result = {key: former(value) for key, value in node.items() if added.get(key, ...) != value}
    if isinstance(result.get(TARGET), str):
        result[TARGET] = _THEN.get(result[TARGET], result[TARGET])
    return result


def upgraded_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with the names of today."""
    result = {_RECORD.get(key, key): value for key, value in record.items()}
    if isinstance(result.get("provenance"), Mapping):
        result["provenance"] = upgraded(result["provenance"])
    return result
