"""The public face: names that YAML and users may use, stable wherever a class lives.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# room -> module below it -> names
_ROOMS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "dataset": ("Dataset",),
        "stream": ("Stream",),
        "images.augment": ("Augment",),
        "images.image_dataset": ("ImageDataset",),
        "images.folder": ("ImageFolder",),
        "images.shapes": ("Shapes",),
        "images.table": ("ImageTable",),
        "images.masks": ("ImageMasks",),
        "images.detection": ("CocoDetection", "VocDetection"),
        "images.torchvision_images": ("TorchvisionImages", "TorchvisionFiles"),
        "text.text_dataset": ("TextDataset",),
        "text.labelled": ("LabelledTexts", "TaggedSentences"),
        "text.labelled_text": ("TextTable", "ColumnFiles"),
        "text.corpus": ("TextCorpus", "PythonDocumentation"),
        "text.sentences": ("GeneratedSentiment", "GeneratedEntities"),
        "text.hub": ("HubTexts",),
        "text.tokenizer": ("TokenizerRecipe",),
        "boards.solved": ("SolvedPositions",),
        "boards.generations": ("Generations", "Play"),
    },
    "tasks": {
        "classification": ("Classification",),
        "text": ("SequenceClassification", "TokenClassification"),
        "language": ("MaskedLanguage", "CausalLanguage"),
        "regression": ("Regression",),
        "multilabel": ("MultiLabel",),
        "segmentation": ("Segmentation",),
        "fcos": ("Fcos",),
        "retinanet": ("Retinanet",),
        "policy_value": ("PolicyValue",),
    },
    "models": {
        "vision.simple_cnn": ("simple_cnn", "mlp"),
        "vision.resnet9": ("resnet9",),
        "vision.small_resnet": ("small_resnet",),
        "vision.torchvision_models": ("torchvision_model",),
        "vision.timm_models": ("timm_model",),
        "vision.efficientnet_lite0": ("efficientnet_lite0",),
        "text.huggingface": ("huggingface",),
        "boards": ("board_resnet",),
    },
    "freeze": {
        "strategies": (
            "NoFreeze", "HeadOnly", "LastGroups", "FirstGroups", "Surgical", "BiasOnly", "NormOnly", "Pattern",
        ),
        "schedules": ("LpFt", "FreezeUnfreeze", "Gradual", "Progressive", "Lisa"),
        "lora": ("LoRA",),
    },
    "optim": {
        "optimizers": ("OptimizerConfig", "SGD", "AdamW", "Muon", "Torch"),
        "schedules": (
            "Schedule", "Constant", "Cosine", "Linear", "MultiStep", "OneCycle", "WarmupStableDecay", "BitHyperRule",
        ),
    },
    "engine": {"settings": ("Settings",)},
    "games": {
        "game": ("Game",),
        "connect4": ("Connect4",),
        "othello": ("Othello",),
        "tictactoe": ("TicTacToe",),
        "search": ("Gumbel", "Puct"),
    },
    "distributed": {"runtime": ("Runtime",)},
    "sweep": {"settings": ("SweepSettings", "Halving")},
}  # fmt: skip
# What `import hydratune` offers itself: to use it from Python, and to be subclassed
_TOP = {
    "load": "cli.api",
    "run": "cli.api",
    "leaderboard": "cli.api",
    "Batch": "core.types",
    "Backbone": "core.types",
    "FreezeStrategy": "core.types",
    "ImageSpec": "core.types",
    "LayerGroup": "core.types",
    "Loss": "core.loss",
    "Term": "core.loss",
    "Phase": "core.types",
    "Task": "core.task",
    "TextSpec": "core.types",
    "Ragged": "core.ragged",
    "Dataset": "data.dataset",
    "Game": "games.game",
    "ImageDataset": "data.images.image_dataset",
    "TextDataset": "data.text.text_dataset",
    "OptimizerConfig": "optim.optimizers",
    "Schedule": "optim.schedules",
}
PUBLIC: dict[str, str] = {
    f"hydratune.{room}.{name}": f"hydratune.{room}.{module}"
    for room, modules in _ROOMS.items()
    for module, names in modules.items()
    for name in names
} | {f"hydratune.{name}": f"hydratune.{module}" for name, module in _TOP.items()}
COMPONENT_ROOMS = tuple(_ROOMS)


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """(`__getattr__`, `__dir__`) of a package whose public names are imported when they are asked for."""

    def get(name: str) -> Any:
        module = PUBLIC.get(f"{package}.{name}")
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    def names() -> list[str]:
        return sorted(public.rpartition(".")[2] for public in PUBLIC if public.rpartition(".")[0] == package)

    return get, names
