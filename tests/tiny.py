"""A network, a stream and trials that take milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydratune.data.augment import Augment
from hydratune.data.image_stream import ImageStream, MemorySplit
from hydratune.data.stream import Stream
from hydratune.engine.loop import train
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.trial import Trial
from hydratune.freeze.strategies import Nothing
from hydratune.models.network import Network, build_network
from hydratune.optim import SGD, Constant, Recipe, Schedule
from hydratune.record.run import Run
from hydratune.runtime import Runtime
from hydratune.tasks.classification import Classification
from hydratune.types import Body, DataSpec

CPU = torch.device("cpu")
SPEC = DataSpec((3, 8, 8), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


class Silent:
    def show(self, step: int, seen: object) -> None: ...

    milestone = show


def network(dropout: float = 0.0, norm: bool = True) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Module()
        source.stem = nn.Conv2d(3, 6, 3, bias=False)
        source.bn = nn.BatchNorm2d(6) if norm else nn.Identity()
        source.middle = nn.Conv2d(6, 8, 3, stride=2)
        source.bn2 = nn.BatchNorm2d(8) if norm else nn.Identity()
        body = Body(
            source,
            [
                ("stem", nn.Sequential(source.stem, source.bn, nn.ReLU())),
                ("middle", nn.Sequential(source.middle, source.bn2, nn.ReLU(), nn.Dropout(dropout), nn.Flatten())),
            ],
        )
        return build_network(body, nn.Linear(32, 3))


def stream(batch_size: int = 8, augment: Augment | None = None, n: int = 40) -> Stream:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=g, dtype=torch.uint8)
    return ImageStream(MemorySplit(images, torch.arange(n) % 3), SPEC, batch_size, CPU, 3, augment, seed=5)


def trial(
    home: Path,
    net: Network,
    strategy: Any = None,
    steps: int = 12,
    recipe: Recipe | None = None,
    schedule: Schedule | None = None,
    name: str = "run",
    runtime: Runtime | None = None,
    **settings: Any,
) -> Trial:
    phases = (strategy or Nothing()).phases(net.groups, steps)
    run = Run(home / name, {})
    return Trial(
        net, phases, Classification(), SPEC, recipe or SGD(0.05, momentum=0.9), schedule or Constant(),
        Settings(**settings), runtime or Runtime(precision="fp32", keep_memory=False), run, seed=7,
    )  # fmt: skip


def go(trials: list[Trial], first: int = 0, data: Stream | None = None, every: int = 100) -> None:
    train(trials, data or stream(), stream(), Cadence(every, every, 4), Silent(), first)  # type: ignore[arg-type]
    for t in trials:
        t.run.__exit__(None, None, None)


def weights(net: Network) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
