"""A trial: one network with its optimizer, schedule and run directory."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hydratune.company import assign, local, whole
from hydratune.engine.backward import Backward
from hydratune.engine.nonfinite import refusal, which
from hydratune.engine.settings import Settings
from hydratune.engine.state import (
    Meters,
    Swapped,
    digest,
    frozen_tensors,
    load_optimizer_state,
    optimizer_state,
    peak_memory_mb,
    set_modes,
)
from hydratune.layer_groups import parameter_names
from hydratune.models.network import Network
from hydratune.optim import Recipe, Schedule
from hydratune.randomness import derive_seed
from hydratune.record import checkpoint
from hydratune.record.run import Run
from hydratune.runtime import Runtime
from hydratune.secrets import hidden_in
from hydratune.types import Batch, Features, Phase, Spec, Task


class Trial:
    """Steps on features that a trunk hands it. Everything it does at a step is a function of that step's number."""

    def __init__(
        self, network: Network, phases: Sequence[Phase], task: Task, spec: Spec, recipe: Recipe,
        schedule: Schedule, settings: Settings, runtime: Runtime, run: Run, seed: int,
    ) -> None:  # fmt: skip
        self.network, self.phases, self.task, self.spec = network, tuple(phases), task, spec
        self.recipe, self.schedule, self.settings = recipe, schedule, settings
        self.runtime, self.run, self.seed = runtime, run, seed
        self.num_steps = phases[-1].last_step
        self.fork = min(p.cut for p in phases)  # below it nothing is ever this trial's own
        self.parameters = network.parameters()
        self.optimizer = recipe.build(network.groups, self.parameters, [p.trainable for p in self.phases])
        ever = frozenset().union(*(p.trainable for p in phases))
        self._averaged = {n: p for n, p in self.parameters.items() if n in ever} if settings.ema else {}
        self.ema = {n: p.detach().clone() for n, p in self._averaged.items()}
        pulled = ever.difference(network.head.names.values()) if recipe.l2_sp else frozenset()
        self.start = {n: p.detach().clone() for n, p in self.parameters.items() if n in pulled}
        self.best: dict[str, Any] = {}  # step and value of the best evaluation
        self.last: dict[str, float] = {}  # the latest evaluation
        self.since_best = 0
        self.history: list[list[float]] = []  # [step, value] of every evaluation
        self.stopped: str | None = None  # why it ended before its last step
        self.failed: Exception | None = None
        self.owed = False  # the evaluation after its last step, which a signal did not leave time for
        self.skips: list[dict[str, Any]] = []  # steps that were not made, their loss or gradient being not finite
        self.backward = Backward(task, runtime, settings.accumulate)
        self.meters = Meters.on(runtime.torch_device)
        self.phase: Phase | None = None

    # ---- phases

    def phase_at(self, step: int) -> Phase:
        return next(p for p in self.phases if p.first_step <= step < p.last_step)

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
        # A graph compiled for another phase trains nothing that has thawed since.
        self._tail = torch.compile(self._run_tail) if self.runtime.compile else self._run_tail

    def leave(self) -> None:
        """The proof: what was frozen in this phase is bit for bit what it was."""
        assert self.phase is not None
        if digest(frozen_tensors(self.network, self.phase)) != self._fingerprint:
            raise RuntimeError(f"phase {self.phase.name}: a frozen parameter or buffer changed")
        self.run.update(frozen_unchanged=True)

    def _begin(self, phase: Phase) -> None:
        """What happens once in a phase, at its first step, also where a resumed run starts just there."""
        if phase.first_step:
            for name in phase.trainable - self.phase_at(phase.first_step - 1).trainable:
                # momentum from before it was frozen points nowhere now
                self.optimizer.state.pop(self.parameters[name], None)
            self.since_best = 0
        self._mark(phase.first_step + 1)

    def _mark(self, step: int) -> None:
        """The phase in TensorBoard, at the number of its first update and with every log."""
        assert self.phase is not None
        total = sum(p.numel() for p in self.parameters.values())
        share = sum(p.numel() for p in self._trainable) / total
        values = {"phase/index": self.phases.index(self.phase), "phase/cut": self.phase.cut}
        self.run.board.scalars({**values, "phase/trainable_share": share}, step)

    def prepare(self, step: int) -> None:
        """Be in the phase of `step`."""
        phase = self.phase_at(step)
        if self.phase is not phase:
            if self.phase is not None:
                self.leave()
            self.enter(phase)
            if step == phase.first_step:
                self._begin(phase)

    # ---- one step

    def step(self, step: int, features: Features, batch: Batch, first: int) -> None:
        """Update on `features`, the output of groups[:first] (the inputs themselves where first is 0)."""
        self.prepare(step)
        started = time.perf_counter()
        loss, forward = self.backward.run(
            step, features, batch, lambda part, own: self._forward(step, part, own, first), self._trainable
        )
        self.update(step, loss, batch, forward, time.perf_counter() - started - forward)

    def update(self, step: int, loss: Tensor, batch: Batch, forward: float, backward: float) -> None:
        """What follows the gradients; forward, backward: seconds that these took."""
        started = time.perf_counter()
        assert self.phase is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(group["base_lr"], self.phase, step)
        for parameter, start in self._pulled:  # the gradient of l2_sp / 2 * |w - w0|^2
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.recipe.l2_sp)
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
        self.meters.add(loss, whole(norm), forward, backward + time.perf_counter() - started)

    def rate_at(self, base: float, phase: Phase, step: int) -> float:
        """base: the parameter group's own; a phase's rate takes the optimizer's place in it."""
        own = base if phase.lr is None else phase.lr * (base / self.recipe.lr)
        return own * self.schedule.factor(step - len(self.skips), self.num_steps) * phase.lr_scale

    def _forward(self, step: int, part: int, features: Features, first: int) -> Features:
        assert self.phase is not None
        self.runtime.seed_noise(derive_seed(self.seed, "noise", step, self.runtime.rank, part))
        with self.runtime.autocast():
            if first < self.phase.cut:
                with torch.no_grad():
                    features = self.network.forward(features, first, self.phase.cut)
            return self._tail(features, max(first, self.phase.cut))

    def _run_tail(self, features: Features, first: int) -> Features:
        return self.network.forward(features, first)

    def _skip(self, step: int, loss: float, batch: Batch) -> None:
        """No update: it stops here, or the step counts neither for the schedule nor for averages."""
        self.backward.put_back()
        self.optimizer.zero_grad(set_to_none=True)
        ids = self.runtime.joined(batch.ids).tolist()
        found = {"step": step, "loss": loss, "sample_ids": ids}
        budget = self.settings.skip_budget if self.settings.on_nonfinite == "skip" else 0
        if len(self.skips) >= budget:
            self.run.update(nonfinite=found)
            raise refusal(step, loss, ids, budget)
        self.skips = [*self.skips, found]
        self.run.update(skipped=self.skips)
        print(f"warning: step {step}: {which(loss)} is not finite; skipped, {budget - len(self.skips)} more may be")

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

    def note(self, step: int, values: dict[str, float]) -> None:
        """What validation gave after `step` updates; keeps count of the best."""
        self.last, self.owed = values, False
        self.run.board.scalars({f"val/{k}": v for k, v in values.items()}, step)
        score = values[self.task.monitor]
        self.history = [*self.history, [step, score]]
        if not self.best or score > self.best["value"]:
            self.best = {"step": step, "value": score, "metrics": values}
            self.since_best = 0
        else:
            self.since_best += 1
        patience, last = self.settings.patience, self.phase is self.phases[-1]  # a probe's rest ends no fine-tuning
        if patience is not None and last and self.since_best >= patience:
            self.stopped = f"no better {self.task.monitor} in {self.since_best} evaluations"
        self.run.update(step=step, history=self.history)

    def averaged_weights(self) -> Swapped:
        return Swapped(self._averaged, self.ema)

    def log(self, step: int, speed: float, unit: str) -> dict[str, str]:
        """Scalars of the steps since the last log; reads the device once. Returns what the live line shows.

        speed: units of data in a second.
        """
        values = {**self.meters.read(), f"speed/{unit}_per_second": speed}
        values["memory/peak_mb"] = peak_memory_mb(self.runtime.torch_device)
        values |= {f"lr/{name}": rate for name, rate in self.rates().items()}
        self.run.board.scalars(values, step)
        self._mark(step)
        self.meters.reset()
        return {"loss": f"{values['train/loss']:.4f}", f"{unit}/s": f"{speed:,.0f}"}

    def rates(self) -> dict[str, float]:
        """The learning rate of every layer group that trains, as the optimizer has it now."""
        assert self.phase is not None
        rate = {n: g["lr"] for g in self.optimizer.param_groups for n in g["names"]}
        rows = zip(self.network.groups, parameter_names(self.network.groups), strict=True)
        trained = {g.name: [n for n in names if n in self.phase.trainable] for g, names in rows}
        return {name: rate[names[0]] for name, names in trained.items() if names}

    # ---- checkpoint

    def snapshot(self, step: int, **more: Any) -> checkpoint.Snapshot:
        """Everything that the next step depends on."""
        tensors, values = optimizer_state(self.optimizer)
        state = {
            "step": step,
            "optimizer_values": values,
            "optimizer_tensors": sorted(tensors),
            "num_steps": self.num_steps,
            "best": self.best,
            "last": self.last,
            "since_best": self.since_best,
            "history": self.history,
            "meters": {"loss": float(self.meters.loss), "norm": float(self.meters.norm), "summed": self.meters.summed},
            "stopped": self.stopped,
            "owed": self.owed,
            "skips": self.skips,
            "parts": self.backward.parts,
            "classes": hidden_in(list(self.spec.class_names)),
            "precision": str(self.runtime.chosen),
            "threads": self.runtime.numerics.threads,
            **more,
        }
        parts = (self.network.state_dict(), tensors, self.ema, self.start)
        model, moments, averages, start = ({n: whole(t.detach()) for n, t in part.items()} for part in parts)
        return checkpoint.Snapshot(model, moments, averages, state, start)

    def restore(self, snapshot: checkpoint.Snapshot) -> int:
        """Take up a snapshot; the step to go on with."""
        self.network.load(snapshot.model)
        values = snapshot.state["optimizer_values"]
        load_optimizer_state(self.optimizer, self.parameters, snapshot.optimizer, values)
        if lacking := sorted(set(snapshot.state["optimizer_tensors"]) - snapshot.optimizer.keys()):
            raise ValueError(f"checkpoint: the optimizer's {lacking[0]} is not there")
        for name, tensor in snapshot.ema.items():
            assign(self.ema[name], tensor)
        for name, tensor in snapshot.start.items():
            assign(self.start[name], tensor)
        state = snapshot.state
        self.best, self.last, self.since_best = state["best"], state["last"], state["since_best"]
        self.history = state["history"]
        self.meters.restore(**state["meters"])
        self.stopped, self.owed, self.skips = state["stopped"], state["owed"], state["skips"]
        self.backward.parts = state["parts"]
        return state["step"]
