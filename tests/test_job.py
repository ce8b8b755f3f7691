"""Whole runs: hand-over, resume, sweeps, TensorBoard, a user's own code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.experiment.pretraining import _finished_run
from hydratune.record import checkpoint
from hydratune.record.screen import Screen
from tests.conftest import TINY, hydratune, make_job
from tests.faults.harness import PATIENCE, wait_until
from tests.test_config import options

Runner = Callable[..., Any]
PRETRAIN = ["pretrain.dataset.train=200", "pretrain.dataset.val=100", "pretrain.dataset.test=100", "pretrain.epochs=1"]
SMALL = [*TINY, *PRETRAIN, "epochs=1", "pretrain.batch_size=32"]


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# ---- the main job


def test_the_main_job_hands_its_trunk_over(run: Runner, tmp_path: Path) -> None:
    result = run("stage=finetune", "model=resnet20", *PRETRAIN, "epochs=1")
    home = result.directory
    story = record(home)
    assert story["status"] == "complete" and story["frozen_unchanged"] is True
    assert {"val_accuracy", "test_accuracy", "val_macro_f1", "val_top5"} <= story["metrics"].keys()
    parent = Path(story["lineage"]["run"])
    assert parent.parent.name == "pretrain" and record(parent)["status"] == "complete"
    assert story["lineage"]["metrics"] == record(parent)["metrics"]
    best = checkpoint.load(parent / "checkpoints" / story["lineage"]["checkpoint"])
    assert checkpoint.model_hash(parent / "checkpoints" / story["lineage"]["checkpoint"]) == story["lineage"]["sha256"]
    tuned = checkpoint.load(home / story["checkpoint"]["path"])
    for name, tensor in best.model.items():
        if name.startswith("fc."):
            assert tensor.shape != tuned.model[name].shape
        else:
            assert torch.equal(tensor, tuned.model[name]), name
    for name in ("freeze.md", "load.md", "run.json"):
        assert (home / name).is_file()
    assert "| conv1.weight | loaded |" in (home / "load.md").read_text()
    assert len(list(home.glob("events.out.tfevents.*"))) == 1
    assert not [p for p in home.rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".ckpt")]


def test_auto_finds_the_pretraining_that_was_run_by_hand(tmp_path: Path, run: Runner) -> None:
    from hydratune.experiment.run import run_job

    by_hand = make_job([*TINY, "stage=pretrain", "epochs=1"], tmp_path)
    by_hand = type(by_hand)(**{**vars(by_hand), "directory": tmp_path / "outputs" / "pretrain" / "mine"})
    run_job(by_hand)
    result = run("stage=finetune", *PRETRAIN, "pretrain.batch_size=32", "epochs=1")
    assert Path(record(result.directory)["lineage"]["run"]).name == "mine"


def test_scratch_file_checkpoint_and_directory_origins(run: Runner, tmp_path: Path) -> None:
    first = run("stage=pretrain", "epochs=1", directory=tmp_path / "a")
    saved = first.directory / record(first.directory)["checkpoint"]["path"]
    for i, origin in enumerate(("null", first.directory, saved, saved / "model.safetensors")):
        result = run("stage=finetune", f"init_from={origin}", "epochs=1", directory=tmp_path / f"b{i}")
        assert ("lineage" not in record(result.directory)) == (origin == "null")
    with pytest.raises(ValueError, match="no such run directory, checkpoint or file"):
        run("stage=finetune", f"init_from={tmp_path}/nowhere", directory=tmp_path / "c")
    with pytest.raises(ValueError, match=r"only 0\.0% of the trunk"):
        run("stage=finetune", "model=mlp", f"init_from={first.directory}", directory=tmp_path / "d")


def test_nothing_is_pretrained_for_a_job_that_cannot_run(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no parameter"):
        run("stage=finetune", "freeze=pattern", "freeze.train=[nothing_like_it]", *PRETRAIN)
    assert not (tmp_path / "outputs" / "pretrain").exists()


def test_test_split_is_read_once_and_never_in_a_sweep(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydratune.data.images.shapes import Shapes

    seen: list[str] = []
    original = Shapes.read
    monkeypatch.setattr(Shapes, "read", lambda self, name: (seen.append(name), original(self, name))[1])
    run("stage=pretrain", "epochs=2", directory=tmp_path / "single")
    assert seen.count("test") == 1
    seen.clear()
    result = run("stage=pretrain", "epochs=2", directory=tmp_path / "sweep", sweep=True)
    assert "test" not in seen and "test_accuracy" not in record(result.directory)["metrics"]


# What else makes them small; no test downloads anything
SMALLER = {
    "bit_flowers5": ["model.weights=null", "dataset.size=64"],
    "camvid_unet": ["dataset.size=[48,64]"],
    "bccd_retinanet": ["dataset.size=96"],
    "connect4_selfplay": ["generations=2", "dataset.play.games=16", "dataset.play.rows=16", "dataset.play.shard=8",
                          "search.simulations=2", "dataset.val_share=0.3"],
}  # fmt: skip


@pytest.mark.parametrize("experiment", options("experiment"))
def test_two_steps_of_each_experiment(experiment: str, tmp_path: Path) -> None:
    """Every shipped recipe composes, builds its network and data, and trains; real data where it needs some."""
    from hydratune.experiment.selfplay import run_job

    job = make_job([f"experiment={experiment}"], tmp_path)
    text = (Path(__file__).parents[1] / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    if "shapes" not in text and not os.environ.get("HYDRATUNE_DATA"):
        pytest.skip("this experiment reads real data: set HYDRATUNE_DATA")
    few = [
        "steps=2",
        "pretrain.steps=2",
        "batch_size=16",
        "pretrain.batch_size=16",
        "runtime.precision=fp32",
        "test=false",
    ]
    few += SMALLER.get(experiment, [])
    if "shapes" in text:
        few += ["dataset.train=100", "dataset.val=100", "pretrain.dataset.train=100", "pretrain.dataset.val=100"]
    job = make_job([f"experiment={experiment}", *few], tmp_path, sweep=True)
    assert record(run_job(job).directory)["status"] == "complete"


def test_fashion_mnist_through_the_whole_main_job(data_root: Path, tmp_path: Path) -> None:
    from hydratune.experiment.run import run_job

    job = make_job(
        ["stage=finetune", "dataset=fashion_mnist", "dataset@pretrain.dataset=fashion_mnist", "pretrain.steps=60",
         "steps=30", "runtime.precision=fp32"],
        tmp_path,
    )  # fmt: skip
    story = record(run_job(job).directory)
    assert story["lineage"]["metrics"]["test_accuracy"] > 0.7 and story["metrics"]["test_accuracy"] > 0.7


# ---- resume


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hydratune", *arguments], cwd=cwd, env={**os.environ}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.scenario(23)
@pytest.mark.scenario(1)
@pytest.mark.slow
def test_kill_and_resume_ends_where_an_unbroken_run_does(tmp_path: Path) -> None:
    """SIGKILL in the middle, then resume=DIR: the same bits, and the same values in TensorBoard."""
    arguments = [
        "stage=pretrain", "model=resnet20", "optimizer=adamw", "schedule=cosine", "epochs=6", "engine.ema=0.9",
        "engine.save_every=2", "engine.log_every=3", "dataset.augment.flip=true", "dataset.augment.crop_padding=2",
        "dataset.augment.mixup=0.2", *TINY,
    ]  # fmt: skip
    assert hydratune(*arguments, "hydra.run.dir=whole", cwd=tmp_path).returncode == 0
    process = start(*arguments, "hydra.run.dir=broken", cwd=tmp_path)
    wait_until(lambda: len(checkpoint.steps(tmp_path / "broken" / "checkpoints")) > 0 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.steps(tmp_path / "broken" / "checkpoints")
    assert record(tmp_path / "broken")["status"] == "running"
    done = hydratune("resume=broken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, broken = record(tmp_path / "whole"), record(tmp_path / "broken")
    assert whole["checkpoint"] == broken["checkpoint"] and whole["metrics"] == broken["metrics"]
    last = f"step-{whole['num_steps']:08d}"
    a, b = (checkpoint.load(tmp_path / d / "checkpoints" / last) for d in ("whole", "broken"))
    for part in ("model", "optimizer", "ema"):
        x, y = getattr(a, part), getattr(b, part)
        assert x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)
    one, two = scalars(tmp_path / "whole"), scalars(tmp_path / "broken")
    assert one.keys() == two.keys()
    for tag in one:
        if not tag.startswith(("speed", "time", "memory")):
            assert one[tag] == two[tag], tag
    again = hydratune("resume=broken", cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    stored = (tmp_path / "broken" / ".hydra" / "overrides.yaml").read_text()
    refused = hydratune("resume=broken", "optimizer.lr=0.5", cwd=tmp_path)
    assert refused.returncode == 2 and "optimizer.lr: 0.001 -> 0.5" in refused.stderr
    assert (tmp_path / "broken" / ".hydra" / "overrides.yaml").read_text() == stored


def test_a_directory_that_holds_a_run_is_not_written_over(run: Runner, tmp_path: Path) -> None:
    run("stage=pretrain", "epochs=1")
    with pytest.raises(ValueError, match="already holds a run; resume=auto goes on"):
        run("stage=pretrain", "epochs=1")


@pytest.mark.slow
def test_an_interrupted_pretraining_is_gone_on_with_and_can_be_resumed_alone(tmp_path: Path) -> None:
    process = start("stage=finetune", *SMALL, "pretrain.epochs=200", cwd=tmp_path)
    wait_until(lambda: list(tmp_path.glob("outputs/pretrain/auto-*/checkpoints/step-*/manifest.json")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (home,) = tmp_path.glob("outputs/pretrain/auto-*")
    assert record(home)["status"] == "running"
    done = hydratune(f"resume={home.relative_to(tmp_path)}", cwd=tmp_path)
    assert done.returncode == 0 and "resuming" in done.stdout, done.stderr
    done = hydratune("stage=finetune", *SMALL, "pretrain.epochs=200", cwd=tmp_path)
    assert done.returncode == 0 and "is this pretraining, finished" in done.stdout


def test_the_newest_pretrainings_of_a_model_are_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, ended in (("d", 1), ("a", 4), ("c", 2), ("b", 3)):
        home = tmp_path / "pretrain" / name
        home.mkdir(parents=True)
        known = {"stage": "pretrain", "status": "complete", "fingerprint": name, "ended": f"2026-01-0{ended}"}
        (home / "run.json").write_text(json.dumps({**known, "provenance": {"model": "m" if name != "b" else "other"}}))
    assert _finished_run(tmp_path, "none", {"model": "m"}, Screen()) == ""
    offered = [line.rpartition("=")[2].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert offered == [str(tmp_path / "pretrain" / name) for name in "dca"]
    assert _finished_run(tmp_path, "c", {"model": "m"}, Screen()) == str(tmp_path / "pretrain" / "c")


def test_parallel_jobs_pretrain_once(tmp_path: Path) -> None:
    processes = [start("stage=finetune", f"seed={i}", *SMALL, cwd=tmp_path) for i in range(3)]
    printed = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], printed
    assert len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 1
    assert len(list(tmp_path.glob("outputs/finetune/*/run.json"))) == 3
    parents = {record(p.parent)["lineage"]["sha256"] for p in tmp_path.glob("outputs/finetune/*/run.json")}
    assert len(parents) == 1


@pytest.mark.scenario(23)
def test_resuming_at_a_logged_step_keeps_one_value_per_step(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydratune.engine import loop

    options = ["stage=pretrain", "epochs=4", "engine.log_every=6", "resume=auto"]
    whole = run(*options, directory=tmp_path / "whole")
    original = loop.save

    def save_then_die(trial: Any, step: int) -> None:
        original(trial, step)
        if step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(*options, directory=tmp_path / "broken")
    monkeypatch.undo()
    assert record(tmp_path / "broken" / "run")["status"] == "interrupted"
    broken = run(*options, directory=tmp_path / "broken")
    story = record(broken.directory)
    assert story["status"] == "complete" and "error" not in story
    one, two = scalars(whole.directory), scalars(broken.directory)
    for tag in ("val/accuracy", "train/loss", "lr/head"):
        assert one[tag] == two[tag] and len({s for s, _ in two[tag]}) == len(two[tag])


def test_a_sweeps_job_can_be_tested_later(run: Runner, tmp_path: Path) -> None:
    from hydratune.experiment.run import run_job

    swept = run("stage=pretrain", "epochs=1", "freeze=none", "freeze.groups=1", sweep=True)
    assert "test_accuracy" not in record(swept.directory)["metrics"]
    job = make_job([*TINY, "stage=pretrain", "epochs=1", "freeze=none", "freeze.groups=1", "test=true", "resume=auto"],
                   tmp_path, sweep=True)  # fmt: skip
    assert 0 <= run_job(job).record.metrics["test_accuracy"] <= 1
    assert record(swept.directory)["status"] == "complete" and "test_accuracy" in record(swept.directory)["metrics"]


def test_a_head_for_other_classes_is_not_kept_though_it_fits(run: Runner, tmp_path: Path) -> None:
    first = run("stage=pretrain", "epochs=1", directory=tmp_path / "a")
    same = run(
        "stage=finetune", "dataset=shapes10", f"init_from={first.directory}", "epochs=1", directory=tmp_path / "b"
    )
    assert "| fc.weight | loaded |" in (same.directory / "load.md").read_text()
    other = run(
        "stage=finetune", "dataset=shapes100", "dataset.shift=feature", "epochs=1", *PRETRAIN, directory=tmp_path / "c"
    )
    third = run(
        "stage=finetune", "dataset=shapes100", "epochs=1", f"init_from={other.directory}", directory=tmp_path / "d"
    )
    assert "made for other classes" in (third.directory / "load.md").read_text()


def test_a_resumed_run_does_not_need_its_origin_again(run: Runner, tmp_path: Path) -> None:
    import shutil

    first = run("stage=pretrain", "epochs=1", directory=tmp_path / "a")
    options = ["stage=finetune", f"init_from={first.directory}", "epochs=1", "resume=auto"]
    run(*options, directory=tmp_path / "b")
    shutil.rmtree(first.directory)
    assert run(*options, directory=tmp_path / "b").metric >= 0


# ---- sweeps and TensorBoard


def test_a_job_that_fails_leaves_the_others_of_its_sweep_alone(tmp_path: Path) -> None:
    done = hydratune("-m", "stage=pretrain", "optimizer.lr=1e30,0.01", *TINY, "epochs=1", cwd=tmp_path)
    assert done.returncode == 2 and "is not finite" in done.stderr and "Traceback" not in done.stderr
    status = {p.parent.name: record(p.parent)["status"] for p in tmp_path.glob("outputs/sweeps/*/*/run.json")}
    assert sorted(status.values()) == ["complete", "failed"], status


def test_a_sweep_leaves_complete_directories_and_tensorboard_serves_them(tmp_path: Path) -> None:
    done = hydratune(
        "-m", "stage=finetune", "optimizer.lr=1e-3,1e-2", "freeze=none,head_only", *SMALL, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(tmp_path.glob("outputs/sweeps/*/*/run.json"))
    names = [r.parent.name for r in runs]
    assert len(names) == 4 and all("freeze=" in n and "optimizer.lr=" in n for n in names), names
    assert all(record(r.parent)["status"] == "complete" for r in runs)

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs", "--port", str(port), "--load_fast", "false"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        listed = ask(port, "runs")
        # the pretraining, four jobs, and the sweep itself; nothing else
        assert len([r for r in listed if "optimizer.lr=" in r]) == 4 and len(listed) == 6, listed
        tags = ask(port, "plugin/scalars/tags")
        name = next(r for r in listed if "optimizer.lr=" in r)
        assert {"val/accuracy", "train/loss", "lr/head", "train/grad_norm", "speed/images_per_second"} <= tags[
            name
        ].keys()
        images = ask(port, "plugin/images/tags")
        assert {"batch", "val/confusion", "val/worst_mistakes"} <= images[name].keys()
        texts = ask(port, "plugin/text/tags")
        assert {"config/text_summary", "freeze/text_summary", "load/text_summary"} <= set(texts[name])
        found = ask(port, "plugin/hparams/experiment", {"experimentName": ""})
        assert {"optimizer.lr", "freeze", "seed"} <= {h["name"] for h in found["hparamInfos"]}
        assert {"optimizer.lr", "freeze"} <= {h["name"] for h in found["hparamInfos"][:5]}, found  # five are shown
        first, *others = [info["name"]["tag"] for info in found["metricInfos"]]
        assert first == "result/val_accuracy" and others, found  # what selects, before all others
        wanted = {"colParams": [], "startIndex": 0, "sliceSize": 100}
        wanted["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]  # type: ignore[assignment]
        groups = ask(port, "plugin/hparams/session_groups", wanted)["sessionGroups"]
        swept = [g for g in groups if "sweeps" in g["sessions"][0]["name"]]
        assert len(swept) == 4
        for group in swept:
            metrics = {m["name"]["tag"]: m["value"] for m in group["metricValues"]}
            home = tmp_path / "outputs" / group["sessions"][0]["name"]
            assert metrics["result/val_accuracy"] == pytest.approx(record(home)["metrics"]["val_accuracy"])
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    """TensorBoard's data API, once it is up and has read its runs."""
    url = f"http://127.0.0.1:{port}/data/{path}"
    deadline = time.time() + PATIENCE
    while True:
        try:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                content = json.load(answer)
            if content and content != {"hparamInfos": []}:
                return content
        except OSError:
            pass
        assert time.time() < deadline, f"TensorBoard did not answer {path}"
        time.sleep(0.3)


