"""Loads Wan's transformer and autoencoder from files in the original layout, with a LoRA merged in.

Every tensor of a file must be one of the network's, and every one of the network's must be in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder, flatten_weights, flattened_shape
from worldstereo_ros.models.checkpoints.diagnosis import explain_names
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, ProgressCallback, build_on_meta
from worldstereo_ros.models.checkpoints.lora import Lora, merge, open_lora
from worldstereo_ros.models.checkpoints.parameters import (
    check_finite,
    check_memory,
    default_dtype,
    memory_needed,
    parameter_dtype,
    set_parameter,
)
from worldstereo_ros.models.checkpoints.tensor_files import TensorFiles, open_tensors
from worldstereo_ros.models.checkpoints.wan_layout import (
    autoencoder_config,
    autoencoder_name,
    transformer_config,
    transformer_name,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

MODEL_STEM = "model"  # of files that are not named as the published ones


class PreciseTimesteps(nn.Module):
    """Sinusoids of timesteps, computed in float64 as by Wan, cosines first.

    diffusers computes them in float32, which is off by up to 6e-5 at the first steps.

    Args:
        channels: number of sinusoids, even.
        max_period: longest wavelength, over 2 pi.
    """

    def __init__(self, channels: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.channels, self.max_period = channels, max_period

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Maps (b,) timesteps in 0..1000 to (b, channels) float32."""
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
        angles = torch.outer(timesteps.double(), self.max_period**-exponents)
        return torch.cat((angles.cos(), angles.sin()), dim=1).float()


@dataclass(frozen=True)
class WanTransformerFiles:
    """A transformer in the original layout, and optionally a LoRA, whose every tensor is accounted for.

    Attributes:
        tensors: the open files.
        config: arguments of `WorldStereoTransformer`.
        names: names in this package by the original names.
        lora: the LoRA; None without one.
    """

    tensors: TensorFiles
    config: Mapping[str, Any]
    names: Mapping[str, str]
    lora: Lora | None = None

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(info.num_elements for info in self.tensors.tensors.values())

    def build(self) -> WorldStereoTransformer:
        """The network on the meta device.

        Raises:
            CheckpointError: the tensors are not exactly those of the network.
        """
        model = build_on_meta(WorldStereoTransformer, self.tensors.path, self.config, "transformer")
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        actual = {self.names[name]: shape for name, shape in self.tensors.shapes().items()}
        _check_same(actual, expected, self.tensors.path)
        return model


def open_wan_transformer(
    path: Path, lora: Path | None = None, *, config_file: Path | None = None, lora_ignore: Collection[str] = ()
) -> WanTransformerFiles:
    """Opens a transformer in the original layout and a LoRA for it; only shapes are read.

    Args:
        path: folder with `diffusion_pytorch_model*.safetensors` (or `model.safetensors`), or a file.
        lora: LoRA file, see `lora.open_lora`.
        config_file: Wan's `config.json`; None: the one beside the weights, if there is one.
        lora_ignore: tensors of the LoRA file to leave out.

    Raises:
        CheckpointError: a file is missing or damaged, or has a tensor that is not accounted for.
    """
    folder = path if path.is_dir() else path.parent
    stem = BASE_STEM
    if path.is_dir() and (path / f"{MODEL_STEM}.safetensors").is_file() and not list(path.glob(f"{BASE_STEM}*")):
        stem = MODEL_STEM
    tensors = open_tensors(path, stem)
    renamed = {name: transformer_name(name) for name in tensors.tensors}
    names = {name: new for name, new in renamed.items() if new is not None}
    unknown = [name for name in renamed if name not in names]
    if unknown:
        explained = _explain_layout(unknown, tensors)
        raise CheckpointError(
            f"{path} has {count_tensors(unknown)} that Wan's image-to-video transformer does not have: "
            f"{format_names(unknown)}. {explained}".rstrip()
        )
    found = folder / "config.json"
    config_file = config_file or (found if found.is_file() else None)
    config = transformer_config(tensors.shapes(), path, config_file)
    opened = None if lora is None else open_lora(lora, tensors.shapes(), ignore=lora_ignore)
    return WanTransformerFiles(tensors, config, names, opened)


