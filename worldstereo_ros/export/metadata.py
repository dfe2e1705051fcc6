"""The metadata of exported ONNX files: which part of which model a file is, and the shapes of its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldstereo_ros.export.errors import ModelExportError, require_package

PARTS = ("control", "autoencoder-encoder", "autoencoder-decoder")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
METADATA_KEY = "worldstereo"  # key in the model's metadata_props; the value is JSON


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads the metadata of an exported file.

    Args:
        path: the ONNX file.

    Raises:
        ModelExportError: the file is missing or damaged, lacks its external data, or was not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelExportError(f"There is no file {path}.")
    onnx = require_package("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        metadata = json.loads(properties[METADATA_KEY])
        if metadata["part"] not in PARTS or not metadata["weights"]:
            raise KeyError("part")
    except KeyError:
        raise ModelExportError(
            f"The metadata of {path} do not name a part of a model; write the file with `worldstereo export`."
        ) from None
    except Exception as error:  # protobuf's errors have no common base and change between its versions
        raise ModelExportError(f"{path} is not a readable ONNX file ({type(error).__name__}).") from None
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise ModelExportError(f"The weights of {path} are in {entry.value}, which is not beside it.")
    return metadata


def weights_hash(module: nn.Module) -> str:
    """Computes the SHA-256 of names, dtypes, shapes and values of all tensors; it does not depend on the device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def control_shapes(
    metadata: Mapping[str, Any], batch: int, frames: int, rows: int, columns: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Computes the input shapes of the control branch.

    Args:
        metadata: metadata of the file.
        batch: batch size.
        frames: keyframes.
        rows: rows of tokens in a keyframe.
        columns: columns of tokens in a keyframe.

    Returns:
        Shapes of `latent`, `volume` and `temb`.
    """
    _, patch_height, patch_width = metadata["patch"]
    stride = metadata["mask_stride"]
    pixel_frames = stride * frames - metadata["mask_padding"] if stride > 1 else frames
    height, width = patch_height * rows, patch_width * columns
    return (
        (batch, metadata["channels"], frames, height, width),
        (batch, metadata["add_channels"], pixel_frames, 8 * height, 8 * width),
        (batch, metadata["temb"]),
    )


def control_example_inputs(
    metadata: Mapping[str, Any], size: Sequence[int], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws inputs of the control branch from a normal distribution.

    Args:
        metadata: metadata of the file.
        size: (batch, keyframes, rows of tokens, columns of tokens).
        dtype: dtype of the inputs.
        seed: random seed.

    Returns:
        `latent`, `volume` and `temb`.
    """
    batch, frames, rows, columns = size
    generator = torch.Generator().manual_seed(seed)
    shapes = control_shapes(metadata, batch, frames, rows, columns)
    latent, volume, temb = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return latent, volume, temb


def autoencoder_example_inputs(
    metadata: Mapping[str, Any], size: Sequence[int], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor]:
    """Draws the input of the encoder (uniform in [-1, 1]) or of the decoder (normal).

    Args:
        metadata: metadata of the file.
        size: (frames, latent rows, latent columns).
        dtype: dtype of the input.
        seed: random seed.

    Returns:
        The images or latents.
    """
    frames, rows, columns = size
    factor = metadata["factor"]
    generator = torch.Generator().manual_seed(seed)
    if metadata["part"] == "autoencoder-encoder":
        shape = (frames, metadata["channels"], factor * rows, factor * columns)
        return ((2 * torch.rand(shape, generator=generator) - 1).to(dtype),)
    shape = (frames, metadata["latent_channels"], rows, columns)
    return (torch.randn(shape, generator=generator).to(dtype),)
