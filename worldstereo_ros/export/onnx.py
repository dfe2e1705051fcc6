"""Export of the control branch and the autoencoder to ONNX, with dynamic numbers of frames and sizes.

The files are run by onnxruntime, and TensorRT engines are built from them. Their metadata (see `metadata`) describe the
part, so that a file can be used without its checkpoint.
"""

from __future__ import annotations

import copy
import glob
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from worldstereo_ros import __version__
from worldstereo_ros.export.errors import ModelExportError, require_package
from worldstereo_ros.export.metadata import (
    DTYPES,
    METADATA_KEY,
    PARTS,
    autoencoder_example_inputs,
    control_example_inputs,
    weights_hash,
)
from worldstereo_ros.export.onnx_wrappers import ControlBranchWrapper, DecoderWrapper, EncoderWrapper
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.checkpoints.parameters import parameter_dtype
from worldstereo_ros.models.worldstereo.control import ControlBlock, ControlBranch
from worldstereo_ros.utils.atomic_files import sync_file, sync_folder
from worldstereo_ros.utils.errors import first_line

__all__ = [
    "ATTENTIONS",
    "DTYPES",
    "OPSET",
    "PARTS",
    "ExportedFile",
    "ModelExportError",
    "OnStep",
    "export_autoencoder",
    "export_control",
]

OPSET = 20
MIN_OPSET, MAX_OPSET = 18, 23
ATTENTIONS = ("fused", "standard")
# Weights above this size are written to an external file. Protobuf is limited to 2 GiB, graph included.
MAX_EMBEDDED_BYTES = 1 << 30
# (stage, steps done, steps in total)
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file that was written.

    Attributes:
        path: the ONNX file.
        external_data: file of the weights beside it; None = the weights are in the ONNX file.
        metadata: metadata of the file, see `metadata.read_metadata`.
    """

    path: Path
    external_data: Path | None
    metadata: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Size in bytes, with external data."""
        return self.path.stat().st_size + (self.external_data.stat().st_size if self.external_data else 0)


def export_control(
    branch: ControlBranch,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    opset: int = OPSET,
    attention: str = "fused",
    offsets: bool = False,
    max_embedded_bytes: int = MAX_EMBEDDED_BYTES,
    on_step: OnStep | None = None,
) -> ExportedFile:
    """Exports the control branch.

    Inputs are `latent` (batch, channels, frames, 2 rows, 2 columns), `volume` (batch, mask and rays, pixel frames,
    16 rows, 16 columns) and `temb` (batch, width of the time embedding), as in `ControlBranch.forward`. Outputs are
    `state_0`, ... (batch, tokens, dim), or `offset_0`, ... (batch, tokens, width of the backbone).

    Args:
        branch: control branch with patches of 1x2x2, on any device; it is not changed.
        path: the .onnx file to write, by a temporary name and a rename.
        dtype: dtype of weights, inputs and outputs; norms stay in float32.
        opset: ONNX operator set, 18 to 23.
        attention: `fused` is an operator of onnxruntime (com.microsoft MultiHeadAttention), whose memory grows linearly
            with the tokens; `standard` uses plain ONNX operators for other runtimes, and is fused by TensorRT.
        offsets: include the projections to the backbone's width. The outputs take five times the memory at full size.
        max_embedded_bytes: weights above this size are written to an external file beside `path`.
        on_step: called with the progress.

    Raises:
        ModelExportError: a package is missing, an argument is not supported, or the file cannot be written.
    """
    if attention not in ATTENTIONS:
        raise ModelExportError(f"The attention is '{attention}'; choose {' or '.join(ATTENTIONS)}.")
    from torch.export import Dim

    max_positions = ControlBranchWrapper.max_positions
    frames, rows, columns = (Dim(name, min=1, max=max_positions) for name in ("frames", "rows", "columns"))
    batch = Dim("batch", min=1, max=64)
    embedding = branch.controlnet_patch_embedding
    mask_embedding = branch.controlnet_mask_embedding
    p_t, p_h, p_w = branch.patch_size
    mask_conv = cast(nn.Conv3d, mask_embedding.mask_proj[0])
    stride = mask_conv.stride[0]
    if p_t != 1:
        raise ModelExportError(f"The control branch has patches of {p_t} keyframes; only patches of 1 are supported.")
    wrapper = ControlBranchWrapper(
        _copy_to_cpu(branch, dtype, "controlnet."), fused=attention == "fused", offsets=offsets
    )
    volume_frames = stride * frames - mask_embedding.pad_front if stride > 1 else frames
    layers = len(branch.controlnet_blocks)
    block = cast(ControlBlock, branch.controlnet_blocks[0])
    metadata = {
        "channels": embedding.in_channels,
        "add_channels": mask_conv.in_channels,
        "patch": [p_t, p_h, p_w],
        "mask_stride": stride,
        "mask_padding": mask_embedding.pad_front,
        "temb": block.norm1.linear.in_features,
        "dim": branch.proj_out[0].out_features if offsets else branch.proj_out[0].in_features,
        "heads": block.self_attn.heads,
        "layers": layers,
        "output": "offsets" if offsets else "states",
        "attention": attention,
        "weights": weights_hash(branch),
    }
    shapes = (
        {0: batch, 2: frames, 3: p_h * rows, 4: p_w * columns},
        {0: batch, 2: volume_frames, 3: 8 * p_h * rows, 4: 8 * p_w * columns},
        {0: batch},
    )
    return _export(
        wrapper,
        control_example_inputs(metadata, (2, 3, 4, 3), dtype),
        shapes,
        ["latent", "volume", "temb"],
        [f"{'offset' if offsets else 'state'}_{i}" for i in range(layers)],
        path,
        opset=opset,
        metadata={"part": "control", "dtype": _dtype_name(dtype), **metadata},
        max_embedded_bytes=max_embedded_bytes,
        on_step=on_step,
    )


