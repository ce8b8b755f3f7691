"""What a sample is: leaves with the sample in dimension 0, ragged parts, views, named terms, levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hydratune.core.batching import batch_rows, check_batch, count, joined, rows, selected, to_device
from hydratune.core.loss import Loss, Term
from hydratune.core.ragged import Ragged
from hydratune.core.types import Batch, Levels
from hydratune.distributed.runtime import Runtime
from hydratune.engine.backward import Backward
from hydratune.engine.state import Progress
from hydratune.freeze.strategies import HeadOnly
from hydratune.tasks.classification import Classification
from tests.faults.harness import scalars
from tests.tiny import CPU, go, network, stream, trial

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=7)


def boxes(sizes: list[int]) -> Ragged:
    values = torch.arange(4.0 * sum(sizes)).view(-1, 4)
    return Ragged(values, torch.tensor(sizes))


def batch_of(sizes: list[int]) -> Batch:
    count = len(sizes)
    targets = {"boxes": boxes(sizes), "labels": (torch.arange(count), torch.arange(2.0 * count).view(-1, 2))}
    return Batch(torch.arange(3.0 * count).view(-1, 3), targets, torch.arange(count))


# ---- ragged


def test_images_of_3_5_2_and_7_boxes_are_halved_with_their_own_boxes() -> None:
    """Slicing the boxes themselves gave the first two images the first two boxes, without an error."""
    whole = batch_of([3, 5, 2, 7])
    first, last = batch_rows(whole, 0, 2), batch_rows(whole, 2, 4)
    assert first.targets["boxes"].lengths.tolist() == [3, 5] and len(first.targets["boxes"].values) == 8
    assert torch.equal(last.targets["boxes"].values, whole.targets["boxes"].values[8:])
    assert torch.equal(last.targets["labels"][1], whole.targets["labels"][1][2:])


@given(SIZES, st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_taken_apart_is_joined_again(sizes: list[int], data: Any) -> None:
    whole = batch_of(sizes)
    cut = data.draw(st.integers(0, len(sizes)))
    parts = [rows(whole.targets, a, b) for a, b in ((0, cut), (cut, len(sizes)))]
    again = joined(parts)
    assert torch.equal(again["boxes"].values, whole.targets["boxes"].values)
    assert torch.equal(again["boxes"].lengths, whole.targets["boxes"].lengths)
    assert torch.equal(again["labels"][0], whole.targets["labels"][0])


@given(SIZES, st.data())
@settings(max_examples=50, deadline=None)
def test_samples_are_selected_with_all_that_is_theirs(sizes: list[int], data: Any) -> None:
    order = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=9))
    whole = batch_of(sizes)
    chosen = selected(whole.targets, torch.tensor(order, dtype=torch.int64))
    wanted = [whole.targets["boxes"].of(i) for i in order]
    assert torch.equal(chosen["boxes"].values, torch.cat([*wanted, torch.empty(0, 4)]))
    assert chosen["boxes"].lengths.tolist() == [sizes[i] for i in order]


def test_counting_and_moving_go_by_samples() -> None:
    assert count(boxes([2, 0, 3])) == 3 and count({"a": torch.zeros(5, 2)}) == 5
    assert to_device(boxes([1, 2]), CPU).lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.zeros(3), "a leaf has 3 rows for 4 samples"),
        ({"boxes": torch.zeros(17, 4)}, "what has a varying number of parts per sample is a Ragged"),
        (Ragged(torch.zeros(5, 4), torch.tensor([1, 1, 1, 1])), "a Ragged of 5 values has lengths of 4"),
        (Ragged(torch.zeros(3, 4), torch.tensor([1, 1, 1])), "3 rows for 4 samples"),
        ([1, 2, 3, 4], "a int without samples"),
        (torch.zeros(()), "a Tensor without samples"),
    ],
)
def test_what_breaks_the_contract_is_refused(targets: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_batch(Batch(torch.zeros(4, 3), targets, torch.arange(4)))


def test_the_loop_refuses_such_a_stream(tmp_path: Path) -> None:
    data = stream()

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(data, name)

        def batches(self, first: int, last: int) -> Iterator[Batch]:
            return (Batch(b.inputs, b.targets[:-1], b.ids) for b in data.batches(first, last))

    with pytest.raises(ValueError, match="for 8 samples"):
        go([trial(tmp_path, network())], data=Broken())  # type: ignore[arg-type]


# ---- named terms


class TwoTerms(Classification):
    """A term over samples, and one over those with an even number, perhaps none of them."""

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        even = batch.targets % 2 == 0
        each = F.cross_entropy(outputs.float(), batch.targets, reduction="none")
        pulled = (outputs.square().sum(1) * even).sum()
        return Loss({"classes": Term(each.sum(), len(each)), "size": Term(pulled, even.sum(), weight=0.5)})


def gradients(parts: int, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    head = nn.Linear(6, 3).double()
    inputs = torch.randn(8, 6, dtype=torch.float64)
    work = Backward(TwoTerms(), Runtime(precision="fp32"), Progress(parts=parts))
    work.enter([head])
    batch = Batch(inputs, targets, torch.arange(8))
    loss, terms, _ = work.run(0, inputs, batch, lambda _, own: head(own), list(head.parameters()))
    return loss, terms, [p.grad for p in head.parameters() if p.grad is not None]


@pytest.mark.parametrize("targets", [[0, 1, 2, 1, 1, 1, 2, 0], [0, 2, 0, 2, 1, 1, 1, 1], [1] * 8])
def test_terms_that_count_different_things_are_exact_over_micro_batches(targets: list[int]) -> None:
    """With a sum over both, a part without even targets would have divided by nothing, or by too little."""
    whole, terms, wanted = gradients(1, torch.tensor(targets))
    for parts in (2, 3, 8):
        loss, own, found = gradients(parts, torch.tensor(targets))
        assert torch.allclose(loss, whole) and own.keys() == terms.keys() == {"classes", "size"}
        assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_count_of_zero_gives_zero() -> None:
    nothing = torch.zeros(())
    assert float(Loss.of(nothing, 0).mean()) == 0 and float(Loss.of(nothing, torch.tensor(0)).mean()) == 0


def test_each_term_is_logged_by_its_name(tmp_path: Path) -> None:
    go([trial(tmp_path, network(), task=TwoTerms())])
    seen = scalars(tmp_path / "run")
    assert {"train/loss", "train/loss_classes", "train/loss_size"} <= seen.keys()


# ---- levels


class Deep(nn.Module):
    """Two levels and what goes on from them."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.conv, self.keep = nn.Conv2d(3 if keep else 4, 4, 3, stride=2, padding=1), keep

    def forward(self, features: Any) -> Levels:
        kept, x = features if isinstance(features, Levels) else ((), features)
        y = self.conv(x).relu()
        return Levels((*kept, y), y)


