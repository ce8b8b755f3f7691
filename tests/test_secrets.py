"""What comes out of the environment is used and written nowhere, whatever has become of it on its way."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote, quote_plus

import pytest
import yaml

from hydratune.config.overrides import quoted, safe_name
from hydratune.core import secrets
from hydratune.core.secrets import HIDDEN, hidden, hidden_in, learn, learn_variable, told_apart
from tests.conftest import hydratune

URL = "https://user:t0k3n%40@host.example/pa th?key=abcdefgh&x=1#frag"
VALUES = [
    'hunter2"\\canary',
    "/nowhere/./dir//deep/x y",
    "/nowhere/dir/",
    "~/.config/token-abc",
    URL,
    'it\'s a "value"\nwith lines & <tags>\tand 50% ünïcödé 😀 [x](y)*',
    "s3cr,t=x|y`z`",
    "$(touch canary); echo 'x'",
    "a" * 500 + "/" + "b" * 700,
]
SPELT: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "a path": lambda v: str(Path(v)),
    "below it": lambda v: str(Path(v) / "train" / "x.png"),
    "the home directory": os.path.expanduser,
    "JSON": json.dumps,
    "JSON in letters": lambda v: json.dumps(v, ensure_ascii=False),
    "JSON in JSON": lambda v: json.dumps(json.dumps({"k": v})),
    "repr": repr,
    "repr of repr": lambda v: repr([repr(v)]),
    "bytes": lambda v: repr(v.encode()),
    "YAML": lambda v: yaml.safe_dump({"key": v}, width=10**6),
    "YAML in lines": lambda v: yaml.safe_dump({"key": v}, width=10**6, default_style="'"),
    "a shell": lambda v: shlex.join(["--key", v]),
    "an override": quoted,
    "HTML": html.escape,
    "JSON in HTML": lambda v: html.escape(json.dumps(v)),
    "a URL": lambda v: quote(v, safe=""),
    "a path of a URL": quote,
    "a URL in small letters": lambda v: quote(v, safe="").lower(),
    "a URL in a URL": lambda v: quote(quote(v, safe=""), safe=""),
    "a form": quote_plus,
    "CSV": lambda v: '"' + v.replace('"', '""') + '"',
    "one line": lambda v: " ".join(v.split()),
    "small": str.lower,
    "large": str.upper,
    "a name": lambda v: safe_name(v, 10**4),
    "another name": lambda v: re.sub(r"[^\w.=,-]", "_", v.strip("/~"), flags=re.ASCII),
}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test learns the next one does not know."""
    for name, nothing in (("_known", set()), ("_short", set()), ("_pattern", None)):
        monkeypatch.setattr(secrets, name, nothing)
    yield


@pytest.mark.parametrize("way", SPELT)
def test_a_value_is_hidden_however_it_is_spelt(way: str) -> None:
    written = {value: SPELT[way](value) for value in VALUES}
    learn(VALUES)
    for value, text in written.items():
        left = hidden(f"see {text} there").replace(HIDDEN, "")
        words = [w for w in re.findall(r"[A-Za-z0-9]{4,}", value) if w not in ("nowhere", "https", "touch", "echo")]
        found = [w for w in words if re.search(rf"(?<![a-z]){w}(?![a-z])", left.replace("/train/x.png", ""), re.I)]
        assert not found or (value == URL and way == "another name"), (value, left)
        assert left.startswith("see ") and left.endswith(" there")


def test_a_path_is_hidden_from_wherever_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real-directory" / "secret").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real-directory")
    monkeypatch.chdir(tmp_path)
    value = "./link/../link/secret"
    learn([value])
    for seen in (value, Path(value).absolute(), Path(value).resolve(), os.path.relpath(Path(value).resolve()),
                 os.path.normpath(value)):  # fmt: skip
        assert "secret" not in hidden(f"in {seen}/x"), seen
    assert hidden(f"{tmp_path} /tmp . link secret") == f"{tmp_path} /tmp . link secret"


