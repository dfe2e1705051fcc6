"""Low-rank layers for training: linear layers whose weights stay, with trainable changes beside them.

A network can have several changes, called adapters, of which one is active: a student, its teacher and a fake score
then share one base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.utils.errors import InputError


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank changes, y = W x + b + B A x.

    Args:
        base: the layer.
        rank: rank of the changes.
        adapters: their names.

    Attributes:
        active: the adapter that counts; empty: none.
    """

    def __init__(self, base: nn.Linear, rank: int, adapters: Sequence[str]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.active = adapters[0] if adapters else ""
        device = base.weight.device
        self.down = nn.ParameterDict({name: torch.empty(rank, base.in_features, device=device) for name in adapters})
        self.up = nn.ParameterDict({name: torch.zeros(base.out_features, rank, device=device) for name in adapters})
        for factor in self.down.values():
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., in) to (..., out)."""
        y = self.base(x)
        if not self.active:
            return y
        a, b = self.down[self.active], self.up[self.active]
        return y + functional.linear(functional.linear(x.to(a.dtype), a), b).to(y.dtype)


def add_lora(model: nn.Module, names: Iterable[str], rank: int, adapters: Sequence[str]) -> list[str]:
    """Replaces linear layers of a network by layers with low-rank changes, which are 0 until trained.

    All other parameters are frozen.

    Args:
        model: the network; changed in place.
        names: names of the weights to change, such as `blocks.0.attn1.to_q.weight`.
        rank: rank of the changes.
        adapters: names of the adapters; the first is active.

    Returns:
        The names of the weights.

    Raises:
        InputError: there are no weights, one is not that of a linear layer, or the rank is less than 1.
    """
    changed = list(names)
    if not changed or rank < 1 or not adapters:
        raise InputError(f"{len(changed)} weights, rank {rank} and adapters {list(adapters)} make no LoRA.")
    model.requires_grad_(False)
    for name in changed:
        module_name, _, leaf = name.rpartition(".")
        parent, _, key = module_name.rpartition(".")
        layer = model.get_submodule(module_name)
        if leaf != "weight" or not isinstance(layer, nn.Linear):
            raise InputError(f"{name} is no weight of a linear layer; a LoRA changes those alone.")
        setattr(model.get_submodule(parent), key, LoraLinear(layer, rank, adapters))
    return changed


def set_adapter(model: nn.Module, adapter: str) -> None:
    """Makes one adapter of a network active; empty: none.

    Raises:
        InputError: a layer has no such adapter.
    """
    for layer in lora_layers(model).values():
        if adapter and adapter not in layer.down:
            raise InputError(f"There is no adapter '{adapter}'; {', '.join(layer.down)} exist.")
        layer.active = adapter


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with low-rank changes, by the name of the weight that they change."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    return {f"{name}.weight": module for name, module in found.items()}


def adapter_parameters(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """The factors of an adapter, for an optimizer."""
    return [factor for layer in lora_layers(model).values() for factor in (layer.down[adapter], layer.up[adapter])]


def adapter_factors(model: nn.Module, adapter: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The factors A and B of an adapter, by the name of the weight that they change."""
    return {name: (layer.down[adapter], layer.up[adapter]) for name, layer in lora_layers(model).items()}


@torch.no_grad()
def set_factors(model: nn.Module, adapter: str, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Sets the factors of an adapter; a rank below that of the layers is filled up with zeros.

    Args:
        model: the network.
        adapter: name of the adapter.
        factors: A and B by the name of the weight that they change, for all of its layers.

    Raises:
        InputError: weights are missing or too many, or a rank is larger than that of the layers.
    """
    layers = lora_layers(model)
    if set(factors) != set(layers):
        different = sorted(set(factors) ^ set(layers))
        raise InputError(f"The LoRA changes other weights than the network: {different[0]} and others.")
    for name, (a, b) in factors.items():
        down, up = layers[name].down[adapter], layers[name].up[adapter]
        if len(a) > len(down):
            raise InputError(f"The LoRA has rank {len(a)} for {name}; at most {len(down)} was expected.")
        down[: len(a)] = a.to(down)
        up.zero_()
        up[:, : len(a)] = b.to(up)
