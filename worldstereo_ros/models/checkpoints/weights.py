"""Weights on disk: safetensors alone, every size known before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from worldstereo_ros.utils.errors import WorldStereoError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 32 * 1024 * 1024
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class CheckpointError(WorldStereoError, ValueError):
    """A checkpoint that cannot be used; the message says what came, what was expected, and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor before it is read.

    Attributes:
        file: where it is.
        shape: its shape.
        dtype: F32, BF16, ... as safetensors names them.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class WeightSet:
    """All tensors of one model, in one file or in shards.

    Attributes:
        folder: where the files are.
        tensors: by name.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return sorted({info.file for info in self.tensors.values()})

    def read(self, names: list[str], device: str | torch.device = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) one at a time, file by file, read straight to `device`.

        Raises:
            CheckpointError: a file changed or cannot be read.
        """
        for file in self.files:
            inside = [name for name in names if self.tensors[name].file == file]
            if not inside:
                continue
            try:
                with safe_open(str(file), framework="pt", device=str(device)) as reader:
                    for name in inside:
                        yield name, reader.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} could not be read: {error}. Fetch it again.") from None


def open_weights(folder: Path, stem: str) -> WeightSet:
    """Reads the headers of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` lists.

    Raises:
        CheckpointError: there are none, only pickles, or a file is broken, truncated or not what it says.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return WeightSet(folder, _read_header(single))
    if index.is_file():
        return WeightSet(folder, _read_shards(index))
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is opened; "
            f"convert it to {single.name} with a tool you trust."
        )
    raise CheckpointError(f"{folder} has neither {single.name} nor {index.name}.")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: there is none, it is too large, or it is no object.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} were expected.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.") from None
    except (OSError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} could not be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; an object {{...}} was expected.")
    return content


def tensors_of(names: Sized) -> str:
    """`1 tensor`, `3 tensors`."""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def named(names: list[str], limit: int = 3) -> str:
    """The first few names and how many more."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(str(file), framework="pt") as reader:
            tensors = {}
            for name in reader.keys():  # noqa: SIM118 - the reader is no mapping
                part = reader.get_slice(name)
                tensors[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        size = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f"{file} ({size} bytes) is no whole safetensors file: {error}. It may be truncated; fetch it again."
        ) from None
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors.")
    odd = [name for name, info in tensors.items() if info.dtype not in FLOATS]
    if odd:
        raise CheckpointError(
            f"{file} has {tensors_of(odd)} not in floating point ({tensors[odd[0]].dtype}): {named(odd)}; "
            f"weights of type {', '.join(FLOATS)} were expected."
        )
    return tensors


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names.")
    headers = {}
    for shard in sorted(set(where.values())):
        # A name with a folder in it could point anywhere on this machine.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the shard '{shard}'; a .safetensors file beside it was expected.")
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing. Fetch it again.")
        headers[shard] = _read_header(index.parent / shard)
    lost = [name for name, shard in where.items() if name not in headers[shard]]
    if lost:
        raise CheckpointError(f"{index} names {tensors_of(lost)} that the shards lack: {named(lost)}.")
    stray = [name for header in headers.values() for name in header if name not in where]
    if stray:
        raise CheckpointError(f"{index} does not name {tensors_of(stray)} of its shards: {named(stray)}.")
    return {name: headers[shard][name] for name, shard in where.items()}
