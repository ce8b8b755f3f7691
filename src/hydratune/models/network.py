"""A network is an ordered list of layer groups: stem first, head last."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from hydratune.core.types import Backbone, Features, LayerGroup
from hydratune.distributed.process_group import assign

T = TypeVar("T", bound=Tensor)


class Network:
    """Layer groups in execution order, the last of them the head.

    The groups hold the modules; names come from the model that the modules were taken from, so that a state dict
    reads as if the model had never been cut. A tied tensor belongs to its earliest user and is listed once.
    """

    def __init__(self, groups: Sequence[LayerGroup]) -> None:
        names = [group.name for group in groups]
        assert len(set(names)) == len(names), f"two layer groups share a name: {names}"
        self.groups = tuple(groups)

    def forward(self, features: Features, first: int = 0, last: int | None = None) -> Features:
        """Run groups[first:last] on the output of groups[:first]; `inputs` are the features of group 0."""
        for group in self.groups[first:last]:
            features = group.module(features)
        return features

    def split(self, cut: int) -> tuple[Network, Network]:
        """(trunk, tail): the groups before the cut and from it on. The groups are shared, not copied."""
        return Network(self.groups[:cut]), Network(self.groups[cut:])

    def fork(self, cut: int) -> Network:
        """The same groups below the cut, copies of their own from it on, but for tensors that those below have too."""
        shared = {id(t): t for g in self.groups[:cut] for _, t in _tensors(g.module)}
        own = copy.deepcopy([g.module for g in self.groups[cut:]], dict(shared))
        tail = [LayerGroup(g.name, m, g.names) for g, m in zip(self.groups[cut:], own, strict=True)]
        return Network([*self.groups[:cut], *tail])

    def own_of_head(self) -> set[str]:
        """Names of the head's tensors, but for those that it shares with a group below."""
        below = {n for g in self.groups[:-1] for n in g.names.values()}
        return set(self.head.names.values()) - below

    def tied(self) -> list[str]:
        """Names of parameters that several groups have."""
        names = [name for g in self.groups for name in {g.names[k] for k, _ in g.module.named_parameters()}]
        return sorted({name for name in names if names.count(name) > 1})

    def above(self, below: Network, cut: int) -> Network:
        """Its groups from the cut on, above those of a network that is the same below; what is tied stays tied."""
        known = {g.names[k]: p for g in below.groups[:cut] for k, p in g.module.named_parameters()}
        for group in self.groups[cut:]:
            for key, name in group.names.items():
                parent, _, attribute = key.rpartition(".")
                parameters = group.module.get_submodule(parent)._parameters
                if name in known and attribute in parameters:
                    parameters[attribute] = known[name]
        return Network([*below.groups[:cut], *self.groups[cut:]])

    def take(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """These become its own, by their names in the source model: what several networks have is held once."""
        for group in self.groups:
            for key, _ in [*group.module.named_parameters(remove_duplicate=False)]:
                if (name := group.names[key]) in parameters:
                    parent, _, attribute = key.rpartition(".")
                    group.module.get_submodule(parent)._parameters[attribute] = parameters[name]

    @property
    def head(self) -> LayerGroup:
        return self.groups[-1]

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(_once((g.names[k], p) for g in self.groups for k, p in g.module.named_parameters()))

    def buffers(self) -> dict[str, Tensor]:
        return dict(_once((g.names[k], b) for g in self.groups for k, b in _saved_buffers(g.module)))

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and persistent buffer by its name in the source model, not copied."""
        return {**self.parameters(), **self.buffers()}

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Network:
        for group in self.groups:
            group.module.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors in by name; every one must exist here and fit."""
        own = self.state_dict()
        missing = own.keys() - tensors.keys()
        foreign = tensors.keys() - own.keys()
        if missing or foreign:
            raise ValueError(f"checkpoint does not fit: missing {sorted(missing)[:5]}, unknown {sorted(foreign)[:5]}")
        self.copy(tensors, own)

    @staticmethod
    @torch.no_grad()
    def copy(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Each of `own` becomes what `tensors` has under its name."""
        for name, tensor in own.items():
            assign(tensor, tensors[name])


def build_network(body: Backbone, head: nn.Module) -> Network:
    """The body's groups and the head, under the names that the source model gives its tensors."""
    by_identity: dict[int, str] = {}
    for name, tensor in _tensors(body.source):
        by_identity.setdefault(id(tensor), name)  # a tied tensor goes by its first name
    groups = []
    for name, module in body.groups:
        names = {k: by_identity.get(id(t), f"{name}.{k}") for k, t in _tensors(module)}
        groups.append(LayerGroup(name, module, names))
    if head is body.head:
        names = {k: by_identity[id(t)] for k, t in _tensors(head)}
        return Network([*groups, LayerGroup("head", head, names)])
    names = {k: f"{body.head_name}.{k}" for k, _ in _tensors(head)}
    taken = {n for group in groups for n in group.names.values()}.intersection(names.values())
    if taken:
        raise ValueError(
            f"model: its own {min(taken)} has the name that the new head's would have; "
            f"give the module another head_name than {body.head_name}"
        )
    groups.append(LayerGroup("head", head, names))
    return Network(groups)


def as_body(model: Backbone | nn.Module) -> Backbone:
    """A user's own module: its `layer_groups()` where it has them, else one group that cannot be cut."""
    if isinstance(model, Backbone):
        return model
    cut = getattr(model, "layer_groups", None)
    groups = list(cut()) if cut is not None else [("body", model)]
    name = getattr(model, "head_name", "head")
    owned = {id(p) for _, module in groups for p in module.parameters()}
    lost = [n for n, p in model.named_parameters() if id(p) not in owned and not n.startswith(f"{name}.")]
    if lost:
        raise ValueError(f"model: no layer group has {', '.join(lost[:5])}, so that nothing would train or save it")
    return Backbone(source=model, groups=groups, head_name=name, in_channels=getattr(model, "in_channels", 3))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((k, b) for k, b in module.named_buffers() if k in kept)


def _once(named: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
