"""The control branch and the keyframe autoencoder as ONNX files with dynamic frames and sizes.

A file is what onnxruntime runs (`runtime`) and what TensorRT engines are built from (`tensorrt`). It carries what made
it in its metadata, so that a reader needs no checkpoint to know what to feed it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from worldstereo_ros import __version__
from worldstereo_ros.export.onnx_wrappers import ControlBranchWrapper, DecoderWrapper, EncoderWrapper
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.checkpoints.loading import parameter_dtype
from worldstereo_ros.models.worldstereo.control import ControlBlock, ControlBranch
from worldstereo_ros.utils.errors import WorldStereoError

OPSET = 20
PARTS = ("control", "autoencoder-encoder", "autoencoder-decoder")
ATTENTIONS = ("fused", "standard")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEY = "worldstereo"  # of the metadata
EXTERNAL_BYTES = 1 << 30  # protobuf ends at two gigabytes; half of that leaves room for the graph
# (stage, steps done, steps in all)
OnStep = Callable[[str, int, int], None]


class ModelExportError(WorldStereoError, RuntimeError):
    """A model that cannot be exported, or a file that cannot be used. The message is a sentence."""


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Attributes:
        path: the ONNX file.
        data: the file of weights beside it, None where they are inside.
        description: what its metadata say.
    """

    path: Path
    data: Path | None
    description: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.path.stat().st_size + (self.data.stat().st_size if self.data else 0)


def export_control(
    branch: ControlBranch,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    opset: int = OPSET,
    attention: str = "fused",
    offsets: bool = False,
    external_bytes: int = EXTERNAL_BYTES,
    on_step: OnStep | None = None,
) -> ExportedFile:
    """Writes the control branch.

    Inputs `latent` (batch, channels, frames, 2 rows, 2 columns), `volume` (batch, mask and rays, pixel frames, 16 rows,
    16 columns) and `temb` (batch, width of the time embedding) as in `ControlBranch.forward`, for patches of 1x2x2;
    outputs `state_0` ... (batch, tokens, dim), or `offset_0` ... (batch, tokens, width of the backbone).

    Args:
        branch: on any device; it is not changed.
        path: an .onnx file. Written aside and renamed; weights above `external_bytes` go to a file beside it.
        dtype: of weights, inputs and outputs; norms stay in float32.
        opset: of ONNX, 18 or later.
        attention: `fused` is onnxruntime's own operator (com.microsoft MultiHeadAttention), whose memory grows with the
            tokens; `standard` is plain ONNX, which every runtime reads and which TensorRT fuses by itself.
        offsets: True puts the projections to the backbone's width inside: complete, and five times the output at full
            size.
        external_bytes: see `path`.
        on_step: called as work is done.

    Raises:
        ModelExportError: packages are missing, the settings cannot be exported, or the disk refuses.
    """
    if attention not in ATTENTIONS:
        raise ModelExportError(f"The attention '{attention}' is not known; choose {' or '.join(ATTENTIONS)}.")
    from torch.export import Dim

    frames, rows, columns = (
        Dim(name, min=1, max=ControlBranchWrapper.positions) for name in ("frames", "rows", "columns")
    )
    batch = Dim("batch", min=1, max=64)
    embedding = branch.controlnet_patch_embedding
    mask = branch.controlnet_mask_embedding
    p_t, p_h, p_w = branch.patch_size
    mask_conv = cast(nn.Conv3d, mask.mask_proj[0])
    stride = mask_conv.stride[0]
    if p_t != 1:
        raise ModelExportError(f"The control branch has patches of {p_t} keyframes; patches of one are exported.")
    graph = ControlBranchWrapper(_copy(branch, dtype, "controlnet."), fused=attention == "fused", offsets=offsets)
    volume_frames = stride * frames - mask.pad_front if stride > 1 else frames
    count = len(branch.controlnet_blocks)
    made = [f"{'offset' if offsets else 'state'}_{i}" for i in range(count)]
    block = cast(ControlBlock, branch.controlnet_blocks[0])
    description = {
        "channels": embedding.in_channels,
        "add_channels": mask_conv.in_channels,
        "patch": [p_t, p_h, p_w],
        "mask_stride": stride,
        "mask_padding": mask.pad_front,
        "temb": block.norm1.linear.in_features,
        "dim": branch.proj_out[0].out_features if offsets else branch.proj_out[0].in_features,
        "heads": block.self_attn.heads,
        "layers": count,
        "output": "offsets" if offsets else "states",
        "attention": attention,
        "weights": weights_hash(branch),
    }
    example = control_example(description, (2, 3, 4, 3), dtype)
    shapes = (
        {0: batch, 2: frames, 3: p_h * rows, 4: p_w * columns},
        {0: batch, 2: volume_frames, 3: 8 * p_h * rows, 4: 8 * p_w * columns},
        {0: batch},
    )
    return _export(
        graph,
        example,
        shapes,
        ["latent", "volume", "temb"],
        made,
        path,
        opset=opset,
        description={"part": "control", "dtype": _name(dtype), **description},
        external_bytes=external_bytes,
        on_step=on_step,
    )


