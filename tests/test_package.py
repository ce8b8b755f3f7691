"""The wheel, installed outside the repository, finds its configuration and runs."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_in_a_clean_environment(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("hydratune-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hydratune/conf/config.yaml" in names and not [n for n in names if n.startswith(("tests", "scripts"))]
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (target,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    # The libraries (5 GB) are shared with this environment; a .pth there does not follow the .pth of an editable
    # install here, so this repository stays out of it.
    (target / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = [str(python), "-m", "hydratune"]
    where = subprocess.run(
        [str(python), "-c", "from hydratune.config.compose import config_directory as d; print(d())"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(target))
    done = subprocess.run([*run, "debug=default"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/debug/*/*/run.json"))) == 2
