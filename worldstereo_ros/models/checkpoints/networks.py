"""Loads a small network from a folder of its own, with `config.json` and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json

_Module = TypeVar("_Module", bound=nn.Module)


def load_network(folder: Path, kind: Callable[..., _Module], what: str, device: torch.device | str) -> _Module | None:
    """Loads a network in evaluation mode, in float32, without gradients.

    Args:
        folder: folder of the network.
        kind: class of the network, whose name stands in `config.json`.
        what: what it is, for messages.
        device: device to load it to.

    Returns:
        The network; None if there is no such folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    if not folder.is_dir():
        return None
    file, name = folder / "config.json", getattr(kind, "__name__", what)
    config = read_json(file)
    if config.get("_class_name") != name:
        raise CheckpointError(f"{folder} has a {config.get('_class_name')}; a {name} was expected.")
    check_numbers(file, config)
    model = build_on_meta(kind, file, config, what)
    load_weights(model, open_weights(folder, BASE_STEM), torch.device(device), torch.float32)
    return model.requires_grad_(False).eval()
