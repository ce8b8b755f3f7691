"""Sweeps over a shared directory: whoever takes a unit does it once, what falls silent is given up, bits stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hydratune.core import secrets
from hydratune.record.claim import claim, is_claimed, is_ours, take_over
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Places
from hydratune.sweep.shared import Beat, Offers, SharedPool, Silence
from tests.conftest import TINY, hydratune
from tests.faults.harness import record

SWEEP = ["-m", *TINY, "stage=finetune", "init_from=null", "model=mlp", "runtime.threads=1", "sweep.jobs=2"]
GRID = ["optimizer.lr=0.01,0.02", "freeze=none,head_only"]
PATIENCE = 120.0  # seconds that anything is waited for


def until(met: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Commands in the background, each the leader of a group of its own; none is left behind."""
    every: list[subprocess.Popen[bytes]] = []

    def start(*line: str, cwd: Path) -> subprocess.Popen[bytes]:
        with (cwd / f"log{len(every)}.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *line], cwd=cwd, stdout=log, stderr=log, start_new_session=True
            )
        every.append(process)
        return process

    yield start
    for process in every:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
        process.wait()


def same_bits(one: Path, other: Path) -> None:
    names = sorted(p.parent.name for p in one.glob("*/run.json"))
    assert names and names == sorted(p.parent.name for p in other.glob("*/run.json"))
    for name in names:
        own, there = record(one / name), record(other / name)
        assert own["status"] == there["status"] == "complete", name
        assert own["checkpoint"] == there["checkpoint"], name


def told(home: Path) -> Counter[int]:
    """By their numbers, how often a job's metric was said while it was trained."""
    lines = [line for path in (home / ".units/said").iterdir() for line in path.read_text().splitlines()]
    return Counter(m["number"] for m in map(json.loads, lines) if "metric" in m)


