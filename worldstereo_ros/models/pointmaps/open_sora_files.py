"""Reads weights of Open-Sora 1.2 into networks that have the published names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.checkpoints.diagnosis import explain_names
from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.parameters import check_finite, check_memory, set_parameter
from worldstereo_ros.models.checkpoints.tensor_files import TensorFiles, open_tensors
from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names

STEMS = ("model", BASE_STEM)
PICKLES = ("pytorch_model.bin", "model.pth", "model.pt", "model.ckpt", "ema.pt")


def open_published(path: Path) -> TensorFiles:
    """Opens the weights of one network; only shapes are read.

    Args:
        path: a file, or a folder with one of the usual names.

    Raises:
        CheckpointError: there are no weights, or they are damaged.
    """
    if not path.is_dir():
        return open_tensors(path)
    for stem in STEMS:
        if list(path.glob(f"{stem}.safetensors*")) or list(path.glob(f"{stem}-*-of-*.safetensors")):
            return open_tensors(path, stem)
    for name in PICKLES:
        if (path / name).is_file():
            return open_tensors(path / name)
    return open_tensors(path, STEMS[0])  # which says what is there instead


def assign(
    model: nn.Module,
    files: TensorFiles,
    device: torch.device,
    dtype: torch.dtype,
    *,
    skipped: Collection[str] = (),
    widened: Mapping[str, int] | None = None,
    optional: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Reads all tensors of a model that was built on the meta device; every name must be accounted for.

    Args:
        model: the model.
        files: its weights.
        device: device of the weights.
        dtype: dtype of the weights.
        skipped: names in the files that the model does not have.
        widened: names of tensors that may be shorter along an axis in the files; the rest is 0.
        optional: values of tensors that may be missing in the files.

    Raises:
        CheckpointError: tensors are missing, unknown, of a wrong shape or not finite, or the device has too little
            memory.
    """
    widened, optional = widened or {}, optional or {}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    actual = {name: shape for name, shape in files.shapes().items() if name not in skipped}
    _check(actual, expected, widened, optional, files.path)
    check_memory(sum(t.numel() for t in model.state_dict().values()) * dtype.itemsize, device, files.path)
    for name, tensor in files.read(list(actual), device):
        check_finite(tensor, name, files.tensors[name])
        if (axis := widened.get(name)) is not None:
            after = expected[name][axis] - tensor.shape[axis]
            tensor = functional.pad(tensor, [0, 0] * (tensor.ndim - 1 - axis) + [0, after])
        set_parameter(model, name, tensor, dtype)
    for name, value in optional.items():
        if name not in actual:
            set_parameter(model, name, value.to(device), dtype)


def _check(
    actual: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    widened: Mapping[str, int],
    optional: Collection[str],
    path: Path,
) -> None:
    def fits(name: str) -> bool:
        got, wanted = actual[name], expected[name]
        axis = widened.get(name)
        if axis is None or len(got) != len(wanted):
            return got == wanted
        return got[:axis] + got[axis + 1 :] == wanted[:axis] + wanted[axis + 1 :] and got[axis] <= wanted[axis]

    unknown = [name for name in actual if name not in expected]
    missing = [name for name in expected if name not in actual and name not in optional]
    wrong = [
        f"{name} is {actual[name]} and should be {expected[name]}"
        for name in expected
        if name in actual and not fits(name)
    ]
    kinds = (("unknown", unknown), ("missing", missing), ("of the wrong shape", wrong))
    problems = [f"{count_tensors(names)} {kind}: {format_names(names)}" for kind, names in kinds if names]
    if problems:
        found = f"The weights in {path} are not those of Open-Sora 1.2; {'; '.join(problems)}."
        raise CheckpointError(f"{found} {explain_names(unknown)}".rstrip())
