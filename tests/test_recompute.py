"""engine.recompute: the same bits, fewer bytes, and a word on what is not recomputed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hydratune.core.types import Backbone, Phase
from hydratune.engine.tail import Tail
from hydratune.engine.trial import Trial
from hydratune.experiment.run import run_job
from hydratune.freeze.cost import CostMeter
from hydratune.freeze.lora import LoRA
from hydratune.freeze.recompute import recomputed, sentence
from hydratune.freeze.schedules import Gradual, Progressive
from hydratune.freeze.strategies import LastGroups, NoFreeze, NormOnly
from hydratune.models.network import Network, build_network
from hydratune.optim.optimizers import AdamW
from hydratune.record import checkpoint
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen
from tests.conftest import TINY, make_job
from tests.tiny import go, network, same, stream, trial, weights

Runner = Callable[..., Any]
BLOCKS = 6


class InPlace(nn.Module):
    """Changes its input, as ReLU(inplace=True) at the beginning of a group does; the second time it is another one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(1.5)


def deep(norm: bool = False, width: int = 4) -> Network:
    """A stem, blocks with dropout, one of which works in place, and a head; with norm: BatchNorm in the third."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Module()
        source.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.Tanh())
        source.blocks = nn.ModuleList(_block(i, width, norm) for i in range(BLOCKS))
        groups = [("stem", source.stem), *((f"block{i}", b) for i, b in enumerate(source.blocks))]
        return build_network(Backbone(source, [*groups, ("flat", nn.Flatten())]), nn.Linear(9 * width, 3))


def _block(number: int, width: int, norm: bool) -> nn.Sequential:
    first: list[nn.Module] = [InPlace()] if number == 1 else []
    more: list[nn.Module] = [nn.BatchNorm2d(width)] if norm and number == 2 else []
    wide = [nn.Conv2d(width, 8 * width, 1), nn.GELU(), nn.Conv2d(8 * width, width, 3, padding=1)]
    return nn.Sequential(*first, *wide, *more, nn.Tanh(), nn.Dropout(0.3))


# ---- which


def test_which_groups_are_recomputed_and_why_others_are_not() -> None:
    net = deep(norm=True)
    (every,) = NoFreeze().phases(net.groups, 5)
    names = [net.groups[i].name for i in sorted(recomputed(net.groups, every))]
    assert names == ["stem", "block0", "block1", "block3", "block4", "block5", "flat"]
    said = sentence(net.groups, every)
    assert "phase 'all': stem, block0, block1, block3" in said and said.endswith(
        "block2 (BatchNorm), head (backward begins there)"
    )
    (last,) = LastGroups(2).phases(net.groups, 5)  # what gradients do not pass keeps nothing in any case
    assert [net.groups[i].name for i in recomputed(net.groups, last)] == ["block5", "flat"]
    (norms,) = NormOnly().phases(net.groups, 5)
    assert {net.groups[i].name for i in recomputed(net.groups, norms)} == {"block3", "block4", "block5", "flat"}
    small = network()
    assert not recomputed(small.groups, NoFreeze().phases(small.groups, 5)[0])
    assert "phase 'all': nothing; kept" in sentence(small.groups, NoFreeze().phases(small.groups, 5)[0])


# ---- bits


def both(tmp_path: Path, made: Callable[[], Network], strategy: Any, **options: Any) -> list[Trial]:
    trials = []
    for again in (False, True):
        t = trial(tmp_path, made(), strategy, recipe=AdamW(0.01), recompute=again, name=f"{again}", **options)
        go([t], every=4)
        trials.append(t)
    return trials


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (NoFreeze(), {}),
        (NoFreeze(), {"accumulate": 3, "clip": 0.5, "ema": 0.9}),
        (LastGroups(3), {}),
        (Gradual(2), {"steps": 16}),
        (Progressive([0.2, 0.5]), {}),
    ],
    ids=["none", "accumulated", "cut", "gradual", "progressive"],
)
@pytest.mark.parametrize("norm", [False, True])
def test_the_bits_are_the_same(tmp_path: Path, strategy: Any, options: dict[str, Any], norm: bool) -> None:
    plain, again = both(tmp_path, lambda: deep(norm), strategy, **options)
    assert same(weights(plain.network), weights(again.network)) and same(plain.ema, again.ema)
    assert same(dict(plain.snapshot(9).optimizer), dict(again.snapshot(9).optimizer))
    assert plain.state.history == again.state.history


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_in_bf16_too(tmp_path: Path, precision: str) -> None:
    from hydratune.distributed.runtime import Runtime

    lora = LoRA(rank=2)

    def made() -> Network:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Network(lora.adapt(deep().groups))

    plain, again = both(tmp_path, made, lora, runtime=Runtime(precision=precision, keep_memory=False))
    assert same(weights(plain.network), weights(again.network))
    assert not same(weights(plain.network), weights(made()))


def test_noise_is_what_the_bits_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the second pass to draw other noise, the test above would see it."""
    from torch.utils import checkpoint as torch_checkpoint

    from hydratune.engine import tail

    def careless(*arguments: Any, **options: Any) -> Any:
        return torch_checkpoint.checkpoint(*arguments, **{**options, "preserve_rng_state": False})

    monkeypatch.setattr(tail, "checkpoint", careless)
    plain, again = both(tmp_path, deep, NoFreeze())
    assert not same(weights(plain.network), weights(again.network))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x


