"""Exported models as replacements of torch modules, run by onnxruntime or TensorRT.

Example:
    transformer = load_transformer(checkpoint)
    use_control_backend(transformer, "onnxruntime")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from worldstereo_ros import __version__
from worldstereo_ros.export.engine_cache import EngineCache
from worldstereo_ros.export.errors import ModelExportError, require_package
from worldstereo_ros.export.metadata import DTYPES, control_shapes, read_metadata, weights_hash
from worldstereo_ros.export.onnx import OPSET, OnStep, export_control
from worldstereo_ros.export.runners import OnnxRuntimeRunner, Runner, choose_providers
from worldstereo_ros.export.tensorrt import TensorRTRunner, load_tensorrt
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.worldstereo.control import ControlBranch
from worldstereo_ros.utils.errors import InputError

BACKENDS = ("torch", "onnxruntime", "tensorrt")


class ExportedControlBranch(nn.Module):
    """An exported control branch, as replacement of `transformer.controlnet`.

    Args:
        runner: runner of the file.
        metadata: metadata of the file, see `read_metadata`.
        projections: `proj_out` of the torch branch, for files that output states; None for files that output offsets.
        dtype: dtype of the outputs; None = that of the projections, else of the file.
        render_head: `render_head` of the torch branch, for small models that have it.
        layout_embedding: `layout_embedding` of the torch branch, for small models that have it.

    Raises:
        ModelExportError: the file is of another part, or `projections` do not fit its outputs.
    """

    def __init__(
        self,
        runner: Runner,
        metadata: Mapping[str, Any],
        projections: nn.ModuleList | None = None,
        dtype: torch.dtype | None = None,
        render_head: nn.Module | None = None,
        layout_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if metadata["part"] != "control":
            raise ModelExportError(f"The file is of the part {metadata['part']}; the part control was expected.")
        if (metadata["output"] == "states") != (projections is not None):
            given = "no projections were given" if projections is None else "projections were given"
            raise ModelExportError(
                f"The file outputs {metadata['output']}, but {given}; they are needed for states only."
            )
        self.runner, self.metadata = runner, dict(metadata)
        self.proj_out, self.render_head, self.layout_embedding = projections, render_head, layout_embedding
        self.file_dtype = DTYPES[metadata["dtype"]]
        if dtype is None:
            dtype = self.file_dtype if projections is None else cast(nn.Linear, projections[0]).weight.dtype
        self.out_dtype = dtype

    def forward(self, latent: torch.Tensor, volume: torch.Tensor, temb: torch.Tensor) -> list[torch.Tensor]:
        """Computes the states or offsets, see `ControlBranch.forward`.

        Raises:
            InputError: the inputs do not fit each other or the file.
            ModelExportError: the runtime failed.
        """
        metadata = self.metadata
        _, p_h, p_w = metadata["patch"]
        batch, _, frames, height, width = latent.shape
        rows, columns = height // p_h, width // p_w
        shapes = control_shapes(metadata, batch, frames, rows, columns)
        for name, tensor, shape in zip(("latent", "volume", "temb"), (latent, volume, temb), shapes, strict=True):
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} of the control branch has shape {tuple(tensor.shape)}; {shape} was expected.")
        inputs = {
            name: tensor.detach().to(self.file_dtype).contiguous()
            for name, tensor in (("latent", latent), ("volume", volume), ("temb", temb))
        }
        stem = "state" if metadata["output"] == "states" else "offset"
        shape = (batch, frames * rows * columns, metadata["dim"])
        outputs = self.runner(inputs, {f"{stem}_{i}": shape for i in range(metadata["layers"])}, self.file_dtype)
        return [tensor.to(self.out_dtype) for tensor in outputs]

    def residual(self, index: int, state: torch.Tensor) -> torch.Tensor:
        """Projects a state to the residual of a backbone block, see `ControlBranch.residual`; offsets are unchanged."""
        return state if self.proj_out is None else self.proj_out[index](state)


class ExportedAutoencoder(nn.Module):
    """An autoencoder with exported encoder, decoder or both, made by `of`.

    A part without a file is run by torch; the torch weights of a part with a file are freed.
    """

    encoder_modules: tuple[str, ...]
    decoder_modules: tuple[str, ...]
    runners: dict[str, Runner | None]
    _dtype: torch.dtype
    _device: torch.device

    @staticmethod
    def of(
        model: KeyframeAutoencoder | ImageAutoencoder,
        *,
        encoder: Runner | None = None,
        decoder: Runner | None = None,
        file_dtype: torch.dtype = torch.float32,
    ) -> Any:
        """Replaces parts of an autoencoder.

        Args:
            model: the torch autoencoder; shares its weights with the result.
            encoder: runner of a file with the encoder; None = torch.
            decoder: runner of a file with the decoder; None = torch.
            file_dtype: dtype of the files.

        Returns:
            An `ExportedAutoencoder` with the interface of `model`.
        """
        kind = ExportedImageAutoencoder if isinstance(model, ImageAutoencoder) else ExportedKeyframeAutoencoder
        with torch.device("meta"):
            exported: Any = kind(**{k: v for k, v in model.config.items() if not k.startswith("_")})
        exported.load_state_dict(model.state_dict(), assign=True)
        exported.runners = {"encoder": encoder, "decoder": decoder}
        exported._device, exported._dtype, exported.file_dtype = model.device, model.dtype, file_dtype
        for runner, names in ((encoder, kind.encoder_modules), (decoder, kind.decoder_modules)):
            for name in names if runner is not None else ():
                delattr(exported, name)
        return exported.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parts that are run by torch."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Device of the autoencoder."""
        return self._device

    def encode_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images to latents, see `KeyframeAutoencoder.encode_batch`."""
        model, runner = cast(Any, self), self.runners["encoder"]
        if runner is None:
            return cast(Any, super()).encode_batch(images)
        count, _, height, width = images.shape
        ratio = model.spatial_compression_ratio
        shape = (count, model.latent_channels, height // ratio, width // ratio)
        inputs = {"pictures": images.to(model.file_dtype).contiguous()}
        return runner(inputs, {"latents": shape}, model.file_dtype)[0].float()

    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps latents to images, see `KeyframeAutoencoder.decode_batch`."""
        model, runner = cast(Any, self), self.runners["decoder"]
        if runner is None:
            return cast(Any, super()).decode_batch(latents)
        count, _, rows, columns = latents.shape
        ratio = model.spatial_compression_ratio
        shape = (count, model.image_channels, ratio * rows, ratio * columns)
        inputs = {"latents": latents.to(model.file_dtype).contiguous()}
        return runner(inputs, {"pictures": shape}, model.file_dtype)[0].float()


