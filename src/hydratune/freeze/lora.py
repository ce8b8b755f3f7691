"""LoRA: a frozen base with low-rank updates (Hu et al. 2021, arXiv 2106.09685).

A parametrization rather than a layer of its own: attention layers read `.weight` themselves, and every tensor of the
source model keeps its name. Whoever reads it so has the sum, whose gradient is formed whole. A Linear or Conv2d that is
called takes its inputs through the base and through the two small factors, and the whole gradient is never formed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydratune.core.types import LayerGroup, Phase
from hydratune.freeze.phases import from_group, head, phase

A, B, SCALE = ".lora_A.weight", ".lora_B.weight", ".lora_scale"
TRANSPOSED = ".lora_transposed"  # a marker beside the scale, where the weight is [inputs, outputs]
TARGETS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "weight"),
    (nn.Conv2d, "weight"),
    (nn.MultiheadAttention, "in_proj_weight"),
)


class LowRank(nn.Module):
    """weight + alpha / rank * B A (equation 3): A [rank, inputs, ...] is drawn, B [outputs, rank] begins at zero."""

    lora_scale: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, transposed: bool = False) -> None:
        """scale: of the update. transposed: the weight is [inputs, outputs], as in GPT-2's Conv1D."""
        super().__init__()
        outputs, *inputs = weight.t().shape if transposed else weight.shape
        self.transposed = transposed
        self.lora_A = nn.Parameter(weight.new_empty(rank, *inputs))
        self.lora_B = nn.Parameter(weight.new_zeros(outputs, rank))
        if transposed:
            self.register_buffer("lora_transposed", torch.tensor(1.0))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_buffer("lora_scale", torch.tensor(scale))  # a checkpoint can be merged by itself

    def forward(self, weight: Tensor) -> Tensor:
        update = self.lora_B @ self.lora_A.flatten(1)
        return weight + self.lora_scale * (update.t() if self.transposed else update.view(weight.shape))


# ---- layers that are called: equation 3 from the right


def _linear(self: Any, x: Tensor) -> Tensor:
    base, low = self.parametrizations.weight.original, self.parametrizations.weight[0]
    return F.linear(x, base, self.bias) + low.lora_scale * F.linear(F.linear(x, low.lora_A), low.lora_B)


def _conv1d(self: Any, x: Tensor) -> Tensor:
    """Of transformers: [..., inputs] -> [..., outputs]"""
    base, low = self.parametrizations.weight.original, self.parametrizations.weight[0]
    return F.linear(x, base.t(), self.bias) + low.lora_scale * F.linear(F.linear(x, low.lora_A), low.lora_B)


def _conv2d(self: Any, x: Tensor) -> Tensor:
    base, low = self.parametrizations.weight.original, self.parametrizations.weight[0]
    update = F.conv2d(self._conv_forward(x, low.lora_A, None), low.lora_B[:, :, None, None])
    return self._conv_forward(x, base, self.bias) + low.lora_scale * update


def _factored(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """How it is called without the sum of its weight; None where it is of a kind that does more with it."""
    if is_conv1d(module):
        return _conv1d
    if type(module) is nn.Conv2d and module.groups == 1:  # of few inputs each, the sum is cheaper
        return _conv2d
    return _linear if type(module) is nn.Linear else None


class LoRA:
    """freeze=lora: low-rank updates of Linear, Conv2d and attention layers, and the head train."""

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] | None = None, rank_stabilized: bool = False,
        loraplus_lr_ratio: float = 1.0,
    ) -> None:  # fmt: skip
        """alpha: the update counts alpha / rank; rank_stabilized: alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732).

        targets: regular expressions for layers; null: all below the head. loraplus_lr_ratio: B's rate over A's, which
        has its layer's (LoRA+, arXiv 2402.12354).
        """
        if rank < 1:
            raise ValueError(f"freeze.rank={rank}: at least 1")
        if alpha <= 0:
            raise ValueError(f"freeze.alpha={alpha}: must be above 0")
        if not 0 < loraplus_lr_ratio < math.inf:
            raise ValueError(f"freeze.loraplus_lr_ratio={loraplus_lr_ratio}: must be above 0, 16 for example")
        self.rank, self.alpha, self.targets, self.rank_stabilized = rank, alpha, targets, rank_stabilized
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        adapters = [n for n in from_group(groups, 0) if n.endswith((A, B))]
        only = phase(groups, 0, num_steps, [*adapters, *head(groups)], f"rank {self.rank} updates and head")
        ratio = self.loraplus_lr_ratio
        return [only if ratio == 1 else replace(only, lr_ratios={n: ratio for n in adapters if n.endswith(B)})]

    def adapt(self, groups: Sequence[LayerGroup]) -> list[LayerGroup]:
        """The groups with updates on their layers; the modules are changed in place, their own tensors stay."""
        tensors = Counter(id(p) for g in groups for _, p in g.module.named_parameters(remove_duplicate=False))
        found = [
            (group, *layer)
            for group in groups[:-1]
            for layer in _layers(group)
            if tensors[id(getattr(layer[1], layer[2]))] == 1  # a tied weight would come apart
        ]
        names = [layer for _, layer, *_ in found]
        for target in self.targets or ():
            if not any(re.search(target, name) for name in names):
                raise ValueError(f"freeze.targets={target} matches no layer. Layers: {', '.join(names)}")
        if not names:
            raise ValueError("freeze=lora: this network has no Linear, Conv2d or attention layer below its head")
        for _, name, module, tensor in found:
            if self.targets is None or any(re.search(target, name) for target in self.targets):
                called = _factored(module)
                update = LowRank(getattr(module, tensor), self.rank, self.scale, is_conv1d(module))
                parametrize.register_parametrization(module, tensor, update, unsafe=True)
                if called is not None:
                    type(module).forward = called  # a class of this module alone
        return [LayerGroup(g.name, g.module, _names(g)) for g in groups]


