"""From a configuration node to an object: `_target_` and the constructor's own parameters, nothing else.

A constructor's signature is the schema. Those of hydratune are read from the source text, so that a misspelt key or a
wrong type is refused before torch is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydratune import constructors

TARGET = "_target_"
COMPONENTS = tuple(
    f"hydratune.{room}."
    for room in ("models", "data", "tasks", "freeze", "optim", "runtime", "engine.settings", "sweep.settings")
)
# Known from the data or the origin only: handed to the constructors that ask for them, and what they are
SUPPLIED = {"input_shape": "images", "text_spec": "text", "question": "text", "inherited": "a tokenizer"}


@dataclass(frozen=True)
class Parameter:
    name: str
    annotation: ast.expr | None
    required: bool


def check(node: Any, where: str, trust: Sequence[str]) -> None:
    """Refuse, naming key, value and the nearest right one, whatever `construct` could not build. Raises ValueError."""
    nodes = list(_nodes(node, where))
    for path, target, _ in nodes:
        _check_target(path, target, trust)
    for path, target, keys in nodes:
        if not target.startswith("hydratune."):
            continue
        parameters = _read_signature(target)
        if parameters is None:
            raise ValueError(f"{path}.{TARGET}={target}: hydratune has no such constructor")
        known = {p.name: p for p in parameters}
        for key, value in keys.items():
            if key not in known or key in SUPPLIED:
                known = {k: p for k, p in known.items() if k not in SUPPLIED}
                raise ValueError(f"{path}.{key}={value}: no such key; {nearest(key, known)}")
            annotation = known[key].annotation
            if annotation is not None and not _fits(value, annotation):
                raise ValueError(f"{path}.{key}={value}: must be {_said(annotation)}{_choices(path, key, annotation)}")
        missing = [p.name for p in parameters if p.required and p.name not in keys and p.name not in SUPPLIED]
        if missing:
            raise ValueError(f"{path}.{missing[0]}: is not given")


def accepts(node: Mapping[str, Any], key: str, trust: Sequence[str] = ()) -> bool:
    """Whether the node's constructor has a parameter `key`."""
    target = str(node[TARGET])
    _check_target("freeze", target, trust)
    parameters = _read_signature(target) if target.startswith("hydratune.") else None
    if parameters is not None:
        return key in {p.name for p in parameters}
    return key in inspect.signature(_resolve(target, trust)).parameters


