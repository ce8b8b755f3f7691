"""Nobody else's code runs, and nothing secret is written."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

import pytest

from hydratune.config.overrides import safe_name
from tests.conftest import hydratune
from tests.faults.harness import NET, run
from tests.faults.payloads import PAYLOADS, Payload, prepare

NUMBERS = {"_target_": 35, "nested": 35, "override": 35, "configuration": 35, "weights": 34, "run": 35, "archive": 36}


@pytest.mark.parametrize(
    "payload",
    [pytest.param(p, id=f"{p.kind}: {p.name}", marks=pytest.mark.scenario(NUMBERS[p.kind])) for p in PAYLOADS],
)
def test_no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: Payload) -> None:
    if "timm" in payload.name:
        pytest.importorskip("timm")
    if "Optuna" in payload.name:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.syspath_prepend(str(tmp_path))
    prepare(tmp_path)
    said = payload.attack(tmp_path)
    assert said and not (tmp_path / "canary").exists() and "canary_module" not in sys.modules


def test_there_are_sixty_and_more() -> None:
    assert len(PAYLOADS) >= 60 and len({(p.kind, p.name) for p in PAYLOADS}) >= len(PAYLOADS) - 1


@pytest.mark.scenario(35)
def test_what_is_refused_names_the_key(tmp_path: Path) -> None:
    done = hydratune("dataset.task._target_=os.system", cwd=tmp_path)
    assert done.returncode == 2 and "dataset.task._target_=os.system" in done.stderr


@pytest.mark.scenario(35)
def test_what_only_constructs_is_built() -> None:
    from hydratune.config import instantiate

    node = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
    instantiate.check(node, "model", ())
    assert instantiate.build(node, "model", ()).weight.shape == (2, 3)
    found = instantiate.build({"_target_": "torchvision.models.resnet18", "num_classes": 3}, "model", ())
    assert found.fc.out_features == 3


@pytest.mark.scenario(35)
def test_a_directory_of_configurations_that_does_no_harm_is_used(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    done = hydratune("--config-dir=conf", "experiment=mine", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0 and "seed: 5" in done.stdout, done.stderr
    evil = "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: canary\n"
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(evil)
    done = hydratune("--config-dir=conf", "experiment=evil", cwd=tmp_path)
    assert done.returncode == 2 and "hydra.callbacks" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("canary")) and not list(tmp_path.rglob("run.json"))


@pytest.mark.scenario(37)
@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a b", "x;touch canary", "$(touch canary)"])
def test_names_that_are_no_names_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    done = hydratune(f"name='{name}'", cwd=tmp_path)
    assert done.returncode == 2 and "name=" in done.stderr and "directory's name" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.scenario(37)
def test_a_jobs_name_is_made_safe() -> None:
    for name in ("a/b", "../..", "x y", "ü", "a" * 400, "CON:", "k=[1,2]"):
        safe = safe_name(name)
        assert re.fullmatch(r"[A-Za-z0-9._=,-]+", safe) and len(safe) < 140
    assert safe_name("freeze=lp_ft,optimizer.lr=0.001,seed=2") == "freeze=lp_ft,optimizer.lr=0.001,seed=2"


@pytest.mark.scenario(38)
@pytest.mark.parametrize("fails", [False, True])
def test_a_secret_is_found_nowhere(tmp_path: Path, fails: bool) -> None:
    """Taken out of the environment by interpolation, handed to a class, and named in the error that it makes."""
    secret = 'hunter2"\\canary'
    (tmp_path / "mine.py").write_text(
        "from faultnet import Net\n"
        "def net(token, fails, width):\n"
        "    assert token.startswith('hunter2')\n"
        "    if fails: raise ValueError(f'cannot log in with {token}')\n"
        "    return Net()\n"
    )
    options = [o for o in NET if not o.startswith(("trust", "model"))]
    options += ["trust=[mine,faultnet]", "model._target_=mine.net", f"++model.fails={fails}", "hydra.run.dir=run",
                "++model.token=${oc.env:SECRET_TOKEN}"]  # fmt: skip
    here = f"{tmp_path}{os.pathsep}{Path(__file__).parent}"
    done = hydratune(*options, cwd=tmp_path, SECRET_TOKEN=secret, PYTHONPATH=here)
    assert done.returncode == (2 if fails else 0), done.stderr
    swept = hydratune("-m", *options[:-2], options[-1], "optimizer.lr=0.01,0.02", "hydra.sweep.dir=sweep", cwd=tmp_path,
                      SECRET_TOKEN=secret, PYTHONPATH=here)  # fmt: skip
    assert swept.returncode == (2 if fails else 0), swept.stderr
    again = hydratune("resume=run", "trust=[mine,faultnet]", cwd=tmp_path, SECRET_TOKEN=secret, PYTHONPATH=here)
    assert again.returncode == (2 if fails else 0), again.stderr
    spoken = done.stdout + done.stderr + swept.stdout + swept.stderr + again.stdout + again.stderr
    assert "hunter2" not in spoken
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".py" and p.suffix != ".pyc"]
    assert files and not [p for p in files if b"hunter2" in p.read_bytes()]


@pytest.mark.scenario(39)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer.lrr=3"], "optimizer.lrr=3: no such key; nearest: optimizer.lr"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: must be a number"),
        (["freeze=hed_only"], "freeze=hed_only: no such option; nearest: head_only"),
        (["init_from=nowhere/at/all", "stage=finetune"], "init_from=nowhere/at/all: no such run directory"),
        (["dataset=image_folder", "dataset.root=nowhere"], "dataset.root=nowhere: no such folder"),
        (["engine.on_nonfinite=skp"], "engine.on_nonfinite=skp: stop or skip"),
        (["runtime.strategy=ddp"], "runtime.strategy=ddp: one of replicate, fsdp"),
    ],
)
def test_mistakes_are_answered_at_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(*arguments, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    # of its own time: what else the machine does meanwhile is not its mistake
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
