"""What a sweep's tables say of its cells, whatever its directories hold."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hydratune.sweep import figures, ranking, report
from hydratune.sweep.comparison import compared, quantile, winning

# Student's t, two-sided 95%, as printed in NIST/SEMATECH's handbook (1.3.6.7.2) and elsewhere
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 31: 2.040, 100: 1.984}


def sweep(home: Path, jobs: list[dict[str, Any]], keys: tuple[str, ...] = ("lr", "seed")) -> Path:
    """jobs: what varies, a value, and more of a run.json."""
    listed = []
    home.mkdir(exist_ok=True)
    for i, job in enumerate(jobs):
        (home / str(i)).mkdir()
        record = {"monitor": "accuracy", "val_samples": 1000, "status": "complete", "num_steps": 4, **job}
        record["metrics"] = {f"val_{record['monitor']}": record.pop("value")}
        varies = {k: record.pop(k, "") for k in keys}
        (home / str(i) / "run.json").write_text(json.dumps(record))
        listed.append({"directory": str(i), "varies": varies, "strategy": varies.get("freeze", "none")})
    (home / "sweep.json").write_text(json.dumps({"command": "hydratune -m", "keys": list(keys), "jobs": listed}))
    return home


def cells(home: Path, values: dict[str, dict[str, float]], **more: Any) -> list[str]:
    """values: by rate and seed. What stands against the best."""
    jobs = [{"lr": lr, "seed": seed, "value": v, **more} for lr, seen in values.items() for seed, v in seen.items()]
    return [row[-1] for row in ranking.cell_table(ranking.read(sweep(home, jobs)))[1]]


# ---- statistics


def test_quantiles_are_those_of_the_tables() -> None:
    assert {n: round(quantile(n), 3) for n in TABLE} == TABLE
    assert quantile(100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def test_two_seeds_tell_nothing(tmp_path: Path) -> None:
    """Twice a standard error of two seeds is far from 95%: t is 12.7 there."""
    said = cells(tmp_path / "s", {"1": {"1": 0.81, "2": 0.80}, "2": {"1": 0.79, "2": 0.78}})
    assert said == ["", "-0.0200, too few seeds to tell"]


def test_seeds_that_are_shared_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """Seeds differ by 0.05 and cells by 0.01 in each of them; over all, nothing could be seen."""
    best = {"1": 0.90, "2": 0.85, "3": 0.80, "4": 0.75}
    other = {seed: value - 0.010 - 0.001 * (seed in "13") for seed, value in best.items()}
    _, said = cells(tmp_path / "s", {"1": best, "2": other})
    # mean -0.0105, sd 0.000577 of four: 0.000289 * t(3) = 0.000919
    assert said == "-0.0105 [-0.0114, -0.0096] worse"
    (tmp_path / "t").mkdir()
    apart = {f"{seed}0": value for seed, value in other.items()}
    assert cells(tmp_path / "t" / "s", {"1": best, "2": apart})[1].endswith("within the noise")


def test_other_seeds_are_compared_as_two_samples() -> None:
    own = {"1": 0.50, "2": 0.52, "3": 0.54}
    best = {"4": 0.60, "5": 0.61, "6": 0.62}
    # Welch: error sqrt(0.0004 / 3 + 0.0001 / 3) = 0.01291; freedom 1 / (0.8 ** 2 / 2 + 0.2 ** 2 / 2) = 2.94, so 2
    found = compared(own, best, None)
    assert found.difference == pytest.approx(-0.09) and found.interval is not None and found.words == "worse"
    assert found.interval == pytest.approx((-0.09 - 4.303 * 0.01291, -0.09 + 4.303 * 0.01291), abs=1e-4)


@pytest.mark.parametrize("seeds", ["123", "456"])
@pytest.mark.parametrize(("value", "words"), [(0.5, "within the noise"), (0.4, "worse")])
def test_values_without_any_spread_divide_by_nothing(seeds: str, value: float, words: str) -> None:
    found = compared(dict.fromkeys(seeds, value), dict.fromkeys("123", 0.5), None)
    assert found.words == words and found.interval == pytest.approx((value - 0.5, value - 0.5))


def test_what_is_better_where_seeds_are_shared_is_not_called_worse() -> None:
    best = {"1": 0.5, "2": 0.5, "3": 0.5, "4": 0.99}
    assert compared({"1": 0.6, "2": 0.6, "3": 0.61}, best, None).words == "better"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"val_samples": 100}, "-0.0100, one seed: within validation sampling"),
        ({"val_samples": 1_000_000}, "-0.0100, one seed: beyond validation sampling"),
        ({"monitor": "log_likelihood"}, "-0.0100, one seed: no noise is known"),
        ({"val_samples": None}, "-0.0100, one seed: no noise is known"),
    ],
)
def test_one_seed_has_an_indication_at_most(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert cells(tmp_path / "s", {"1": {"1": 0.80}, "2": {"1": 0.79}}, **more) == ["", said]


def test_metrics_that_are_no_shares_are_compared_too(tmp_path: Path) -> None:
    values = {"1": {"1": -2.0, "2": -2.1, "3": -2.2}, "2": {"1": -3.0, "2": -3.1, "3": -3.3}}
    assert cells(tmp_path / "s", values, monitor="log_likelihood")[1] == "-1.0333 [-1.1768, -0.8899] worse"


def test_a_value_that_is_no_number_has_no_rank(tmp_path: Path) -> None:
    home = sweep(tmp_path / "s", [{"lr": "1", "value": 0.5}, {"lr": "2", "value": math.nan}])
    found = ranking.read(home)
    assert [len(c.rows) for c in found.cells] == [1] and ranking.job_table(found)[1][1][0] == "-"
    report.write(home)


# ---- what directories hold

DAMAGED = {
    "truncated": '{"status": "comp',
    "a list": "[1, 2]",
    "nothing": "",
    "bytes": b"\xff\xfe\x00",
    "another status": '{"status": 3}',
    "no metrics": '{"status": "complete", "metrics": [1]}',
    "words for values": '{"status": "complete", "monitor": "accuracy", "metrics": {"val_accuracy": "high"}}',
    "another history": '{"status": "running", "history": [1, 2]}',
    "half a letter": '{"status": "failed", "error": "\\ud800"}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_one_line_of_the_table(name: str, tmp_path: Path) -> None:
    home = sweep(tmp_path / "s", [{"lr": "1", "seed": "1", "value": 0.5}, {"lr": "2", "seed": "1", "value": 0.6}])
    content = DAMAGED[name]
    (home / "1" / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    report.write(home)
    lines = list(csv.DictReader((home / "leaderboard.csv").read_text().splitlines()))
    assert [(line["lr"], line["status"]) for line in lines] == [("1", "complete"), ("2", "unreadable")]
    assert lines[1]["note"].startswith("run.json is damaged")
    assert "unreadable" in (home / "report.html").read_text()
    assert "1 unreadable" in ranking.summary(ranking.read(home))


def test_a_record_that_is_a_folder_and_a_traceback_of_bytes(tmp_path: Path) -> None:
    home = sweep(tmp_path / "s", [{"lr": "1", "value": 0.5}, {"lr": "2", "value": 0.6, "status": "failed"}])
    (home / "0" / "run.json").unlink()
    (home / "0" / "run.json").mkdir()
    (home / "1" / "traceback.txt").write_bytes(b"\xff\xfe oh no")
    report.write(home)
    assert "oh no" in (home / "report.html").read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command": "x", "keys": ["lr"], "jobs": [{"directory": 3}]}'])
def test_the_command_says_what_it_cannot_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    code = "import sys; from hydratune.sweep.report import main; sys.argv[1:] = [sys.argv[1]]; main()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/sweep.json: is damaged"), done.stderr


# ---- what is written

FORMULAE = ("=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\tx")


def test_a_spreadsheet_computes_nothing(tmp_path: Path) -> None:
    jobs = [
        {"lr": text, "value": 0.5, "status": "failed", "error": text} for text in (*FORMULAE, "-0.5", "+1e-3", "\r=x")
    ]
    home = sweep(tmp_path / "s", jobs, keys=("lr",))
    report.write(home)
    with open(home / "leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["lr"] for line in lines] == [*(f"'{text}" for text in FORMULAE), "-0.5", "+1e-3", " =x"]
    assert all(line["note"].startswith("'") for line in lines[:4])
    assert {line["test accuracy"] for line in lines} == {""} and {line["rank"] for line in lines} <= {*"12345678"}


def test_pages_hold_words_and_no_markup(tmp_path: Path) -> None:
    evil = "<script>x</script>"
    job = {"lr": evil, "value": 0.5, "lineage": evil, "versions": evil, "history": [[1, 0.5]]}
    home = sweep(tmp_path / evil[:8], [job, {**job, "lr": "&", "status": "failed", "error": evil}], keys=("lr",))
    read = json.loads((home / "sweep.json").read_text())
    read["jobs"][0]["strategy"] = read["command"] = evil
    (home / "sweep.json").write_text(json.dumps(read))
    (home / "1" / "traceback.txt").write_text(evil)
    (home / "0" / ".hydra").mkdir()
    (home / "0" / ".hydra" / "config.yaml").write_text(evil)
    report.write(home)
    page = (home / "report.html").read_text()
    ours = f"<script>{figures.SCRIPT}</script>"
    assert page.count(ours) == 1 and "<script" not in page.replace(ours, "") and page.count("&lt;script&gt;") >= 8


def test_figures_say_what_is_under_the_pointer(tmp_path: Path) -> None:
    jobs = [
        {"lr": lr, "freeze": f, "seed": seed, "value": 0.5, "history": [[1, 0.25], [2, float("nan")], [3, 0.5]]}
        for lr in ("0.01", "0.1") for f in ('a"b', "lora") for seed in ("1", "2")
    ]  # fmt: skip
    report.write(home := sweep(tmp_path / "s", jobs, ("lr", "freeze", "seed")))
    page = (home / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("<g data-tip=") == 4 and page.count("<polyline class=hit") == 8
    assert "a&quot;b" in page and 'freeze=a"b' not in page
    points = json.loads(re.findall(r'data-points="([^"]*)"', page)[0].replace("&quot;", '"'))
    assert [point[1:] for point in points] == [[1, 0.25], [3, 0.5]]  # NaN is nowhere
    assert "http:" not in page and "https:" not in page and "src=" not in page  # no network


def test_pictures_of_keys_that_end_alike_and_of_dollars(tmp_path: Path) -> None:
    keys = ("optimizer.lr", "pretrain.optimizer.lr", "freeze")
    jobs = [
        {"optimizer.lr": str(a), "pretrain.optimizer.lr": str(b), "freeze": f, "value": 0.1 * a * b}
        for a in (1, 2) for b in (1, 2) for f in ("none", "$x_$")
    ]  # fmt: skip
    report.write(home := sweep(tmp_path / "s", jobs, keys))
    names = {"optimizer.lr_x_freeze", "pretrain.optimizer.lr_x_freeze", "optimizer.lr_x_pretrain.optimizer.lr"}
    assert {p.stem for p in home.glob("*.png")} == names


# ---- which strategy wins


def test_which_strategy_wins_is_a_probability() -> None:
    ours = [{str(i): 0.90 + 0.01 * i for i in range(5)}]
    assert winning({"lora": ours, "none": [{str(i): 0.80 + 0.01 * i for i in range(5)}]}) == {"lora": 1.0, "none": 0.0}
    noisy = {str(i): value for i, value in enumerate((0.95, 0.85, 0.96, 0.86, 0.92))}
    even = winning({"lora": ours, "none": [noisy]})
    assert even is not None and 0.2 < even["none"] < 0.8 and sum(even.values()) == pytest.approx(1.0)
    tied = winning({"lora": ours, "none": ours})
    assert tied == {"lora": 0.5, "none": 0.5}


def test_seeds_that_all_share_are_drawn_together() -> None:
    """Better by little, but with every seed: paired, that is certain; by cell it would not be."""
    values = {"1": 0.5, "2": 0.7, "3": 0.9, "4": 0.6}
    above = {seed: value + 0.01 for seed, value in values.items()}
    assert winning({"a": [above], "b": [values]}) == {"a": 1.0, "b": 0.0}
    apart = winning({"a": [above], "b": [{f"{seed}0": value for seed, value in values.items()}]})
    assert apart is not None and 0.4 < apart["a"] < 0.75


def test_of_too_few_seeds_nothing_is_said() -> None:
    three = {"1": 0.5, "2": 0.6, "3": 0.7}
    assert winning({"a": [three], "b": [{"1": 0.1, "2": 0.1}]}) is None
    assert winning({"a": [three], "b": [{"1": 0.1, "2": 0.1}, three]}) == {"a": 0.5, "b": 0.5}  # a cell with enough
