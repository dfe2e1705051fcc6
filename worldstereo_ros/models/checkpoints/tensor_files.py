"""Tensors of published files by name, whatever their format: safetensors, whole or in shards, and PyTorch pickles.

A pickle is opened with `weights_only`, so that it can hold tensors and plain containers and never runs code. It is
mapped into memory where its format allows it: as with safetensors, shapes are known before a weight is copied.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldstereo_ros.models.checkpoints.diagnosis import PICKLE_SUFFIXES
from worldstereo_ros.models.checkpoints.names import unwrap_names
from worldstereo_ros.models.checkpoints.parameters import check_memory
from worldstereo_ros.models.checkpoints.weights import (
    CheckpointError,
    TensorInfo,
    WeightSet,
    count_tensors,
    format_names,
    open_weights,
)
from worldstereo_ros.utils.errors import first_line
from worldstereo_ros.utils.file_kinds import explain_unreadable, identify_file

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_STATE_DICT = "state_dict"  # the key under which training frameworks store the tensors


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one model, in one file or in shards.

    Attributes:
        path: what was opened, for messages.
        tensors: header entries by tensor name.
        parts: the sets that they are read from.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    parts: tuple[WeightSet | PickledTensors, ...]

    def read(self, names: Sequence[str], device: str | torch.device = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) one at a time, file by file.

        Args:
            names: names of the tensors to read.
            device: device of the tensors.

        Raises:
            CheckpointError: a file cannot be read.
        """
        for part in self.parts:
            yield from part.read([name for name in names if name in part.tensors], device)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name."""
        return {name: info.shape for name, info in self.tensors.items()}


@dataclass(frozen=True)
class PickledTensors:
    """The tensors of a PyTorch file.

    Attributes:
        tensors: header entries by tensor name.
        values: the tensors, mapped into memory where the format allows it.
    """

    tensors: Mapping[str, TensorInfo]
    values: Mapping[str, torch.Tensor]

    def read(self, names: list[str], device: str | torch.device = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) one at a time."""
        for name in names:
            yield name, self.values[self.tensors[name].key].to(device)


def open_tensors(path: Path, stem: str = "") -> TensorFiles:
    """Opens a file of tensors, or the files of one model in a folder; only shapes are read.

    Args:
        path: a `.safetensors` file (one shard stands for all), a PyTorch file (`.ckpt`, `.pth`, `.pt`, `.bin`), or a
            folder.
        stem: name of the files in a folder, without `-00001-of-00007.safetensors`.

    Raises:
        CheckpointError: the file is missing, incomplete, damaged, holds something other than tensors in floating
            point, or is of another kind.
    """
    if path.is_dir():
        return _open_folder(path, stem)
    if not path.is_file():
        raise CheckpointError(f"The file {path} does not exist.")
    if match := _SHARD.fullmatch(path.name):
        return _open_folder(path.parent, match["stem"])
    if path.suffix == ".safetensors":
        weights = open_weights(path.parent, path.stem)
        return TensorFiles(path, weights.tensors, (weights,))
    if path.suffix in PICKLE_SUFFIXES:
        pickled = _open_pickle(path)
        return TensorFiles(path, pickled.tensors, (pickled,))
    raise CheckpointError(
        f"{path} has the suffix '{path.suffix}'; .safetensors or a PyTorch file ({', '.join(PICKLE_SUFFIXES)}) was "
        "expected."
    )


def _open_folder(folder: Path, stem: str) -> TensorFiles:
    """Opens `<stem>.safetensors`, or shards, which need no index."""
    shards = {
        int(match["index"]): (file, int(match["count"]))
        for file in sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
        if (match := _SHARD.fullmatch(file.name)) and match["stem"] == stem
    }
    has_index = (folder / f"{stem}.safetensors.index.json").is_file()
    if has_index or (folder / f"{stem}.safetensors").is_file() or not shards:
        weights = open_weights(folder, stem)
        return TensorFiles(folder, weights.tensors, (weights,))
    counts = {count for _, count in shards.values()}
    if len(counts) != 1:
        raise CheckpointError(
            f"{folder} has shards of several downloads ({format_names([f.name for f, _ in shards.values()])}); keep "
            "those of one."
        )
    count = counts.pop()
    missing = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1) if i not in shards]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {count} files: {format_names(missing)}.")
    parts = tuple(open_weights(folder, file.stem) for _, (file, _) in sorted(shards.items()))
    names = [name for part in parts for name in part.tensors]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if twice:
        raise CheckpointError(f"The files in {folder} hold {count_tensors(twice)} twice: {format_names(twice)}.")
    return TensorFiles(folder, {n: info for part in parts for n, info in part.tensors.items()}, parts)


def _open_pickle(file: Path) -> PickledTensors:
    content = _load_pickle(file)
    if isinstance(content, Mapping) and set(content) == {_STATE_DICT}:
        content = content[_STATE_DICT]
    if not isinstance(content, Mapping) or not content:
        what = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(f"{file} holds {what}; a dict of tensors was expected.")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{file} has more than tensors ({format_names(others)}); save its tensors alone.")
    wrong = [str(name) for name, value in content.items() if value.dtype not in _DTYPES]
    if wrong:
        dtype = str(content[wrong[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{file} has {count_tensors(wrong)} not in floating point of 16 bits or more ({dtype}): "
            f"{format_names(wrong)}; quantised weights are not supported."
        )
    names, _ = unwrap_names([str(name) for name in content])
    tensors = {
        names[str(name)]: TensorInfo(file, tuple(value.shape), _DTYPES[value.dtype], name)
        for name, value in content.items()
    }
    return PickledTensors(tensors, content)


def _load_pickle(file: Path) -> Any:
    kind = identify_file(file)
    mapped = kind.name == "zip"  # the older format is one stream, and is read as a whole
    if kind.name not in ("zip", "pickle"):
        explained = explain_unreadable(file) or "It is damaged; download it again."
        raise CheckpointError(f"{file} is no PyTorch file. {explained}")
    if not mapped:
        check_memory(file.stat().st_size, torch.device("cpu"), file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, which could run code when it is opened, and was refused "
            f"({first_line(error)}). Ask its author for a safetensors file."
        ) from None
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(f"{file} cannot be read as a PyTorch file: {first_line(error)}.") from None
