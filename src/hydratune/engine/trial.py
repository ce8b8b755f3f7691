"""A trial: one network with its optimizer, schedule and run directory."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hydratune.core.markdown import as_shown
from hydratune.core.secrets import hidden_in
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import Batch, Features, Phase, Spec
from hydratune.distributed.process_group import local, whole
from hydratune.distributed.runtime import Runtime
from hydratune.engine.backward import Backward
from hydratune.engine.nonfinite import refusal, which
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.state import (
    Meters,
    Progress,
    Swapped,
    Tensors,
    digest,
    frozen_tensors,
    peak_memory_mb,
    set_modes,
)
from hydratune.engine.tail import Tail
from hydratune.freeze import patience
from hydratune.freeze.phases import last_thaw
from hydratune.freeze.recompute import recomputed
from hydratune.models.network import Network
from hydratune.optim.optimizers import rates_now
from hydratune.record import checkpoint
from hydratune.record.run import Run


class Trial:
    """Steps on features that a trunk hands it. Everything it does at a step is a function of that step's number."""

    def __init__(
        self, network: Network, plan: TrainingPlan, task: Task, spec: Spec, runtime: Runtime, run: Run
    ) -> None:
        self.network, self.plan, self.task, self.spec, self.runtime, self.run = network, plan, task, spec, runtime, run
        self.planned = self.phases = tuple(plan.phases)
        self.config, self.schedule = plan.optimizer, plan.schedule
        self.settings, self.seed, self.num_steps = plan.settings, plan.seed, plan.phases[-1].last_step
        self.fork = min(p.cut for p in self.phases)  # below it nothing is ever this trial's own
        self.parameters = network.parameters()
        self.optimizer = self.config.build(network.groups, self.parameters, self.phases)
        ever = frozenset().union(*(p.trainable for p in self.phases))
        self._averaged = {n: p for n, p in self.parameters.items() if n in ever} if self.settings.ema else {}
        self.ema = {n: p.detach().clone() for n, p in self._averaged.items()}
        pulled = ever.difference(network.head.names.values()) if self.config.l2_sp else frozenset()
        self.start = {n: p.detach().clone() for n, p in self.parameters.items() if n in pulled}
        self._tensors = Tensors(network, self.optimizer, self.ema, self.start)
        self.state = Progress(parts=self.settings.accumulate)
        self.failed: Exception | None = None
        self.backward = Backward(task, runtime, self.state)
        self.meters = Meters.on(runtime.torch_device)
        self.phase: Phase | None = None

    # ---- phases

    def phase_at(self, step: int) -> Phase:
        return next(p for p in self.phases if p.first_step <= step < p.last_step)

    def planned_at(self, step: int) -> Phase:
        """The same as it was planned, whose steps may be others."""
        return self.planned[self.phases.index(self.phase_at(step))]

    def untouched(self, step: int) -> int:
        """The first group that it has ever changed by `step`, or changes there; below it all is as it was loaded."""
        return min(p.cut for p in self.phases if p.first_step <= step)

    def enter(self, phase: Phase) -> None:
        """Fix what trains. Frozen groups go to eval, so their BatchNorm and dropout stand still."""
        self.phase = phase
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in phase.trainable)
            if name not in phase.trainable:
                parameter.grad = None  # a zero gradient would still be decayed and carried by momentum
        self._trainable = [self.parameters[n] for n in self.parameters if n in phase.trainable]
        self._pulled = [(self.parameters[n], w) for n, w in self.start.items() if n in phase.trainable]
        set_modes(self.network, phase)
        self.backward.enter([m for g in self.network.groups for m in g.module.modules()])
        self._fingerprint = digest(frozen_tensors(self.network, phase))
        tail = Tail(self.network, recomputed(self.network.groups, phase, self.settings.recompute)).forward
        # A graph compiled for another phase trains nothing that has thawed since.
        self._tail = torch.compile(tail) if self.runtime.compile else tail

    def leave(self) -> None:
        """The proof: what was frozen in this phase is bit for bit what it was."""
        assert self.phase is not None
        if digest(frozen_tensors(self.network, self.phase)) != self._fingerprint:
            raise RuntimeError(f"phase {self.phase.name}: a frozen parameter or buffer changed")
        self.run.update(frozen_unchanged=True)

    def _begin(self, phase: Phase) -> None:
        """What happens once in a phase, at its first step, also where a resumed run starts just there."""
        if phase.first_step:
            for name in phase.trainable ^ self.phase_at(phase.first_step - 1).trainable:
                # of what freezes: it takes memory, and would point nowhere once that thaws
                self.optimizer.state.pop(self.parameters[name], None)
            if phase.first_step <= last_thaw(self.phases):
                self.state.since_best = 0
        self._mark(phase.first_step + 1)

    def _mark(self, step: int) -> None:
        """The phase in TensorBoard, at the number of its first update and with every log."""
        assert self.phase is not None
        share = sum(p.numel() for p in self._trainable) / sum(p.numel() for p in self.parameters.values())
        values = {"phase/index": self.phases.index(self.phase), "phase/cut": self.phase.cut}
        self.run.board.scalars({**values, "phase/trainable_share": share}, step)

    def prepare(self, step: int) -> None:
        """Be in the phase of `step`."""
        phase = self.phase_at(step)
        if self.phase != phase:
            if self.phase is not None:
                self.leave()
            if step and step == phase.first_step:
                self._back_to_best(self.phase_at(step - 1))
            self.enter(phase)
            if step == phase.first_step:
                self._begin(phase)

    def _back_to_best(self, ended: Phase) -> None:
        """What patience has ended hands on its best weights, their averages and the state of their optimizer.

        Also where a resumed run starts just there. What was frozen comes back as it was.
        """
        best = patience.best_of(ended, self.state.history)
        if patience.ran_out(ended, self.state.history) is not None and best is not None:
            self._tensors.take_up(checkpoint.load(checkpoint.path_of(self.run.checkpoints, best)))
            if self.phase is not None:
                self.leave()

    # ---- one step

    def step(self, step: int, features: Features, batch: Batch, first: int) -> None:
        """Update on `features`, the output of groups[:first] (the inputs themselves where first is 0)."""
        self.prepare(step)
        started = time.perf_counter()
        loss, terms, forward = self.backward.run(
            step, features, batch, lambda part, own: self._forward(step, part, own, first), self._trainable
        )
        self.update(step, loss, batch, (forward, time.perf_counter() - started - forward), terms)

    def update(
        self, step: int, loss: Tensor, batch: Batch, seconds: tuple[float, float], terms: Mapping[str, Tensor]
    ) -> None:
        """What follows the gradients; seconds: of the forward and the backward passes."""
        started = time.perf_counter()
        assert self.phase is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(group, self.phase, step)
        for parameter, start in self._pulled:  # the gradient of l2_sp / 2 * |w - w0|^2
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.config.l2_sp)
        norm = get_total_norm([p.grad for p in self._trainable if p.grad is not None])
        if not math.isfinite(whole(norm) + 0 * loss):
            self._skip(step, float(loss), batch)
            return
        if self.settings.clip is not None:
            clip_grads_with_norm_(self._trainable, self.settings.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.ema is not None:
            with torch.no_grad():  # else every average would carry the graph of all steps before
                averages, weights = ([local(t) for t in d.values()] for d in (self.ema, self._averaged))
                torch._foreach_lerp_(averages, weights, 1 - self.settings.ema)
        self.meters.add(loss, terms, whole(norm), seconds[0], seconds[1] + time.perf_counter() - started)

    def rate_at(self, group: Mapping[str, Any], phase: Phase, step: int) -> float:
        """Of a parameter group; a phase's rate takes the optimizer's place in it."""
        base = group["base_lr"] * phase.lr_ratios.get(group["names"][0], 1.0)
        own = base if phase.lr is None else phase.lr * (base / self.config.lr)
        return own * self.schedule.factor(step - len(self.state.skips), self.num_steps) * phase.lr_scale

    def _forward(self, step: int, part: int, features: Features, first: int) -> Features:
        assert self.phase is not None
        self.runtime.seed_noise(derive_seed(self.seed, "noise", step, self.runtime.rank, part))
        with self.runtime.autocast():
            if first < self.phase.cut:
                with torch.no_grad():
                    features = self.network.forward(features, first, self.phase.cut)
            return self._tail(features, max(first, self.phase.cut))

    def _skip(self, step: int, loss: float, batch: Batch) -> None:
        """No update: it stops here, or the step counts neither for the schedule nor for averages."""
        self.backward.put_back()
        self.optimizer.zero_grad(set_to_none=True)
        ids = self.runtime.joined(batch.ids).tolist()
        found = {"step": step, "loss": loss, "sample_ids": ids}
        budget = self.settings.skip_budget if self.settings.on_nonfinite == "skip" else 0
        if len(self.state.skips) >= budget:
            self.run.update(nonfinite=found)
            raise refusal(step, loss, ids, budget)
        self.state.skips = [*self.state.skips, found]
        self.run.update(skipped=self.state.skips)
        print(
            f"warning: step {step}: {which(loss)} is not finite; skipped, {budget - len(self.state.skips)} more may be"
        )

    # ---- beside others

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Its failure is not the others': neither its error nor what its frames hold of memory.

        Of several processes the one that fails ends, as the others wait for it in another place.
        """
        try:
            yield
        except Exception as error:
            self.failed = error
            if self.runtime.world > 1:
                raise
            traceback.clear_frames(error.__traceback__)

    # ---- evaluation and record

    def note(
        self, step: int, values: dict[str, float], beside: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """What validation gave after `step` updates; keeps count of the best. beside: what further sets gave."""
        state, monitor = self.state, self.plan.monitor
        state.note(step, monitor.of(values, beside or {}), values, beside or {}, monitor.latest)
        self.run.board.scalars({f"val/{k}": v for k, v in values.items()}, step)
        for name, others in (beside or {}).items():
            self.run.board.scalars({f"{name}/{k}": v for k, v in others.items()}, step)
        most, metric, last = self.settings.patience, monitor.metric, step > last_thaw(self.phases)
        if most is not None and last and state.since_best >= most:  # a probe's rest ends no fine-tuning
            state.stopped = f"no better {metric} in {state.since_best} evaluations"
        elif patience.ran_out(self.phase_at(step - 1), state.history) is not None:
            self.phases = patience.as_they_came(self.planned, state.history)
            message = patience.sentences(self.planned, state.history, metric)[-1]
            self.run.add("freeze", message, step)
            if self.runtime.rank == 0:
                print(as_shown(message))
        self.run.update(step=step, history=state.history)

    def bests(self, since: int) -> set[int]:
        """Steps of the checkpoints that are read again: the best one, and those that `patience.bests` has."""
        own = {self.state.best["step"]} if self.state.best else set()
        return own | patience.bests(self.phases, self.state.history, since)

    def averaged_weights(self) -> Swapped:
        return Swapped(self._averaged, self.ema)

    def log(self, step: int, speed: float, unit: str) -> dict[str, str]:
        """Scalars of the steps since the last log; reads the device once. Returns what the live line shows.

        speed: units of data in a second.
        """
        values = {**self.meters.read(), f"speed/{unit}_per_second": speed}
        values["memory/peak_mb"] = peak_memory_mb(self.runtime.torch_device)
        self.run.board.scalars(values | {f"lr/{name}": rate for name, rate in self.rates().items()}, step)
        if self.phase is not None and step > self.phase.first_step + 1:  # which was told when the phase began
            self._mark(step)
        self.meters.reset()
        return {"loss": f"{values['train/loss']:.4f}", f"{unit}/s": f"{speed:,.0f}"}

    def rates(self) -> dict[str, float]:
        """The learning rate of every layer group that trains, as the optimizer has it now."""
        assert self.phase is not None
        return rates_now(self.optimizer, self.network.groups, self.phase)

    # ---- checkpoint

    def snapshot(self, step: int, **more: Any) -> checkpoint.Snapshot:
        """Everything that the next step depends on."""
        return self._tensors.snapshot({
            "step": step,
            "num_steps": self.num_steps,
            **self.state.state_dict(),
            "meters": self.meters.state_dict(),
            "classes": hidden_in(list(self.spec.class_names)),
            "head": {"kind": self.task.kind, "answers": hidden_in(list(self.task.answers(self.spec)))},
            "precision": str(self.runtime.chosen),
            "threads": self.runtime.numerics.threads,
            **more,
        })  # fmt: skip

    def restore(self, snapshot: checkpoint.Snapshot) -> int:
        """Go on from a snapshot; the step to go on with."""
        self._tensors.take_up(snapshot)
        vars(self.state).update(Progress.read(snapshot.state).state_dict())
        self.phases = patience.as_they_came(self.planned, self.state.history)
        self.meters.restore(**snapshot.state["meters"])
        return snapshot.state["step"]