class ExportedKeyframeAutoencoder(ExportedAutoencoder, KeyframeAutoencoder):
    """The keyframe autoencoder with exported parts."""

    encoder_modules, decoder_modules = ("encoder", "quant_conv"), ("decoder", "post_quant_conv")


class ExportedImageAutoencoder(ExportedAutoencoder, ImageAutoencoder):
    """The small model's autoencoder with exported parts."""

    encoder_modules, decoder_modules = ("encoder", "analysis"), ("decoder", "synthesis")


def cache_folder() -> Path:
    """Returns the folder for exported files and engines: `worldstereo_ros` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldstereo_ros"


def use_control_backend(
    transformer: Any,
    backend: str,
    *,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    provider: str = "auto",
    on_step: OnStep | None = None,
) -> None:
    """Sets the backend that runs the control branch of a transformer.

    The branch is exported once and cached by the hash of its weights. Its torch weights are then freed, except the
    projections to the backbone's width and the additional layers of small models. TensorRT engines are built at the
    first call with each shape, and cached.

    Args:
        transformer: a `WorldStereoTransformer` with a control branch, on its device.
        backend: `torch` (no change), `onnxruntime` or `tensorrt`.
        cache_dir: folder of the cache; None = `cache_folder()`.
        dtype: dtype of the branch; None = float32 on the CPU, float16 on CUDA.
        provider: execution provider of onnxruntime, see `choose_providers`.
        on_step: called with the progress of the export.

    Raises:
        ModelExportError: the backend does not exist or is not installed, or there is no control branch.
    """
    if backend not in BACKENDS:
        raise ModelExportError(f"control_backend is '{backend}'; choose one of {', '.join(BACKENDS)}.")
    branch = transformer.controlnet
    if backend == "torch":
        if isinstance(branch, ExportedControlBranch):
            raise ModelExportError("The torch weights of the control branch were freed; load the model again.")
        return
    if not isinstance(branch, ControlBranch):
        found = "none" if branch is None else f"a {type(branch).__name__}"
        raise ModelExportError(
            f"control_backend is '{backend}', but the model's control branch is {found}; use control_backend torch."
        )
    device = cast(nn.Linear, branch.proj_out[0]).weight.device
    if backend == "tensorrt":
        load_tensorrt()  # fails before the export, which takes a minute
        if device.type != "cuda":
            raise ModelExportError(
                f"control_backend tensorrt runs on CUDA and the model is on {device}; choose device cuda."
            )
    else:
        choose_providers(device, require_package("onnxruntime").get_available_providers(), provider)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    attention = "fused" if backend == "onnxruntime" and provider != "tensorrt" else "standard"
    configuration = f"{str(dtype).removeprefix('torch.')}-{attention}-opset{OPSET}-{__version__}"
    path = folder / "onnx" / f"control-{weights_hash(branch)[:24]}-{configuration}.onnx"

    def export() -> None:
        export_control(branch, path, dtype=dtype, attention=attention, on_step=on_step)

    def make_runner() -> Runner:
        if backend == "tensorrt":
            return TensorRTRunner(path, EngineCache(folder / "engines"), device)
        return OnnxRuntimeRunner(path, device, provider=provider, engine_folder=folder / "engines")

    cached = path.is_file()
    if not cached:
        export()
    try:
        metadata, runner = read_metadata(path), make_runner()
    except ModelExportError:
        if not cached:
            raise
        export()  # the cached file is damaged
        metadata, runner = read_metadata(path), make_runner()
    transformer.controlnet = ExportedControlBranch(
        runner,
        metadata,
        branch.proj_out,
        render_head=branch.render_head,
        layout_embedding=branch.layout_embedding,
    )
