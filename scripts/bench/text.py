"""Tokens per second: hydratune's engine, a hand-written loop, and Hugging Face's Trainer, on a tiny BERT and GPT.

    python scripts/bench/text.py [--steps 60] [--repeats 5]

Same model, weights, data and batch size; AdamW (fused), gradient norm clipped at 1; nothing logged, saved or evaluated
within the timed steps. Each one computes in the precision in which it is fastest here, tried in the turn that warms up.
The Trainer has its sampler by length and its collators, on tokens made beforehand; the loop has hydratune's batches
ready in memory, and calls the library's model with labels, as tutorials do. All take turns in one process; the table
shows medians over the repeats of real tokens (no padding) per second, and of the ratios within a turn. At last an epoch
of SST-2 in buckets of about one length beside one of plain shuffled batches, both filled up to their own longest.
Expects HYDRATUNE_DATA to hold text/{sst2,reviews}.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from hydratune.core.task import Monitor
from hydratune.core.types import Batch
from hydratune.data.stream import Batches, Placement
from hydratune.data.text.corpus import TextCorpus
from hydratune.data.text.labelled_text import TextTable
from hydratune.data.text.text_dataset import TextDataset
from hydratune.data.text.text_stream import TextSplit, TextStream
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.distributed.runtime import Precision, Runtime, cpu_name
from hydratune.engine.loop import train
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.freeze.strategies import NoFreeze
from hydratune.models.network import build_network
from hydratune.models.text.huggingface import huggingface
from hydratune.optim.optimizers import AdamW
from hydratune.optim.schedules import Constant
from hydratune.record.run import Run
from hydratune.tasks.language import CausalLanguage, MaskedLanguage
from hydratune.tasks.text import SequenceClassification

CPU = torch.device("cpu")
LR = 1e-4
PRECISIONS = (torch.float32, torch.bfloat16)
Timed = Callable[[torch.dtype], float]  # precision -> seconds of all steps


class Silent:
    def show(self, step: int, seen: object) -> None: ...

    milestone = show


def model_of(data: TextDataset) -> Any:
    import transformers

    if data.task.question == "causal":
        config: Any = transformers.GPT2Config(
            n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    else:
        config = transformers.BertConfig(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
        )
    torch.manual_seed(0)
    return huggingface(config=config, text_spec=data.spec(), question=data.task.question)


def stream_of(data: TextDataset, split: TextSplit, batch_size: int, bucket: int = 50) -> TextStream:
    bucket = bucket if data.task.question == "sequence" else 1
    return TextStream(
        split, data.spec(), data.task, data.tokenizer, Batches(batch_size, training=True), Placement(CPU), bucket
    )


def first(split: TextSplit, count: int) -> TextSplit:
    """Its first samples."""
    labels = split.labels if split.per_token or split.labels is None else split.labels[:count]
    return replace(split, starts=split.starts[:count], lengths=split.lengths[:count], labels=labels)


def ours(data: TextDataset, stream: TextStream, steps: int) -> Timed:
    class Clock(Trial):
        def log(self, step: int, speed: float, unit: str) -> dict[str, str]:
            nonlocal seconds
            seconds = time.perf_counter() - started  # the loop logs here only at its end: the steps are over
            return {}

    body = model_of(data)
    network = build_network(body, body.head)
    val = stream_of(data, first(stream.split, 8), 8)
    home, count = tempfile.TemporaryDirectory(), 0
    seconds = started = 0.0

    def run(dtype: torch.dtype) -> float:
        nonlocal started, count
        count += 1
        with Run(Path(home.name) / str(count)) as record:
            phases = NoFreeze().phases(network.groups, steps)
            plan = TrainingPlan(phases, AdamW(LR), Constant(), Settings(clip=1.0), 0, Monitor(data.task.monitor))
            runtime = Runtime(precision="fp32", chosen=Precision(dtype))
            trial = Clock(network, plan, data.task, data.spec(), runtime, record)
            started = time.perf_counter()
            train([trial], Streams(stream, val, {}), Cadence(10**9, 10**9, 10**9), Silent())  # type: ignore[arg-type]
        return seconds

    return run


def raw(data: TextDataset, stream: TextStream, steps: int) -> Timed:
    model: nn.Module = model_of(data).source.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    batches = [_as_arguments(data, batch) for batch in stream.batches(0, steps)]

    def run(dtype: torch.dtype) -> float:
        started = time.perf_counter()
        for batch in batches:
            with torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext():
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    return run


def _as_arguments(data: TextDataset, batch: Batch) -> dict[str, torch.Tensor]:
    """What the library's model takes."""
    inputs, targets = batch.inputs, batch.targets
    inside = torch.arange(inputs.values.shape[1]) < inputs.lengths[:, None]
    if data.task.question == "masked":
        asked = inputs.asked
        targets = torch.full_like(inputs.values, -100).scatter(1, asked, batch.targets)
    given = {"input_ids": inputs.values, "attention_mask": inside.long(), "labels": targets}
    return {**given, "shift_labels": targets} if data.task.question == "causal" else given


