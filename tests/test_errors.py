"""What a user gets wrong is answered by a sentence with key, value and mend; what is ours by where its traceback is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, hydratune

MINE = """# @package _global_
{defaults}
{text}
"""


def experiment(home: Path, text: str, defaults: str = "") -> list[str]:
    (home / "mine" / "experiment").mkdir(parents=True, exist_ok=True)
    (home / "mine" / "experiment" / "try.yaml").write_text(MINE.format(defaults=defaults, text=text))
    return ["--config-dir=mine", "experiment=try"]


def refused(said: str, *arguments: str, cwd: Path) -> None:
    done = hydratune(*arguments, cwd=cwd)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert not list(cwd.glob("outputs")), "a refused command leaves a directory"


# ---- every key is one that somebody reads, wherever it comes from


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epcohs: 7", "epcohs=7: no such key; nearest: epochs"),
        ("batchsize: 16", "batchsize=16: no such key; nearest: batch_size"),
        ("optimzer: {lr: 0.5}", "optimzer: no such key; nearest: optimizer"),
        ("optimizer: {lrr: 0.5}", "optimizer.lrr=0.5: no such key; nearest: lr"),
        ("dataset: {augment: {filp: true}}", "dataset.augment.filp=True: no such key; nearest: flip"),
        ("pretrain: {epcohs: 3}", "pretrain.epcohs=3: no such key; nearest: epochs"),
        ("pretrain: {runtime: {laiout: contiguous}}", "pretrain.runtime.laiout=contiguous: no such key"),
        ("freeze: {fractoin: 0.3}", "freeze.fractoin=0.3: no such key; nearest: fraction"),
        ("freeze: {fractoin: null}", "freeze.fractoin=None: no such key; nearest: fraction"),
        ("sweep: {jbos: 2}", "sweep.jbos=2: no such key; nearest: jobs"),
        ("engine: {emaa: 0.9}", "engine.emaa=0.9: no such key; nearest: ema"),
        ("sweep: {on: workers}", "sweep: YAML takes the key on or yes for True; put it in quotes"),
    ],
)
def test_a_misspelt_key_in_a_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    refused(said, *experiment(tmp_path, text), cwd=tmp_path)


@pytest.mark.parametrize("typed", ["+epcohs=7", "++optimizr.lr=1", "+pretrain.epcohs=2", "+freeze.fractoin=0.5"])
def test_a_misspelt_key_behind_a_plus_is_refused(tmp_path: Path, typed: str) -> None:
    refused("no such key; nearest:", typed, cwd=tmp_path)


def test_a_misspelt_freeze_key_is_refused_in_a_sweep_too(tmp_path: Path) -> None:
    """A key of another strategy is a sweep's; one that no strategy has is nobody's."""
    line = ["-m", *TINY, "stage=pretrain", "steps=1", "freeze=none,lp_ft", "+freeze.fractoin=0.3", "hydra.sweep.dir=s"]
    done = hydratune(*line, cwd=tmp_path)
    assert done.returncode == 2 and "freeze.fractoin=0.3: no such key" in done.stderr, done.stderr


def test_a_file_without_its_package_line_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "try.yaml").write_text("epochs: 3\n")
    refused("must begin with the line `# @package _global_`", "--config-dir=mine", "experiment=try", cwd=tmp_path)


def test_a_stage_that_is_only_a_value_is_refused(tmp_path: Path) -> None:
    said = "`- override /stage: pretrain` in the file's defaults list chooses it"
    refused(said, *experiment(tmp_path, "stage: pretrain"), cwd=tmp_path)


@pytest.mark.parametrize("key", ["optimizer", "seed", "schedule", "pretrain.epochs"])
def test_what_every_job_needs_cannot_be_deleted(tmp_path: Path, key: str) -> None:
    refused(f"{key}: is missing; every job needs it", f"~{key}", cwd=tmp_path)


def test_a_component_that_is_none_is_refused(tmp_path: Path) -> None:
    refused("schedule=None: must be one of the group's options", *experiment(tmp_path, "schedule: null"), cwd=tmp_path)


# ---- values


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["runtime.threads=100000000"], "runtime.threads=100000000: from 1 to 1024"),
        (["runtime.device=meta"], "runtime.device=meta: auto, cpu, cuda or cuda:1"),
        (["runtime.device=xla"], "runtime.device=xla: auto, cpu, cuda or cuda:1"),
        (["runtime.device=mps"], "runtime.device=mps: auto, cpu, cuda or cuda:1"),
        (["runtime.device=cuda:99"], "runtime.device=cuda:99: torch sees"),
        (["runtime.cache_memory_mb=-1"], "runtime.cache_memory_mb=-1: at least 0"),
        (["optimizer=adamw", "optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: two numbers"),
        (["optimizer=adamw", "optimizer.betas=[0.9,1.5]"], "optimizer.betas=[0.9, 1.5]: two numbers"),
        (["optimizer.momentum=2"], "optimizer.momentum=2: from 0 to below 1"),
        (["optimizer.weight_decay=nan"], "optimizer.weight_decay=nan: must not be below 0"),
        (["optimizer=torch", "optimizer.name=SparseAdam"], "optimizer.name=SparseAdam: takes sparse gradients alone"),
        (["optimizer=torch", "optimizer.name=LBFGS"], "optimizer.name=LBFGS: evaluates the loss several times"),
        (["schedule=cosine", "schedule.final=-5"], "schedule.final=-5: a factor from 0 to 1"),
        (["schedule=steps", "schedule.gamma=-1"], "schedule.gamma=-1: a factor above 0"),
        (["schedule=steps", "schedule.milestones=[0.7,0.2]"], "schedule.milestones=[0.7, 0.2]: shares of the steps"),
        (["outputs=null"], "outputs=None: must be a directory"),
        ([f"name={'x' * 300}"], "300 letters; at most 200, as it becomes a directory's name"),
        (["dataset.task=multilabel"], "dataset.task._target_= one of hydratune.tasks.Classification"),
        (["init_head=maybe"], "init_head=maybe: must be auto, true or false"),
        (["init_map=5"], "init_map=5: must be a mapping"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, typed: list[str], said: str) -> None:
    refused(said, *TINY, "stage=pretrain", "steps=1", *typed, cwd=tmp_path)
    assert not (tmp_path / "None").exists()


def test_a_path_that_cannot_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused("Not a directory", "outputs=file", cwd=tmp_path)


def test_tags_of_python_in_a_configuration_are_no_configuration(tmp_path: Path) -> None:
    text = "seed: !!python/object/apply:os.mkdir [canary]"
    done = hydratune(*experiment(tmp_path, text), cwd=tmp_path)
    assert done.returncode == 2 and "could not determine a constructor for the tag" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "try.yaml" in done.stderr and not (tmp_path / "canary").exists()


# ---- what nobody foresaw


def test_a_fault_of_ours_says_so_and_where_its_traceback_is(tmp_path: Path) -> None:
    code = (
        "import sys; import hydratune.experiment.run as job; sys.argv[1:] = sys.argv[1:]\n"
        "def broken(*a, **k): raise KeyError('as asked')\n"
        "job.run_job = broken\n"
        "from hydratune.cli.main import main; main()"
    )
    line = [*TINY, "stage=pretrain", "hydra.run.dir=run"]
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "this is a fault of hydratune: KeyError: 'as asked'; its traceback is in run/traceback.txt" in done.stderr
    kept = (tmp_path / "run" / "traceback.txt").read_text()
    assert "def broken" not in kept and "KeyError: 'as asked'" in kept and "Traceback" in kept


def test_a_fault_of_a_users_class_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def network(input_shape):\n    return 1 / 0\n")
    done = hydratune(*TINY, "stage=pretrain", "trust=[mine]", "model._target_=mine.network", "~model.width",
                     "hydra.run.dir=run", cwd=tmp_path, PYTHONPATH=str(tmp_path))  # fmt: skip
    assert done.returncode == 1 and "ZeroDivisionError: division by zero (in mine.py line 2)" in done.stderr, (
        done.stderr
    )


def test_an_interrupted_dry_run_offers_nothing_to_go_on_with(tmp_path: Path) -> None:
    from hydratune.cli.failures import _goes_on

    assert _goes_on(str(tmp_path)) == ""
    (tmp_path / "run.json").write_text("{}")
    assert "goes on from the last checkpoint" in _goes_on(str(tmp_path))


# ---- resume=DIR of a run that needs --config-dir


def test_a_run_from_a_directory_of_configurations_is_resumed(tmp_path: Path) -> None:
    flags = experiment(tmp_path, "steps: 2")
    first = hydratune(*flags, *TINY, "stage=pretrain", "model=mlp", "hydra.run.dir=run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    without = hydratune("resume=run", cwd=tmp_path)
    assert without.returncode == 2 and "--config-dir=mine; type that too" in without.stderr, without.stderr
    orders = (
        ["resume=run", "--config-dir=mine"], ["--config-dir=mine", "resume=run"],
        ["--config-dir", "mine", "resume=run", "test=false"], ["resume=run", "test=false", "-cd", "mine"],
    )  # fmt: skip
    for order in orders:
        done = hydratune(*order, cwd=tmp_path)
        assert done.returncode == 0 and "is complete; nothing to do" in done.stdout, (order, done.stderr)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_steps"] == 2


# ---- Ctrl-C before anything has begun

LAUNCHED = "'hydratune.experiment.run' in sys.modules or 'hydratune.sweep.launcher' in sys.modules"


@pytest.mark.scenario(41)
@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("moment", ["'hydra' in sys.modules", "'omegaconf.omegaconf' in sys.modules", "launched"])
def test_an_interrupt_during_the_start_is_quiet(tmp_path: Path, sweep: bool, moment: str) -> None:
    """To every process of the group, as a terminal sends it, at the moment that a module has just been loaded."""
    code = f"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setpgid(0, 0)
def strike():
    launched = False
    while True:
        if {moment.replace("launched", LAUNCHED)}:
            break
    os.killpg(0, signal.SIGINT)
threading.Thread(target=strike, daemon=True).start()
import hydratune.__main__ as command
command.main()
"""
    line = [*(["-m", "optimizer.lr=0.01,0.02"] if sweep else []), *TINY, "stage=pretrain", "model=mlp", "epochs=100000"]
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (130, -2), done.stderr
    assert "Traceback" not in done.stderr and "KeyboardInterrupt" not in done.stderr, done.stderr
