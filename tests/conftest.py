"""Shared fixtures: a private cache, jobs composed and run in this process, the command in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import warm

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on one core wait for one another
PATIENCE = 900.0  # seconds; that a command hangs, and not that the machine is busy
TINY = ["dataset.train=200", "dataset.val=100", "dataset.test=100", "batch_size=32", "runtime.precision=fp32",
        "runtime.layout=contiguous"]  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what the machine remembers of precisions."""
    os.environ["HYDRATUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield


@pytest.fixture
def data_root() -> Path:
    """The real data; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("HYDRATUNE_DATA", "data"))
    if not (root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"no real data: {root}/FashionMNIST is absent (set HYDRATUNE_DATA)")
    return root


def compose_config(overrides: list[str]) -> Any:
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    from hydratune.config.compose import config_directory
    from hydratune.config.hydra_versions import initialize

    GlobalHydra.instance().clear()
    with initialize(config_directory()):
        return compose("config", overrides=overrides, return_hydra_config=True)


def make_job(overrides: list[str], directory: Path, sweep: bool = False, trust: tuple[str, ...] = ()) -> Any:
    """The job that `hydratune <overrides>` would run in `directory`."""
    from omegaconf import OmegaConf

    from hydratune.config import compose
    from hydratune.config.validate import validate

    config = compose_config([*overrides, f"outputs={directory / 'outputs'}", "name=test"])
    task = OmegaConf.masked_copy(config, [k for k in config if k != "hydra"])
    choices = config.hydra.runtime.choices
    job = compose.make_job(task, choices, overrides, directory / "run", (), trust, sweep)
    validate(job)
    return job


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Run a tiny job of these overrides to its end; the result."""

    def run_overrides(*overrides: str, directory: Path | None = None, **options: Any) -> Any:
        from hydratune.experiment.run import run_job

        return run_job(make_job([*TINY, *overrides], directory or tmp_path, **options))

    return run_overrides


def hydratune(
    *arguments: str, cwd: Path, timeout: float = PATIENCE, plain: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own. PYTHONPATH: before what is there, so that it is this checkout's command.

    plain: started as a user would, and not forked from one that has imported torch.
    """
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    whole = {**os.environ, **environment}
    if not plain and warm.can_serve(whole):
        return warm.run(arguments, cwd, whole, timeout)
    return subprocess.run(
        [sys.executable, "-m", "hydratune", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, env=whole,
    )  # fmt: skip


# ---- the fault table: scenario, expected, seen, time (scripts/test --all -m scenario --fault-table)

_SEEN: dict[int, list[tuple[str, float]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", action="store_true", help="what was seen of each scenario of tests/faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [("scenario", mark.args[0]) for mark in item.iter_markers("scenario")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "skipped":
        for key, number in report.user_properties:
            if key == "scenario":
                _SEEN.setdefault(number, []).append((report.outcome, report.duration))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--fault-table"):
        return
    from rich.console import Console
    from rich.table import Table

    from tests.faults.scenarios import SCENARIOS

    table = Table("", "scenario: what is expected", "seen", "checks", "seconds", title="faults")
    good = 0
    for number, expected in SCENARIOS.items():
        seen = _SEEN.get(number, [])
        outcomes = [outcome for outcome, _ in seen]
        ran = [o for o in outcomes if o != "skipped"]
        said = "not run" if not ran else "as expected" if set(ran) == {"passed"} else "NOT as expected"
        good += said == "as expected"
        table.add_row(str(number), expected, said, str(len(ran)), f"{sum(t for _, t in seen):.1f}")
    console = Console(width=140, highlight=False)
    console.print(table)
    console.print(f"{good} of {len(SCENARIOS)} scenarios as expected")
