"""What of others' packages a configuration may name: it constructs, and runs no code that its arguments bring.

The names are checked as text, before anything is imported, and what they turn out to be once more after that.
"""

from __future__ import annotations

import re
from typing import Any

ALLOWED = (
    r"torch\.nn\.[A-Z]\w*",
    r"torchvision\.models\.[a-z]\w*",
    r"timm\.create_model",
    r"transformers\.[A-Z]\w*Config",
)
# Arguments that read files or code: weights come by init_from, as tensors and nothing else
REFUSED = {
    "timm.create_model": {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"},
}


def allowed(target: str) -> bool:
    return any(re.fullmatch(pattern, target, re.ASCII) for pattern in ALLOWED)


def refused(target: str) -> set[str]:
    return REFUSED.get(target, set())


def is_one(target: str, found: Any) -> bool:
    """Whether what was imported under an allowed name is what the name promises."""
    if not allowed(target):
        return False
    package, name = target.partition(".")[0], target.rpartition(".")[2]
    home = str(getattr(found, "__module__", ""))
    if package == "torch":
        from torch import nn

        return isinstance(found, type) and issubclass(found, nn.Module) and home.startswith("torch.nn.modules.")
    if package == "torchvision":
        from torchvision.models import list_models

        return name in list_models() and home.startswith("torchvision.models.")
    if package == "timm":
        return home == "timm.models._factory"
    from transformers import PretrainedConfig

    return isinstance(found, type) and issubclass(found, PretrainedConfig)
