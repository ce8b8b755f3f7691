"""A model of another library, divided into layer groups without an edit of its code.

Its forward pass is traced (torch.fx) down to its stages or blocks. Between two of them it may be cut wherever a single
tensor is all that goes on. The division is then run beside the whole model: where their outputs differ in one bit, the
model stays one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

CONTAINERS = (nn.Sequential, nn.ModuleList)
OPENED = ("blocks", "stages", "layers", "features", "levels")  # containers of stages or blocks, by their usual names
MOST = 0.8  # so much of all parameters makes any other container one of these
SMALL_TAIL = 0.05  # a last group with less of them belongs to the one before: a norm, a pooling
Groups = list[tuple[str, nn.Module]]


@dataclass(frozen=True)
class _Piece:
    """A part of the graph that takes one tensor and gives one."""

    nodes: Sequence[fx.Node]
    module: nn.Module  # the one that it ends in
    path: str

    @property
    def composite(self) -> bool:
        """Whether it ends in a stage or a block, rather than in a single layer or a norm with its activation."""
        return _composite(self.module)

    @property
    def weighs(self) -> bool:
        return any(p.ndim > 1 for p in self.module.parameters())


def _composite(module: nn.Module) -> bool:
    return any(p.ndim > 1 for child in module.children() for p in child.parameters())


def divided(
    model: nn.Module, example: Tensor, notrace: Sequence[Callable[..., object]] = (), until: str | None = None
) -> Groups:
    """(name, module) in execution order; one group, the model itself, where it cannot be divided.

    The model is taken as it is; its own modules are in the groups. example: [1, ...], what the division is proved on.
    notrace: functions of its library that a trace must not look into. until: the path of the module to end with; what
    follows it is left out.
    """
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.no_grad():
        was = model.training
        try:
            groups = _divided(model.eval(), example, notrace, until)
        except Exception:  # whatever a foreign forward pass does not let itself be traced for
            groups = []
        model.train(was)
    return groups or [("body", model)]


def _divided(
    model: nn.Module, example: Tensor, notrace: Sequence[Callable[..., object]], until: str | None = None
) -> Groups:
    """Empty where it is not what the whole model is."""
    root = _Whole(model)
    kept = tuple(f"model.{path}" for path in _kept(model))
    graph = _traced(root, kept, notrace)
    if str(_traced(root.train(), kept, notrace)) != str(graph):
        return []  # its own code asks whether it trains, which a trace would settle for good
    root.eval()
    pieces = list(_pieces(graph, root))
    groups = _grouped(pieces, example, root)
    modules = [_module(group, root) for group in groups]
    features = example
    for module in modules:
        features = module(features)
    used = {id(p) for module in modules for p in module.parameters()}
    if not torch.equal(model(example), features) or len(used) < len(list(model.parameters())):
        return []
    if until is not None:
        groups = _ended(groups, until)
        modules = [_module(group, root) for group in groups]
    names = [_name(group, root) for group in groups]
    return list(zip(names, modules, strict=True)) if len(groups) > 1 and len(set(names)) == len(names) else []


def _traced(root: _Whole, kept: tuple[str, ...], notrace: Sequence[Callable[..., object]]) -> fx.Graph:
    """With modules for the function dropout, which know themselves whether they train."""
    graph = _Tracer(kept, tuple(notrace)).trace(root)
    for number, node in enumerate(graph.nodes):
        if node.op == "call_function" and node.target is nn.functional.dropout:
            given = dict(zip(("input", "p"), node.args, strict=False)) | node.kwargs
            root.add_module(f"dropout{number}", nn.Dropout(float(given.get("p", 0.5))))
            node.op, node.target, node.args, node.kwargs = "call_module", f"dropout{number}", (given["input"],), {}
    return graph


def _ended(groups: Sequence[list[_Piece]], until: str) -> list[list[_Piece]]:
    """Those up to the module `until`, which must be where one may be cut. A pooling begins the group after it, so that
    each gives the finest map that it has.
    """
    result: list[list[_Piece]] = []
    pooling: list[_Piece] = []
    for whole in groups:
        group = [*pooling, *whole]
        pooling = [group.pop()] if "Pool" in type(group[-1].module).__name__ and len(group) > 1 else []
        paths = [piece.path for piece in group]
        if until in paths:
            return [*result, group[: paths.index(until) + 1]]
        result.append(group)
    return []


class _Whole(nn.Module):
    """A model with one input, whatever else its forward pass could take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class _Tracer(fx.Tracer):
    def __init__(self, kept: tuple[str, ...], notrace: tuple[Callable[..., object], ...]) -> None:
        super().__init__(autowrap_functions=notrace)
        self.kept = kept  # modules that are not looked into

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return any(module_qualified_name == path or module_qualified_name.startswith(f"{path}.") for path in self.kept)