def test_workers_train_what_the_local_sweep_trains(tmp_path: Path, started: Callable[..., subprocess.Popen]) -> None:  # type: ignore[type-arg]
    line = [*SWEEP, *GRID, "steps=20"]
    local = hydratune(*line, "hydra.sweep.dir=local", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    workers = [started("hydratune.sweep.work", "far", cwd=tmp_path) for _ in range(2)]
    far = hydratune(*line, "hydra.sweep.dir=far", "sweep.on=workers", "sweep.patience=30", cwd=tmp_path)
    assert far.returncode == 0, far.stdout + far.stderr
    assert [worker.wait() for worker in workers] == [0, 0]
    same_bits(tmp_path / "local", tmp_path / "far")
    assert "the sweep is over" in (tmp_path / "log0.txt").read_text()
    again = hydratune(*line, "hydra.sweep.dir=far", cwd=tmp_path)  # nothing is left to do, wherever
    assert again.returncode == 0 and "4 of 4 jobs are as far already" in again.stdout


@pytest.mark.slow
def test_killed_and_frozen_workers_lose_nothing(tmp_path: Path, started: Callable[..., subprocess.Popen]) -> None:  # type: ignore[type-arg]
    """24 jobs, three workers, of which one is killed and one stands still; it wakes up when its jobs are others'."""
    line = [
        *SWEEP, "optimizer.lr=0.01,0.02,0.03,0.04", "freeze=none,head_only", "seed=1,2,3", "steps=300",
        "engine.save_every=20", "sweep.share=off",
    ]  # fmt: skip
    local = hydratune(*line, "hydra.sweep.dir=local", cwd=tmp_path, timeout=300)
    assert local.returncode == 0, local.stderr
    sweep = started("hydratune", *line, "hydra.sweep.dir=far", "sweep.on=workers", "sweep.patience=4", cwd=tmp_path)
    workers = [started("hydratune.sweep.work", "far", cwd=tmp_path) for _ in range(3)]
    taken = tmp_path / "far/.units/taken"

    def busy(worker: subprocess.Popen) -> bool:  # type: ignore[type-arg]
        own = list(taken.glob(f"*-{worker.pid}-*.json"))
        jobs = [Path(job["directory"]) for p in own for _, job in json.loads(p.read_text() or "{}").get("jobs", ())]
        return any(is_claimed(job) for job in jobs)

    until(lambda: busy(workers[0]))
    os.killpg(workers[0].pid, signal.SIGKILL)
    until(lambda: busy(workers[1]))
    (frozen,) = taken.glob(f"*-{workers[1].pid}-*.json")
    os.killpg(workers[1].pid, signal.SIGSTOP)
    until(lambda: not frozen.exists())  # given up
    os.killpg(workers[1].pid, signal.SIGCONT)
    assert sweep.wait(PATIENCE) == 0, (tmp_path / "log0.txt").read_text()
    same_bits(tmp_path / "local", tmp_path / "far")
    assert sorted(told(tmp_path / "far").values()) == [1] * 23 + [2]  # and the test of the best
    assert [worker.wait(PATIENCE) for worker in workers[1:]] == [0, 0]


def test_an_array_of_slurm_s_runs_a_sweep(tmp_path: Path) -> None:
    """Its local executor stands in for the cluster; the workers are the real ones."""
    pytest.importorskip("submitit")
    line = [*SWEEP, *GRID, "steps=10", "sweep.on=slurm", "sweep.cluster={cluster: local, timeout_min: 5}"]
    done = hydratune(*line, "hydra.sweep.dir=far", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs: 4 complete" in done.stdout
    assert len(list((tmp_path / "far/.units/slurm").glob("*_log.out"))) == 2


@pytest.mark.slow
def test_a_sweep_is_submitted_and_left(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    line = [*SWEEP, *GRID, "steps=10", "sweep.on=slurm", "sweep.cluster={cluster: local, timeout_min: 5}"]
    done = hydratune(*line, "sweep.wait=false", "hydra.sweep.dir=far", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs were submitted (slurm: " in done.stdout and "hydratune-report" in done.stdout
    until(lambda: (tmp_path / "far/report.html").is_file())
    assert [record(p.parent)["status"] for p in (tmp_path / "far").glob("*/run.json")] == ["complete"] * 4


@pytest.mark.slow
def test_ray_runs_a_sweep_with_the_bits_of_the_local_one(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    line = [*SWEEP, *GRID, "steps=10"]
    local = hydratune(*line, "hydra.sweep.dir=local", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    done = hydratune(
        *line, "sweep.on=ray", "sweep.cluster={init: {num_cpus: 2}}", "hydra.sweep.dir=far", cwd=tmp_path, plain=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same_bits(tmp_path / "local", tmp_path / "far")


@pytest.mark.slow
def test_ray_s_workers_are_on_several_nodes(tmp_path: Path) -> None:
    """Two nodes with one CPU each, so that two workers at a time cannot be on one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    line = [*SWEEP, *GRID, "steps=10"]
    assert hydratune(*line, "hydra.sweep.dir=local", cwd=tmp_path).returncode == 0
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        options = ["sweep.on=ray", f"sweep.cluster={{init: {{address: '{nodes.address}'}}}}", "hydra.sweep.dir=far"]
        done = hydratune(*line, *options, cwd=tmp_path, plain=True)
    finally:
        nodes.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    same_bits(tmp_path / "local", tmp_path / "far")


def test_workers_that_all_end_are_an_error_and_not_waited_for(tmp_path: Path) -> None:
    class Ended:
        left = False

        def problem(self) -> str | None:
            return "slurm: all of its workers have ended, and there is work left"

        def leave(self) -> None:
            self.left = True

    cluster = Ended()
    pool = SharedPool(tmp_path, 0.2, cluster)
    with pytest.raises(RuntimeError, match="there is work left"):
        list(pool.run("train", [unit(tmp_path)], Places(1, 1)))
    pool.close()
    assert cluster.left


def test_a_worker_that_finds_nothing_leaves(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hydratune.sweep.work", "nowhere", "--wait", "0.2"], cwd=tmp_path, capture_output=True,
        text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1 and "nothing was heard of its command for 0.2 s; 0 units" in done.stdout


# ---- the protocol, without training


def unit(home: Path, number: int = 0) -> Unit:
    return Unit([Entry(number, (), {}, home / f"job{number}")], 1)


def test_a_unit_is_taken_once(tmp_path: Path) -> None:
    pool = SharedPool(tmp_path, 30)
    events = pool.run("train", [unit(tmp_path)], Places(1, 1))
    pool._offer("train", unit(tmp_path))
    both = [Offers(tmp_path, name).take() for name in ("a", "b")]
    assert both[1] is None and both[0] is not None and both[0].read()["mode"] == "train"
    both[0].say(number=0, metric=0.5)
    both[0].say(ended=0)
    heard = [next(events), next(events)]
    assert heard[0].message == {"number": 0, "metric": 0.5} and heard[1].died == 0
    events.close()
    assert not list((tmp_path / ".units/offered").iterdir())


def test_half_a_line_is_not_heard(tmp_path: Path) -> None:
    pool = SharedPool(tmp_path, 30)
    pool._offer("train", unit(tmp_path))
    (key,) = pool._offers
    said = tmp_path / f".units/said/{key}.jsonl"
    said.write_text('{"line": "a"}\n{"line": ')
    assert [e.message for e in pool._heard(key)] == [{"line": "a"}]
    with said.open("a") as file:
        file.write('"b"}\n')
    assert [e.message for e in pool._heard(key)] == [{"line": "b"}]


def test_a_silent_worker_is_given_up_and_its_directories_with_it(tmp_path: Path) -> None:
    pool = SharedPool(tmp_path, 0.2)
    (tmp_path / "job0").mkdir()
    held = claim(tmp_path / "job0")
    pool._offer("train", unit(tmp_path))
    taken = Offers(tmp_path, "a").take()
    assert taken is not None and taken.is_ours
    beat = Beat(tmp_path / ".units/workers/a.json")
    (key,) = pool._offers
    for _ in range(4):
        assert list(pool._heard(key)) == []
        beat.go_on()
        time.sleep(0.1)
    heard: list[int | None] = []
    until(lambda: bool(heard.extend(e.died for e in pool._heard(key)) or heard))
    assert heard == [-signal.SIGKILL] and not taken.is_ours
    assert not is_ours(held, tmp_path / "job0")
    os.close(claim(tmp_path / "job0"))  # whoever goes on may have it
    os.close(held)


def test_a_new_command_takes_back_what_an_old_one_offered(tmp_path: Path) -> None:
    SharedPool(tmp_path, 30)._offer("train", unit(tmp_path))
    taken = Offers(tmp_path, "a").take()
    SharedPool(tmp_path, 30)
    assert taken is not None and not taken.is_ours and Offers(tmp_path, "b").take() is None


def test_silence_is_of_a_count_and_not_of_a_clock(tmp_path: Path) -> None:
    beat, silence = Beat(tmp_path / "a.json"), Silence()
    assert silence.of(beat.path) == pytest.approx(0, abs=0.01)
    os.utime(beat.path, (0, 0))  # another machine's clock
    time.sleep(0.05)
    assert silence.of(beat.path) > 0.04
    beat.go_on()
    assert silence.of(beat.path) < 0.04


def test_a_run_that_was_taken_over_is_not_written_to(tmp_path: Path) -> None:
    """By a process that ends where it would; in a process of its own."""
    script = (
        "import sys; from pathlib import Path; from hydratune.record.run import Run\n"
        "run = Run(Path('job')); run.update(step=1); print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    run.update(step=2)\nfinally:\n    print('went on', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        take_over(tmp_path / "job")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 75 and process.stdout.read() == ""
    assert record(tmp_path / "job")["step"] == 1


def test_units_hold_names_of_variables_and_not_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    for name in ("_known", "_names"):
        monkeypatch.setattr(secrets, name, type(getattr(secrets, name))())
    secrets.learn_variable("MY_TOKEN", "hunter2hunter2")
    there = secrets.as_references({"url": ["https://hunter2hunter2@host"], "n": 1})
    assert "hunter2" not in json.dumps(there) and "MY_TOKEN" in json.dumps(there)
    assert secrets.from_references(there) == {"url": ["https://hunter2hunter2@host"], "n": 1}
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ValueError, match="the environment variable MY_TOKEN, which this job uses, is not set here"):
        secrets.from_references(there)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for key, said in (
        ("sweep.on=cluster", "sweep.on=cluster: one of local, workers, slurm, ray"),
        ("sweep.wait=false", "sweep.on=local has nobody else to go on"),
        ("sweep.patience=0", "sweep.patience=0: above 0"),
    ):
        done = hydratune(*SWEEP, *GRID, key, "hydra.sweep.dir=s", cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr, done.stderr
