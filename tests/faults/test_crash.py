"""Killed, stopped, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hydratune.core.types import LayerGroup
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_split import FileSplit
from hydratune.data.images.image_stream import ImageStream
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.distributed import signals
from hydratune.freeze.strategies import NoFreeze
from hydratune.models.network import Network
from hydratune.optim.optimizers import AdamW
from hydratune.record import checkpoint
from tests.faults.harness import NET, PATIENCE, allowed, differences, record, run, saved, start, wait_until
from tests.tiny import CPU, SPEC, go, network, same, stream, trial, weights

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.scenario(1)
def test_killed_anywhere_ends_where_it_would_have(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench" / "killtest.py"), "--kills", "10", "--seed", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and "10 of 10" in done.stdout, done.stdout + done.stderr


@pytest.mark.scenario(2)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_with_the_samples_that_were_to_come(tmp_path: Path, workers: int) -> None:
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (12 * i, 0, 255 - 12 * i)).save(path)
    split = FileSplit(paths, torch.arange(20) % 3, 8, workers)

    def log(first: int) -> list[tuple[list[int], float]]:
        again = ImageStream(split, SPEC, Batches(4, 3), Placement(CPU), 3, Augment(flip=True, crop_padding=1))
        return [(b.ids.tolist(), float(b.inputs.double().sum())) for b in again.batches(first, 15)]

    whole = log(0)
    assert all(log(first) == whole[first:] for first in (6, 7, 11, 13))  # epochs have five steps
    assert sorted(i for ids, _ in whole[5:10] for i in ids) == list(range(20))


def interrupted(home: Path, at: list[int], build: Any, data: Stream, steps: int = 12) -> Any:
    """Trained to each of `at`, saved, thrown away and taken up again by another trial."""
    done = 0
    for number, end in enumerate([*at, steps]):
        t = build(f"part{number}")
        if number:
            assert t.restore(checkpoint.load(home / "saved" / f"step-{done:08d}")) == done
        t_end = {t: end}
        from hydratune.engine.loop import advance
        from hydratune.engine.settings import Cadence
        from hydratune.engine.stretch import Streams
        from tests.tiny import Silent

        streams = Streams(data, stream(), {})
        for finished in advance([t], streams, Cadence(5, 5, 4), Silent(), done, None, t_end):  # type: ignore[arg-type]
            assert finished.failed is None
        t.run.__exit__(None, None, None)
        checkpoint.save(home / "saved", end, t.snapshot(end))
        done = end
    return t


@pytest.mark.parametrize(
    ("at", "dropout", "augment"),
    [
        pytest.param([5], 0.0, None, marks=pytest.mark.scenario(3), id="at the end of an epoch"),
        pytest.param([6, 7, 9], 0.0, None, marks=pytest.mark.scenario(4), id="three times in one epoch"),
        pytest.param(
            [7], 0.5, Augment(flip=True, crop_padding=1, mixup=0.2), marks=pytest.mark.scenario(5), id="with noise"
        ),
    ],
)
def test_begun_again_in_the_middle(tmp_path: Path, at: list[int], dropout: float, augment: Augment | None) -> None:
    data = stream(augment=augment)

    def build(name: str) -> Any:
        return trial(tmp_path, network(dropout), recipe=AdamW(0.01), name=name, ema=0.9)

    whole, broken = build("whole"), None
    go([whole], data=data, every=5)
    broken = interrupted(tmp_path, at, build, data)
    assert same(weights(whole.network), weights(broken.network)) and same(whole.ema, broken.ema)
    planned = [
        seen for seen in broken.state.history if seen[0] in (5, 10, 12)
    ]  # it was looked at where it was cut off, too
    assert whole.state.history == planned


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("unbroken")
    done = run(*NET, "engine.accumulate=2", "hydra.run.dir=run", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "run"


@pytest.mark.scenario(6)
def test_killed_during_evaluation(tmp_path: Path, unbroken: Path) -> None:
    options = [*NET, "engine.accumulate=2", "hydra.run.dir=run", "resume=auto"]
    killed = run(*options, cwd=tmp_path, FAULT="evaluation:SIGKILL")
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "FAULT.done").exists()
    again = run(*options, cwd=tmp_path, FAULT="evaluation:SIGKILL")
    assert again.returncode == 0, again.stderr
    assert not differences(unbroken, tmp_path / "run")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        pytest.param("train", "SIGTERM", marks=pytest.mark.scenario(7)),
        pytest.param("evaluation", "SIGTERM", marks=pytest.mark.scenario(8)),
        pytest.param("evaluation", "SIGUSR1", marks=[pytest.mark.scenario(8), pytest.mark.slow]),
        pytest.param("evaluation", "SIGINT", marks=[pytest.mark.scenario(8), pytest.mark.slow]),
        pytest.param("train", "SIGUSR1", marks=[pytest.mark.scenario(8), pytest.mark.slow]),
        pytest.param("start", "SIGTERM", marks=pytest.mark.scenario(8)),
        pytest.param("start", "SIGUSR1", marks=[pytest.mark.scenario(8), pytest.mark.slow]),
    ],
)
def test_a_signal_ends_it_at_a_boundary_with_its_status(tmp_path: Path, unbroken: Path, where: str, name: str) -> None:
    """The sixth forward pass of training lies within a step of two parts."""
    options = [*NET, "engine.accumulate=2", "hydra.run.dir=run", "resume=auto"]
    began = time.monotonic()
    stopped = run(*options, cwd=tmp_path, FAULT=f"{where}:{name}")
    assert stopped.returncode == 128 + signal.Signals[name], stopped.stdout + stopped.stderr
    assert "interrupted" in stopped.stderr and "Traceback" not in stopped.stderr
    assert time.monotonic() - began < allowed(30)
    if where != "start":
        assert "hydratune resume=run goes on from the last checkpoint" in stopped.stderr
        assert record(tmp_path / "run")["status"] == "interrupted"
        assert saved(tmp_path / "run")[-1] == {"train": 3, "evaluation": 6}[where]
    again = run(*options, cwd=tmp_path, FAULT=f"{where}:{name}")
    assert again.returncode == 0, again.stderr
    assert not differences(unbroken, tmp_path / "run")


@pytest.fixture
def listening() -> Any:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.listen()
    yield
    signals._asked.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.scenario(8)
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_during_a_save_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: None, number: signal.Signals
) -> None:
    real, struck = checkpoint.fsync, []

    def strike(path: Path) -> None:
        if not struck:
            struck.append(path)
            os.kill(os.getpid(), number)
        real(path)

    monkeypatch.setattr(checkpoint, "fsync", strike)
    t = trial(tmp_path, network())
    with pytest.raises(signals.Stopped) as stopped, signals.held():
        go([t], every=4)
    t.run.__exit__(None, None, None)
    assert struck and stopped.value.number == number and stopped.value.status == 128 + number
    assert checkpoint.steps(t.run.checkpoints) and checkpoint.newest_valid(t.run.checkpoints)[0] is not None


@pytest.mark.scenario(8)
def test_a_second_interrupt_does_not_wait(listening: None) -> None:
    with signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert signals.asked() == signal.SIGINT
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


@pytest.mark.scenario(9)
def test_moments_are_loaded_by_name_whatever_the_order(tmp_path: Path) -> None:
    first = trial(tmp_path, network(), recipe=AdamW(0.01))
    go([first], every=6)
    path = checkpoint.save(tmp_path / "saved", 12, first.snapshot(12))
    other = network()
    for group in other.groups:  # registered the other way round
        for module in group.module.modules():
            module._parameters = dict(reversed(list(module._parameters.items())))  # type: ignore[assignment]
    second = trial(tmp_path, other, recipe=AdamW(0.01), name="second")
    second.restore(checkpoint.load(path))
    ours, theirs = (t.snapshot(12).optimizer for t in (first, second))
    assert same(dict(ours), dict(theirs)) and any("exp_avg" in n for n in ours)
    snapshot = checkpoint.load(path)
    for part, name in (("model", "stem.weight"), ("optimizer", "middle.weight|exp_avg_sq")):
        tensors = dict(getattr(snapshot, part))
        del tensors[name]
        lacking = checkpoint.Snapshot(**{**vars(snapshot), part: tensors})
        with pytest.raises(ValueError, match="checkpoint"):
            trial(tmp_path, network(), recipe=AdamW(0.01), name=f"lacks {part}").restore(lacking)


@pytest.mark.slow
@pytest.mark.scenario(10)
def test_what_was_compiled_loads_eagerly(tmp_path: Path) -> None:
    """A real torch.compile."""
    if subprocess.run(["cc", "--version"], capture_output=True).returncode:
        pytest.skip("no C compiler")
    options = ["model=mlp", "freeze=none", *(o for o in NET if not o.startswith(("trust", "model")))]
    done = run(*options, "runtime.compile=true", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / f"step-{saved(tmp_path / 'run')[-1]:08d}")
    assert not [n for n in (*last.model, *last.optimizer) if "_orig_mod" in n or n.startswith("module.")]
    eager = run("resume=run", "test=true", "dry_run=false", cwd=tmp_path)
    assert eager.returncode == 0, eager.stderr
    taken = run(*options, "init_from=run", "hydra.run.dir=child", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr
    assert "100% of the trunk" in (tmp_path / "child" / "load.md").read_text()


@pytest.mark.scenario(24)
def test_two_starts_in_one_directory_and_a_stale_lock(tmp_path: Path) -> None:
    long = [*NET, "epochs=2000", "hydra.run.dir=run", "resume=auto"]
    first = start(*long, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run" / "checkpoints").is_dir() and saved(tmp_path / "run"))
    second = run(*long, cwd=tmp_path)
    assert second.returncode == 2 and "in use by another live run" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    first.communicate()
    step = saved(tmp_path / "run")[-1]
    third = start(*long, cwd=tmp_path)  # the lock went with its process
    wait_until(lambda: saved(tmp_path / "run")[-1] > step)
    third.kill()
    third.communicate()


@pytest.mark.scenario(24)
def test_two_starts_in_the_same_second_have_directories_of_their_own(tmp_path: Path) -> None:
    both = [start(*NET, "epochs=1", cwd=tmp_path) for _ in range(2)]
    said = [p.communicate(timeout=PATIENCE)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 2


def test_groups_of_a_reordered_network_are_the_same() -> None:
    """What scenario 9 turns round is really another order."""
    net = network()
    module = nn.Linear(2, 2)
    module._parameters = dict(reversed(list(module._parameters.items())))  # type: ignore[assignment]
    turned = Network([*net.groups[:-1], LayerGroup("head", module, net.head.names)])
    assert list(turned.parameters())[-2:] == list(reversed(list(net.parameters())[-2:]))
    assert NoFreeze().phases(turned.groups, 3)[0].trainable == NoFreeze().phases(net.groups, 3)[0].trainable
