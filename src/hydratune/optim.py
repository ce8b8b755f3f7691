"""Optimizers with a rate of their own per layer group, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn

from hydratune.layer_groups import parameter_names
from hydratune.types import LayerGroup


class Recipe(ABC):
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
        **options: Any,
    ) -> None:
        for key, value in (("lr", lr), ("layer_decay", layer_decay), ("head_lr_multiplier", head_lr_multiplier)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"optimizer.{key}={value}: must be above 0")
        for key, value in (("weight_decay", weight_decay), ("l2_sp", l2_sp)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"optimizer.{key}={value}: must not be below 0")
        momentum, betas, eps = options.get("momentum", 0.0), options.get("betas"), options.get("eps", 1.0)
        if isinstance(momentum, int | float) and not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum={momentum}: from 0 to below 1")
        if betas is not None and (len(betas) < 2 or not all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"optimizer.betas={list(betas)}: two numbers from 0 to below 1, such as [0.9,0.999]")
        if isinstance(eps, int | float) and not eps >= 0:
            raise ValueError(f"optimizer.eps={eps}: must not be below 0")
        self.lr, self.weight_decay = lr, weight_decay
        self.layer_decay, self.head_lr_multiplier = layer_decay, head_lr_multiplier
        self.decay_norm_and_bias, self.l2_sp = decay_norm_and_bias, l2_sp
        self.options = options

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
        trained: Sequence[Set[str]] = (),
    ) -> torch.optim.Optimizer:
        """Over all parameters, frozen or not, so that its groups are the same in every phase.

        Parameters with equal settings that train in the same phases share one parameter group, as fused optimizers want
        all state of a group to be of one age. trained: the names that train, per phase. Each group carries `base_lr`
        and the `names` within.
        """
        by_setting: dict[tuple[float, float, tuple[bool, ...]], list[str]] = {}
        for i, names in enumerate(parameter_names(groups)):
            for name in names:
                decays = self.decay_norm_and_bias or parameters[name].ndim > 1
                when = tuple(name in phase for phase in trained)
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


class SGD(Recipe):
    """torch.optim.SGD"""

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        super().__init__(
            lr, weight_decay, layer_decay, head_lr_multiplier, decay_norm_and_bias, l2_sp,
            momentum=momentum, nesterov=nesterov,
        )  # fmt: skip

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return torch.optim.SGD


class AdamW(Recipe):
    """torch.optim.AdamW (arXiv 1711.05101)"""

    def __init__(
        self,
        lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        layer_decay: float = 1.0,
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        super().__init__(
            lr, weight_decay, layer_decay, head_lr_multiplier, decay_norm_and_bias, l2_sp,
            betas=tuple(betas), eps=eps,
        )  # fmt: skip

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return torch.optim.AdamW


class Muon(Recipe):
    """timm's Muon: orthogonalised momentum for matrices and convolutions, AdamW for the rest."""

    def __init__(
        self,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        super().__init__(
            lr, weight_decay, layer_decay, head_lr_multiplier, decay_norm_and_bias, l2_sp,
            momentum=momentum, nesterov=nesterov,
        )  # fmt: skip

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


class Torch(Recipe):
    """Any class of torch.optim by name; `options` are its own arguments."""

    def __init__(
        self,
        name: str,
        lr: float,
        weight_decay: float = 0.0,
        options: Mapping[str, Any] | None = None,
        layer_decay: float = 1.0,
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        settings = (lr, weight_decay, layer_decay, head_lr_multiplier, decay_norm_and_bias, l2_sp)
        super().__init__(*settings, **(options or {}))
        if name in UNUSABLE:
            raise ValueError(f"optimizer.name={name}: {UNUSABLE[name]}")
        known = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in ("Optimizer", *UNUSABLE)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise ValueError(f"optimizer.name={name}: no such class in torch.optim; nearest: {(near or known)[0]}")
        self.name = name

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return getattr(torch.optim, self.name)


class Schedule(ABC):
    """Factor on every learning rate: linear warm-up, then `decay` over the share of steps after it."""

    def __init__(self, warmup_steps: int | float = 0) -> None:
        """warmup_steps: steps, or a share of them between 0.0 and 1.0."""
        if warmup_steps < 0 or (isinstance(warmup_steps, float) and warmup_steps > 1):
            raise ValueError(f"schedule.warmup_steps={warmup_steps}: steps, or a share of them between 0.0 and 1.0")
        self.warmup_steps = warmup_steps

    @abstractmethod
    def decay(self, progress: float) -> float:
        """progress: share of the steps after warm-up that are done, in [0, 1)."""

    def factor(self, step: int, num_steps: int) -> float:
        """Pure: the factor for the update that takes step `step` (from 0) of `num_steps`."""
        warmup = int(self.warmup_steps * num_steps) if isinstance(self.warmup_steps, float) else self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / max(num_steps - warmup, 1))


class Constant(Schedule):
    def decay(self, progress: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to `final` (arXiv 1608.03983, without restarts)."""

    def __init__(self, warmup_steps: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: a factor from 0 to 1")
        self.final = final

    def decay(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from 1 to `final`."""

    def __init__(self, warmup_steps: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: a factor from 0 to 1")
        self.final = final

    def decay(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


class Steps(Schedule):
    """Times `gamma` at each of `milestones`, shares of the steps after warm-up."""

    def __init__(
        self, warmup_steps: int | float = 0, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
    ) -> None:
        super().__init__(warmup_steps)
        if not 0 < gamma <= 1:
            raise ValueError(f"schedule.gamma={gamma}: a factor above 0, at most 1")
        if list(milestones) != sorted(milestones) or not all(0 <= m <= 1 for m in milestones):
            raise ValueError(f"schedule.milestones={list(milestones)}: shares of the steps, ascending, from 0 to 1")
        self.milestones, self.gamma = tuple(milestones), gamma

    def decay(self, progress: float) -> float:
        return self.gamma ** sum(progress >= m for m in self.milestones)
