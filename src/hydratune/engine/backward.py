"""Gradients of a global batch's mean loss: in parts where accumulation or memory asks for them, summed over ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hydratune.core.batching import batch_rows, rows
from hydratune.core.loss import Loss, divisor, weighted
from hydratune.core.task import Task
from hydratune.core.types import Batch, Features
from hydratune.distributed.process_group import local
from hydratune.distributed.runtime import Runtime
from hydratune.engine.memory import make_room, ran_out
from hydratune.engine.state import Progress

Tail = Callable[[int, Features], Features]  # (number of the part, its features) -> outputs


class Backward:
    """What lies between a batch and the gradients of the parameters that train."""

    def __init__(self, task: Task, runtime: Runtime, state: Progress) -> None:
        """state.parts: micro-batches of a step; from where memory runs out, twice as many."""
        self.task, self.runtime, self.state = task, runtime, state
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
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        """(mean loss over all ranks, the means of its terms if there are several, seconds of the forward passes).

        Gradients are the mean's.
        """
        if self._statistics:
            torch._foreach_copy_(self._kept, self._statistics)
        self.state.parts = self.runtime.agreed(self.state.parts) or 1
        while True:
            parts = max(min(self.state.parts, len(batch.ids)), 1)
            try:
                return self._run(features, batch, tail, trained, parts)
            except (RuntimeError, MemoryError) as error:
                # With shares of tensors every pass is everybody's: none makes another one alone.
                if self.runtime.shares or not ran_out(error) or parts >= len(batch.ids):
                    raise
                message = str(error).splitlines()[0]
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
            self.state.parts = 2 * parts
            exactly = "the same" if self._exact else "not quite the same, as BatchNorm and dropout see smaller batches"
            print(
                f"warning: step {step}: {message}. From here on a step is made of {self.state.parts} micro-batches of "
                f"{math.ceil(len(batch.ids) / self.state.parts)} samples; what it computes is {exactly}"
            )

    def put_back(self) -> None:
        """The statistics of before this step, which a step that is not made must leave alone."""
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._kept)

    def _run(
        self, features: Features, batch: Batch, tail: Tail, trained: Sequence[Tensor], parts: int
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        started = time.perf_counter()
        if parts == 1 and self.runtime.world == 1:
            loss = self.task.loss(tail(0, features), batch)
            mean = loss.mean()
            forward = time.perf_counter() - started
            mean.backward()
            return mean.detach(), loss.means(), forward
        # A term is a sum: gradients add up over parts and ranks, and are divided once by the global count.
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        weights, forward = {}, 0.0
        gradients: dict[str, list[Tensor]] = {}
        for number, (part, sub) in enumerate(_micro_batches(features, batch, parts)):
            began = time.perf_counter()
            loss = self.task.loss(tail(number, part), sub)
            forward += time.perf_counter() - began
            self._add(loss, trained, gradients)
            for name, term in loss.terms.items():
                sums[name] = sums.get(name, 0) + term.sum.detach()
                counts[name] = counts.get(name, 0) + torch.as_tensor(term.count, device=term.sum.device)
                weights[name] = term.weight
        self._over_ranks(sums, counts, gradients, trained)
        if gradients:
            self._combine(gradients, counts, weights, trained)
        else:
            self._divide(next(iter(counts.values())), trained)
        means = {name: sums[name] / divisor(counts[name]) for name in sums}
        total = weighted([(weights[name], mean) for name, mean in means.items()])
        return total, means if len(means) > 1 else {}, forward

    def _add(self, loss: Loss, trained: Sequence[Tensor], gradients: dict[str, list[Tensor]]) -> None:
        """Gradients of one part. Terms that count different things are kept apart until all counts are known."""
        if len(loss.terms) == 1:
            loss.total().backward()
            return
        if self.runtime.shares:
            raise ValueError("runtime.strategy=fsdp: this task's loss has several terms; replicate can train on them")
        for i, (name, term) in enumerate(loss.terms.items()):
            if not term.sum.requires_grad:
                continue
            more = i + 1 < len(loss.terms)
            found = torch.autograd.grad(term.sum, trained, retain_graph=more, allow_unused=True, materialize_grads=True)
            kept = gradients.setdefault(name, [torch.zeros_like(p) for p in trained])
            torch._foreach_add_(kept, list(found))

    def _over_ranks(
        self, sums: dict[str, Tensor], counts: dict[str, Tensor], gradients: Mapping[str, list[Tensor]],
        trained: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """What this rank has of each becomes what all have together."""
        if self.runtime.world == 1:
            return
        device = self.runtime.torch_device
        for values in (sums, counts):
            values |= {name: value.to(device, torch.float32) for name, value in values.items()}
        own = [p.grad for p in trained if p.grad is not None]
        flat = [g for g in own if local(g) is g] + [g for several in gradients.values() for g in several]
        moving = [s for s in self._statistics if s.is_floating_point()]
        self.runtime.sum_over_ranks([*flat, *sums.values(), *counts.values(), *moving])
        if moving:  # every rank has the mean of what the ranks have seen
            torch._foreach_div_(moving, self.runtime.world)

    def _divide(self, count: Tensor, trained: Sequence[Tensor]) -> None:
        gradients = [p.grad for p in trained if p.grad is not None]
        summed = [g for g in gradients if local(g) is g]
        shares = [local(g) for g in gradients if local(g) is not g]  # of tensors that FSDP has averaged over the ranks
        count = divisor(count).to(torch.float32)
        if summed:
            torch._foreach_div_(summed, count)
        if shares:
            torch._foreach_div_(shares, count / self.runtime.world)

    @staticmethod
    def _combine(
        gradients: Mapping[str, list[Tensor]], counts: Mapping[str, Tensor], weights: Mapping[str, float],
        trained: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """The weighted total of each term's gradient over its own count."""
        for name, several in gradients.items():
            torch._foreach_mul_(several, weights[name] / divisor(counts[name]).to(torch.float32))
        for parameter, *parts in zip(trained, *gradients.values(), strict=True):
            parameter.grad = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _micro_batches(features: Features, batch: Batch, count: int) -> list[tuple[Features, Batch]]:
    """Equal parts of a global batch; the last may be smaller."""
    size = math.ceil(len(batch.ids) / count)
    starts = range(0, len(batch.ids), size)
    return [(rows(features, a, a + size), batch_rows(batch, a, a + size)) for a in starts]
