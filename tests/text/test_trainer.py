"""transformers' own Trainer on the same model, data, order and hyper-parameters gives the same loss curve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.core.task import Monitor
from hydratune.core.types import Batch, Padded
from hydratune.distributed.runtime import Runtime
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Settings
from hydratune.engine.trial import Trial
from hydratune.freeze.strategies import NoFreeze
from hydratune.models.network import build_network
from hydratune.optim.optimizers import AdamW
from hydratune.optim.schedules import Linear
from hydratune.record.run import Run
from hydratune.tasks.language import CausalLanguage, MaskedLanguage
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.text.small import body_of, inside, spec

pytest.importorskip("accelerate")
STEPS = 50
PLAIN = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
}
TASKS: dict[str, Any] = {
    "sequence": SequenceClassification(),
    "token": TokenClassification(),
    "masked": MaskedLanguage(),
    "causal": CausalLanguage(),
}


def batches(question: str) -> list[Batch]:
    """Ragged ones, with something in them to learn."""
    g, made = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        lengths = torch.randint(3, 13, (8,), generator=g)
        values = torch.randint(5, 100, (8, int(lengths.max())), generator=g)
        plain = Padded(values, lengths, lengths.new_empty(8, 0))
        there = inside(plain)
        values[~there] = 1
        if question == "sequence":
            targets = values[:, 0] % 3
        else:
            limit = 3 if question == "token" else 100
            targets = torch.where(there, (values + 1) % limit, -100)
            targets[:, 1::3] = -100  # not every token is asked for
        made.append(Batch(plain, targets, torch.arange(8) + 8 * step))
    return made


@pytest.mark.filterwarnings("ignore")  # the Trainer's own
@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("bert", "sequence"), ("bert", "token"), ("bert", "masked"), ("gpt2", "causal"), ("gpt2", "sequence"),
        ("llama", "causal"),
    ],
)  # fmt: skip
def test_the_loss_curve_is_the_trainer_s(name: str, question: str, tmp_path: Path) -> None:
    import transformers

    data, task = batches(question), TASKS[question]
    body = body_of(name, question, **PLAIN[name])
    start = {k: t.clone() for k, t in body.source.state_dict().items()}
    network = build_network(body, body.head)  # type: ignore[arg-type]
    phases = NoFreeze().phases(network.groups, STEPS)
    plan = TrainingPlan(
        phases, AdamW(1e-3, weight_decay=0.05), Linear(), Settings(clip=1.0), seed=0, monitor=Monitor(task.monitor)
    )
    runtime = Runtime(precision="fp32", keep_memory=False)
    trial = Trial(network, plan, task, spec(question), runtime, Run(tmp_path / "run"))
    ours = []
    for step, batch in enumerate(data):
        trial.step(step, batch.inputs, batch, 0)
        ours.append(trial.meters.read()["train/loss"])
        trial.meters.reset()
    trial.run.__exit__(None, None, None)

    source: Any = body_of(name, question, **PLAIN[name]).source
    source.load_state_dict(start)
    theirs: list[float] = []

    class Given(transformers.Trainer):
        """In our order; it notes the loss of every step, which the logs round."""

        def get_train_dataloader(self) -> Any:
            return _Loader(data, question)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **more)
            theirs.append(float(loss))
            return loss

    arguments = transformers.TrainingArguments(
        str(tmp_path / "trainer"), max_steps=STEPS, learning_rate=1e-3, weight_decay=0.05, lr_scheduler_type="linear",
        warmup_steps=0, max_grad_norm=1.0, optim="adamw_torch", per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1000, seed=0,
    )  # fmt: skip
    Given(source, arguments).train()
    assert len(theirs) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert ours[-1] < ours[0] - 0.01  # something was learned
    for key, weight in source.named_parameters():
        assert torch.allclose(network.parameters()[key], weight, atol=1e-4), key


class _Loader:
    """Batches as the library's models take them."""

    batch_size = 8

    def __init__(self, data: list[Batch], question: str) -> None:
        self.data, self.key = data, "shift_labels" if question == "causal" else "labels"
        self.dataset = [None] * (8 * len(data))

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.data:
            inputs = {"input_ids": batch.inputs.values, "attention_mask": inside(batch.inputs).long()}
            # `labels` as well, without which no loss is computed; where both are given the shifted ones count
            yield {**inputs, self.key: batch.targets, "labels": batch.targets}
