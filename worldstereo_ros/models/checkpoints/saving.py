"""Saves checkpoints in the layout of the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from worldstereo_ros.models.checkpoints.loading import BASE_STEM, BRANCH_PREFIXES
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer
from worldstereo_ros.utils.atomic_files import atomic_path, write_text
from worldstereo_ros.utils.errors import InputError

# Arguments of the transformer that are set at run time and are not part of a checkpoint.
_RUNTIME_ARGUMENTS = ("controlnet_cfg", "reference_attention", "correspondence_radius", "correspondence_stride")


def save_weights(
    folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], *, max_shard_bytes: int | None = None
) -> list[Path]:
    """Writes `<stem>.safetensors`, or shards with an index if it would exceed `max_shard_bytes`.

    Every file is written under a temporary name, synced and renamed; the index is written last. Files of the stem that
    an earlier save left are removed then.

    Args:
        folder: folder to write to; created if missing.
        stem: name without suffix: `model` for a variant, `diffusion_pytorch_model` for a part of the base model.
        tensors: tensors by name; copied to the CPU.
        max_shard_bytes: maximum size of a file; None = one file.

    Returns:
        The files with tensors.

    Raises:
        InputError: there are no tensors, or one tensor is larger than `max_shard_bytes`.
        WriteError: a file cannot be written.
    """
    if not tensors:
        raise InputError(f"There are no tensors to write to {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    shard_bytes = 0
    for name, tensor in on_cpu.items():
        if max_shard_bytes is not None and tensor.nbytes > max_shard_bytes:
            raise InputError(f"{name} has {tensor.nbytes} bytes, more than max_shard_bytes, {max_shard_bytes}.")
        if max_shard_bytes is not None and shards[-1] and shard_bytes + tensor.nbytes > max_shard_bytes:
            shards.append({})
            shard_bytes = 0
        shards[-1][name] = tensor
        shard_bytes += tensor.nbytes
    stale = set(folder.glob(f"{stem}*.safetensors*"))
    if len(shards) == 1:
        files = [_write_tensors(folder / f"{stem}.safetensors", shards[0])]
        _remove(stale - set(files))
        return files
    files = [folder / f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    for file, shard in zip(files, shards, strict=True):
        _write_tensors(file, shard)
    total = sum(tensor.nbytes for tensor in on_cpu.values())
    index = folder / f"{stem}.safetensors.index.json"
    write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _remove(stale - {*files, index})
    return files


def save_variant(
    transformer: WorldStereoTransformer,
    folder: Path,
    config: Mapping[str, Any],
    *,
    keep: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a variant: `config.json` and `model.safetensors`.

    Args:
        transformer: transformer with a control branch.
        folder: folder of the variant.
        config: content of `config.json`; its `controlnet_cfg` is replaced by the transformer's.
        keep: whether a tensor, by its name, is saved; the others must be in the base model.
        dtype: dtype of the saved tensors; None = unchanged.
        max_shard_bytes: see `save_weights`.

    Raises:
        InputError: the transformer has no control branch, or see `save_weights`.
    """
    control = transformer.config.controlnet_cfg
    if not control:
        raise InputError("The transformer has no control branch; use save_base for a plain backbone.")
    tensors = {
        name: tensor.to(dtype or tensor.dtype) for name, tensor in transformer.state_dict().items() if keep(name)
    }
    save_weights(folder, "model", tensors, max_shard_bytes=max_shard_bytes)
    write_json(folder / "config.json", {**config, "controlnet_cfg": dict(control)})


def save_base(
    transformer: WorldStereoTransformer,
    folder: Path,
    *,
    weights: bool = True,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes the backbone to `<folder>/transformer`, in the format of diffusers' `WanTransformer3DModel`.

    Args:
        transformer: transformer; its control and memory branches are not saved.
        folder: folder of the base model.
        weights: False writes `config.json` alone, for checkpoints that contain the whole backbone.
        dtype: dtype of the saved tensors; None = unchanged.
        max_shard_bytes: see `save_weights`.
    """
    target = folder / "transformer"
    target.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in transformer.config.items() if not k.startswith("_") and k not in _RUNTIME_ARGUMENTS}
    write_json(target / "config.json", {"_class_name": "WanTransformer3DModel", **config})
    if weights:
        tensors = {
            name: tensor.to(dtype or tensor.dtype)
            for name, tensor in transformer.state_dict().items()
            if not name.startswith(BRANCH_PREFIXES)
        }
        save_weights(target, BASE_STEM, tensors, max_shard_bytes=max_shard_bytes)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file under a temporary name and renames it.

    Args:
        file: the file.
        content: its content.
    """
    write_text(file, json.dumps(content, indent=2) + "\n")


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    with atomic_path(file) as partial:
        save_file(dict(tensors), str(partial), metadata={"format": "pt"})
    return file


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