def test_of_a_url_what_lets_somebody_in_is_hidden_alone() -> None:
    learn(["https://user:t0k3n%40@host.example/hooks/B0123/XYZ?key=abcdefgh", "postgres://admin:pass@h/db"])
    said = "no login user:t0k3n%40 at host.example (t0k3n@), /hooks/B0123/XYZ?key=abcdefgh, abcdefgh; admin:pass at /db"
    assert hidden(said) == f"no login {HIDDEN} at host.example ({HIDDEN}), {HIDDEN}, {HIDDEN}; {HIDDEN} at /db"


def test_lines_and_words_of_a_value_are_hidden_alone() -> None:
    learn(["first line of it\nsecond line", '{"user": "somebody", "token": "abc-123-def"}'])
    assert hidden("the second line failed: abc-123-def") == f"the {HIDDEN} failed: {HIDDEN}"


def test_other_words_are_left_alone() -> None:
    learn(["/data", "models/bert", "lr=3", *VALUES])
    text = "train_data --data my-data xdata models_x model bert nowhere canary https://host.example lr= 3 hunter2 a-b"
    assert hidden(text) == text


def test_only_variables_that_are_known_to_tell_nothing_are_shown() -> None:
    plain = ["HYDRATUNE_DATA", "HOME", "SLURM_JOB_ID", "RANK"]
    others = ["SLURM_JWT", "HYDRATUNE_TOKEN", "CUDA_KEY", "XDG_SECRET", "LC_PASSWORD", "MASTER_KEY", "HOME2"]
    for name in plain + others:
        learn_variable(name, f"value-of-{name}-")
    assert [n for n in plain + others if hidden(f"value-of-{n}-") != f"value-of-{n}-"] == others


def test_a_short_value_is_hidden_where_it_is_all_that_is_said() -> None:
    learn(["pw1", "7", "0.1", "true"])
    node = {"token": "pw1", "seeds": ["7", "0.1", "true"], "text": "a pw1 in a sentence"}
    assert hidden_in(node) == {**node, "token": HIDDEN}
    assert told_apart({"a": "pw1"})["a"].startswith(HIDDEN) and told_apart({"a": "pw2"}) == {"a": "pw2"}


def test_a_name_tells_secrets_apart_and_does_not_tell_them() -> None:
    learn(["alpha-secret", "/beta/secret"])
    one, two = safe_name("token=alpha-secret,seed=1"), safe_name("token=/beta/secret,seed=1")
    assert one != two and "alpha" not in one and "beta" not in two and "seed=1" in one


# ---- whole jobs

MODULE = """
import logging, sys, warnings
from faultnet import Net

def net(token, other="", fails=False, width=4):
    print("printed", token, other)
    warnings.warn(f"warned of {token}")
    logging.getLogger("somebody").warning("logged %s", token)
    if fails:
        raise ValueError(f"cannot log in with {token!r} and {other}")
    return Net()
"""
SECRETS = {
    "S_URL": "https://user:t0k3nt0k3n@host.example/./pa//th?key=abcdefgh",
    "S_TEXT": 'it\'s a "zebra"\nwith quagga 50% & <okapi>',
    "S_LONG": "wombat/" * 60,
}
TOLD = re.compile("t0k3n|abcdefgh|zebra|quagga|okapi|wombat|kakapo|numbat|dugong", re.I)  # no part of any is told


@pytest.fixture
def awkward(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """The command with secrets of all kinds in its environment; nothing that it says may tell one."""
    from PIL import Image

    photos = tmp_path / "far" / "kakapo photos"
    for i, name in enumerate("ab"):
        for k in range(12):
            (photos / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (80 * i, 10 * k, 0)).save(photos / name / f"{k}.png")
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "work").mkdir()
    environment = {
        **SECRETS,
        "S_ROOT": f"{tmp_path}/far/./kakapo photos//",
        "S_FROM": "./numbat-runs/./one",
        "S_OUT": f"{tmp_path}/work/dugong-home/.",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parent / 'faults'}",
    }
    common = [
        "dataset=image_folder", "dataset.root=${oc.env:S_ROOT}", "dataset.size=16", "trust=[mine,faultnet]",
        "model._target_=mine.net", "++model.token=${oc.env:S_TEXT}", "++model.other=${oc.env:S_URL}", "epochs=1",
        "batch_size=8", "runtime.precision=fp32", "runtime.threads=1",
    ]  # fmt: skip

    def command(*arguments: str, alone: bool = False) -> CompletedProcess[str]:
        line = [*([] if alone else common), *arguments]
        done = hydratune(*line, cwd=tmp_path / "work", **environment)
        assert not TOLD.search(done.stdout + done.stderr), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return command


