"""Writes checkpoints in the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer
from worldstereo_ros.utils.errors import InputError

# Arguments of the transformer that are choices of a run and no part of a checkpoint.
_OURS = ("controlnet_cfg", "reference_attention", "correspondence_radius", "correspondence_stride")


def save_weights(
    folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], *, max_shard_bytes: int | None = None
) -> list[Path]:
    """Writes `<stem>.safetensors`, or shards with an index where they would pass `max_shard_bytes`.

    Every file is written aside and moved into place; the index, which makes shards a checkpoint, comes last.

    Args:
        folder: made where it is not there.
        stem: `model` for a variant, `diffusion_pytorch_model` for a part of the base.
        tensors: by name; copied to the CPU.
        max_shard_bytes: None: one file.

    Raises:
        ValueError: there is nothing to write, or one tensor alone is larger than a shard.
    """
    if not tensors:
        raise InputError(f"There are no tensors to write to {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in own.items():
        if max_shard_bytes is not None and tensor.nbytes > max_shard_bytes:
            raise InputError(f"{name} has {tensor.nbytes} bytes and a shard at most {max_shard_bytes}.")
        if max_shard_bytes is not None and shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    for stale in folder.glob(f"{stem}*.safetensors*"):
        stale.unlink()
    if len(shards) == 1:
        return [_write(folder / f"{stem}.safetensors", shards[0])]
    files = [folder / f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    where = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    for file, shard in zip(files, shards, strict=True):
        _write(file, shard)
    total = sum(tensor.nbytes for tensor in own.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return files


def save_variant(
    transformer: WorldStereoTransformer,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    keep: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors` of a variant.

    Args:
        transformer: with a control branch.
        folder: `<root>/<variant>`.
        settings: `base_model`, `nframe`, `scale_map`, ... of `config.json`; `controlnet_cfg` is the transformer's.
        keep: names of the tensors that go into the file; the others must be in the base.
        dtype: None: as they are.
        max_shard_bytes: see `save_weights`.

    Raises:
        ValueError: the transformer has no control branch, or see `save_weights`.
    """
    control = transformer.config.controlnet_cfg
    if not control:
        raise InputError("This transformer has no control branch; save_base writes a plain backbone.")
    tensors = {
        name: tensor.to(dtype or tensor.dtype) for name, tensor in transformer.state_dict().items() if keep(name)
    }
    save_weights(folder, "model", tensors, max_shard_bytes=max_shard_bytes)
    write_json(folder / "config.json", {**settings, "controlnet_cfg": dict(control)})


def save_base(
    transformer: WorldStereoTransformer,
    folder: Path,
    *,
    weights: bool = True,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes the backbone as `<folder>/transformer`, as diffusers' `WanTransformer3DModel` reads it.

    Args:
        transformer: its branches are left out.
        folder: the base model.
        weights: False writes its `config.json` alone, for checkpoints that hold the whole backbone.
        dtype: None: as they are.
        max_shard_bytes: see `save_weights`.
    """
    target = folder / "transformer"
    target.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in transformer.config.items() if not k.startswith("_") and k not in _OURS}
    write_json(target / "config.json", {"_class_name": "WanTransformer3DModel", **config})
    if weights:
        branches = ("controlnet.", "camera_embedding.")
        tensors = {n: t.to(dtype or t.dtype) for n, t in transformer.state_dict().items() if not n.startswith(branches)}
        save_weights(target, BASE_STEM, tensors, max_shard_bytes=max_shard_bytes)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON aside and moves it into place."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    part = file.with_name(file.name + ".part")
    save_file(dict(tensors), str(part), metadata={"format": "pt"})
    part.replace(file)
    return file