def export_autoencoder(
    model: KeyframeAutoencoder,
    path: str | Path,
    *,
    part: str = "autoencoder-decoder",
    dtype: torch.dtype = torch.float32,
    opset: int = OPSET,
    external_bytes: int = EXTERNAL_BYTES,
    on_step: OnStep | None = None,
) -> ExportedFile:
    """Writes the encoder or the decoder of the keyframe autoencoder, normalisation of the latents included.

    `autoencoder-encoder`: `pictures` (frames, 3, 8 rows, 8 columns) in [-1, 1] to `latents` (frames, 16, rows,
    columns); `autoencoder-decoder` the other way.

    Args:
        model: on any device; it is not changed.
        path, dtype, opset, external_bytes, on_step: as `export_control`.
        part: which of the two.

    Raises:
        ModelExportError: as `export_control`, or no such part.
    """
    if part not in PARTS[1:]:
        raise ModelExportError(f"The part '{part}' is not of the autoencoder; choose {' or '.join(PARTS[1:])}.")
    from torch.export import Dim

    frames = Dim("frames", min=1, max=1024)
    rows, columns = (Dim(name, min=1, max=2048) for name in ("rows", "columns"))
    clone = _copy(model, dtype)
    encoding = part == "autoencoder-encoder"
    graph: nn.Module = EncoderWrapper(clone) if encoding else DecoderWrapper(clone)
    factor = model.factor
    description = {
        "part": part,
        "dtype": _name(dtype),
        "factor": factor,
        "channels": model.config.in_channels,
        "latent_channels": model.config.z_dim,
        "weights": weights_hash(model),
    }
    scale = factor if encoding else 1
    names = ("pictures", "latents") if encoding else ("latents", "pictures")
    return _export(
        graph,
        autoencoder_example(description, (2, 3, 4), dtype),
        ({0: frames, 2: scale * rows, 3: scale * columns},),
        [names[0]],
        [names[1]],
        path,
        opset=opset,
        description=description,
        external_bytes=external_bytes,
        on_step=on_step,
    )


