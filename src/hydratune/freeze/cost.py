"""What a phase costs, measured group by group: the whole step is never run, as it may not fit in memory.

Each group runs alone on copies of its layers, with just those gradients that the phase asks of it: none below the cut,
its parameters' at the cut, its input's as well above it. A step is estimated as the sum.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import Features, LayerGroup, Padded, Phase
from hydratune.freeze.phases import set_mode
from hydratune.freeze.recompute import recomputed

REPEATS = 2
UPDATE = 10.0  # operations that an optimizer's update of one element is counted as


@dataclass(frozen=True)
class PhaseCost:
    """seconds: estimated for one step on the whole batch; saved_bytes: kept for backward, per sample."""

    trunk_share: float  # of the time of a forward pass that lies below the cut
    trunk_operations: float  # likewise of its multiplications and additions
    saved_bytes: float
    seconds: float
    trunk_seconds: float  # of `seconds`, what the groups below the cut take


class CostMeter:
    """Costs of phases of one network on one batch.

    inputs: of a whole batch, cut down to `samples`. loss: the head's outputs to a scalar. autocast: as training has it.
    update: seconds that the optimizer takes for one element. synchronize: waits for the device.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        inputs: Features,
        loss: Callable[[Any], Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
        update: float,
        synchronize: Callable[[], None] = lambda: None,
        samples: int = 16,
    ) -> None:
        self.groups, self.loss, self.autocast, self.synchronize = groups, loss, autocast, synchronize
        self.update = update
        self.batch_size = len(tree_flatten(inputs)[0][0])
        self.samples = min(samples, self.batch_size)
        self._owned = parameter_names(groups)
        self._seen: dict[Any, tuple[float, float]] = {}
        self._kept: dict[Any, tuple[float, float, float]] = {}
        self._features: list[Features] = [tree_map(lambda t: t[: self.samples], inputs)]
        self.operations: list[float] = []
        with torch.no_grad(), autocast():
            for i in range(len(groups)):
                module = self._copy(i, None)
                self._features.append(module(self._features[-1]))
                with FlopCounterMode(display=False) as counter:
                    module(tree_map(_one, self._features[-2]))
                self.operations.append(float(counter.get_total_flops()))

    def phase(self, phase: Phase, recompute: bool = False) -> PhaseCost:
        """recompute: as engine.recompute has it; of what is computed again, one group at a time is in memory."""
        forward: list[float] = []
        seconds = saved = handed = again = 0.0
        twice = recomputed(self.groups, phase, recompute)
        for i, names in enumerate(self._owned):
            below = any(not phase.trainable.isdisjoint(n) for n in self._owned[:i])
            ahead, back = self._time(i, phase, below)
            forward.append(ahead)
            seconds += ahead + back + (ahead if i in twice else 0.0)
            if below or not phase.trainable.isdisjoint(names):
                inner, taken, given = self._saved_bytes(i, phase, below)
                if i in twice:
                    again, inner, taken = max(again, inner), 0.0, max(taken, self._input_bytes(i))
                saved += inner + max(taken, handed)  # what one group gives and the next one takes is one tensor
                handed = given
        trained = sum(p.numel() for p in self._parameters(phase))
        scale = self.batch_size / self.samples
        trunk = sum(forward[: phase.cut])
        return PhaseCost(
            trunk / sum(forward),
            sum(self.operations[: phase.cut]) / max(sum(self.operations), 1),
            saved + handed + again,
            seconds * scale + trained * self.update,
            trunk * scale,
        )

    def operations_of(self, phase: Phase, recompute: bool = False) -> PhaseCost:
        """The same in multiplications and additions in place of seconds: nothing measured, the same every time."""
        twice = recomputed(self.groups, phase, recompute)
        total = 0.0
        for i, names in enumerate(self._owned):
            trains, below = (not phase.trainable.isdisjoint(n) for n in (names, frozenset().union(*self._owned[:i])))
            # backward: a product for the weights' gradient, and one for the input's
            total += self.operations[i] * (1 + trains + below + (i in twice))
        trunk = sum(self.operations[: phase.cut])
        elements = sum(p.numel() for p in self._parameters(phase))
        share = trunk / max(sum(self.operations), 1)
        return PhaseCost(share, share, 0.0, total * self.batch_size + UPDATE * elements, trunk * self.batch_size)

    def row_bytes(self, cut: int) -> int | None:
        """Of one sample's features between groups[:cut] and the rest; None where no table holds such.

        Of padded ones what samples have on average without the padding.
        """
        features = self._features[cut]
        if isinstance(features, Padded):
            each = features.values[0, 0].numel() * features.values.element_size()
            return int(features.lengths.double().mean() * each)
        leaves = tree_flatten(features)[0]
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        return sum(leaf[0].numel() * leaf.element_size() for leaf in leaves)

    def _input_bytes(self, i: int) -> float:
        """Of one sample."""
        return sum(t.numel() * t.element_size() for t in _tensors(self._features[i])) / self.samples

    def _copy(self, i: int, phase: Phase | None) -> nn.Module:
        """The group's layers, in the phase's modes and with its gradients; nothing of the network itself moves."""
        group = self.groups[i]
        module = copy.deepcopy(group.module)
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(phase is not None and group.names[key] in phase.trainable)
            parameter.grad = None
        if phase is None:
            return module.eval()
        set_mode(LayerGroup(group.name, module, group.names), self._owned[i], phase, i >= phase.cut)
        return module

    def _parameters(self, phase: Phase) -> list[nn.Parameter]:
        named = {g.names[k]: p for g in self.groups for k, p in g.module.named_parameters()}
        return [p for n, p in named.items() if n in phase.trainable]

    def _time(self, i: int, phase: Phase, below: bool) -> tuple[float, float]:
        """Least seconds of the group's (forward, backward) pass on the samples; a noisy machine only ever adds."""
        key = self._key(i, phase, below)
        if key in self._seen:
            return self._seen[key]
        module = self._copy(i, phase)
        times = []
        for _ in range(REPEATS + 1):
            features, outputs, ahead = self._forward(i, module, phase, below)
            started = time.perf_counter()
            if any(t.requires_grad for t in _tensors(outputs)):
                torch.autograd.backward(*_gradients(outputs))
            self.synchronize()
            times.append((ahead, time.perf_counter() - started))
            del features, outputs
            for parameter in module.parameters():
                parameter.grad = None
        ahead, back = (min(t) for t in zip(*times[1:], strict=True))  # the first one plans its kernels
        self._seen[key] = ahead, back
        return ahead, back

    def _key(self, i: int, phase: Phase, below: bool) -> object:
        """Equal where the group is asked for the same: phases of a schedule differ in a few groups each."""
        own = phase.trainable.intersection(self.groups[i].names.values())
        return i, own, below, i >= phase.cut, phase.norm

    def _forward(self, i: int, module: nn.Module, phase: Phase, below: bool) -> tuple[Features, Any, float]:
        features = tree_map(lambda t: _leaf(t, below), self._features[i])
        self.synchronize()
        started = time.perf_counter()
        with torch.set_grad_enabled(i >= phase.cut), self.autocast():
            outputs = module(features)
        if i == len(self.groups) - 1:
            outputs = self.loss(outputs)
        self.synchronize()
        return features, outputs, time.perf_counter() - started

    def _saved_bytes(self, i: int, phase: Phase, below: bool) -> tuple[float, float, float]:
        """Of what autograd keeps for backward, per sample: (within the group, of its input, of its output).

        Weights do not count: they are there anyway.
        """
        key = self._key(i, phase, below)
        if key in self._kept:
            return self._kept[key]
        module = self._copy(i, phase)
        own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
        kept: dict[int, int] = {}
        held: list[Tensor] = []  # so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            # Detached: an output that its own node keeps so would never be freed, nor what it was computed from
            alone = tensor.detach()
            if tensor.untyped_storage().data_ptr() not in own:
                held.append(alone)
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return alone

        features = tree_map(lambda t: _leaf(t, below), self._features[i])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), self.autocast():
            outputs = module(features)
            result = self.loss(outputs) if i == len(self.groups) - 1 else outputs
        ends = ({t.untyped_storage().data_ptr() for t in _tensors(end)} for end in (features, outputs))
        first, last = ends
        taken = sum(n for p, n in kept.items() if p in first)
        given = sum(n for p, n in kept.items() if p in last - first)
        total = sum(kept.values())
        del result
        self._kept[key] = (total - taken - given) / self.samples, taken / self.samples, given / self.samples
        return self._kept[key]


def _leaf(tensor: Tensor, below: bool) -> Tensor:
    """A copy, as layers may work in place; with a gradient where something below it trains."""
    copied = tensor.detach().clone()
    return copied.requires_grad_().clone() if below and copied.is_floating_point() else copied


def _one(tensor: Tensor) -> Tensor:
    return tensor[:1]


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor)]


def _gradients(outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    graded = [t for t in _tensors(outputs) if t.requires_grad]
    return graded, [torch.ones_like(t) for t in graded]