def export_autoencoder(
    model: KeyframeAutoencoder | ImageAutoencoder,
    path: str | Path,
    *,
    part: str = "autoencoder-decoder",
    dtype: torch.dtype = torch.float32,
    opset: int = OPSET,
    max_embedded_bytes: int = MAX_EMBEDDED_BYTES,
    on_step: OnStep | None = None,
) -> ExportedFile:
    """Exports the encoder or the decoder of an autoencoder, including the normalisation of latents.

    `autoencoder-encoder` maps `pictures` (frames, 3, 8 rows, 8 columns) in [-1, 1] to `latents` (frames, 16, rows,
    columns); `autoencoder-decoder` maps `latents` to `pictures`.

    Args:
        model: autoencoder on any device; it is not changed.
        path: see `export_control`.
        part: `autoencoder-encoder` or `autoencoder-decoder`.
        dtype: dtype of weights, inputs and outputs.
        opset: see `export_control`.
        max_embedded_bytes: see `export_control`.
        on_step: see `export_control`.

    Raises:
        ModelExportError: see `export_control`, or there is no such part.
    """
    if part not in PARTS[1:]:
        raise ModelExportError(f"The part is '{part}'; choose {' or '.join(PARTS[1:])}.")
    from torch.export import Dim

    frames = Dim("frames", min=1, max=1024)
    rows, columns = (Dim(name, min=1, max=2048) for name in ("rows", "columns"))
    copied = _copy_to_cpu(model, dtype)
    is_encoder = part == "autoencoder-encoder"
    wrapper: nn.Module = EncoderWrapper(copied) if is_encoder else DecoderWrapper(copied)
    ratio = model.spatial_compression_ratio
    metadata = {
        "part": part,
        "dtype": _dtype_name(dtype),
        "factor": ratio,
        "channels": model.image_channels,
        "latent_channels": model.latent_channels,
        "weights": weights_hash(model),
    }
    scale = ratio if is_encoder else 1
    names = ("pictures", "latents") if is_encoder else ("latents", "pictures")
    return _export(
        wrapper,
        autoencoder_example_inputs(metadata, (2, 3, 4), dtype),
        ({0: frames, 2: scale * rows, 3: scale * columns},),
        [names[0]],
        [names[1]],
        path,
        opset=opset,
        metadata=metadata,
        max_embedded_bytes=max_embedded_bytes,
        on_step=on_step,
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy_to_cpu(module: nn.Module, dtype: torch.dtype, prefix: str = "") -> Any:
    """Returns a copy on the CPU, with parameters cast as in a transformer where the module is `prefix`."""
    copied = copy.deepcopy(module).to("cpu").requires_grad_(False).eval()
    for name, parameter in copied.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(prefix + name, dtype) if prefix else dtype)
    return copied


def _export(
    wrapper: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    dynamic_shapes: tuple[dict[int, Any], ...],
    input_names: list[str],
    output_names: list[str],
    path: str | Path,
    *,
    opset: int,
    metadata: Mapping[str, Any],
    max_embedded_bytes: int,
    on_step: OnStep | None,
) -> ExportedFile:
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ModelExportError(f"{path} ends in '{path.suffix}'; a model is written to an .onnx file.")
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ModelExportError(f"The opset is {opset}; {MIN_OPSET} to {MAX_OPSET} are supported.")
    for package in ("onnx", "onnxscript"):
        require_package(package)
    report = on_step or (lambda stage, done, total: None)
    report("tracing", 0, 1)
    try:
        with _silence_exporter(), torch.no_grad():
            program = torch.onnx.export(
                wrapper.eval(),
                example_inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error)
        raise ModelExportError(f"The {metadata['part']} could not be traced to ONNX: {reason}.") from error
    report("tracing", 1, 1)
    assert program is not None
    metadata = {**metadata, "opset": opset, "version": __version__, "torch": torch.__version__}
    program.model.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    program.model.producer_name, program.model.producer_version = "worldstereo_ros", __version__
    weight_bytes = sum(t.numel() * t.element_size() for t in wrapper.state_dict().values())
    external = weight_bytes > max_embedded_bytes
    report("writing", 0, 1)
    external_data = _save(program.model, path, external=external, tag=str(metadata["weights"])[:12])
    report("writing", 1, 1)
    return ExportedFile(path, external_data, metadata)


def _save(model: Any, path: Path, *, external: bool, tag: str) -> Path | None:
    """Writes external data under a unique name, then the graph that refers to it: a crash cannot mix two exports."""
    ir = require_package("onnx_ir")
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
        data = path.with_name(f"{path.name}.{tag}.{os.urandom(3).hex()}.data") if external else None
        ir.save(model, folder / path.name, external_data=data.name if data else None)
        for file in (data, path):
            if file is not None:
                sync_file(folder / file.name)
                (folder / file.name).replace(file)
        sync_folder(path.parent, path)
        for stale in path.parent.glob(f"{glob.escape(path.name)}.*.{'?' * 6}.data"):  # of earlier exports
            if stale != data:
                stale.unlink(missing_ok=True)
        return data
    except OSError as error:
        raise ModelExportError(f"The model could not be written to {path}: {error.strerror or error}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Hides the exporter's warnings about absent packages and renamed values, which a user cannot act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
