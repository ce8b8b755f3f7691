"""Optimizers with a rate of their own per layer group."""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import LayerGroup, Phase


class OptimizerConfig(ABC):
    """Which optimizer, and the rate and weight decay of each parameter.

    lr: the head's and every group's rate before `layer_decay` (lr * decay^(groups above it)) and
    `head_lr_multiplier`. decay_norm_and_bias=False takes weight decay off biases and normalisation parameters
    (every tensor with fewer than two dimensions). l2_sp: strength of the pull of the trunk's weights towards those they
    started from, l2_sp / 2 * |w - w0|^2 in the loss (arXiv 1802.01483); weight_decay acts beside it.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        for key, value in (("lr", lr), ("layer_decay", layer_decay), ("head_lr_multiplier", head_lr_multiplier)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"optimizer.{key}={value}: must be above 0")
        for key, value in (("weight_decay", weight_decay), ("l2_sp", l2_sp)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"optimizer.{key}={value}: must not be below 0")
        self.lr, self.weight_decay = lr, weight_decay
        self.layer_decay, self.head_lr_multiplier = layer_decay, head_lr_multiplier
        self.decay_norm_and_bias, self.l2_sp = decay_norm_and_bias, l2_sp
        self.options: Mapping[str, Any] = {}

    def _checked(self, **options: Any) -> Mapping[str, Any]:
        """The class's own arguments, looked at. Raises ValueError for what cannot be meant."""
        momentum, betas, eps = options.get("momentum", 0.0), options.get("betas"), options.get("eps", 1.0)
        if isinstance(momentum, int | float) and not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum={momentum}: from 0 to below 1")
        if betas is not None and (len(betas) < 2 or not all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"optimizer.betas={list(betas)}: two numbers from 0 to below 1, such as [0.9,0.999]")
        if isinstance(eps, int | float) and not eps >= 0:
            raise ValueError(f"optimizer.eps={eps}: must not be below 0")
        return options

    @abstractmethod
    def optimizer_class(self) -> type[torch.optim.Optimizer]: ...

    def rate(self, index: int, num_groups: int) -> float:
        """The rate of layer group `index` before the schedule."""
        rate = self.lr * self.layer_decay ** (num_groups - 1 - index)
        return rate * self.head_lr_multiplier if index == num_groups - 1 else rate

    def build(
        self,
        groups: Sequence[LayerGroup],
        parameters: Mapping[str, nn.Parameter],
        phases: Sequence[Phase] = (),
    ) -> torch.optim.Optimizer:
        """Over all parameters, frozen or not, so that its groups are the same in every phase.

        Parameters with equal settings that train in the same phases, at the same rates, share one parameter group, as
        fused optimizers want all state of a group to be of one age. Each group carries `base_lr` and the `names`
        within.
        """
        by_setting: dict[tuple[float, float, tuple[float | None, ...]], list[str]] = {}
        for i, names in enumerate(parameter_names(groups)):
            for name in names:
                decays = self.decay_norm_and_bias or parameters[name].ndim > 1
                when = tuple(p.lr_ratios.get(name, 1.0) if name in p.trainable else None for p in phases)
                setting = (self.rate(i, len(groups)), self.weight_decay if decays else 0.0, when)
                by_setting.setdefault(setting, []).append(name)
        settings = [
            {"params": [parameters[n] for n in names], "names": names, "lr": lr, "base_lr": lr, "weight_decay": wd}
            for (lr, wd, _), names in by_setting.items()
        ]
        optimizer = self.optimizer_class()
        options = dict(self.options)
        plain = not any(hasattr(p, "device_mesh") for p in parameters.values())
        fusable = plain and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters.values())
        chosen = options.keys() & {"fused", "foreach", "differentiable"}
        if fusable and not chosen and "fused" in inspect.signature(optimizer).parameters:
            options.setdefault("fused", True)  # one kernel for all parameters rather than a few for each
        try:
            return optimizer(settings, **options)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"optimizer.options: {error}") from None


def rates_now(optimizer: torch.optim.Optimizer, groups: Sequence[LayerGroup], phase: Phase) -> dict[str, float]:
    """Of every layer group that trains, as the optimizer has it now; `stem_x16`: of what trains at 16 times that."""
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    result: dict[str, float] = {}
    for group, names in zip(groups, parameter_names(groups), strict=True):
        for name in (n for n in names if n in phase.trainable):
            ratio = phase.lr_ratios.get(name, 1.0)
            result.setdefault(group.name if ratio == 1 else f"{group.name}_x{ratio:g}", rates[name])
    return result


class SGD(OptimizerConfig):
    """torch.optim.SGD"""

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False, **settings: Any) -> None:
        super().__init__(lr, **settings)
        self.options = self._checked(momentum=momentum, nesterov=nesterov)

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return torch.optim.SGD


class AdamW(OptimizerConfig):
    """torch.optim.AdamW (arXiv 1711.05101)"""

    def __init__(
        self, lr: float, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, weight_decay, **settings)
        self.options = self._checked(betas=tuple(betas), eps=eps)

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return torch.optim.AdamW


class Muon(OptimizerConfig):
    """timm's Muon: orthogonalised momentum for matrices and convolutions, AdamW for the rest."""

    def __init__(self, lr: float, momentum: float = 0.95, nesterov: bool = True, **settings: Any) -> None:
        super().__init__(lr, **settings)
        self.options = self._checked(momentum=momentum, nesterov=nesterov)

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        try:
            from timm.optim import Muon as TimmMuon
        except ImportError:
            raise ValueError("optimizer=muon needs timm: pip install 'hydratune[muon]'") from None
        return TimmMuon


UNUSABLE = {
    "LBFGS": "evaluates the loss several times in a step, which this training loop does not; AdamW is the usual choice",
    "SparseAdam": "takes sparse gradients alone, and the layers here have dense ones; Adam is the same for those",
}


class Torch(OptimizerConfig):
    """Any class of torch.optim by name; `options` are its own arguments."""

    def __init__(self, name: str, lr: float, options: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(lr, **settings)
        self.options = self._checked(**(options or {}))
        if name in UNUSABLE:
            raise ValueError(f"optimizer.name={name}: {UNUSABLE[name]}")
        known = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in ("Optimizer", *UNUSABLE)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise ValueError(f"optimizer.name={name}: no such class in torch.optim; nearest: {(near or known)[0]}")
        self.name = name

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return getattr(torch.optim, self.name)