def _layers(group: LayerGroup) -> Iterator[tuple[str, nn.Module, str]]:
    """(name in the source model, module, which of its tensors) of all that can be updated."""
    for path, module in group.module.named_modules():
        for kind, attribute in TARGETS:
            fits = isinstance(module, kind) or (kind is nn.Linear and is_conv1d(module))
            if fits and getattr(module, attribute) is not None:
                own = f"{path}.{attribute}" if path else attribute
                if own not in group.names:  # a weight that is parametrized already
                    continue
                yield group.names[own].rpartition(".")[0], module, attribute


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Linear with a weight the other way round, as GPT-2 has it."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _names(group: LayerGroup) -> dict[str, str]:
    """Source names after parametrization: the base tensors keep theirs, updates are called as PEFT calls them."""
    result = {}
    for key in [k for k, _ in group.module.named_parameters()] + [k for k, _ in group.module.named_buffers()]:
        if found := re.fullmatch(r"(.*?)parametrizations\.(\w+)\.(original|0\.(\w+))", key):
            path, tensor, _, part = found.groups()
            base = group.names[f"{path}{tensor}"]
            layer = base.rpartition(".")[0]
            own = {"lora_A": A, "lora_B": B, "lora_scale": SCALE, "lora_transposed": TRANSPOSED}
            result[key] = base if part is None else layer + own[part]
        else:
            result[key] = group.names[key]
    return result


def is_adapter(name: str) -> bool:
    return name.endswith((A, B, SCALE, TRANSPOSED))


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its updates added into plain weights; as it was, where it has none."""
    result = {n: t for n, t in tensors.items() if not is_adapter(n)}
    for name in [n for n in tensors if n.endswith(A)]:
        layer = name.removesuffix(A)
        weight = next(n for n in (f"{layer}.weight", f"{layer}.in_proj_weight") if n in result)
        update = tensors[layer + B].flatten(1) @ tensors[name].flatten(1)
        update = update.t() if layer + TRANSPOSED in tensors else update.view(result[weight].shape)
        result[weight] = result[weight] + tensors[layer + SCALE] * update
    return result


def save_adapter(directory: Path, tensors: Mapping[str, Tensor], heads: Sequence[str]) -> None:
    """Updates and the modules of the head, in PEFT's layout: `PeftModel.from_pretrained(model, directory)` takes it."""
    from safetensors.torch import save_file

    layers = sorted(n.removesuffix(A) for n in tensors if n.endswith(A))
    kept: dict[str, Tensor] = {}
    for layer in layers:
        a, b = tensors[layer + A], tensors[layer + B]
        # PEFT's update of a convolution is two convolutions, the second of them 1x1
        kept |= {f"{layer}{A}": a, f"{layer}{B}": b.view(*b.shape, 1, 1) if a.ndim == 4 else b}
    kept |= {n: t for n, t in tensors.items() if n.rpartition(".")[0] in heads}
    rank = len(tensors[layers[0] + A])
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": float(tensors[layers[0] + SCALE]) * rank,
        "target_modules": layers,
        "modules_to_save": list(heads),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(n.endswith(TRANSPOSED) for n in tensors),
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    prefixed = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in kept.items()}
    save_file(prefixed, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=1))
