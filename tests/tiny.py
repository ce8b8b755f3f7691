"""A network, a stream and trials that take milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydratune.core.task import Monitor, Task
from hydratune.core.types import Backbone, ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.distributed.runtime import Runtime
from hydratune.engine.loop import train
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.freeze.strategies import NoFreeze
from hydratune.models.network import Network, build_network
from hydratune.optim.optimizers import SGD, OptimizerConfig
from hydratune.optim.schedules import Constant, Schedule
from hydratune.record.run import Run
from hydratune.tasks.classification import Classification

CPU = torch.device("cpu")
SPEC = ImageSpec((3, 8, 8), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


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
        body = Backbone(
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
    split = MemorySplit(images, torch.arange(n) % 3)
    return ImageStream(split, SPEC, Batches(batch_size, 5), Placement(CPU), 3, augment)


def trial(
    home: Path,
    net: Network,
    strategy: Any = None,
    steps: int = 12,
    recipe: OptimizerConfig | None = None,
    schedule: Schedule | None = None,
    name: str = "run",
    runtime: Runtime | None = None,
    task: Task | None = None,
    **settings: Any,
) -> Trial:
    phases = (strategy or NoFreeze()).phases(net.groups, steps)
    run = Run(home / name)
    plan = TrainingPlan(
        phases,
        recipe or SGD(0.05, momentum=0.9),
        schedule or Constant(),
        Settings(**settings),
        seed=7,
        monitor=Monitor((task or Classification()).monitor),
    )
    runtime = runtime or Runtime(precision="fp32", keep_memory=False)
    return Trial(net, plan, task or Classification(), SPEC, runtime, run)


def go(trials: list[Trial], first: int = 0, data: Stream | None = None, every: int = 100) -> None:
    train(trials, Streams(data or stream(), stream(), {}), Cadence(every, every, 4), Silent(), first)  # type: ignore[arg-type]
    for t in trials:
        t.run.__exit__(None, None, None)


def weights(net: Network) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
