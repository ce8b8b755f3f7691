"""NaN, Inf, and memory that runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hydratune.core.types import Batch
from hydratune.data.images.image_stream import ImageStream
from hydratune.data.stream import Batches, Placement
from hydratune.engine.nonfinite import NonFinite
from hydratune.freeze.strategies import HeadOnly
from hydratune.optim.schedules import Cosine
from hydratune.record import checkpoint
from hydratune.record.run_record import RunRecord
from tests.tiny import CPU, SPEC, go, network, same, stream, trial, weights


class Poison(torch.autograd.Function):
    """Nothing forward; NaN backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope * float("nan")


class Poisoned(ImageStream):
    """Some steps' inputs hold what they should not."""

    def __init__(self, steps: set[int], value: float, like: ImageStream) -> None:
        super().__init__(like.split, like.spec, Batches(like.batch_size, like.seed), Placement(CPU))
        self.steps, self.value = steps, value

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(first_step, last_step), first_step):
            if step in self.steps:
                batch.inputs[2, 0, 0, 0] = self.value
            yield batch


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values())


@pytest.mark.scenario(16)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("norm", [False, True])
def test_it_stops_before_the_update_and_names_the_samples(tmp_path: Path, value: float, norm: bool) -> None:
    net = network(norm=norm)
    t = trial(tmp_path, net, steps=12)
    with pytest.raises(NonFinite, match="step 5: loss is not finite"):
        go([t], data=Poisoned({5}, value, stream()), every=3)
    t.run.__exit__(None, None, None)
    assert finite(weights(net)), "statistics of BatchNorm included"
    saved, _ = checkpoint.newest_valid(t.run.checkpoints)
    assert saved is not None and finite(dict(checkpoint.load(saved).model))
    told = RunRecord.read(t.run.directory).nonfinite or {}
    assert told["step"] == 5 and told["sample_ids"] == next(stream().batches(5, 6)).ids.tolist()


@pytest.mark.scenario(16)
def test_gradients_alone_are_enough(tmp_path: Path) -> None:
    net = network()
    forward = net.groups[1].module.forward
    net.groups[1].module.forward = lambda x: Poison.apply(forward(x))  # type: ignore[method-assign]
    before = {n: p.detach().clone() for n, p in net.parameters().items()}
    t = trial(tmp_path, net)
    with pytest.raises(NonFinite, match="step 0: gradient is not finite"):
        go([t])
    t.run.__exit__(None, None, None)
    assert all(torch.equal(before[n], p) for n, p in net.parameters().items())
    assert (RunRecord.read(t.run.directory).nonfinite or {})["step"] == 0


@pytest.mark.scenario(17)
def test_a_skipped_step_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Neither schedule, averages, moments nor BatchNorm's statistics see it."""
    options: dict[str, Any] = {"schedule": Cosine(warmup_steps=2), "steps": 12, "ema": 0.5}
    net = network()
    t = trial(tmp_path, net, name="skips", on_nonfinite="skip", skip_budget=2, **options)
    data = Poisoned({4, 5}, float("nan"), stream())
    rates = []
    for step, batch in enumerate(data.batches(0, 8)):
        t.step(step, batch.inputs, batch, 0)
        rates.append(t.optimizer.param_groups[0]["lr"])
    other = network()
    u = trial(tmp_path, other, name="without", **options)
    batches = list(stream().batches(0, 8))
    for step, batch in enumerate([*batches[:4], *batches[6:]]):
        u.step(step, batch.inputs, batch, 0)
    assert same(weights(net), weights(other)) and same(t.ema, u.ema)
    assert rates[6] == t.rate_at(t.optimizer.param_groups[0], t.phases[0], 6)
    assert rates[3] == rates[4] == rates[5] or rates[4] == rates[5]
    told = RunRecord.read(t.run.directory).skipped
    assert [s["step"] for s in told] == [4, 5] and len(told[0]["sample_ids"]) == 8


@pytest.mark.scenario(17)
def test_skipping_has_a_budget_and_survives_a_checkpoint(tmp_path: Path) -> None:
    t = trial(tmp_path, network(), on_nonfinite="skip", skip_budget=1)
    data = Poisoned({2, 7}, float("inf"), stream())
    with pytest.raises(NonFinite, match="step 7: .* after 1 skipped steps"):
        go([t], data=data, every=5)
    t.run.__exit__(None, None, None)
    again = trial(tmp_path, network(), name="again", on_nonfinite="skip", skip_budget=1)
    step = again.restore(checkpoint.load(t.run.checkpoints / "step-00000005"))
    with pytest.raises(NonFinite, match="step 7"):
        go([again], first=step, data=data, every=5)
    again.run.__exit__(None, None, None)


class OutOfMemory:
    """A group's forward that fails where a batch is larger than `most`, as an allocator does."""

    def __init__(self, net: Any, group: int, most: int, training: bool) -> None:
        self.inner, self.most, self.training, self.failed = net.groups[group].module.forward, most, training, 0
        self.module = net.groups[group].module
        self.module.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        result = self.inner(x)  # statistics have moved when it fails
        if len(x) > self.most and self.module.training == self.training:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result


@pytest.mark.scenario(18)
@pytest.mark.parametrize("norm", [False, True])
def test_training_goes_on_in_smaller_parts(tmp_path: Path, norm: bool, capsys: pytest.CaptureFixture[str]) -> None:
    net, plain = network(norm=norm), network(norm=norm)
    oom = OutOfMemory(net, 1, 4, training=True)
    t, u = trial(tmp_path, net, name="small"), trial(tmp_path, plain, name="whole", accumulate=2)
    go([t])
    go([u])
    assert oom.failed == 1 and t.state.parts == 2 and t.snapshot(12).state["parts"] == 2
    # the same parts as accumulation over two from the start: the same bits, statistics of the failed pass put back
    assert same(weights(net), weights(plain))
    said = capsys.readouterr().out
    assert "2 micro-batches of 4 samples" in said and ("not quite the same" in said) == norm
    if not norm:  # and what one whole batch gives, within float order
        whole = network(norm=False)
        go([trial(tmp_path, whole, name="one")])
        ours = weights(net)
        assert all(torch.allclose(ours[n], w, rtol=1e-4, atol=1e-6) for n, w in weights(whole).items())


@pytest.mark.scenario(18)
def test_evaluation_goes_on_in_smaller_parts(tmp_path: Path) -> None:
    net, plain = network(), network()
    oom = OutOfMemory(net, 1, 5, training=False)
    t, u = trial(tmp_path, net, name="small"), trial(tmp_path, plain, name="whole")
    go([t], every=4)
    go([u], every=4)
    assert oom.failed and t.state.history == u.state.history and t.state.last == pytest.approx(u.state.last)


@pytest.mark.scenario(18)
def test_a_trunk_goes_on_in_smaller_parts(tmp_path: Path) -> None:
    net, plain = network(), network()
    oom = OutOfMemory(net, 1, 4, training=False)
    t, u = trial(tmp_path, net, HeadOnly(), name="small"), trial(tmp_path, plain, HeadOnly(), name="whole")
    go([t])
    go([u])
    assert oom.failed and same(weights(net), weights(plain))


@pytest.mark.scenario(18)
def test_where_one_sample_is_too_much_it_is_said(tmp_path: Path) -> None:
    net = network()
    OutOfMemory(net, 1, 0, training=True)
    t = trial(tmp_path, net)
    with pytest.raises(RuntimeError, match="out of memory"):
        go([t])
    t.run.__exit__(None, None, None)
    assert SPEC.num_classes == 3
