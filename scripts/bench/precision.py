"""Time of a training step with `runtime.precision=auto` against a raw fp32 loop as a stranger would write it.

    python scripts/bench/precision.py [--models resnet20 simple_cnn] [--batch 128] [--repeats 5]

The raw loop: fp32, default layout, the allocator as torch finds it. Ours: whatever dtype and layout the probe chose
here, with the allocator setting of `runtime.keep_memory`. As that setting belongs to a process, each measurement is a
process of its own and the two take turns. Batches lie in memory, SGD with momentum, gradients clipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {"resnet20": 12, "simple_cnn": 120, "resnet18": 4, "mlp": 300}


def measure(who: str, model: str, batch_size: int) -> dict[str, object]:
    import torch
    import torch.nn.functional as F
    from torch import nn

    from hydratune.core.types import Batch
    from hydratune.distributed.runtime import Runtime
    from hydratune.engine.autotune import choose_precision
    from hydratune.models.network import build_network
    from hydratune.models.vision.simple_cnn import mlp, simple_cnn
    from hydratune.models.vision.small_resnet import small_resnet
    from hydratune.models.vision.torchvision_models import torchvision_model
    from hydratune.tasks.classification import Classification

    torch.manual_seed(0)
    shape = (3, 32, 32)
    body = {
        "resnet20": lambda: small_resnet(20),
        "simple_cnn": simple_cnn,
        "resnet18": lambda: torchvision_model("resnet18", input_shape=shape),
        "mlp": lambda: mlp(input_shape=shape),
    }[model]()
    features = torch.zeros(2, *shape)
    for _, module in body.groups:
        features = module(features)
    network = build_network(body, nn.Linear(features.shape[1], 10))
    batch = Batch(torch.randn(batch_size, *shape), torch.randint(0, 10, (batch_size,)), torch.arange(batch_size))
    runtime = Runtime()
    if who == "auto":
        runtime.start()
        chosen, _ = choose_precision(network, Classification(), batch, runtime, f"bench {model}")
        runtime = runtime.choose(chosen)
    layout = runtime.chosen.memory_format
    network.to(torch.device("cpu"), layout)
    whole = nn.Sequential(*[g.module for g in network.groups]).train()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9)
    inputs = batch.inputs.contiguous(memory_format=layout)

    def step() -> None:
        with runtime.autocast():
            outputs = whole(inputs)
        F.cross_entropy(outputs.float(), batch.targets).backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    times = []
    for _ in range(MODELS[model]):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "chosen": str(runtime.chosen)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.batch)))
        return
    from rich.console import Console
    from rich.table import Table

    from hydratune.distributed.runtime import cpu_name

    table = Table(title=f"ms per step at batch {options.batch}, median of {options.repeats} processes; {cpu_name()}")
    for column in ("model", "raw fp32", "auto", "auto chose", "auto is x times as fast: median", "min", "max"):
        table.add_column(column, justify="left" if column in ("model", "auto chose") else "right")
    for model in options.models:
        raw, auto, chosen = [], [], ""
        for turn in range(options.repeats + 1):
            for who, seen in (("raw", raw), ("auto", auto)):
                command = [sys.executable, str(Path(__file__)), "--batch", str(options.batch), "--measure", who, model]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                answer = json.loads(done.stdout.splitlines()[-1])
                if turn:
                    seen.append(answer["seconds"])
                    chosen = answer["chosen"]
        ratios = [r / a for r, a in zip(raw, auto, strict=True)]
        table.add_row(
            model, f"{1000 * statistics.median(raw):.1f}", f"{1000 * statistics.median(auto):.1f}", chosen,
            *(f"{f(ratios):.2f}" for f in (statistics.median, min, max)),
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
