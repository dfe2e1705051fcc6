"""Safetensors files and their headers: shapes and dtypes are known before memory is allocated."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from worldstereo_ros.models.checkpoints.diagnosis import explain_dtypes, explain_missing_weights, explain_weight_file
from worldstereo_ros.models.checkpoints.names import unwrap_names
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.file_kinds import explain_unreadable

MAX_JSON_BYTES = 32 * 2**20
MAX_MAPPED_BYTES = 256 * 2**20  # of a file, before its map is closed and opened again
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
FLOAT_DTYPES = tuple(DTYPE_BYTES)

logger = logging.getLogger(__name__)


class CheckpointError(WorldStereoError, ValueError):
    """A checkpoint that is missing, damaged or does not fit the model."""


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of a tensor in a safetensors file.

    Attributes:
        file: the file.
        shape: shape of the tensor.
        dtype: dtype as safetensors names it: F32, BF16, ...
        key: its name in the file, which a wrapper may have changed.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    key: str

    @property
    def num_elements(self) -> int:
        """Number of elements of the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class WeightSet:
    """The tensors of one model, in one file or in shards.

    Attributes:
        folder: folder of the files.
        tensors: header entries by tensor name.
        removed: what was removed from the names in the files, such as `module.`; empty: nothing.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted({info.file for info in self.tensors.values()})

    def read(self, names: list[str], device: str | torch.device = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) one at a time, file by file, loaded directly to a device.

        Pages of a mapped file that were read count as memory of the process until the map is closed, so a large file is
        mapped anew after every `MAX_MAPPED_BYTES`. The host then needs that much, and the largest tensor, however
        large the files are.

        Args:
            names: names of the tensors to read.
            device: device of the tensors.

        Raises:
            CheckpointError: a file cannot be read, or changed since its header was read.
        """
        for file in self.files:
            in_file = [name for name in names if self.tensors[name].file == file]
            if not in_file:
                continue
            try:
                for part in self._parts(in_file):
                    with safe_open(str(file), framework="pt", device=str(device)) as reader:
                        for name in part:
                            yield name, reader.get_tensor(self.tensors[name].key)
            except (SafetensorError, OSError) as error:
                explained = explain_weight_file(file)
                raise CheckpointError(f"{file} could not be read: {error}. {explained}") from None

    def _parts(self, names: list[str]) -> Iterator[list[str]]:
        """Divides names into parts of at most `MAX_MAPPED_BYTES`, or of one tensor that is larger."""
        part: list[str] = []
        size = 0
        for name in names:
            info = self.tensors[name]
            nbytes = info.num_elements * DTYPE_BYTES[info.dtype]
            if part and size + nbytes > MAX_MAPPED_BYTES:
                yield part
                part, size = [], 0
            part.append(name)
            size += nbytes
        if part:
            yield part

    def without_prefix(self, prefix: str) -> WeightSet:
        """Returns the set with a prefix removed from all names, and logs it.

        Args:
            prefix: what all names begin with, see `names.common_prefix`; empty returns the set itself.
        """
        if not prefix:
            return self
        _log_removed(self.folder, [prefix], self.tensors)
        tensors = {name.removeprefix(prefix): info for name, info in self.tensors.items()}
        return WeightSet(self.folder, tensors, (*self.removed, prefix))


def open_weights(folder: Path, stem: str) -> WeightSet:
    """Reads the headers of `<stem>.safetensors`, or of the shards listed in `<stem>.safetensors.index.json`.

    Names that a wrapper changed (`module.`, `_orig_mod.`, see `names`) are those of the model again, which is logged.

    Args:
        folder: folder of the files.
        stem: name of the files without suffixes: `model`, or `diffusion_pytorch_model` for parts of the base model.

    Raises:
        CheckpointError: there are no safetensors files, or a file is damaged, truncated or inconsistent.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        tensors = _read_header(single)
    elif index.is_file():
        tensors = _read_shards(index)
    else:
        found = explain_missing_weights(folder, stem)
        raise CheckpointError(f"{folder} has neither {single.name} nor {index.name}. {found}".rstrip())
    names, removed = unwrap_names(tensors)
    if removed:
        _log_removed(folder, [f"{part}." for part in removed], tensors)
        tensors = {names[name]: info for name, info in tensors.items()}
    return WeightSet(folder, tensors, tuple(f"{part}." for part in removed))


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        file: the file.

    Raises:
        CheckpointError: the file is missing, too large, or holds no JSON object.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} were expected.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.") from None
    except CheckpointError:
        raise
    except (OSError, RecursionError, ValueError) as error:  # a ValueError: no UTF-8, no JSON, or thousands of digits
        explained = explain_unreadable(file, "text")
        raise CheckpointError(f"{file} could not be read as JSON: {error}. {explained}".rstrip()) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; an object {{...}} was expected.")
    return content


def count_tensors(names: Sized) -> str:
    """Formats a number of tensors for a message: `1 tensor`, `3 tensors`."""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def format_names(names: list[str], limit: int = 3) -> str:
    """Formats names for a message: the first `limit` of them, and the number of the others."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def _log_removed(folder: Path, removed: list[str], names: Sized) -> None:
    what = " and ".join(f"'{part}'" for part in removed)
    logger.warning("Removed %s from the names of %s in %s.", what, count_tensors(names), folder)


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(str(file), framework="pt") as reader:
            tensors = {}
            for name in reader.keys():  # noqa: SIM118 - the reader is not a mapping
                header = reader.get_slice(name)
                tensors[name] = TensorInfo(file, tuple(header.get_shape()), header.get_dtype(), name)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        explained = explain_weight_file(file)
        raise CheckpointError(f"{file} is not a complete safetensors file: {error}. {explained}") from None
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors.")
    not_float = [name for name, info in tensors.items() if info.dtype not in FLOAT_DTYPES]
    if not_float:
        explained = explain_dtypes({name: tensors[name].dtype for name in not_float})
        raise CheckpointError(
            f"{file} has {count_tensors(not_float)} not in floating point of 16 bits or more "
            f"({tensors[not_float[0]].dtype}): {format_names(not_float)}; "
            f"weights of dtype {', '.join(FLOAT_DTYPES)} were expected. {explained}".rstrip()
        )
    return tensors


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names.")
    headers = {}
    for shard in sorted(set(weight_map.values())):
        # A name with a folder in it could point to any file of this machine.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the shard '{shard}'; a .safetensors file beside it was expected.")
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing. Download it again.")
        headers[shard] = _read_header(index.parent / shard)
    absent = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if absent:
        raise CheckpointError(f"{index} names {count_tensors(absent)} its shards do not have: {format_names(absent)}.")
    unlisted = [name for header in headers.values() for name in header if name not in weight_map]
    if unlisted:
        raise CheckpointError(
            f"{index} does not name {count_tensors(unlisted)} of its shards: {format_names(unlisted)}."
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}
