"""Gradients of a global batch's mean loss: in parts where accumulation or memory asks for them, summed over ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hydratune.company import local
from hydratune.engine.memory import make_room, ran_out, rows
from hydratune.runtime import Runtime
from hydratune.types import Batch, Features, Task

Tail = Callable[[int, Features], Features]  # (number of the part, its features) -> outputs


class Backward:
    """What lies between a batch and the gradients of the parameters that train."""

    def __init__(self, task: Task, runtime: Runtime, parts: int) -> None:
        """parts: micro-batches of a step; from where memory runs out, twice as many."""
        self.task, self.runtime, self.parts = task, runtime, parts
        self._statistics: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._exact = True

    def enter(self, layers: Sequence[nn.Module]) -> None:
        """Of a phase: its layers. BatchNorm in training keeps statistics, and sees parts as batches of their own."""
        norms = [m for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self._statistics = [b for m in norms for b in m.buffers(recurse=False)]
        self._kept = [b.clone() for b in self._statistics]
        self._exact = not norms and not any(getattr(m, "p", 0) and m.training for m in layers)

    def run(
        self, step: int, features: Features, batch: Batch, tail: Tail, trained: Sequence[Tensor]
    ) -> tuple[Tensor, float]:
        """(mean loss over all ranks, seconds of the forward passes); gradients are the mean's."""
        if self._statistics:
            torch._foreach_copy_(self._kept, self._statistics)
        self.parts = self.runtime.agreed(self.parts) or 1
        while True:
            parts = max(min(self.parts, len(batch.ids)), 1)
            try:
                return self._run(features, batch, tail, trained, parts)
            except (RuntimeError, MemoryError) as error:
                # With shares of tensors every pass is everybody's: none makes another one alone.
                if self.runtime.shares or not ran_out(error) or parts >= len(batch.ids):
                    raise
                said = str(error).splitlines()[0]
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"batch_size={len(batch.ids)} in {parts} part{'s' * (parts > 1)} (engine.accumulate): BatchNorm "
                    "cannot normalise over one sample; parts of two or more train, and so does a trunk that is frozen"
                ) from None
            # Outside the handler: the error's traceback keeps the activations that fill the memory.
            for parameter in trained:
                parameter.grad = None
            self.put_back()
            make_room()
            self.parts = 2 * parts
            exactly = "the same" if self._exact else "not quite the same, as BatchNorm and dropout see smaller batches"
            print(
                f"warning: step {step}: {said}. From here on a step is made of {self.parts} micro-batches of "
                f"{math.ceil(len(batch.ids) / self.parts)} samples; what it computes is {exactly}"
            )

    def put_back(self) -> None:
        """The statistics of before this step, which a step that is not made must leave alone."""
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._kept)

    def _run(
        self, features: Features, batch: Batch, tail: Tail, trained: Sequence[Tensor], parts: int
    ) -> tuple[Tensor, float]:
        started = time.perf_counter()
        if parts == 1 and self.runtime.world == 1:
            loss = self.task.loss(tail(0, features), batch)
            mean = loss.sum / loss.count
            forward = time.perf_counter() - started
            mean.backward()
            return mean.detach(), forward
        # The loss is a sum: gradients add up over parts and ranks, and are divided once by the global count.
        device = self.runtime.torch_device
        total, samples, forward = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
        for number, (part, sub) in enumerate(_micro_batches(features, batch, parts)):
            began = time.perf_counter()
            loss = self.task.loss(tail(number, part), sub)
            forward += time.perf_counter() - began
            loss.sum.backward()
            total += loss.sum.detach()
            samples += loss.count
        gradients = [p.grad for p in trained if p.grad is not None]
        summed = [g for g in gradients if local(g) is g]
        shares = [local(g) for g in gradients if local(g) is not g]  # of tensors that FSDP has averaged over the ranks
        moving = [s for s in self._statistics if s.is_floating_point()]
        self.runtime.sum_over_ranks([*summed, total, samples, *moving])
        world = self.runtime.world
        if summed:
            torch._foreach_div_(summed, samples)
        if shares:
            torch._foreach_div_(shares, samples / world)
        if world > 1 and moving:  # every rank has the mean of what the ranks have seen
            torch._foreach_div_(moving, world)
        return total / samples, forward


def _micro_batches(features: Features, batch: Batch, count: int) -> list[tuple[Features, Batch]]:
    """Equal parts of a global batch; the last may be smaller."""
    size = math.ceil(len(batch.ids) / count)
    starts = range(0, len(batch.ids), size)
    whole = (batch.inputs, batch.targets, batch.ids)
    return [(rows(features, a, a + size), Batch(*rows(whole, a, a + size))) for a in starts]