def load_wan_transformer(
    files: WanTransformerFiles,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    lora_scale: float = 1.0,
    on_progress: ProgressCallback | None = None,
) -> WorldStereoTransformer:
    """Loads the transformer with its LoRA merged in, in evaluation mode, without gradients.

    Tensors are read one by one to the device, so that the peak memory is the model and one of them. A LoRA is merged
    there in the dtype of the model, as by the published pipelines. Time embedding, tables and norms stay in float32.

    Args:
        files: result of `open_wan_transformer`.
        device: device of the model.
        dtype: dtype of the weights; None: bfloat16 on CUDA, float32 on the CPU.
        lora_scale: factor of the LoRA's change; 1 for published files.
        on_progress: called after each tensor.

    Raises:
        CheckpointError: the tensors are not exactly those of the network, are not finite, or the device has too little
            memory.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    model = files.build()
    check_memory(memory_needed(model, dtype), device, files.tensors.path)
    lora = files.lora
    for count, (name, tensor) in enumerate(files.tensors.read(list(files.tensors.tensors), device)):
        check_finite(tensor, name, files.tensors.tensors[name])
        new = files.names[name]
        target = parameter_dtype(new, dtype)
        if lora is not None and name in lora.pairs:
            # In the dtype of the model, as in the reference, also where the result stays in float32.
            tensor = merge(tensor.to(dtype), *lora.factors(name, device), lora_scale)
        set_parameter(model, new, tensor, target)
        if on_progress is not None:
            on_progress(count + 1, len(files.names))
    model.condition_embedder.timesteps_proj = PreciseTimesteps(files.config["freq_dim"])
    return model.requires_grad_(False).eval()


def load_wan_autoencoder(
    file: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> KeyframeAutoencoder:
    """Loads `Wan2.1_VAE.pth`, or the same tensors as safetensors, in evaluation mode, without gradients.

    The tensors of the temporal layers, which single frames do not use, are checked and left out.

    Args:
        file: the file.
        device: device of the model.
        dtype: dtype of the weights; None: bfloat16 on CUDA, float32 on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not exactly those of the autoencoder.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    tensors = open_tensors(file, MODEL_STEM)
    config = autoencoder_config(tensors.shapes(), file)
    renamed = {name: autoencoder_name(name, config["num_res_blocks"]) for name in tensors.tensors}
    names = {name: new for name, new in renamed.items() if new is not None}
    unknown = [name for name in renamed if name not in names]
    if unknown:
        explained = explain_names(unknown)
        raise CheckpointError(
            f"{file} has {count_tensors(unknown)} that the autoencoder of Wan 2.1 does not have: "
            f"{format_names(unknown)}. {explained}".rstrip()
        )
    model = build_on_meta(KeyframeAutoencoder, file, config, "autoencoder")
    actual = {new: tensors.tensors[name].shape for name, new in names.items()}
    flat_shapes = {name: flat for name, shape in actual.items() if (flat := flattened_shape(name, shape)) is not None}
    _check_same(flat_shapes, {n: tuple(t.shape) for n, t in model.state_dict().items()}, file)
    _check_temporal({name: shape for name, shape in actual.items() if name not in flat_shapes}, model, file)
    check_memory(memory_needed(model, dtype), device, file)
    for name, tensor in tensors.read([name for name, new in names.items() if new in flat_shapes], device):
        check_finite(tensor, name, tensors.tensors[name])
        new = names[name]
        set_parameter(model, new, flatten_weights({new: tensor})[new], dtype)
    return model.requires_grad_(False).eval()


def _check_same(actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises CheckpointError unless the two have the same names and shapes; names are those of this package."""
    wrong = [f"{n} is {actual[n]} and should be {s}" for n, s in expected.items() if n in actual and actual[n] != s]
    kinds = (
        ("lacks", [name for name in expected if name not in actual]),
        ("has, and the network has not,", [name for name in actual if name not in expected]),
        ("has with a wrong shape", wrong),
    )
    problems = [f"{verb} {count_tensors(names)}: {format_names(names)}" for verb, names in kinds if names]
    if problems:
        raise CheckpointError(f"{path} does not fit its network (names as in diffusers): it {'; it '.join(problems)}.")


def _check_temporal(shapes: Mapping[str, tuple[int, ...]], model: nn.Module, file: Path) -> None:
    """Checks that temporal convolutions lie beside a resampling layer of the network, at its width."""
    modules: dict[str, Callable[..., Any]] = dict(model.named_modules())
    for name, shape in shapes.items():
        owner, _, _ = name.partition(".time_conv.")
        resample = modules.get(f"{owner}.resample.1")
        width = 0 if resample is None else int(resample.weight.shape[1])  # type: ignore[attr-defined]
        if resample is None or math.prod(shape[1:2] or (width,)) != width or shape[0] not in (width, 2 * width):
            raise CheckpointError(f"{file} has {name} of shape {shape}, which fits no temporal layer of its network.")


def _explain_layout(unknown: list[str], tensors: TensorFiles) -> str:
    """Says what a transformer is whose names are not those of Wan's image-to-video model."""
    if any(name.startswith(("condition_embedder.", "blocks.0.attn1.")) for name in unknown):
        return (
            "Its names are those of diffusers; give the folder of the original repository, without -Diffusers at the "
            "end of its name."
        )
    if any("lora_" in name for name in unknown):
        return "It is a LoRA; give it as the LoRA, and the base model as the base."
    if any(name.startswith(("model.", "diffusion_model.")) for name in unknown):
        return "Its names have a prefix of another program; use the file of the original repository."
    if any("emb_pos" in name for name in unknown):
        return "It is a model for a first and a last frame (FLF2V); use Wan2.1-I2V-14B."
    return "" if "patch_embedding.weight" in tensors.tensors else explain_names(unknown)
