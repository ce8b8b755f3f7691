"""hydratune-runs: what lies under outputs, compared, filtered and pruned; and runs that go on to more epochs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hydratune as library
from hydratune.cli.run_list import condition, listed, placed
from tests.conftest import TINY, hydratune

SMALL = ["stage=pretrain", *TINY, "dataset.train=96", "dataset.val=48", "dataset.test=48", "batch_size=16"]


def runs(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    code = "import sys; from hydratune.cli.runs import main; main(); assert 'torch' not in sys.modules"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, input=stdin
    )


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, a sweep, and a run that starts from another."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, rate in (("a", 0.1), ("b", 0.01), ("c", 0.03)):
            library.run([*SMALL, "epochs=2", f"optimizer.lr={rate}", f"name={name}"], quiet=True)
        library.run(
            [*SMALL, "stage=finetune", "dataset=shapes10", "init_from=outputs/pretrain/b", "epochs=1", "name=d"],
            quiet=True,
        )
    done = hydratune("-m", *SMALL, "epochs=1", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=outputs/sweeps/s", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_every_run_and_sweep_is_listed_without_torch(home: Path) -> None:
    done = runs("--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {Path(run["directory"]).name for run in found} == {"a", "b", "c", "d", "s"}
    (sweep,) = (run for run in found if run["jobs"])
    assert sweep["what"].startswith("sweep of 2 jobs over optimizer.lr: pretrain model=simple_cnn dataset=shapes10")
    assert sweep["status"] == "complete" and sweep["metric"] is not None
    assert all(run["size"] > 1000 and run["when"] for run in found)
    assert len(json.loads(runs("--json", "--jobs", cwd=home).stdout)) == 7
    table = runs(cwd=home).stdout
    assert "5 runs and sweeps" in table and "outputs/finetune/d" in table


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (["stage=finetune"], {"d"}),
        (["optimizer.lr=0.1", "stage=pretrain", "model=simple_cnn"], {"a"}),
        (["optimizer.lr<0.05", "epochs>=2", "status=complete"], {"b", "c"}),
        (["model!=simple_cnn"], set()),
        (["metric>=0", "seed=0", "dataset=shapes10", "directory!=x"], {"a", "b", "c", "d", "s"}),
    ],
)
def test_conditions(home: Path, where: list[str], names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    found = [run for run in listed(Path("outputs")) if all(condition(one)(run) for one in where)]
    assert {Path(run.directory).name for run in found} >= names
    assert {Path(run.directory).name for run in found} <= names | {"s", "d"}


def test_order_and_differences(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    every = list(listed(Path("outputs")))
    values = [run.metric for run in placed(every, "metric")]
    assert values == sorted(values, key=lambda v: -(v or 0))
    shown = runs("--diff", "outputs/pretrain/a", "outputs/pretrain/b", cwd=home).stdout
    assert "optimizer.lr" in shown and "0.01" in shown and "val_accuracy" in shown and "batch_size" not in shown
    for wrong, said in (
        (["--where", "x"], "--where x: key=value"),
        (["--sort", "metrc"], "--sort metrc: nearest: metric"),
        (["nowhere"], "nowhere: no such directory"),
        (["--diff", "outputs/pretrain/a", "nowhere"], "nowhere: no run directory"),
    ):
        done = runs(*wrong, cwd=home)
        assert done.returncode == 2 and said in done.stderr


def test_damaged_records_are_listed_as_such(tmp_path: Path) -> None:
    for name, content in (("one", "{"), ("two", "[]"), ("three", '{"status": "running", "metrics": {}}')):
        (tmp_path / "outputs/pretrain" / name).mkdir(parents=True)
        (tmp_path / "outputs/pretrain" / name / "run.json").write_text(content)
    (tmp_path / "outputs/sweeps/x").mkdir(parents=True)
    (tmp_path / "outputs/sweeps/x/sweep.json").write_text("{}")
    found = {Path(run["directory"]).name: run["status"] for run in json.loads(runs("--json", cwd=tmp_path).stdout)}
    assert found == {"one": "unreadable", "two": "unreadable", "three": "interrupted", "x": "unreadable"}


def test_pruning_keeps_the_best_and_what_others_came_from(home: Path) -> None:
    (home / "copy").mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", str(home / "outputs"), str(home / "copy")], check=True)
    copy = home / "copy"
    scores = {name: record(copy / "outputs/pretrain" / name)["metrics"]["val_accuracy"] for name in "abc"}
    best = max("abc", key=lambda name: scores[name])
    dry = runs("prune", "--keep-best", "1", "--dry-run", cwd=copy)
    assert dry.returncode == 0 and "would be removed" in dry.stdout
    assert all((copy / "outputs/pretrain" / name / "checkpoints").is_dir() for name in "abc")
    asked = runs("prune", "--keep-best", "1", cwd=copy)
    assert asked.returncode == 2 and "--yes removes them without asking" in asked.stderr
    done = runs("prune", "--keep-best", "1", "--yes", cwd=copy)
    assert done.returncode == 0, done.stderr
    left = {name for name in "abc" if (copy / "outputs/pretrain" / name / "checkpoints").is_dir()}
    assert left == {best, "b"}  # d came from b
    assert (copy / "outputs/finetune/d/checkpoints").is_dir()
    winner = (copy / "outputs/sweeps/s/best").read_text().strip()
    assert (copy / "outputs/sweeps/s" / winner / "checkpoints").is_dir()
    assert all(record(copy / "outputs/pretrain" / name)["status"] == "complete" for name in "abc")
    assert runs("prune", "--keep-best", "1", "--yes", cwd=copy).stdout.strip() == "nothing to remove"


def test_a_leaderboard_is_a_list_of_dicts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = library.leaderboard(home / "outputs/sweeps/s")
    assert [row["rank"] for row in found] == [1, 2] and {row["optimizer.lr"] for row in found} == {0.01, 0.1}
    assert isinstance(found[0]["val accuracy"], float) and found[0]["status"] == "complete"


# ---- to more epochs


def test_a_finished_run_goes_on_as_if_it_had_been_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library.run([*SMALL, "epochs=4", "name=whole"], quiet=True)
    library.run([*SMALL, "epochs=2", "name=short"], quiet=True)
    library.run(["resume=outputs/pretrain/short", "epochs=4"], quiet=True)
    one, other = (record(tmp_path / "outputs/pretrain" / name) for name in ("whole", "short"))
    assert one["history"] == other["history"] and one["num_steps"] == other["num_steps"] == 24
    last = [(tmp_path / f"outputs/pretrain/{n}/checkpoints/step-00000024/manifest.json") for n in ("whole", "short")]
    hashes = [json.loads(path.read_text())["model.safetensors"] for path in last]
    assert hashes[0] == hashes[1]
    again = library.run(["resume=outputs/pretrain/short"], quiet=True)  # it has become a run of four
    assert again.record.num_steps == 24
    with pytest.raises(ValueError, match="epochs: 4 -> 1: .*has made 24 steps already, and 6 are asked for"):
        library.run(["resume=outputs/pretrain/short", "epochs=1"], quiet=True)


@pytest.mark.parametrize(
    ("more", "said"), [("schedule=cosine", "schedule=cosine depends on"), ("freeze=lp_ft", "freeze=lp_ft depends on")]
)
def test_what_depends_on_its_length_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    library.run([*SMALL, "epochs=1", more, "name=run"], quiet=True)
    with pytest.raises(ValueError, match=f"{said} how many steps there are.*init_from=.*epochs=3 trains on from its"):
        library.run(["resume=outputs/pretrain/run", "epochs=3"], quiet=True)
    assert record(tmp_path / "outputs/pretrain/run")["status"] == "complete"


# ---- evaluation sets that select, and what lies between start and end


def test_an_evaluation_set_selects_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shifted = ["+dataset@evals.shifted=shapes10", "evals.shifted.shift=input", "evals.shifted.val=40"]
    asked = library.run([*SMALL, *shifted, "epochs=3", "monitor=evals.shifted.accuracy", "name=shifted"], quiet=True)
    plain = library.run([*SMALL, *shifted, "epochs=3", "name=plain"], quiet=True)
    made = record(tmp_path / "outputs/pretrain/shifted")
    assert asked.metric == made["metrics"]["shifted_accuracy"] == max(value for _, value in made["history"])
    assert made["selects"] == "shifted" and made["val_samples"] == 40
    assert plain.metric == plain.metrics["val_accuracy"] and "selects" not in record(
        tmp_path / "outputs/pretrain/plain"
    )
    for wrong, said in (("evals.shiftd.accuracy", "evals.shifted.METRIC"), ("evals.shifted.loss", "known: accuracy")):
        with pytest.raises(ValueError, match=said):
            library.run([*SMALL, *shifted, f"monitor={wrong}", "name=wrong"], quiet=True)


def test_networks_between_start_and_end_are_rows_of_the_leaderboard(tmp_path: Path) -> None:
    done = hydratune(
        "-m", *TINY, "stage=finetune", "dataset=shapes10", "epochs=1", "pretrain.epochs=1", "pretrain.dataset.train=96",
        "freeze=none", "optimizer.lr=0.01,0.1", "+dataset@evals.shifted=shapes10", "evals.shifted.shift=input",
        "evals.shifted.val=40", "sweep.interpolate=[0,0.5,1]", "sweep.soup=uniform", "hydra.sweep.dir=sweep",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "sweep"
    winner = record(sweep / (sweep / "best").read_text().strip())
    made = {share: record(sweep / f"interpolated-{share}") for share in ("0", "0.5", "1")}
    assert all(m["status"] == "interpolated" for m in made.values())
    for key in ("val_accuracy", "shifted_accuracy"):
        assert made["1"]["metrics"][key] == winner["metrics"][key]
    assert made["0.5"]["metrics"]["val_loss"] != winner["metrics"]["val_loss"]
    from safetensors.torch import load_file

    weights = {s: load_file(sweep / f"interpolated-{s}/checkpoints/step-00000000/model.safetensors") for s in made}
    for name, tensor in weights["0.5"].items():
        if tensor.is_floating_point():
            assert (tensor - (weights["0"][name] + weights["1"][name]) / 2).abs().max() < 1e-6
    text = (sweep / "leaderboard.csv").read_text()
    assert "shifted accuracy" in text and "interpolated-0.5" in text and (sweep / "interpolation.png").is_file()
    assert "interpolation" in (sweep / "report.html").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        found = library.run(["stage=evaluate", "init_from=sweep/interpolated-0.5", "name=half"], quiet=True).metrics
    assert found["val_accuracy"] == made["0.5"]["metrics"]["val_accuracy"]


def test_a_long_list_is_shown_in_columns(tmp_path: Path) -> None:
    """Two thousand runs in seconds: rich would take most of them for its lines."""
    told = {"status": "complete", "stage": "pretrain", "metrics": {"val_accuracy": 0.5}, "monitor": "accuracy"}
    for i in range(400):
        own = tmp_path / "outputs" / "pretrain" / f"run{i:03d}"
        own.mkdir(parents=True)
        (own / "run.json").write_text(json.dumps(told))
    done = runs(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "run" in line and "complete" in line]) == 400
    assert lines[-1].startswith("400 runs and sweeps")
    place = lines[1].index("directory")
    assert all(line[place - 2 : place] == "  " and line[place] != " " for line in lines[2:-1])
