"""The rules of the house, each as a test."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import structure

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "hydratune"
FILES = sorted(SOURCE.rglob("*.py"))
BY_NAME = {"config/public.py", "config/instantiate.py"}  # they import what a configuration names


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def where(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def at_top(path: Path) -> list[str]:
    """Modules imported when the file is loaded."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


# ---- rooms


def test_every_room_is_on_a_floor_of_its_own() -> None:
    assert {room(p) for p in FILES} - {"__init__"} == set(structure.ROOMS)


def test_imports_go_down_and_nowhere_in_a_circle() -> None:
    edges = structure.graph()
    assert not structure.arrows_up(edges)
    assert not structure.cycles(edges)


@pytest.mark.parametrize(
    "text",
    [
        "from hydratune.cli import main",
        "import hydratune.sweep.runner",
        "def late():\n    from hydratune.experiment.run import run_job",
        "import importlib\nimportlib.import_module('hydratune.sweep.runner')",
        "import sys\nsys.modules.get('hydratune.sweep.launcher')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hydratune.engine.trial import Trial",
    ],
)
def test_an_import_is_seen_however_it_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    known = structure.modules()
    edges = {"core.types": set(structure.imported(tmp_path / "odd.py", known))}
    assert structure.arrows_up(edges)


def test_a_cycle_is_found() -> None:
    assert structure.cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_modules_are_imported_by_name_in_two_places_only() -> None:
    for path in FILES:
        if where(path) not in BY_NAME:
            assert "import_module" not in path.read_text() and "__import__" not in path.read_text(), path


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("hydra", {"cli", "config", "sweep"}),
        ("omegaconf", {"cli", "config", "sweep"}),
        ("torch.distributed", {"distributed"}),
        ("torch.utils.tensorboard", {"record"}),
        ("tensorboard", {"record"}),
    ],
)
def test_exclusive_owners(package: str, owners: set[str]) -> None:
    users = {room(p) for p in FILES for name in imports(p) if name == package or name.startswith(f"{package}.")}
    assert users <= owners


def test_no_word_of_a_modality_above_the_engine() -> None:
    """What is particular to text or images belongs to data, tasks and models."""
    for path in (SOURCE / "experiment").glob("*.py"):
        text = path.read_text().lower()
        assert not [w for w in ("tokeniz", "mcc", "pixel", "imagestream", "textstream") if w in text], path


# ---- weight


def test_heavy_imports_happen_where_they_are_used() -> None:
    heavy = (
        "torchvision",
        "transformers",
        "timm",
        "torchmetrics",
        "h5py",
        "msgpack",
        "faster_coco_eval",
        "tensorboard",
        "torch.utils.tensorboard",
        "matplotlib",
    )
    for path in FILES:
        assert not [m for m in at_top(path) if m.startswith(heavy)], path


def test_a_configuration_error_answers_without_torch() -> None:
    code = "import sys; import hydratune.cli.main, hydratune.config.validate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_face_is_light_and_whole() -> None:
    """`import hydratune` loads no torch; each public name is what its module has, and components can be built."""
    code = "import sys, hydratune, hydratune.data; assert 'torch' not in sys.modules; hydratune.data.Shapes"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' in sys.modules"], check=True)
    import hydratune.data
    from hydratune.config.public import PUBLIC
    from hydratune.config.schema import signature

    assert hydratune.data.ImageFolder.__name__ == "ImageFolder" and "ImageFolder" in dir(hydratune.data)
    for public in PUBLIC:
        package, _, name = public.rpartition(".")
        found = getattr(sys.modules.get(package) or __import__(package, fromlist=[name]), name)
        if public.count(".") == 2 and not inspect.isabstract(found):
            read = signature(public)
            assert read is not None, public


# ---- words and sizes


def test_types_hold_no_logic() -> None:
    tree = ast.parse((SOURCE / "core" / "types.py").read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While | ast.If | ast.Try)]


def test_no_configuration_is_read_by_key_outside_its_room() -> None:
    """What is composed is a JobConfig, what a run leaves behind a RunRecord."""
    for path in FILES:
        if room(path) == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            key = None
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                key = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                key = node.func.value
            named = getattr(key, "attr", None) or getattr(key, "id", None)
            assert named not in ("config", "record") or "models/text" in where(path), ast.unparse(node)


def test_nothing_unsafe() -> None:
    """No pickle, no eval or exec, no torch.load but the one that reads tensors only."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load"), path
                assert called not in ("hydra.utils.instantiate", "instantiate", "get_object"), path
                if called == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        assert not [n for n in imports(path) if n.split(".")[0] in ("pickle", "dill", "cloudpickle")], path


def test_no_utils_and_files_one_can_read_in_a_sitting() -> None:
    assert not list(SOURCE.rglob("utils.py"))
    long = {where(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
    assert len((SOURCE / "engine" / "loop.py").read_text().splitlines()) <= 160


def test_functions_take_few_parameters() -> None:
    """What travels together is one dataclass; what a subclass hands on to its parent is not repeated."""
    many = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([n for n in names if n.arg not in ("self", "cls")])
                if count > 8:
                    many[f"{where(path)}:{node.name}"] = count
    assert not many


def test_no_item_and_no_component_receives_cfg() -> None:
    for path in FILES:
        text = path.read_text()
        assert ".item()" not in text, path
        assert "(cfg" not in text and " cfg:" not in text, path


def test_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "conf", "src", "scripts", "tests", "outputs", "README.md"}
    assert {t for t in top if not t.startswith(".")} <= allowed