def hugging_face(data: TextDataset, stream: TextStream, steps: int) -> Timed:
    import transformers

    transformers.logging.set_verbosity_error()
    split, question = stream.split, data.task.question
    rows = []
    for i in range(len(split)):
        tokens = split.tokens[int(split.starts[i]) : int(split.starts[i] + split.lengths[i])].tolist()
        row: dict[str, Any] = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        if question == "sequence":
            row["labels"] = int(split.labels[i])  # type: ignore[index]
        rows.append(row)
    fast = data.tokenizer.fast
    if question == "sequence":
        collate: Any = transformers.DataCollatorWithPadding(fast)
    else:
        collate = transformers.DataCollatorForLanguageModeling(fast, mlm=question == "masked", mlm_probability=0.15)
    home = tempfile.TemporaryDirectory()
    model = model_of(data).source

    class Clock(transformers.TrainerCallback):
        started = ended = 0.0

        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 0:
                self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            self.ended = time.perf_counter()

    def run(dtype: torch.dtype) -> float:
        clock = Clock()
        sampler: Any = {"train_sampling_strategy": "group_by_length"} if question == "sequence" else {}
        arguments = transformers.TrainingArguments(
            output_dir=home.name, max_steps=steps, per_device_train_batch_size=stream.batch_size, learning_rate=LR,
            max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="constant", report_to=[], use_cpu=True,
            bf16=dtype == torch.bfloat16, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, **sampler,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, collate, train_dataset=rows, callbacks=[clock])  # type: ignore[arg-type]
        trainer.train()
        return clock.ended - clock.started

    return run


def take_turns(runs: dict[str, Timed], repeats: int) -> tuple[dict[str, list[float]], dict[str, torch.dtype]]:
    """Seconds of each by turn, every one in the precision that was the quickest when it warmed up."""
    chosen = {}
    for name, run in runs.items():
        for dtype in PRECISIONS:
            run(dtype)
        chosen[name] = min(PRECISIONS, key=run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run(chosen[name]))
    return times, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Runtime().start()
    root = Path(os.environ.get("HYDRATUNE_DATA", "data")) / "text"
    words = TokenizerRecipe(vocab_size=4000)
    sst2 = TextTable(SequenceClassification(), words, f"{root}/sst2", text=0, label=1, header=False, max_length=64)
    corpus = (f"{root}/reviews/reviews.txt", "line")
    masked = TextCorpus(MaskedLanguage(0.15), words, *corpus, max_length=64)
    causal = TextCorpus(CausalLanguage(), TokenizerRecipe(kind="bpe", vocab_size=4000), *corpus, max_length=64)
    table = Table(title=f"median of {options.repeats} turns; {cpu_name()}, torch {torch.__version__}")
    for column in (
        "what",
        "who",
        "computes in",
        "tokens/s",
        "x the raw loop's time",
        "min",
        "max",
        "x the Trainer's speed",
    ):
        table.add_column(column, justify="left" if column in ("what", "who", "computes in") else "right")
    kinds = {"BERT, SST-2 sentences": (sst2, 32), "BERT, masked words": (masked, 16), "GPT, next token": (causal, 16)}
    for title, (data, batch_size) in kinds.items():
        split = data.split("train")
        if data is not sst2:  # rows for the Trainer lie in memory as lists
            split = first(split, 4000)
        stream = stream_of(data, split, batch_size)
        makers = {"raw loop": raw, "hydratune": ours, "Trainer": hugging_face}
        runs = {name: make(data, stream, options.steps) for name, make in makers.items()}
        times, chosen = take_turns(runs, options.repeats)
        tokens = options.steps * batch_size * stream.units_per_sample
        for name, seen in times.items():
            ratios = [t / r for t, r in zip(seen, times["raw loop"], strict=True)]
            faster = statistics.median(h / t for h, t in zip(times["Trainer"], seen, strict=True))
            table.add_row(
                title, name, str(chosen[name]).removeprefix("torch."), f"{tokens / statistics.median(seen):,.0f}",
                f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}", f"{faster:.2f}",
            )  # fmt: skip
    Console(width=140).print(table)

    split = sst2.split("train")
    streams = {bucket: stream_of(sst2, split, 32, bucket) for bucket in (50, 1)}
    steps = streams[1].steps_per_epoch
    runs = {f"bucket={bucket}": ours(sst2, stream, steps) for bucket, stream in streams.items()}
    times, _ = take_turns(runs, options.repeats)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    padded = {b: sum(batch.inputs.values.numel() for batch in s.batches(0, steps)) for b, s in streams.items()}
    epoch = {bucket: statistics.median(times[f"bucket={bucket}"]) for bucket in streams}
    Console(width=140).print(
        f"an epoch of SST-2 ({steps} steps of 32): in buckets {epoch[50]:.2f} s, plain shuffle {epoch[1]:.2f} s: "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"tokens with padding {padded[50]:,} and {padded[1]:,}"
    )


if __name__ == "__main__":
    main()
