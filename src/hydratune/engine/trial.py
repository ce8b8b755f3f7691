"""A trial: one network with its optimizer, schedule and run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hydratune.data.stream import Stream
from hydratune.engine.evaluate import evaluate
from hydratune.engine.settings import Settings
from hydratune.engine.state import (
    Swapped,
    digest,
    frozen_tensors,
    load_optimizer_state,
    optimizer_state,
    peak_memory_mb,
    set_modes,
)
from hydratune.engine.trunk import Trunk
from hydratune.layer_groups import parameter_names
from hydratune.models.network import Network
from hydratune.optim import Recipe, Schedule
from hydratune.randomness import derive_seed
from hydratune.record import checkpoint
from hydratune.record.run import Run
from hydratune.runtime import Runtime
from hydratune.types import Batch, DataSpec, Features, Phase, Task


class NonFinite(RuntimeError):
    """Loss or gradient is NaN or Inf; raised before the update, so the weights are still those of the last step."""


class Trial:
    """Steps on features that a trunk hands it. Everything it does at a step is a function of that step's number."""

    def __init__(
        self,
        network: Network,
        phases: Sequence[Phase],
        task: Task,
        spec: DataSpec,
        recipe: Recipe,
        schedule: Schedule,
        settings: Settings,
        runtime: Runtime,
        run: Run,
        seed: int,
    ) -> None:
        self.network, self.phases, self.task, self.spec = network, tuple(phases), task, spec
        self.recipe, self.schedule, self.settings = recipe, schedule, settings
        self.runtime, self.run, self.seed = runtime, run, seed
        self.num_steps = phases[-1].last_step
        self.fork = min(p.cut for p in phases)  # below it nothing is ever this trial's own
        self._parameters = network.parameters()
        self.optimizer = recipe.build(network.groups, self._parameters, [p.trainable for p in self.phases])
        ever = frozenset().union(*(p.trainable for p in phases))
        self._averaged = {n: p for n, p in self._parameters.items() if n in ever} if settings.ema else {}
        self._ema = {n: p.detach().clone() for n, p in self._averaged.items()}
        pulled = ever.difference(network.head.names.values()) if recipe.l2_sp else frozenset()
        self._start = {n: p.detach().clone() for n, p in self._parameters.items() if n in pulled}
        self.best: dict[str, Any] = {}  # step and value of the best evaluation
        self.last: dict[str, float] = {}  # the latest evaluation
        self.since_best = 0
        self.stopped: str | None = None  # why it ended before its last step
        self._loss = torch.zeros((), device=runtime.torch_device)
        self._norm = torch.zeros((), device=runtime.torch_device)
        self._summed = 0  # steps in _loss
        self.seconds = {"data": 0.0, "forward": 0.0, "backward": 0.0}
        self._phase: Phase | None = None

    # ---- phases

    def phase_at(self, step: int) -> Phase:
        return next(p for p in self.phases if p.first_step <= step < p.last_step)

    def enter(self, phase: Phase) -> None:
        """Fix what trains. Frozen groups go to eval, so their BatchNorm and dropout stand still."""
        self._phase = phase
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in phase.trainable)
            if name not in phase.trainable:
                parameter.grad = None  # a zero gradient would still be decayed and carried by momentum
        self._trainable = [self._parameters[n] for n in self._parameters if n in phase.trainable]
        self._pulled = [(self._parameters[n], w) for n, w in self._start.items() if n in phase.trainable]
        set_modes(self.network, phase)
        self._fingerprint = digest(frozen_tensors(self.network, phase))
        # A graph compiled for another phase trains nothing that has thawed since.
        self._tail = torch.compile(self._run_tail) if self.runtime.compile else self._run_tail

    def leave(self) -> None:
        """The proof: what was frozen in this phase is bit for bit what it was."""
        assert self._phase is not None
        if digest(frozen_tensors(self.network, self._phase)) != self._fingerprint:
            raise RuntimeError(f"phase {self._phase.name}: a frozen parameter or buffer changed")
        self.run.update(frozen_unchanged=True)

    def _begin(self, phase: Phase) -> None:
        """What happens once in a phase, at its first step, also where a resumed run starts just there."""
        if phase.first_step:
            for name in phase.trainable - self.phase_at(phase.first_step - 1).trainable:
                # momentum from before it was frozen points nowhere now
                self.optimizer.state.pop(self._parameters[name], None)
        self._mark(phase.first_step + 1)

    def _mark(self, step: int) -> None:
        """The phase in TensorBoard, at the number of its first update and with every log."""
        assert self._phase is not None
        total = sum(p.numel() for p in self._parameters.values())
        share = sum(p.numel() for p in self._trainable) / total
        values = {"phase/index": self.phases.index(self._phase), "phase/cut": self._phase.cut}
        self.run.board.scalars({**values, "phase/trainable_share": share}, step)

    def prepare(self, step: int) -> None:
        """Be in the phase of `step`."""
        phase = self.phase_at(step)
        if self._phase is not phase:
            if self._phase is not None:
                self.leave()
            self.enter(phase)

    # ---- one step

    def step(self, step: int, features: Features, batch: Batch, first: int) -> None:
        """Update on `features`, the output of groups[:first] (the inputs themselves where first is 0)."""
        self.prepare(step)
        phase = self._phase
        assert phase is not None
        if step == phase.first_step:
            self._begin(phase)
        own = 1.0 if phase.lr is None else phase.lr / self.recipe.lr
        factor = self.schedule.factor(step, self.num_steps) * phase.lr_scale * own
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

        started = time.perf_counter()
        micro = self.settings.accumulate
        forward = 0.0
        if micro == 1 and self.runtime.world == 1:
            total, count = self._forward(step, 0, features, batch, first)
            loss = total / count
            forward = time.perf_counter() - started
            loss.backward()
        else:
            # The loss is a sum: gradients add up over parts and ranks, and are divided once by the global count.
            loss, samples = torch.zeros_like(self._loss), torch.zeros_like(self._loss)
            for m, (part, sub) in enumerate(_micro_batches(features, batch, micro)):
                began = time.perf_counter()
                total, count = self._forward(step, m, part, sub, first)
                forward += time.perf_counter() - began
                total.backward()
                loss += total.detach()
                samples += count
            gradients = [p.grad for p in self._trainable if p.grad is not None]
            self.runtime.sum_over_ranks([*gradients, loss, samples])
            torch._foreach_div_(gradients, samples)
            loss /= samples
        for parameter, start in self._pulled:  # the gradient of l2_sp / 2 * |w - w0|^2
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.recipe.l2_sp)
        norm = get_total_norm([p.grad for p in self._trainable if p.grad is not None])
        if not math.isfinite(norm):
            self._refuse(step, float(loss.detach()), batch)
        if self.settings.clip is not None:
            clip_grads_with_norm_(self._trainable, self.settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.ema is not None:
            weight = 1 - self.settings.ema
            torch._foreach_lerp_(list(self._ema.values()), list(self._averaged.values()), weight)
        self._loss += loss.detach()
        self._norm = norm
        self._summed += 1
        self.seconds["forward"] += forward
        self.seconds["backward"] += time.perf_counter() - started - forward

    def _forward(self, step: int, micro: int, features: Features, batch: Batch, first: int) -> tuple[Tensor, int]:
        assert self._phase is not None
        self.runtime.seed_noise(derive_seed(self.seed, "noise", step, self.runtime.rank, micro))
        with self.runtime.autocast():
            if first < self._phase.cut:
                with torch.no_grad():
                    features = self.network.forward(features, first, self._phase.cut)
            outputs = self._tail(features, max(first, self._phase.cut))
        loss = self.task.loss(outputs, batch)
        return loss.sum, loss.count

    def _run_tail(self, features: Features, first: int) -> Features:
        return self.network.forward(features, first)

    def _refuse(self, step: int, loss: float, batch: Batch) -> None:
        ids = batch.ids.tolist()
        self.run.update(nonfinite={"step": step, "loss": loss, "sample_ids": ids})
        raise NonFinite(
            f"step {step}: {'loss' if not math.isfinite(loss) else 'gradient'} is not finite (loss {loss}); stopped "
            f"before the update. Samples of the batch: {ids[:8]}{'...' if len(ids) > 8 else ''} (all in run.json). "
            "A smaller optimizer.lr, engine.clip=1.0 or schedule.warmup_steps often helps"
        )

    # ---- evaluation and record

    def evaluate(self, step: int, samples: Stream | Trunk) -> None:
        """Measure after `step` updates, with the averaged weights where there are any; keep count of the best."""
        with self.averaged_weights():
            values = evaluate(self.network, self.task, samples, self.spec, self.runtime).compute()
        self.last = values
        self.run.board.scalars({f"val/{k}": v for k, v in values.items()}, step)
        score = values[self.task.monitor]
        if not self.best or score > self.best["value"]:
            self.best = {"step": step, "value": score, "metrics": values}
            self.since_best = 0
        else:
            self.since_best += 1
        if self.settings.patience is not None and self.since_best >= self.settings.patience:
            self.stopped = f"no better {self.task.monitor} in {self.since_best} evaluations"

    def averaged_weights(self) -> Swapped:
        return Swapped(self._averaged, self._ema)

    def log(self, step: int, samples: int, seconds: float) -> dict[str, str]:
        """Scalars of the steps since the last log; reads the device once. Returns what the live line shows."""
        loss = float(self._loss) / max(self._summed, 1)
        values = {"train/loss": loss, "train/grad_norm": float(self._norm)}
        values["speed/images_per_second"] = samples / max(seconds, 1e-9)
        values |= {f"time/{k}_ms": 1000 * v / max(self._summed, 1) for k, v in self.seconds.items()}
        values["memory/peak_mb"] = peak_memory_mb(self.runtime.torch_device)
        values |= {f"lr/{name}": rate for name, rate in self.rates().items()}
        self.run.board.scalars(values, step)
        self._mark(step)
        self._loss.zero_()
        self._summed = 0
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return {"loss": f"{loss:.4f}", "images/s": f"{values['speed/images_per_second']:,.0f}"}

    def rates(self) -> dict[str, float]:
        """The learning rate of every layer group that trains, as the optimizer has it now."""
        assert self._phase is not None
        rate = {n: g["lr"] for g in self.optimizer.param_groups for n in g["names"]}
        rows = zip(self.network.groups, parameter_names(self.network.groups), strict=True)
        trained = {g.name: [n for n in names if n in self._phase.trainable] for g, names in rows}
        return {name: rate[names[0]] for name, names in trained.items() if names}

    # ---- checkpoint

    def snapshot(self, step: int, **more: Any) -> checkpoint.Snapshot:
        """Everything that the next step depends on."""
        tensors, values = optimizer_state(self.optimizer)
        state = {
            "step": step,
            "optimizer_values": values,
            "num_steps": self.num_steps,
            "best": self.best,
            "last": self.last,
            "since_best": self.since_best,
            "loss": float(self._loss),
            "grad_norm": float(self._norm),
            "summed": self._summed,
            "stopped": self.stopped,
            "classes": list(self.spec.class_names),
            "precision": str(self.runtime.chosen),
            **more,
        }
        return checkpoint.Snapshot(self.network.state_dict(), tensors, self._ema, state, self._start)

    def restore(self, snapshot: checkpoint.Snapshot) -> int:
        """Take up a snapshot; the step to go on with."""
        self.network.load(snapshot.model)
        values = snapshot.state["optimizer_values"]
        load_optimizer_state(self.optimizer, self._parameters, snapshot.optimizer, values)
        for name, tensor in snapshot.ema.items():
            self._ema[name].copy_(tensor)
        for name, tensor in snapshot.start.items():
            self._start[name].copy_(tensor)
        state = snapshot.state
        self.best, self.last, self.since_best = state["best"], state["last"], state["since_best"]
        self._loss.fill_(state["loss"])
        self._norm = torch.tensor(state["grad_norm"])
        self._summed = state["summed"]
        self.stopped = state["stopped"]
        return state["step"]


def _micro_batches(features: Features, batch: Batch, count: int) -> list[tuple[Features, Batch]]:
    """Equal parts of a global batch; the last may be smaller."""
    size = math.ceil(len(batch.ids) / count)
    parts = zip(batch.inputs.split(size), batch.targets.split(size), batch.ids.split(size), strict=True)
    shares = features.split(size)
    return [(f, Batch(*part)) for f, part in zip(shares, parts, strict=True)]