def dense_network() -> Any:
    from hydratune.core.types import Backbone
    from hydratune.models.network import build_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Module()
        source.a, source.b = Deep(True), Deep(False)

        class Head(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 3)

            def forward(self, features: Levels) -> Tensor:
                return self.fc(torch.cat([level.mean((2, 3)) for level in features.kept], 1))

        return build_network(Backbone(source, [("a", source.a), ("b", source.b)]), Head())


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_levels_are_cached_leaf_by_leaf_bit_for_bit(tmp_path: Path, where: str) -> None:
    from hydratune.engine.loop import train
    from hydratune.engine.settings import Cadence
    from hydratune.engine.stretch import Streams
    from hydratune.engine.trunk import Caches
    from hydratune.record.feature_store import FeatureStore
    from tests.tiny import Silent, same, weights

    def trained(name: str, cached: bool) -> Any:
        net = dense_network()
        t = trial(tmp_path, net, HeadOnly(), name=name)
        store = FeatureStore(where, 2**30, tmp_path / "features")
        caches = Caches(frozenset(t.phases), store, f"train {where}", f"val {where}") if cached else None
        train([t], Streams(stream(), stream(), {}), Cadence(5, 5, 4), Silent(), 0, caches)  # type: ignore[arg-type]
        t.run.__exit__(None, None, None)
        return weights(net), t.state.last

    plain, kept, again = trained("plain", False), trained("kept", True), trained("again", True)
    assert same(plain[0], kept[0]) and same(plain[0], again[0]) and plain[1] == kept[1] == again[1]
    if where == "disk":
        assert len(list((tmp_path / "features").iterdir())) == 2 * 3  # two levels and the last output: train, val
