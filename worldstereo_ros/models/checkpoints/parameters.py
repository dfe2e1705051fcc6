"""Checks tensors and assigns them to the parameters of models that were built on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from worldstereo_ros.models.checkpoints.diagnosis import explain_names
from worldstereo_ros.models.checkpoints.names import common_prefix
from worldstereo_ros.models.checkpoints.weights import (
    CheckpointError,
    TensorInfo,
    WeightSet,
    count_tensors,
    format_names,
)
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

CHECKED_AT_ONCE = 1 << 24  # numbers


def load_weights(model: nn.Module, weights: WeightSet, device: torch.device, dtype: torch.dtype) -> None:
    """Loads all weights of a model that was built on the meta device.

    Args:
        model: the model.
        weights: its tensors, from `open_weights`.
        device: device of the weights.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: tensors are missing, unexpected, of a wrong shape or not finite, or the device has too little
            memory.
    """
    weights = weights.without_prefix(common_prefix(weights.tensors, model.state_dict()))
    check_state_dict(model, {name: info.shape for name, info in weights.tensors.items()}, weights.folder)
    check_memory(memory_needed(model, dtype), device, weights.folder)
    for name, tensor in weights.read(list(weights.tensors), device):
        check_finite(tensor, name, weights.tensors[name])
        set_parameter(model, name, tensor, dtype)


def default_dtype(device: torch.device) -> torch.dtype:
    """Returns the default dtype of weights: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of one parameter of the transformer: norms, tables and time embedding stay in float32.

    Args:
        name: name of the parameter.
        dtype: dtype of the model.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return dtype
    parts = name.split(".")
    in_float32 = any(part in WorldStereoTransformer._keep_in_fp32_modules for part in parts)
    # The linear layers in the norms of the control branch are large, and not part of the normalisation itself.
    return torch.float32 if in_float32 and "linear" not in parts else dtype


def memory_needed(model: nn.Module, dtype: torch.dtype) -> int:
    """Returns the size of a model's weights in bytes, for a model of the given dtype."""
    return sum(t.numel() * parameter_dtype(name, dtype).itemsize for name, t in model.state_dict().items())


def check_memory(needed: int, device: torch.device, folder: Path) -> None:
    """Checks that weights fit into the free memory of a device.

    Args:
        needed: size of the weights in bytes.
        device: the device.
        folder: folder of the weights, for the message.

    Raises:
        CheckpointError: the device has too little free memory.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise CheckpointError(
            f"The weights in {folder} take {needed / 2**30:.1f} GiB and {device} has {free / 2**30:.1f} GiB free; "
            "use a smaller dtype (bfloat16), another device, or a smaller model."
        )


def free_memory(device: torch.device) -> int | None:
    """Returns the free memory of a device in bytes, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def check_finite(tensor: torch.Tensor, name: str, info: TensorInfo) -> torch.Tensor:
    """Checks that a tensor is finite, and returns it.

    Args:
        tensor: the tensor.
        name: its name, for the message.
        info: its header entry, for the message.

    Raises:
        CheckpointError: an element is NaN or infinite.
    """
    # In parts: a check of the whole takes up to three times the memory of the tensor.
    if not all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(CHECKED_AT_ONCE)):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{info.file}: {count} of {tensor.numel()} numbers of {name} are not finite; the file is damaged or its "
            "training failed."
        )
    return tensor


def set_parameter(model: nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Replaces a parameter or buffer of a model by a tensor, cast to a dtype, without gradient.

    Args:
        model: the model; its own parameter may be on the meta device.
        name: name of the parameter.
        tensor: the new value.
        dtype: dtype of the parameter.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    # A CPU tensor that was read from a file is a memory map of it; the copy stays valid if the file changes.
    value = tensor.to(dtype, copy=tensor.device.type == "cpu")
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def check_state_dict(model: nn.Module, actual: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Checks that the tensors of a file are exactly those of a model.

    Args:
        model: the model.
        actual: shapes of the file's tensors by name.
        folder: folder of the file, for the message.

    Raises:
        CheckpointError: tensors are missing, unexpected or of a wrong shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    mismatched = [
        f"{name} is {actual[name]} and should be {shape}"
        for name, shape in expected.items()
        if name in actual and actual[name] != shape
    ]
    missing = [name for name in expected if name not in actual]
    unexpected = [name for name in actual if name not in expected]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", mismatched))
    problems = [f"{count_tensors(names)} {kind}: {format_names(names)}" for kind, names in kinds if names]
    if problems:
        explained = explain_names(unexpected)
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json; {'; '.join(problems)}. {explained}".rstrip()
        )