def told_in(home: Path) -> list[str]:
    """Files, and names of files, that tell a secret; not the directories that somebody asked for by one."""
    found = []
    for path in home.rglob("*"):
        if TOLD.search(re.sub("^(dugong-home|numbat-runs)", "", str(path.relative_to(home)))):
            found.append(str(path))
        if path.is_file() and TOLD.search(path.read_bytes().decode(errors="replace")):
            found.append(f"in {path}")
    return found


def test_a_run_tells_no_secret(awkward: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    first = awkward("stage=pretrain", "hydra.run.dir=${oc.env:S_FROM}")
    assert first.returncode == 0 and "warned of" in first.stderr, first.stderr
    second = awkward("stage=finetune", "init_from=${oc.env:S_FROM}", "outputs=${oc.env:S_OUT}", "name=two")
    assert second.returncode == 0 and HIDDEN in second.stdout, second.stderr
    assert (tmp_path / "work" / "dugong-home" / "finetune" / "two" / "run.json").is_file()
    again = awkward("resume=dugong-home/finetune/two", "trust=[mine,faultnet]", alone=True)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    dry = awkward("stage=finetune", "init_from=${oc.env:S_FROM}", "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    shown = awkward("stage=finetune", "init_from=${oc.env:S_FROM}", "--cfg", "job", "--resolve")
    assert shown.returncode == 0 and HIDDEN in shown.stdout
    failed = awkward("stage=pretrain", "++model.fails=true", "name=three")
    assert failed.returncode == 2 and "cannot log in with" in failed.stderr
    named = awkward("stage=pretrain", "name=four", "++model.token=${oc.env:S_LONG}")
    assert named.returncode == 0, named.stderr
    assert not told_in(tmp_path / "work")


@pytest.mark.slow
def test_a_sweep_tells_no_secret(awkward: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    line = ["-m", "stage=pretrain", "hydra.sweep.dir=s"]
    tokens = "++model.token=${oc.env:S_TEXT},${oc.env:S_LONG},${oc.env:S_ROOT}"
    swept = awkward(*line, tokens, "++model.fails=false,true")
    assert swept.returncode == 2, swept.stderr
    states = [json.loads(p.read_text())["status"] for p in (tmp_path / "work" / "s").glob("*/run.json")]
    assert sorted(states) == ["complete"] * 3 + ["failed"] * 3
    again = awkward(*line, tokens, "++model.fails=false,true")
    assert again.returncode == 2 and len(list((tmp_path / "work" / "s").glob("*/run.json"))) == 6
    dry = awkward(*line[:-1], "hydra.sweep.dir=t", tokens, "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    basic = awkward(*line[:-1], "hydra.sweep.dir=b", tokens, "hydra/launcher=basic")
    assert basic.returncode == 0 and len(list((tmp_path / "work" / "b").glob("*/run.json"))) == 3, basic.stderr
    assert not told_in(tmp_path / "work")


def test_a_run_that_a_secret_names_goes_by_another_name(
    awkward: Callable[..., CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S_NAME", "kakapo-one")
    done = awkward("stage=pretrain", "name=${oc.env:S_NAME}")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "work" / "outputs" / "pretrain").glob("*/run.json"))) == 1
    assert not told_in(tmp_path / "work")


def test_an_archive_is_unpacked_where_its_name_tells_nothing(tmp_path: Path) -> None:
    import zipfile

    from hydratune.data.archive import unpacked

    with zipfile.ZipFile(tmp_path / "kakapo.zip", "w") as archive:
        archive.writestr("a/x.txt", "x")
    assert unpacked(tmp_path / "kakapo.zip", tmp_path / "one").name.startswith("kakapo-")
    learn([f"{tmp_path}/./kakapo.zip"])
    assert "kakapo" not in unpacked(tmp_path / "kakapo.zip", tmp_path / "two").name
