"""From a configuration node to an object: `_target_` and the constructor's own parameters, nothing else.

A constructor's signature is the schema. Those of hydratune are read from the source text, so that a misspelt key or a
wrong type is refused before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydratune.config import allowlist, schema
from hydratune.config.public import PUBLIC
from hydratune.config.schema import TARGET

# Known from the data or the origin only: handed to the constructors that ask for them, and what they are
SUPPLIED = {
    "input_shape": "images", "text_spec": "text", "question": "text", "inherited": "a tokenizer",
    "dense": "a task that says whether it is dense",
}  # fmt: skip


def check(node: Any, where: str, trust: Sequence[str]) -> None:
    """Refuse, naming key, value and the nearest right one, whatever `build` could not build. Raises ValueError."""
    nodes = list(_nodes(node, where))
    for path, target, _ in nodes:
        _check_target(path, target, trust)
    for path, target, keys in nodes:
        if not target.startswith("hydratune."):
            continue
        parameters = schema.signature(target)
        if parameters is None:
            raise ValueError(f"{path}.{TARGET}={target}: hydratune has no such constructor")
        known = {p.name: p for p in parameters}
        for key, value in keys.items():
            if key not in known or key in SUPPLIED:
                known = {k: p for k, p in known.items() if k not in SUPPLIED}
                raise ValueError(f"{path}.{key}={value}: no such key; {nearest(key, known)}")
            annotation = known[key].annotation
            if annotation is not None and not schema.fits(value, annotation):
                wanted = f"{schema.wanted(annotation)}{schema.choices(path, key, annotation)}"
                raise ValueError(f"{path}.{key}={value}: must be {wanted}")
        missing = [p.name for p in parameters if p.required and p.name not in keys and p.name not in SUPPLIED]
        if missing:
            raise ValueError(f"{path}.{missing[0]}: is not given")


def accepts(node: Mapping[str, Any], key: str, trust: Sequence[str] = ()) -> bool:
    """Whether the node's constructor has a parameter `key`."""
    target = str(node[TARGET])
    _check_target("freeze", target, trust)
    parameters = schema.signature(target)
    if parameters is not None:
        return key in {p.name for p in parameters}
    return key in _parameters(_resolve(target, trust))


def build(node: Any, where: str, trust: Sequence[str], **supplied: Any) -> Any:
    """Build `node` bottom-up. `supplied` goes to every constructor in it that has such a parameter."""
    if isinstance(node, list):
        return [build(item, f"{where}[{i}]", trust, **supplied) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    arguments = {k: build(v, f"{where}.{k}", trust, **supplied) for k, v in node.items() if k != TARGET}
    if TARGET not in node:
        return arguments
    target = str(node[TARGET])
    _check_target(where, target, trust)
    constructor = _resolve(target, trust)
    if inspect.isabstract(constructor):
        raise ValueError(f"{where}.{TARGET}={target}: is a base class; a subclass of it can be built")
    parameters = _parameters(constructor)
    catch_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    foreign = [k for k in arguments if k[:1] == "_" or (k not in parameters and not catch_all)]
    foreign += sorted(allowlist.refused(target).intersection(arguments))
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


def _parameters(constructor: Any) -> dict[str, inspect.Parameter]:
    """Of a function, or of a class: where its `__init__` hands on **keywords, its parents' as well."""
    own = dict(inspect.signature(constructor).parameters)
    if not inspect.isclass(constructor):
        return own
    for base in constructor.__mro__[1:]:
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()) or base is object:
            break
        if "__init__" in vars(base):
            own = {k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}
            inherited = inspect.signature(base).parameters
            own |= {k: p for k, p in inherited.items() if k not in own}
    return own


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
    if words[0] == "hydratune" and not (target in PUBLIC and len(words) == 3):
        known = [name for name in PUBLIC if name.count(".") == 2]
        raise ValueError(f"{where}.{TARGET}={target}: not a component of hydratune; {nearest(target, known)}")
    if words[0] != "hydratune" and words[0] not in trust and not allowlist.allowed(target):
        raise ValueError(
            f"{where}.{TARGET}={target}: hydratune runs no code of {words[0]} unless you trust it; "
            f"if you do, type trust=[{words[0]}] on the command line"
        )


def _resolve(target: str, trust: Sequence[str]) -> Any:
    """The class or function of that name. Raises ValueError where it turns out to be another one's."""
    public, _, name = target.rpartition(".")
    module = PUBLIC.get(target, public)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{TARGET}={target}: cannot be imported ({error})") from None
    home = str(getattr(found, "__module__", None) or "").partition(".")[0]
    package = target.partition(".")[0]
    own = home == package and (package in trust or (package == "hydratune" and found.__module__ == module))
    if not (callable(found) and (own or allowlist.is_one(target, found))):
        origin = f"{found.__module__}.{name}" if home else f"a {type(found).__name__}"
        raise ValueError(f"{TARGET}={target}: is really {origin}, which is not run under that name")
    return found
