"""What a run computes with is its own from its first step on: threads, precision, layout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.record import checkpoint
from tests.conftest import TINY, hydratune
from tests.faults.harness import record, wait_until

ONE = {"OMP_NUM_THREADS": "1"}
# Two units on two cores have one thread each. Where only one of them is left, the other core is free.
APART = [
    *TINY, "stage=pretrain", "model=resnet9_w16", "epochs=6", "batch_size=20",
    "optimizer.lr=0.01,0.03", "sweep.share=off", "sweep.jobs=2",
]  # fmt: skip


def hashes(home: Path) -> dict[str, str]:
    return {p.parent.name: record(p.parent)["checkpoint"]["sha256"] for p in sorted(home.glob("*/run.json"))}


def threads_of(home: Path) -> set[int]:
    return {record(p.parent)["runtime"]["threads"] for p in home.glob("*/run.json")}


@pytest.mark.slow
@pytest.mark.scenario(40)
@pytest.mark.parametrize("killed", ["worker", "sweep"])
def test_a_worker_that_is_killed_ends_in_the_same_bits(tmp_path: Path, killed: str) -> None:
    """Alone when it goes on, in this sweep or in the next, it keeps the one thread that it began with."""
    whole = hydratune("-m", *APART, "hydra.sweep.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    begun = threads_of(tmp_path / "whole")
    command = [sys.executable, "-m", "hydratune", "-m", *APART, "hydra.sweep.dir=killed"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    victim = tmp_path / "killed" / "optimizer.lr=0.03"
    wait_until(lambda: checkpoint.steps(victim / "checkpoints") or process.poll() is not None, 600)
    listed = subprocess.run(["pgrep", "-f", "multiprocessing.forkserver"], capture_output=True, text=True).stdout
    holders = [int(p) for p in listed.split() if holds(int(p), victim / ".lock")]
    assert len(holders) == 1, "the worker had ended before it could be killed"
    if killed == "worker":  # the sweep starts its job once more
        os.kill(holders[0], signal.SIGKILL)
        assert process.wait() == 0
    else:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: not holds(holders[0], victim / ".lock"), 60)
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 0, again.stdout + again.stderr
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert threads_of(tmp_path / "killed") == begun
    pinned = record(victim)["runtime"]["repeat"].split()
    alone = [o for o in APART if not o.startswith(("optimizer", "sweep", "runtime.layout", "runtime.precision"))]
    done = hydratune(*alone, "optimizer.lr=0.03", *pinned, "hydra.run.dir=alone", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "alone")["checkpoint"] == record(victim)["checkpoint"]


def holds(pid: int, file: Path) -> bool:
    try:
        return any(os.readlink(f) == str(file) for f in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.slow
def test_a_resumed_run_has_the_threads_that_it_began_with(tmp_path: Path) -> None:
    options = [*TINY, "stage=pretrain", "model=mlp", "epochs=2", "hydra.run.dir=run"]
    first = hydratune(*options, "steps=3", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert first.returncode == 0, first.stderr
    for state in (tmp_path / "run").rglob("state.json"):
        assert json.loads(state.read_text())["threads"] == 1
    damaged = record(tmp_path / "run") | {"status": "interrupted"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(damaged))
    again = hydratune("resume=run", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert again.returncode == 0, again.stderr
    assert record(tmp_path / "run")["runtime"]["threads"] == 1
    # and so has one that began and saved nothing
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(damaged))
    again = hydratune("resume=run", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert again.returncode == 0 and record(tmp_path / "run")["runtime"]["threads"] == 1, again.stderr
    assert "as it began" in again.stdout


@pytest.mark.slow
def test_another_number_of_cores_repeats_nothing(tmp_path: Path) -> None:
    """Neither a job nor a pretraining is known by its threads, unless they are typed for several."""
    sweep = ["-m", *TINY, "stage=finetune", "model=mlp", "epochs=1", "pretrain.steps=2", "optimizer.lr=0.01,0.02",
             "hydra.sweep.dir=s"]  # fmt: skip
    for threads in ("1", "2"):
        done = hydratune(*sweep, cwd=tmp_path, OMP_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs are as far already" in done.stdout
    assert len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 1
    both = hydratune("-m", *TINY, "stage=pretrain", "model=mlp", "steps=2", "runtime.threads=1,2", "hydra.sweep.dir=t",
                     cwd=tmp_path)  # fmt: skip
    assert both.returncode == 0 and len(list((tmp_path / "t").glob("*/run.json"))) == 2, both.stderr
    assert threads_of(tmp_path / "t") == {1, 2}


def test_layout_is_a_value_and_is_told_as_one(tmp_path: Path) -> None:
    options = [*TINY, "stage=pretrain", "model=resnet20", "steps=2", "runtime.threads=1"]
    options.remove("runtime.layout=contiguous")
    for layout in ("contiguous", "channels_last"):
        done = hydratune(*options, f"runtime.layout={layout}", f"hydra.run.dir={layout}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seen = record(tmp_path / layout)["runtime"]
        assert seen["precision_choice"] == "asked for"
        assert seen["repeat"] == f"runtime.precision=fp32 runtime.layout={layout} runtime.threads=1"
    wrong = hydratune(*options, "runtime.layout=nchw", cwd=tmp_path)
    assert wrong.returncode == 2 and "runtime.layout=nchw: one of auto, contiguous, channels_last" in wrong.stderr


@pytest.mark.slow
def test_a_pretraining_that_chose_what_is_pinned_now_is_taken(tmp_path: Path) -> None:
    """init_from=auto with the layout that the finished pretraining found by itself repeats nothing."""
    job = [o for o in TINY if "layout" not in o] + ["stage=finetune", "model=resnet20", "steps=1", "pretrain.steps=2"]
    first = hydratune(*job, "hydra.run.dir=a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (made,) = (p.parent for p in tmp_path.glob("outputs/pretrain/*/run.json"))
    chosen = record(made)["runtime"]["repeat"].split()[1].replace("runtime.", "pretrain.runtime.")
    again = hydratune(*job, chosen, "hydra.run.dir=b", cwd=tmp_path)
    assert again.returncode == 0 and len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 1, again.stdout
    other = "channels_last" if chosen.endswith("contiguous") else "contiguous"
    third = hydratune(*job, f"pretrain.runtime.layout={other}", "hydra.run.dir=c", cwd=tmp_path)
    assert third.returncode == 0 and len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 2, third.stdout


def test_a_probe_on_a_busy_machine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.distributed.runtime import Runtime
    from hydratune.engine import autotune
    from hydratune.tasks.classification import Classification
    from tests.tiny import network, stream

    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path))
    batch, runs = next(stream().eval_batches()), []

    def measured(spread: float) -> Any:
        def measure(net: Any, task: Any, batch: Any, runtime: Any, candidates: Any) -> Any:
            runs.append(spread)
            return {c: [1.0, spread, spread] for c in candidates}

        return measure

    monkeypatch.setattr(autotune, "_measure", measured(3.0))
    _, how = autotune.choose_precision(network(), Classification(), batch, Runtime(precision="fp32"), "tiny")
    assert "busy machine" in how and "runtime.precision=fp32 runtime.layout=contiguous keeps" in how
    assert len(runs) == autotune.ATTEMPTS and not autotune.cache_file().exists()
    monkeypatch.setattr(autotune, "_measure", measured(1.1))
    _, how = autotune.choose_precision(network(), Classification(), batch, Runtime(precision="fp32"), "tiny")
    assert how.startswith("probed (") and autotune.cache_file().exists()


def test_a_dear_batch_is_probed_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.core.types import Batch
    from hydratune.distributed.runtime import Runtime
    from hydratune.engine import autotune
    from hydratune.tasks.classification import Classification
    from tests.tiny import network

    seen: set[int] = set()
    net = network()
    net.groups[0].module.register_forward_hook(lambda m, i, o: seen.add(len(o)))
    monkeypatch.setattr(autotune.copy, "deepcopy", lambda modules: modules)
    monkeypatch.setattr(autotune, "LONGEST", 1e-9)
    batch = Batch(torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.int64), torch.arange(64))
    autotune._measure(net, Classification(), batch, Runtime(), Runtime(precision="fp32").candidates())
    assert seen == {autotune.FEWEST}


def test_weights_of_another_file_are_another_job(tmp_path: Path) -> None:
    """model.weights=a,b differ in nothing but the file: both run."""
    from safetensors.torch import save_file
    from torchvision import models

    for i, name in enumerate("ab"):
        torch.manual_seed(i)
        net = models.squeezenet1_1(num_classes=1000)
        trunk = {k: v for k, v in net.state_dict().items() if "classifier" not in k}
        save_file(trunk, tmp_path / f"{name}.safetensors")
    done = hydratune(
        "-m", *TINY, "stage=finetune", "model=torchvision", "model.name=squeezenet1_1", "init_from=null", "steps=1",
        "model.weights=a.safetensors,b.safetensors", "hydra.sweep.dir=s", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "s").glob("*/run.json"))) == 2