def _kept(model: nn.Module) -> Iterator[str]:
    """Paths of the stages and blocks, and of the layers beside them."""
    total = max(sum(p.numel() for p in model.parameters()), 1)
    for name, child in model.named_children():
        entries = [n for n, _ in child.named_children()]
        share = sum(p.numel() for p in child.parameters()) / total
        if isinstance(child, CONTAINERS) and len(entries) > 1 and (name in OPENED or share > MOST):
            yield from (f"{name}.{entry}" for entry in entries)
        else:
            yield name


def _pieces(graph: fx.Graph, root: nn.Module) -> Iterator[_Piece]:
    """Cut after each module whose output is the only value that is used from there on."""
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    place = {node: i for i, node in enumerate(nodes)}
    last = {n: max((place.get(user, len(nodes)) for user in n.users), default=place[n]) for n in nodes}
    (given,) = (n for n in graph.nodes if n.op == "placeholder")
    first = 0
    until = max((place.get(user, len(nodes)) for user in given.users), default=-1)  # where a value before is used last
    for i, node in enumerate(nodes):
        if node.op == "call_module" and until <= i:
            assert isinstance(node.target, str)
            yield _Piece(nodes[first : i + 1], root.get_submodule(node.target), node.target.removeprefix("model."))
            first = i + 1
        if node.op != "get_attr":  # a parameter that is read is no value that goes on: each part reads its own
            until = max(until, last[node])
    if first < len(nodes):  # what follows the last module belongs to it
        yield _Piece(nodes[first:], nn.Identity(), "")


def _grouped(pieces: Sequence[_Piece], example: Tensor, root: nn.Module) -> list[list[_Piece]]:
    """Each composite piece begins a group, simple ones belong to the group before; a long row of simple ones (VGG) is
    cut after its poolings.
    """
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if not groups or piece.composite:
            groups.append([])
        groups[-1].append(piece)
    if not any(piece.composite for piece in groups[0]) and sum(piece.weighs for piece in groups[0]) > 2:
        groups[:1] = _by_pooling(groups[0], example, root)
    sizes = [sum(p.numel() for piece in group for p in piece.module.parameters()) for group in groups]
    while len(groups) > 1 and sizes[-1] < SMALL_TAIL * sum(sizes):
        sizes[-2:] = [sizes[-2] + sizes[-1]]
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    return groups


def _by_pooling(pieces: Sequence[_Piece], example: Tensor, root: nn.Module) -> list[list[_Piece]]:
    groups: list[list[_Piece]] = [[]]
    features = example
    for piece in pieces:
        before, features = features, _module([piece], root)(features)
        groups[-1].append(piece)
        if not piece.weighs and features.ndim == 4 and features.shape[2:] != before.shape[2:]:
            groups.append([])
    return [group for group in groups if group]


def _name(pieces: Sequence[_Piece], root: nn.Module) -> str:
    """Of its first stage or block; a group that has none is the stem, or is called after its first layer."""
    called = [str(node.target) for piece in pieces for node in piece.nodes if node.op == "call_module"]
    composite = [path for path in called if _composite(root.get_submodule(path))]
    first = (composite or called)[0].removeprefix("model.")
    return first if composite or "." in first else "stem"


def _module(pieces: Sequence[_Piece], root: nn.Module) -> nn.Module:
    """A Sequential of the model's own modules where they follow one another, else a traced module of them."""
    nodes = [node for piece in pieces for node in piece.nodes]
    chain = all(
        n.op == "call_module" and len(n.args) == 1 and not n.kwargs and (i == 0 or n.args[0] is nodes[i - 1])
        for i, n in enumerate(nodes)
    )
    if chain:
        modules = [root.get_submodule(str(n.target)) for n in nodes]
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    graph = fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    inner = set(nodes)
    outer = {a for n in nodes for a in n.all_input_nodes if a not in inner}
    read = [n for n in outer if n.op == "get_attr"]
    taken = [n for n in outer if n.op != "get_attr"]
    assert len(taken) == 1, "a part takes one tensor"
    own[taken[0]] = graph.placeholder("x")
    for node in (*read, *nodes):
        own[node] = graph.node_copy(node, lambda n: own[n])
    graph.output(own[nodes[-1]])
    graph.lint()
    return fx.GraphModule(root, graph, "Part")
