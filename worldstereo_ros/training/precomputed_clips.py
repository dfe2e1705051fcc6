"""Clips that are sampled and encoded before training and kept on disk.

On a slow machine, sampling and encoding a clip takes longer than a training step. Each batch of encoded clips is one
safetensors file. Plücker rays are not stored: they take four times the space of everything else, and the cameras give
the same values again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file

from worldstereo_ros.models.worldstereo.camera_embedding import plucker_embedding
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.data.clip_sampling import ClipBatch
from worldstereo_ros.training.flow_matching import LatentClips
from worldstereo_ros.training.trainer import TrainingError

RESERVED_BYTES = 500_000_000  # free disk space to leave for weights and logs
_INPUT = "input."  # prefix of the transformer's arguments


def precompute_clips(
    folder: Path,
    count: int,
    sample: Callable[[np.random.Generator], ClipBatch],
    encode: Callable[[ClipBatch], LatentClips],
    *,
    seed: list[int],
    source: Mapping[str, str],
    console: Console | None = None,
) -> list[Path]:
    """Samples, encodes and writes batches until there are `count` clips. Resumes where an earlier call stopped.

    Batch i has its own random numbers, so that an interruption does not change the clips.

    Args:
        folder: folder of the files.
        count: number of clips.
        sample: samples a batch.
        encode: encodes a batch.
        seed: random seed.
        source: what the clips depend on, such as the configuration and a hash of the autoencoder. Files with
            another source are rejected.
        console: for the progress bar.

    Returns:
        The files, in order.

    Raises:
        TrainingConfigError: a file in the folder has another source.
        TrainingError: there is not enough disk space. Nothing was written in this call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("[0-9]*.safetensors.*.part"):
        unfinished.unlink()
    console = console or Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    files: list[Path] = []
    done, checked = 0, False
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("encoding clips", total=count)
        while done < count:
            file = folder / f"{len(files):06d}.safetensors"
            if file.is_file():
                done += _check_file(file, source)
            else:
                batch = sample(np.random.default_rng([*seed, len(files)]))
                tensors = _pack(encode(batch), batch)
                if not checked:
                    _check_space(folder, tensors, count - done)
                    checked = True
                part = file.with_name(f"{file.name}.{os.getpid()}.part")
                save_file(tensors, part, {"source": json.dumps(dict(source))})
                part.replace(file)
                done += len(tensors["latents"])
            files.append(file)
            bar.update(task, completed=min(done, count))
    return files


class PrecomputedClips:
    """An endless stream of precomputed batches, in a new random order in each epoch.

    Args:
        files: result of `precompute_clips`.
        seed: random seed.
        device: device of the tensors.
    """

    def __init__(self, files: list[Path], seed: list[int], device: torch.device) -> None:
        self.files, self.device = files, device
        self._random = np.random.default_rng(seed)
        self._queue: list[int] = []

    def take(self) -> LatentClips:
        """The next batch."""
        if not self._queue:
            self._queue = [int(index) for index in self._random.permutation(len(self.files))]
        return load_clips(self.files[self._queue.pop()], self.device)


def load_clips(file: Path, device: torch.device) -> LatentClips:
    """Loads a batch of `precompute_clips`; the tensors are equal bit for bit to those that were encoded."""
    with safe_open(str(file), framework="pt") as reader:
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - no mapping
    inputs = {name.removeprefix(_INPUT): value for name, value in tensors.items() if name.startswith(_INPUT)}
    if "render_mask" in inputs:
        inputs["render_mask"] = inputs["render_mask"].float()
    if "cameras" in tensors:
        height, width = inputs["render_mask"].shape[-2:]
        inputs["camera_embedding"] = _plucker(tensors["cameras"], tensors["intrinsics"], height, width)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return LatentClips(tensors["latents"].to(device), tensors["condition"].to(device), inputs)


def hash_weights(folder: Path) -> str:
    """SHA-256 of all safetensors files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _pack(clips: LatentClips, batch: ClipBatch) -> dict[str, torch.Tensor]:
    """Tensors of a file: only those that cannot be recomputed, in the smallest lossless type."""
    inputs = dict(clips.inputs)
    tensors = {"latents": clips.latents, "condition": clips.condition}
    if "camera_embedding" in inputs:
        embedding = inputs["camera_embedding"].cpu()
        height, width = embedding.shape[-2:]
        cameras, intrinsics = batch.cameras.cpu(), batch.intrinsics.cpu()
        if torch.equal(_plucker(cameras, intrinsics, height, width), embedding):
            del inputs["camera_embedding"]
            tensors |= {"cameras": cameras, "intrinsics": intrinsics}
    if "render_mask" in inputs and torch.equal(inputs["render_mask"].bool().float(), inputs["render_mask"]):
        inputs["render_mask"] = inputs["render_mask"].to(torch.uint8)
    tensors |= {_INPUT + name: value for name, value in inputs.items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _plucker(cameras: torch.Tensor, intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(b, 6, F, height, width) float32 of cameras (b, F, 4, 4) and intrinsics (b, 3, 3)."""
    pairs = zip(cameras.numpy(), intrinsics.numpy(), strict=True)
    return torch.stack([torch.from_numpy(plucker_embedding(camera, K, height, width)) for camera, K in pairs])


def _check_file(file: Path, source: Mapping[str, str]) -> int:
    """Number of clips in a file. Raises TrainingConfigError if they have another source."""
    with safe_open(str(file), framework="pt") as reader:
        found = json.loads((reader.metadata() or {}).get("source", "{}"))
        if found != dict(source):
            changed = sorted(key for key in {*found, *source} if found.get(key) != source.get(key))
            raise TrainingConfigError(
                f"The clips in {file.parent} were made with another configuration or other weights "
                f"({', '.join(changed)} changed); delete the folder to make new ones."
            )
        return reader.get_slice("latents").get_shape()[0]


def _check_space(folder: Path, tensors: Mapping[str, torch.Tensor], count: int) -> None:
    """Raises TrainingError if `count` clips of the size of these do not fit on the disk."""
    size = sum(tensor.nbytes for tensor in tensors.values()) / len(tensors["latents"]) * count
    free = shutil.disk_usage(folder).free
    if size + RESERVED_BYTES > free:
        raise TrainingError(
            f"{count} precomputed clips take about {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB of free "
            f"disk space, of which {RESERVED_BYTES / 1e9:.1f} GB are reserved. Lower precomputed_clips or free "
            "disk space."
        )
