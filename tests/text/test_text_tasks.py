"""Losses and metrics of text, against the libraries that define them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydratune.core.types import Batch, ImageSpec, Padded, TextSpec
from hydratune.engine.backward import _micro_batches
from hydratune.tasks.classification import Classification
from hydratune.tasks.entities import entities, scores
from hydratune.tasks.language import CausalLanguage, MaskedLanguage
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.text.small import CPU, network_of, spec, tokens

SCHEMES = {
    "IOB2": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "E-LOC", "S-LOC"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", list(SCHEMES))
@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_entities_are_counted_as_seqeval_counts_them(scheme: str, seed: int) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.metrics.sequence_labeling import get_entities

    names = SCHEMES[scheme]
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
    true = [[rng.choice(names) for _ in range(n)] for n in sizes]
    said = [[t if rng.random() < 0.6 else rng.choice(names) for t in row] for row in true]
    sample = torch.tensor([i for i, n in enumerate(sizes) for _ in range(n)])

    def found(rows: list[list[str]]) -> set[Any]:
        return entities(torch.tensor([names.index(t) for row in rows for t in row]), sample, names)

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    expected = {
        (i, kind, starts[i] + a, starts[i] + b) for i, row in enumerate(true) for kind, a, b in get_entities(row)
    }
    assert found(true) == expected
    precision, recall, f1, count = scores(found(true), found(said))["all"]
    assert count == len(expected)
    assert precision == pytest.approx(precision_score(true, said, zero_division=0))
    assert recall == pytest.approx(recall_score(true, said, zero_division=0))
    assert f1 == pytest.approx(f1_score(true, said, zero_division=0))


@given(st.integers(0, 10**9), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_correlation_and_f1_are_scikit_learn_s(seed: int, classes: int) -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    g = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(30, classes, generator=g), torch.randint(0, classes, (30,), generator=g)
    seen = Classification().metrics(ImageSpec((1, 1, 1), tuple("abcdef")[:classes], (0.0,), (1.0,)), CPU)
    seen.update(outputs, Batch(outputs, targets, torch.arange(30)))
    values = seen.compute()
    said = outputs.argmax(1)
    assert values["mcc"] == pytest.approx(matthews_corrcoef(targets, said), abs=1e-9)
    assert values["macro_f1"] == pytest.approx(f1_score(targets, said, average="macro", zero_division=0), abs=1e-9)


def test_a_classifier_that_never_changes_its_mind_has_no_correlation() -> None:
    seen = Classification().metrics(ImageSpec((1, 1, 1), ("a", "b"), (0.0,), (1.0,)), CPU)
    seen.update(torch.tensor([[1.0, 0.0]] * 4), Batch(None, torch.tensor([0, 1, 0, 1]), torch.arange(4)))
    assert seen.compute()["mcc"] == 0.0


@pytest.mark.parametrize(("name", "task"), [("bert", TokenClassification()), ("gpt2", CausalLanguage())])
def test_ragged_parts_add_up_to_the_whole(name: str, task: Any) -> None:
    """Sums and counts: any division into micro-batches gives the gradient of the whole batch."""
    _, network = network_of(name, task.question)
    for group in network.groups:
        group.module.eval()
    inputs = tokens((10, 3, 6, 1, 8))
    targets = torch.where(torch.arange(10) < inputs.lengths[:, None], inputs.values % 3, -100)
    targets[2, 1:4] = -100
    batch = Batch(inputs, targets, torch.arange(5))
    gradients = []
    for parts in (1, 2, 5):
        total, count = torch.zeros(()), torch.zeros(())
        for features, part in _micro_batches(inputs, batch, parts):
            (term,) = task.loss(network.forward(features), part).terms.values()
            total, count = total + term.sum, count + term.count
        (total / count).backward()
        gradients.append([p.grad.clone() for p in network.parameters().values() if p.grad is not None])
        for p in network.parameters().values():
            p.grad = None
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], other, strict=True))


def test_bits_per_byte_and_perplexity() -> None:
    own = TextSpec(4, 8, {"pad": 3}, (), (1, 2, 5, 0))
    seen = CausalLanguage().metrics(own, CPU)
    targets = torch.tensor([[0, 1, 2, -100], [2, 3, -100, -100]])
    outputs = torch.randn(2, 4, 4)
    for row in range(2):
        seen.update(outputs[row : row + 1], Batch(None, targets[row : row + 1], torch.tensor([row])))
    values = seen.compute()
    nats = -outputs.log_softmax(2).gather(2, targets.clamp_min(0).unsqueeze(2)).squeeze(2)[targets != -100]
    assert values["loss"] == pytest.approx(float(nats.mean()), rel=1e-6)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert values["log_likelihood"] == -values["loss"]
    assert values["bits_per_byte"] == pytest.approx(float(nats.sum()) / math.log(2) / (1 + 2 + 5 + 5 + 0))
    # Hidden words are guessed from both sides, and are not all: no length of a text in bits
    for sizes in ((), (1, 2, 5, 0)):
        words = MaskedLanguage().metrics(TextSpec(4, 8, {}, (), sizes), CPU)
        words.update(outputs, Batch(None, targets, torch.arange(2)))
        assert "bits_per_byte" not in words.compute()


def test_a_sequence_of_special_tokens_is_asked_nothing(tmp_path: Path) -> None:
    class NoNoise:
        def uniform(self, name: str) -> torch.Tensor:
            return torch.full((2, 4), 0.1)

    values = torch.tensor([[2, 3, 1, 1], [2, 50, 51, 3]])
    own = spec("masked")
    shown, _, targets = MaskedLanguage(0.3).make_inputs(values, torch.tensor([2, 4]), None, NoNoise(), own)
    assert (targets[0] == -100).all() and torch.equal(shown[0], values[0])
    assert (targets[1] != -100).sum() == 1
    with pytest.raises(ValueError, match=r"has no mask token; kind=wordpiece has one"):
        MaskedLanguage().make_inputs(values, torch.tensor([2, 4]), None, NoNoise(), TextSpec(9, 4, {"pad": 0}))


def test_what_a_network_writes_is_the_same_each_time() -> None:
    from hydratune.data.text.text_stream import TextSplit

    class Stands:
        split = TextSplit(torch.arange(5, 45, dtype=torch.int32), torch.tensor([0, 20]), torch.tensor([20, 20]))
        device, spec = CPU, spec("causal")

        class tokenizer:
            @staticmethod
            def decode(numbers: list[int], special: bool = False) -> str:
                return " ".join(map(str, numbers))

    _, network = network_of("gpt2", "causal")
    for group in network.groups:
        group.module.eval()
    task = CausalLanguage(prompt=3, generate=20)
    one, other = (task.previews(network.forward, Stands())["generated"] for _ in range(2))
    assert one == other and "5 6 7" in one and "25 26 27" in one
    assert len(one.splitlines()[2].split("|")[2].split()) == 20  # beyond the 16 positions that it can see at once
    assert CausalLanguage(generate=0).previews(network.forward, Stands()) == {}


def test_questions_name_the_keys_that_are_wrong() -> None:
    for wrong, said in (
        (lambda: MaskedLanguage(1.5), "dataset.task.share=1.5"),
        (lambda: CausalLanguage(temperature=0), "dataset.task.temperature=0"),
        (lambda: CausalLanguage(prompt=0), "dataset.task.prompt=0"),
        (lambda: TokenClassification(2.0), "dataset.task.label_smoothing=2.0"),
        (lambda: SequenceClassification(-1.0), "dataset.task.label_smoothing=-1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_padded_is_a_pytree_that_can_be_divided() -> None:
    from hydratune.core.batching import rows
    from hydratune.engine.memory import in_parts

    batch = tokens()
    part = rows(batch, 1, 3)
    assert isinstance(part, Padded) and part.values.shape == (2, 10) and part.lengths.tolist() == [7, 4]

    def limited(features: Padded) -> Padded:
        if len(features.values) > 1:
            raise RuntimeError("out of memory")
        return features._replace(values=features.values.float().unsqueeze(2))

    whole = in_parts(limited, batch, 3)
    assert torch.equal(whole.values.squeeze(2), batch.values.float()) and torch.equal(whole.lengths, batch.lengths)