def control_example(
    description: Mapping[str, Any], size: Sequence[int], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of the control branch for (batch, frames, token rows, token columns), from a normal distribution."""
    batch, frames, rows, columns = size
    latent, volume, temb = control_shapes(description, batch, frames, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator).to(dtype) for shape in (latent, volume, temb))
    return tuple(made)  # type: ignore[return-value]


def control_shapes(
    description: Mapping[str, Any], batch: int, frames: int, rows: int, columns: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of latent, volume and temb for a grid of tokens."""
    _, p_h, p_w = description["patch"]
    stride = description["mask_stride"]
    pixel_frames = stride * frames - description["mask_padding"] if stride > 1 else frames
    height, width = p_h * rows, p_w * columns
    return (
        (batch, description["channels"], frames, height, width),
        (batch, description["add_channels"], pixel_frames, 8 * height, 8 * width),
        (batch, description["temb"]),
    )


def autoencoder_example(
    description: Mapping[str, Any], size: Sequence[int], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor]:
    """The input of encoder or decoder for (frames, latent rows, latent columns)."""
    frames, rows, columns = size
    factor = description["factor"]
    generator = torch.Generator().manual_seed(seed)
    if description["part"] == "autoencoder-encoder":
        shape = (frames, description["channels"], factor * rows, factor * columns)
        return ((2 * torch.rand(shape, generator=generator) - 1).to(dtype),)
    shape = (frames, description["latent_channels"], rows, columns)
    return (torch.randn(shape, generator=generator).to(dtype),)


def read_description(path: str | Path) -> dict[str, Any]:
    """What a file says of itself.

    Raises:
        ModelExportError: there is none, or it was not written by this module.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelExportError(f"There is no file {path}.")
    onnx = require_package("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
        found = {entry.key: entry.value for entry in model.metadata_props}
        description = json.loads(found[KEY])
        if description["part"] not in PARTS or not description["weights"]:
            raise KeyError("part")
    except KeyError:
        raise ModelExportError(
            f"{path} does not say which part of a model it is; write it with `worldstereo export`."
        ) from None
    except Exception as error:  # protobuf's errors have no common base and change between its versions
        raise ModelExportError(f"{path} is no ONNX file that can be read ({type(error).__name__}).") from None
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise ModelExportError(f"{path} keeps its weights in {entry.value}, which is not beside it.")
    return description


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and numbers of all tensors; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_package(name: str) -> Any:
    """Imports an optional package.

    Raises:
        ModelExportError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelExportError(
            f"The package {name} is needed and cannot be imported ({error}); run pip install 'worldstereo_ros[export]'."
        ) from None


# --- parts ---


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy(module: nn.Module, dtype: torch.dtype, prefix: str = "") -> Any:
    clone = copy.deepcopy(module).to("cpu").requires_grad_(False).eval()
    for name, parameter in clone.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(prefix + name, dtype) if prefix else dtype)
    return clone


def _export(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, Any], ...],
    inputs: list[str],
    outputs: list[str],
    path: str | Path,
    *,
    opset: int,
    description: Mapping[str, Any],
    external_bytes: int,
    on_step: OnStep | None,
) -> ExportedFile:
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ModelExportError(f"{path} ends in '{path.suffix}'; a model is written to an .onnx file.")
    if not 18 <= opset <= 23:
        raise ModelExportError(f"The opset is {opset}; 18 to 23 are supported.")
    for package in ("onnx", "onnxscript"):
        require_package(package)
    report = on_step or (lambda stage, done, total: None)
    report("tracing", 0, 1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                example,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelExportError(f"The {description['part']} could not be traced to ONNX: {reason}") from error
    report("tracing", 1, 1)
    assert program is not None
    full = {**description, "opset": opset, "version": __version__, "torch": torch.__version__}
    program.model.metadata_props[KEY] = json.dumps(full, sort_keys=True)
    program.model.producer_name, program.model.producer_version = "worldstereo_ros", __version__
    weight_bytes = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    report("writing", 0, 1)
    data = _save(program.model, path, external=weight_bytes > external_bytes, tag=str(description["weights"])[:12])
    report("writing", 1, 1)
    return ExportedFile(path, data, full)


def _save(model: Any, path: Path, *, external: bool, tag: str) -> Path | None:
    """Weights first under a name of their own, then the graph that points to them: no crash can mix two exports."""
    ir = require_package("onnx_ir")
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
        data = path.with_name(f"{path.name}.{tag}.{os.urandom(3).hex()}.data") if external else None
        ir.save(model, folder / path.name, external_data=data.name if data else None)
        if data:
            (folder / data.name).replace(data)
        (folder / path.name).replace(path)
        for stale in path.parent.glob(f"{path.name}.*.data"):
            if stale != data:
                stale.unlink(missing_ok=True)
        return data
    except OSError as error:
        raise ModelExportError(f"The model could not be written to {path}: {error.strerror or error}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that are absent and of names that it changes: nothing a reader can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
