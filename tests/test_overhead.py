"""What a sweep costs beside its training: jobs are composed once, from files that are read once; tables are bounded."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from hydratune.cli import resolvers
from hydratune.config.compose import config_directory
from hydratune.config.hydra_versions import initialize
from hydratune.sweep import ranking, told
from hydratune.sweep.composing import Composer, remembering
from hydratune.sweep.told import Told
from tests.conftest import TINY, hydratune

LINES = [
    ["optimizer.lr=0.1", "seed=1"],
    ["freeze=lora", "freeze.rank=2", "model=resnet20"],
    ["optimizer.lr=0.2", "seed=2"],
    ["dataset@pretrain.dataset=shapes100", "pretrain.dataset.train=300", "init_from=auto"],
    ["+dataset@evals.noisy=shapes10", "evals.noisy.shift=input"],
    ["freeze=lora", "freeze.rank=4", "model=resnet20"],
    ["+dataset@evals.noisy=shapes10", "evals.noisy.shift=feature"],
    ["optimizer=adamw", "optimizer.lr=0.3", "~init_map", "+init_map={a: b}"],
    ["optimizer={_target_: hydratune.optim.SGD, lr: 3}"],
    ["optimizer.lr=0.1", "seed=1"],
]


@pytest.fixture
def loader() -> Iterator[Any]:
    before = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    resolvers.register()
    with initialize(config_directory()):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader
    HydraConfig.instance().cfg = before


def master(loader: Any, directory: Path, *overrides: str) -> Any:
    found = loader.load_configuration("config", [f"hydra.sweep.dir={directory}", *overrides], RunMode.MULTIRUN)
    with open_dict(found):
        found.hydra.job.num, found.hydra.job.id = 0, "0"
    return found


def test_jobs_are_composed_as_hydra_composes_them(loader: Any, tmp_path: Path) -> None:
    """Whatever was composed before, and however the first results were changed by whoever had them."""
    whole = master(loader, tmp_path)
    ours = remembering(loader)
    for line in LINES:
        plain, found = (one.load_sweep_config(whole, list(line)) for one in (loader, ours))
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(plain), line
        with open_dict(found):
            found.optimizer.lr, found.model = 77, {"changed": True}


def test_files_are_read_once_for_jobs_that_differ_in_values(
    loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ours = master(loader, tmp_path), remembering(loader)
    ours.load_sweep_config(whole, ["seed=0"])
    read: list[Any] = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda *a, **k: read.append(a) or load(*a, **k))
    for seed in range(1, 5):
        ours.load_sweep_config(whole, [f"seed={seed}"])
    assert not read
    ours.load_sweep_config(whole, ["seed=0", "model=resnet20"])
    assert read  # another file is one more to read


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["optimizer.lrr=3"], "optimizer.lrr"),
        (["model=resnet2"], "resnet2"),
        (["+optimizer.lr=3", "seed=1,2"], "Ambiguous"),
    ],
)
def test_what_does_not_fit_is_refused_as_hydra_refuses_it(
    loader: Any, tmp_path: Path, line: list[str], said: str
) -> None:
    whole, ours = master(loader, tmp_path), remembering(loader)
    ours.load_sweep_config(whole, ["seed=0"])
    errors = []
    for one in (loader, ours):
        with pytest.raises(Exception, match=said) as caught:
            one.load_sweep_config(whole, list(line))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_an_entry_has_the_texts_and_the_job_of_its_own_line(loader: Any, tmp_path: Path) -> None:
    """`number` and the directory's name are Hydra's; the job's part is what is composed, without Hydra's node."""
    whole = master(loader, tmp_path)
    composer = Composer(remembering(loader), whole, ["optimizer.lr=0.1,0.2", "seed=3"])
    ((first,), (second,)) = composer.cells([["optimizer.lr=0.1", "seed=3"], ["optimizer.lr=0.2", "seed=3"]], 4)
    assert (first.number, second.number) == (4, 5)
    assert first.varies == {"optimizer.lr": "0.1"} and second.directory == tmp_path / "optimizer.lr=0.2"
    for entry, rate in ((first, 0.1), (second, 0.2)):
        assert entry.job is not None and entry.job.config.learning_rate == rate and entry.job.config.seed == 3
        composed = OmegaConf.create(entry.hydra["config.yaml"])
        assert composed.optimizer.lr == rate and "hydra" not in composed
        own = OmegaConf.create(entry.hydra["hydra.yaml"]).hydra
        assert own.job.num == entry.number and own.runtime.output_dir == str(entry.directory)
        assert OmegaConf.create(entry.hydra["overrides.yaml"]) == [f"optimizer.lr={rate}", "seed=3"]


def test_a_wrong_value_is_its_job_s_own_error(loader: Any, tmp_path: Path) -> None:
    whole = master(loader, tmp_path)
    composer = Composer(remembering(loader), whole, [])
    ((good,), (bad,)) = composer.cells([["batch_size=8"], ["batch_size=0"]], 0)
    assert good.error is None and bad.job is None and "batch_size=0" in (bad.error or "")
    with pytest.raises(Exception, match="lrr"):
        composer.cells([["optimizer.lrr=3"]], 0)
    assert "lrr" in (composer.entry(["optimizer.lrr=3"], 7).error or "")


class Counting:
    def __init__(self) -> None:
        self.loaded: list[list[str]] = []

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> None:
        self.loaded.append(sweep_overrides)


@pytest.mark.parametrize(("ours", "times"), [(True, 0), (False, 2)])
def test_the_sweeper_leaves_composing_to_our_launcher_and_to_no_other(ours: bool, times: int) -> None:
    # Here, and not by __init__: Hydra 1.3 runs the modules of plugins anew each time that it looks for them
    from hydra_plugins.hydratune.local import LocalLauncher, LocalSweeper

    sweeper, counting = LocalSweeper.__new__(LocalSweeper), Counting()
    sweeper.launcher = LocalLauncher() if ours else object()  # type: ignore[assignment]
    sweeper.config = OmegaConf.create()
    sweeper.hydra_context = type("Context", (), {"config_loader": counting})  # type: ignore[assignment]
    sweeper.validate_batch_is_legal([["a=1"], ["a=2"]])
    assert len(counting.loaded) == times


def test_one_override_that_does_not_fit_is_refused_before_any_job_begins(tmp_path: Path) -> None:
    freezes = ["none"] * 36 + ["head_onlyy", "none", "none"]
    done = hydratune("-m", *TINY, "stage=pretrain", "model=mlp", f"freeze={','.join(freezes)}", "hydra.sweep.dir=s",
                     cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and "freeze=head_onlyy" in done.stderr, done.stderr
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["multirun.yaml"]


def test_tables_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs end, and however long one table takes."""
    clock, written = [0.0], []

    def write(*_: Any) -> None:
        clock[0] += 3.0
        written.append(clock[0])

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ranking, "read", lambda directory: None)
    monkeypatch.setattr(ranking, "write_tables", write)
    rank: Callable[..., None] = Told(tmp_path, []).rank
    for _ in range(1000):
        clock[0] += 0.5
        rank()
    assert len(written) > 1 and 3.0 * len(written) <= 1.2 * told.SHARE * clock[0]
    before = len(written)
    rank(everything=True)
    assert len(written) == before + 1


def test_workers_are_forked_from_a_process_that_has_imported_what_they_need() -> None:
    """TensorBoard alone is a third of a second in every one of them."""
    code = (
        "import hydratune.sweep.preload, sys, os; "
        "print(*(m in sys.modules for m in ('torch.utils.tensorboard', 'tensorboard.plugins.hparams.metadata', "
        "'torch._dynamo', 'hydratune.experiment.run', 'safetensors.torch'))); sys.stdout.flush(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 5, done.stdout
