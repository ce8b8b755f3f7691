"""Edges of networks, phases, averages and caches, each once a fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hydratune.config.origin import found
from hydratune.core.types import LayerGroup, Phase
from hydratune.data.images.folder import ImageFolder
from hydratune.freeze.phases import checked
from hydratune.freeze.schedules import LpFt
from hydratune.freeze.strategies import FirstGroups, HeadOnly
from hydratune.models.network import Network, as_body, build_network
from hydratune.optim.optimizers import SGD, Torch
from hydratune.record.feature_store import FeatureStore
from tests.tiny import go, network, same, stream, trial, weights


def test_averages_carry_no_graph(tmp_path: Path) -> None:
    t = trial(tmp_path, network(), ema=0.9)
    go([t])
    assert t.ema and not any(a.requires_grad or a.grad_fn for a in t.ema.values())


def test_a_probe_at_rest_ends_no_fine_tuning(tmp_path: Path) -> None:
    """Patience counts in the last phase; the probe's evaluations before it are forgotten."""
    t = trial(tmp_path, network(), LpFt(0.5), steps=40, recipe=SGD(1e-9), patience=2)
    go([t], every=4)
    assert (
        t.state.stopped and t.state.history[-1][0] == 28
    )  # 20 steps of probe, then two evaluations without improvement


class Own(nn.Module):
    def __init__(self, name: str = "projection", extra: bool = False) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 4))
        if extra:
            self.token = nn.Parameter(torch.zeros(4))
        self._name = name

    def layer_groups(self) -> list[tuple[str, nn.Module]]:
        return [("body", getattr(self, self._name))]


def test_a_head_of_the_same_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head\.(bias|weight).*another head_name"):
        build_network(as_body(_with_head()), nn.Linear(4, 2))
    assert build_network(as_body(Own()), nn.Linear(4, 2)).parameters().keys() == {
        "projection.weight", "projection.bias", "head.weight", "head.bias",
    }  # fmt: skip


def _with_head() -> nn.Module:
    return Own("head")


def test_a_parameter_in_no_group_is_named() -> None:
    with pytest.raises(ValueError, match="no layer group has token"):
        as_body(Own(extra=True))


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], "none"),
        ([(0, 5), (6, 10)], "0-5, 6-10"),
        ([(0, 5)], "0-5"),
        ([(0, 5), (5, 5), (5, 10)], "5-5"),
    ],
)
def test_phases_that_leave_a_gap_are_refused(phases: list[tuple[int, int]], said: str) -> None:
    groups = network().groups
    with pytest.raises(ValueError, match=said):
        checked([Phase(a, b, frozenset({"head.weight"}), 2) for a, b in phases], groups, 10)


def test_phases_of_what_is_not_there_are_refused() -> None:
    groups = network().groups
    with pytest.raises(ValueError, match=r"heat\.weight"):
        checked([Phase(0, 10, frozenset({"heat.weight"}), 2, "p")], groups, 10)
    with pytest.raises(ValueError, match="cut at 2"):
        checked([Phase(0, 10, frozenset({"stem.weight"}), 2, "p")], groups, 10)


def test_features_of_several_tensors_are_divided_for_accumulation(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return self.inner(x), x.mean((1, 2, 3))

    class Join(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pair: Any) -> Any:
            return self.inner(pair[0]) + pair[1][:, None]

    def pairs() -> Network:
        first, second, head = network(norm=False).groups
        renamed = [
            LayerGroup(g.name, kind(g.module), {f"inner.{k}": n for k, n in g.names.items()})
            for g, kind in ((first, Pair), (second, Join))
        ]
        return Network([*renamed, head])

    whole, parts = pairs(), pairs()
    go([trial(tmp_path, whole, FirstGroups(1), name="whole")])
    go([trial(tmp_path, parts, FirstGroups(1), name="parts", accumulate=2)])
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-4, atol=1e-6)
    assert not same(weights(whole), weights(pairs()))


def test_what_is_left_of_an_entry_is_made_anew(tmp_path: Path) -> None:
    store = FeatureStore("disk", 10_000, tmp_path)
    rows = torch.arange(12.0).view(4, 3)
    store.keep("a", 4, iter([rows]))
    (tmp_path / "a" / "features.bin").unlink()
    store.keep("b", 4, iter([rows]))  # making room does not stumble over it
    assert store.find("a") is None
    assert torch.equal(store.keep("a", 4, iter([rows])), rows)
    (tmp_path / "a" / "meta.json").unlink()
    assert store.find("a") is None and not (tmp_path / "a").exists()
    kept = store.keep("a", 4, iter([rows]))
    shutil.rmtree(tmp_path / "a")  # evicted by another process while we read
    assert torch.equal(kept, rows) and not list(tmp_path.glob(".partial-*"))


@pytest.mark.scenario(19)
def test_a_full_disk_leaves_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from hydratune.distributed.runtime import Runtime
    from hydratune.engine.trunk import Trunk, cached

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydratune.record.feature_store.os.posix_fallocate", full)
    net = network()
    for group in net.groups:
        group.module.eval()
    trunk = Trunk(net, [2], Runtime(precision="fp32", keep_memory=False), stream())
    assert not cached(trunk, [2], FeatureStore("disk", 2**30, tmp_path), "x").cached
    assert "No space left" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_run_called_best_is_itself(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    assert found(str(tmp_path / "best")) == tmp_path / "best"


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for kind in "ab":
        for i in range(10):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(ramp).save(tmp_path / kind / f"{i}.png")
    from hydratune.data.images.augment import Augment
    from hydratune.tasks.classification import Classification

    data = ImageFolder(Classification(), Augment(), root=str(tmp_path), size=32)
    pixels = data.split("train").read(torch.tensor([0]))
    assert pixels.float().mean() == pytest.approx(127, abs=3)


def test_options_of_the_users_own_are_not_crossed() -> None:
    net = network()
    recipe = Torch("AdamW", 0.01, options={"foreach": True})
    assert recipe.build(net.groups, net.parameters()).defaults["foreach"] is True
    with pytest.raises(ValueError, match=r"optimizer\.options"):
        Torch("AdamW", 0.01, options={"foreach": True, "fused": True}).build(net.groups, net.parameters())
    assert HeadOnly().phases(net.groups, 1)[0].cut == 2


def test_a_batch_of_one_says_what_batchnorm_cannot(tmp_path: Path) -> None:
    from tests.conftest import hydratune

    line = ["dataset.train=20", "dataset.val=20", "dataset.test=20", "runtime.precision=fp32",
            "runtime.layout=contiguous", "stage=pretrain", "steps=1", "model=resnet18"]  # fmt: skip
    done = hydratune(*line, "batch_size=1", "model.small_images=false", cwd=tmp_path)
    assert done.returncode == 2 and "batch_size=1 in 1 part" in done.stderr and "BatchNorm" in done.stderr, done.stderr
    done = hydratune(*line, "batch_size=2", "engine.accumulate=2", "model.small_images=false", cwd=tmp_path)
    assert done.returncode == 2 and "batch_size=2 in 2 parts (engine.accumulate)" in done.stderr, done.stderr
