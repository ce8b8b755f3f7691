"""Which parameters a layer group owns, and which of its layers are norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydratune.core.types import LayerGroup


def parameter_names(groups: Sequence[LayerGroup]) -> list[list[str]]:
    """Per group the names of its parameters; a tied parameter belongs to its earliest user."""
    seen: set[int] = set()
    result: list[list[str]] = []
    for group in groups:
        fresh = [(k, p) for k, p in group.module.named_parameters() if id(p) not in seen]
        seen.update(id(p) for _, p in fresh)
        result.append([group.names[k] for k, _ in fresh])
    return result


def norm_layers(group: LayerGroup) -> Iterator[tuple[nn.Module, list[str]]]:
    """Every normalisation layer with the names of its parameters."""
    for path, module in group.module.named_modules():
        # transformers and timm have norms of their own, named after what they are
        if isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm) or type(module).__name__.endswith("Norm"):
            prefix = f"{path}." if path else ""
            yield module, [group.names[f"{prefix}{k}"] for k, _ in module.named_parameters(recurse=False)]


def running_norms(group: LayerGroup) -> list[tuple[_BatchNorm, list[str]]]:
    """The BatchNorm layers that keep running statistics, with the names of their parameters."""
    found = [(m, names) for m, names in norm_layers(group) if isinstance(m, _BatchNorm)]
    return [(m, names) for m, names in found if m.track_running_stats]