# ---- a user's own code and configuration: the README's example


def test_a_users_own_network_and_options_need_no_edit_here(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in ("my_package/__init__.py", "my_conf/model/my_net.yaml", "my_conf/experiment/mine.yaml"):
        text = readme.split(f"`{name}`", 1)[1].split("```", 2)[1].split("\n", 1)[1]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    common = ["--config-dir", "my_conf", "experiment=mine", *SMALL]
    refused = hydratune(*common, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2 and "type trust=[my_package] on the command line" in refused.stderr
    (tmp_path / "my_conf" / "experiment" / "forged.yaml").write_text(
        (tmp_path / "my_conf" / "experiment" / "mine.yaml").read_text() + "\ntrust: [my_package]\n"
    )
    forged = hydratune("--config-dir", "my_conf", "experiment=forged", *SMALL, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert forged.returncode == 2 and "type trust=[my_package]" in forged.stderr
    done = hydratune(*common, "trust=[my_package]", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    story = record(next(tmp_path.glob("outputs/finetune/*/run.json")).parent)
    assert story["trust"] == ["my_package"] and story["provenance"]["model"]["_target_"] == "my_package.MyNet"
    typo = hydratune(*common, "trust=[my_package]", "+model.widht=3", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert typo.returncode == 2 and "model.widht=3: no such key; nearest: width" in typo.stderr


def test_a_secret_from_the_environment_is_nowhere_in_a_run(tmp_path: Path) -> None:
    done = hydratune(
        "stage=pretrain", *TINY, "epochs=1", "+dataset.augment.flip=${oc.decode:${oc.env:HYDRATUNE_CANARY_FLAG}}",
        cwd=tmp_path, HYDRATUNE_CANARY_FLAG="true",
    )  # fmt: skip
    assert done.returncode in (0, 2)
    text = b"".join(p.read_bytes() for p in tmp_path.rglob("config.yaml"))
    assert b"HYDRATUNE_CANARY_FLAG" in text or done.returncode == 2
