"""What a trial's state is made of: optimizer tensors by parameter name, averages, and digests of what must not move."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import Phase
from hydratune.distributed.process_group import assign, like, local, whole
from hydratune.freeze.phases import set_mode
from hydratune.models.network import Network
from hydratune.record.checkpoint import Snapshot


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, plain values), each under `<parameter>|<key>`, for every parameter that has state."""
    state = {
        f"{name}|{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, {k: v for k, v in state.items() if k not in tensors}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """The inverse. Raises ValueError for state of a parameter that is not there or does not fit."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for key, value in {**tensors, **values}.items():
        name, _, field = key.rpartition("|")
        if name not in parameters:
            raise ValueError(f"checkpoint: optimizer state of an unknown parameter, {name}")
        parameter = parameters[name]
        group = groups[id(parameter)]
        # A scalar, `step`, stays on the CPU as torch's optimizers keep it, unless a kernel of the device reads it.
        if isinstance(value, Tensor) and (value.ndim or group.get("fused") or group.get("capturable")):
            value = value.to(parameter.device)
            if value.ndim and value.shape == parameter.shape:  # factored state, as Adafactor's, has shapes of its own
                value = value.contiguous(memory_format=layout(parameter))
                value = like(parameter, value)
        optimizer.state[parameter][field] = value


@dataclass(frozen=True)
class Tensors:
    """All of a trial's state that is tensors. ema: averages; start: what optimizer.l2_sp pulls towards; by name."""

    network: Network
    optimizer: torch.optim.Optimizer
    ema: Mapping[str, Tensor]
    start: Mapping[str, Tensor]

    def snapshot(self, state: Mapping[str, Any]) -> Snapshot:
        """They themselves, whole where each rank has a share, and the rest of the state."""
        moments, values = optimizer_state(self.optimizer)
        parts = (self.network.state_dict(), moments, self.ema, self.start)
        model, optimizer, averages, start = ({n: whole(t.detach()) for n, t in part.items()} for part in parts)
        own = {"optimizer_values": values, "optimizer_tensors": sorted(moments)}
        return Snapshot(model, optimizer, averages, {**state, **own}, start)

    def take_up(self, snapshot: Snapshot) -> None:
        """Be what it has. Raises ValueError where it does not fit."""
        self.network.load(snapshot.model)
        self.optimizer.state.clear()
        parameters, values = self.network.parameters(), snapshot.state["optimizer_values"]
        load_optimizer_state(self.optimizer, parameters, snapshot.optimizer, values)
        if lacking := sorted(set(snapshot.state["optimizer_tensors"]) - snapshot.optimizer.keys()):
            raise ValueError(f"checkpoint: the optimizer's {lacking[0]} is not there")
        for own, theirs in ((self.ema, snapshot.ema), (self.start, snapshot.start)):
            for name, tensor in theirs.items():
                assign(own[name], tensor)


def layout(tensor: Tensor) -> torch.memory_format:
    """channels_last where the tensor lies so and not otherwise."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format


@dataclass
class Progress:
    """Where a trial is, as one value: all of it that is neither a tensor nor follows from the configuration."""

    best: dict[str, Any] = field(default_factory=dict)  # step, value and metrics of the best evaluation
    last: dict[str, float] = field(default_factory=dict)  # the latest evaluation
    since_best: int = 0
    history: list[list[float]] = field(default_factory=list)  # [step, value] of every evaluation
    stopped: str | None = None  # why it ended before its last step
    owed: bool = False  # the evaluation after its last step, which a signal did not leave time for
    skips: list[dict[str, Any]] = field(default_factory=list)  # steps not made, loss or gradient being not finite
    parts: int = 1  # micro-batches of a step

    def note(
        self, step: int, score: float, values: dict[str, float], beside: Mapping[str, Mapping[str, float]],
        latest: bool = False,
    ) -> None:  # fmt: skip
        """An evaluation after `step` updates. beside: what further evaluation sets gave. latest: it is the best."""
        self.last, self.owed = values, False
        self.history = [*self.history, [step, score]]
        if latest or not self.best or score > self.best["value"]:
            self.best = {"step": step, "value": score, "metrics": values, "beside": beside}
            self.since_best = 0
        else:
            self.since_best += 1

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def read(state: Mapping[str, Any]) -> Progress:
        """Of a checkpoint's state."""
        return Progress(**{f.name: state[f.name] for f in fields(Progress)})


@dataclass
class Meters:
    """What happened since the last log. The tensors stay on the device until then."""

    loss: Tensor  # sum over steps
    norm: Tensor  # of the last step's gradient
    summed: int = 0  # steps in `loss`
    data: float = 0.0  # seconds
    forward: float = 0.0
    backward: float = 0.0
    terms: dict[str, Tensor] = field(default_factory=dict)  # sums over steps of a loss's terms, if there are several

    @staticmethod
    def on(device: torch.device) -> Meters:
        return Meters(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], norm: Tensor, forward: float, backward: float) -> None:
        self.loss += loss
        for name, mean in terms.items():
            self.terms[name] = self.terms.get(name, 0) + mean
        self.norm = norm
        self.summed += 1
        self.forward += forward
        self.backward += backward

    def read(self) -> dict[str, float]:
        """Means over the steps; waits for the device."""
        count = max(self.summed, 1)
        times = {"data": self.data, "forward": self.forward, "backward": self.backward}
        values = {"train/loss": float(self.loss) / count, "train/grad_norm": float(self.norm)}
        values |= {f"train/loss_{name}": float(total) / count for name, total in self.terms.items()}
        return values | {f"time/{k}_ms": 1000 * v / count for k, v in times.items()}

    def reset(self) -> None:
        self.loss.zero_()
        self.summed, self.data, self.forward, self.backward = 0, 0.0, 0.0, 0.0
        self.terms = {}

    def state_dict(self) -> dict[str, Any]:
        terms = {name: float(total) for name, total in self.terms.items()}
        return {
            "loss": float(self.loss), "norm": float(self.norm), "summed": self.summed,
            **({"terms": terms} if terms else {}),
        }  # fmt: skip

    def restore(self, loss: float, norm: float, summed: int, terms: Mapping[str, float] | None = None) -> None:
        self.loss.fill_(loss)
        self.norm, self.summed = torch.tensor(norm), summed
        self.terms = {name: torch.tensor(total, device=self.loss.device) for name, total in (terms or {}).items()}

    def take(self, other: Meters) -> None:
        self.loss.copy_(other.loss)
        self.norm, self.summed, self.terms = other.norm, other.summed, dict(other.terms)
        self.data, self.forward, self.backward = other.data, other.forward, other.backward


class Swapped:
    """Within it the averaged weights are the network's."""

    def __init__(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        self._pairs = [(p, averages[n]) for n, p in weights.items()]

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self._pairs:
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def set_modes(network: Network, phase: Phase) -> None:
    """Train or eval, for every layer, as the phase has it."""
    for i, (group, names) in enumerate(zip(network.groups, parameter_names(network.groups), strict=True)):
        set_mode(group, names, phase, i >= phase.cut)


def frozen_tensors(network: Network, phase: Phase) -> list[Tensor]:
    """What must not move within the phase, once `set_modes` was called: parameters, and buffers of layers in eval."""
    frozen: list[Tensor] = [p for name, p in network.parameters().items() if name not in phase.trainable]
    layers = [m for g in network.groups for m in g.module.modules() if not m.training]
    return frozen + [b for m in layers for b in m.buffers(recurse=False)]


def digest(tensors: Iterable[Tensor]) -> str:
    """Of every bit; SHA-256, which processors compute three times as fast as BLAKE2."""
    result = hashlib.sha256()
    for tensor in tensors:
        flat = local(tensor.detach()).cpu().contiguous().reshape(-1)
        result.update(flat.view(torch.uint8).numpy().data)
    return result.hexdigest()


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