def construct(node: Any, where: str, trust: Sequence[str], **supplied: Any) -> Any:
    """Build `node` bottom-up. `supplied` goes to every constructor in it that has such a parameter."""
    if isinstance(node, list):
        return [construct(item, f"{where}[{i}]", trust, **supplied) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    arguments = {k: construct(v, f"{where}.{k}", trust, **supplied) for k, v in node.items() if k != TARGET}
    if TARGET not in node:
        return arguments
    target = str(node[TARGET])
    _check_target(where, target, trust)
    constructor = _resolve(target, trust)
    parameters = inspect.signature(constructor).parameters
    catch_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    foreign = [k for k in arguments if k[:1] == "_" or (k not in parameters and not catch_all)]
    foreign += sorted(constructors.refused(target).intersection(arguments))
    if foreign:
        raise ValueError(f"{where}.{foreign[0]}={node[foreign[0]]}: no such key; {nearest(foreign[0], parameters)}")
    arguments |= {k: v for k, v in supplied.items() if k in parameters}
    for key, what in SUPPLIED.items():
        if key in parameters and key not in arguments and parameters[key].default is inspect.Parameter.empty:
            raise ValueError(f"{where}: {target} takes {what}, and the data set has none")
    try:
        inspect.signature(constructor).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {target} {error}") from None
    return constructor(**arguments)


def nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """`nearest: x`, or all that there is."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"nearest: {near[0]}" if near else f"known: {', '.join(known) or 'none'}"


def _nodes(node: Any, where: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _nodes(item, f"{where}[{i}]")
    elif isinstance(node, Mapping):
        if TARGET in node:
            yield where, str(node[TARGET]), {k: v for k, v in node.items() if k != TARGET}
        for key, item in node.items():
            yield from _nodes(item, f"{where}.{key}")


def _check_target(where: str, target: str, trust: Sequence[str]) -> None:
    """As text, before anything is imported: hydratune's own, what only constructs, or a package that is trusted."""
    words = target.split(".")
    if not all(w.isidentifier() and w.isascii() and w[0] != "_" for w in words) or len(words) < 2:
        raise ValueError(f"{where}.{TARGET}={target}: not the dotted name of a class or function")
    if words[0] == "hydratune" and not target.startswith(COMPONENTS):
        raise ValueError(f"{where}.{TARGET}={target}: not a component; those live in {', '.join(COMPONENTS)}")
    if words[0] != "hydratune" and words[0] not in trust and not constructors.allowed(target):
        raise ValueError(
            f"{where}.{TARGET}={target}: hydratune runs no code of {words[0]} unless you trust it; "
            f"if you do, type trust=[{words[0]}] on the command line"
        )


def _resolve(target: str, trust: Sequence[str]) -> Any:
    """The class or function of that name. Raises ValueError where it turns out to be another one's."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{TARGET}={target}: cannot be imported ({error})") from None
    home = str(getattr(found, "__module__", None) or "").partition(".")[0]
    package = target.partition(".")[0]
    own = home == package and (package in trust or (package == "hydratune" and found.__module__ == module))
    if not (callable(found) and (own or constructors.is_one(target, found))):
        origin = f"{found.__module__}.{name}" if home else f"a {type(found).__name__}"
        raise ValueError(f"{TARGET}={target}: is really {origin}, which is not run under that name")
    return found


@cache
def _module(name: str) -> ast.Module | None:
    path = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read_signature(target: str) -> list[Parameter] | None:
    """Parameters of a function or class of hydratune, from its source; None where there is no such thing."""
    module, _, name = target.rpartition(".")
    tree = _module(module)
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _arguments(item.args)
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
                return [Parameter(ast.unparse(f.target), f.annotation, f.value is None) for f in fields]
            bases = [b.id for b in node.bases if isinstance(b, ast.Name)]
            inherited = (_read_signature(f"{module}.{base}") for base in bases)
            return next((found for found in inherited if found is not None), [])
    return None


def _arguments(arguments: ast.arguments) -> list[Parameter]:
    positional = [a for a in (*arguments.posonlyargs, *arguments.args) if a.arg != "self"]
    optional = len(arguments.defaults)
    result = [Parameter(a.arg, a.annotation, i < len(positional) - optional) for i, a in enumerate(positional)]
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return result + [Parameter(a.arg, a.annotation, default is None) for a, default in keyword]


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a value from YAML suits a parameter's annotation; a component suits whatever is not built in."""
    if isinstance(annotation, ast.BinOp):
        return _fits(value, annotation.left) or _fits(value, annotation.right)
    if isinstance(annotation, ast.Constant):
        return value is None
    if isinstance(annotation, ast.Subscript):
        container = ast.unparse(annotation.value)
        inner = annotation.slice
        if container in ("Sequence", "list"):
            return isinstance(value, list | tuple) and all(_fits(v, inner) for v in value)
        if container == "tuple" and isinstance(inner, ast.Tuple):
            if ast.unparse(inner.elts[-1]) == "...":
                return isinstance(value, list | tuple) and all(_fits(v, inner.elts[0]) for v in value)
            fits = isinstance(value, list | tuple) and len(value) == len(inner.elts)
            return fits and all(_fits(v, e) for v, e in zip(value, inner.elts, strict=True))
        if container in ("Mapping", "dict"):
            return isinstance(value, Mapping)
        return True
    simple: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    kind = simple.get(ast.unparse(annotation))
    if kind is None:
        return isinstance(value, Mapping) and TARGET in value
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _choices(path: str, key: str, annotation: ast.expr) -> str:
    """What there is of a kind of component, and how it is chosen; nothing for plain values."""
    rooms = {"Task": "tasks"}
    room = rooms.get(ast.unparse(annotation))
    if room is None:
        return ""
    found = []
    for file in sorted((Path(__file__).parent / room).glob("*.py")):
        tree = _module(f"hydratune.{room}.{file.stem}")
        classes = [n.name for n in (tree.body if tree else []) if isinstance(n, ast.ClassDef)]
        found += [f"hydratune.{room}.{file.stem}.{c}" for c in classes if c[0] != "_" and not c.endswith("Metrics")]
    return f", by its class: {path}.{key}.{TARGET}= one of {', '.join(found)}"


def _said(annotation: ast.expr) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "a word",
        "bool": "true or false",
        "None": "null",
        "Task": "a task",
    }
    parts = [p.strip() for p in ast.unparse(annotation).split("|")]
    return " or ".join(words.get(p, p.replace("Sequence", "list of ").replace("tuple", "list of ")) for p in parts)
