"""Step time and memory of LoRA: ours and PEFT's over the same transformer, the same batches, in turn.

    python scripts/bench/lora.py [--repeats 7] [--layers 6] [--hidden 384] [--rank 8]

Peak memory is what autograd keeps of a step, by saved tensors; it is the same in every repeat.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hydratune.core.types import LayerGroup
from hydratune.distributed.runtime import cpu_name
from hydratune.freeze.lora import LoRA, is_adapter


def built(options: argparse.Namespace) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=options.hidden, num_hidden_layers=options.layers, num_attention_heads=6,
        intermediate_size=4 * options.hidden, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def ours(model: nn.Module, rank: int) -> nn.Module:
    names = {n: n for n in [*dict(model.bert.named_parameters()), *dict(model.bert.named_buffers())]}  # type: ignore[union-attr, arg-type]
    (body, _) = LoRA(rank=rank, alpha=16.0, targets=["query$", "value$"]).adapt(
        [LayerGroup("body", model.bert, names), LayerGroup("head", nn.Identity(), {})]  # type: ignore[arg-type]
    )
    for key, parameter in body.module.named_parameters():
        parameter.requires_grad_(is_adapter(body.names[key]))
    return model


def theirs(model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    own = LoraConfig(r=rank, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    return get_peft_model(model, own)  # type: ignore[arg-type]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, labels: Tensor) -> float:
    began = time.perf_counter()
    model(input_ids=tokens, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def kept(model: nn.Module, tokens: Tensor, labels: Tensor) -> int:
    """Bytes that one forward keeps for backward, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=labels).loss
    found = sum(sizes.values())
    del loss
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    base = built(options)
    pair: dict[str, Any] = {"hydratune": ours(copy.deepcopy(base), options.rank), "PEFT": theirs(base, options.rank)}
    tokens, labels = torch.randint(1000, (16, 64)), torch.randint(4, (16,))
    memory = {name: kept(model, tokens, labels) for name, model in pair.items()}
    optimizers = {
        n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4) for n, m in pair.items()
    }
    times: dict[str, list[float]] = {name: [] for name in pair}
    for turn in range(options.repeats + 1):
        for name, model in pair.items():
            seconds = statistics.median(step(model, optimizers[name], tokens, labels) for _ in range(5))
            if turn:
                times[name].append(seconds)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    table = Table(title=f"BERT {options.layers} x {options.hidden}, LoRA of rank {options.rank}; {cpu_name()}")
    for column in ("who", "ms a step", "kept for backward, MB"):
        table.add_column(column)
    for name in pair:
        table.add_row(name, f"{1000 * statistics.median(times[name]):.1f}", f"{memory[name] / 2**20:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