def test_a_group_that_changes_itself_is_refused_by_name(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), Counting())
    net = build_network(Backbone(source, [("body", source)]), nn.Linear(8, 3))
    t = trial(tmp_path, net, recompute=True)
    before = weights(net)
    with pytest.raises(ValueError, match=r"engine\.recompute=true: layer group body changes its 2\.seen"):
        go([t])
    assert torch.equal(before["1.weight"], weights(net)["1.weight"])


# ---- memory


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known:
                    self._known.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def peak(net: Network, again: frozenset[int]) -> int:
    images = torch.zeros(256, 3, 8, 8)
    with Live() as live:
        Tail(net, again).forward(images, 0).sum().backward()
    return live.most


def test_peak_memory_goes_down(tmp_path: Path) -> None:
    net = deep(width=16)
    (phase,) = NoFreeze().phases(net.groups, 1)
    plain, again = peak(net, frozenset()), peak(net, recomputed(net.groups, phase))
    assert again < 0.5 * plain, (again, plain)


def test_costs_say_what_is_kept_and_what_the_second_pass_takes() -> None:
    from contextlib import nullcontext

    net = deep(width=16)
    meter = CostMeter(net.groups, torch.zeros(8, 3, 8, 8), lambda y: y.sum(), nullcontext, 0.0)
    (phase,) = NoFreeze().phases(net.groups, 1)
    plain, again = meter.phase(phase), meter.phase(phase, True)
    assert again.saved_bytes < 0.5 * plain.saved_bytes and again.seconds > plain.seconds
    counted = [meter.operations_of(phase, flag).seconds for flag in (False, True)]
    assert counted[1] - counted[0] == sum(meter.operations[:-1]) * 8
    frozen = Phase(0, 1, frozenset(net.head.names.values()), cut=len(net.groups) - 1)
    assert meter.phase(frozen, True).saved_bytes == meter.phase(frozen).saved_bytes


# ---- runs

LINE = [*TINY, "stage=finetune", "init_from=null", "test=false", "steps=4", "engine.eval_every=2", "model=simple_cnn",
        "freeze=none", "dataset.train=64", "dataset.val=32", "dataset.test=32", "batch_size=16"]  # fmt: skip


def test_a_run_says_what_it_recomputes_and_may_change_its_mind(tmp_path: Path, capfd: Any) -> None:
    plain = run_job(make_job(LINE, tmp_path / "plain"), Screen(quiet=True)).directory
    more = [*LINE, "engine.recompute=true"]
    home = run_job(make_job(more, tmp_path / "again")).directory
    said = "recomputed in the backward pass of phase 'all': conv1; kept as computed: head (backward begins there)"
    assert said in capfd.readouterr().out and said in (home / "freeze.md").read_text()
    assert said not in (plain / "freeze.md").read_text()
    ends = [checkpoint.load(h / "checkpoints" / "step-00000004") for h in (plain, home)]
    assert same(*(dict(e.model) for e in ends)) and same(*(dict(e.optimizer) for e in ends))
    assert RunRecord.read(plain).fingerprint == RunRecord.read(home).fingerprint
    half = run_job(make_job([*LINE, "steps=2"], tmp_path / "half"), Screen(quiet=True)).directory
    run_job(make_job([*more, "resume=auto"], tmp_path / "half"), Screen(quiet=True))
    assert same(dict(checkpoint.load(half / "checkpoints" / "step-00000004").model), dict(ends[0].model))


def test_a_dry_run_says_it_too(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    run("model=resnet9_w16", "init_from=null", "freeze=none", "engine.recompute=true", "dry_run=true", "steps=2")
    assert "stem (BatchNorm)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["engine.recompute=2"], r"engine\.recompute=2: must be true or false"),
        (["engine.recompute=true", "runtime.compile=true"], r"the compiler decides what is kept"),
        (["pretrain.engine.recompute=true", "runtime.compile=true"], r"pretrain\.engine\.recompute=true"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, line: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_job(line, tmp_path)


def test_batches_of_the_stream_are_left_alone(tmp_path: Path) -> None:
    """The first group works on a copy, as the images may be looked at again."""
    net = deep()
    (phase,) = NoFreeze().phases(net.groups, 1)
    batch = next(stream().batches(0, 1))
    before = batch.inputs.clone()
    Tail(net, recomputed(net.groups, phase)).forward(batch.inputs, 0)
    assert torch.equal(before, batch.inputs)
