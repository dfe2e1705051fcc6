"""Loads the transformer and the autoencoder of a checkpoint; missing and unexpected tensors are errors.

Example:
    checkpoint = find_checkpoint("hanshanxue/WorldStereo", "memory-dmd")
    transformer = load_transformer(checkpoint, device="cuda")
    autoencoder = load_autoencoder(checkpoint, device="cuda")
    scheduler = make_scheduler(checkpoint.config.raw, checkpoint.base("scheduler"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder, flatten_weights, flattened_shape
from worldstereo_ros.models.checkpoints.bounds import check_latent_statistics, check_numbers
from worldstereo_ros.models.checkpoints.config import read_backbone
from worldstereo_ros.models.checkpoints.diagnosis import explain_names
from worldstereo_ros.models.checkpoints.hub import Checkpoint
from worldstereo_ros.models.checkpoints.names import common_prefix, several_models
from worldstereo_ros.models.checkpoints.parameters import (
    check_finite,
    check_memory,
    check_state_dict,
    default_dtype,
    load_weights,
    memory_needed,
    parameter_dtype,
    set_parameter,
)
from worldstereo_ros.models.checkpoints.weights import (
    CheckpointError,
    WeightSet,
    count_tensors,
    format_names,
    open_weights,
    read_json,
)
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

BASE_STEM = "diffusion_pytorch_model"
CAMERA_EMBEDDING_PREFIX = "camera_embedding."
BRANCH_PREFIXES = ("controlnet.", CAMERA_EMBEDDING_PREFIX)
# (tensors loaded, tensors in total)
ProgressCallback = Callable[[int, int], None]
_Autoencoder = TypeVar("_Autoencoder", KeyframeAutoencoder, ImageAutoencoder)
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class StateDictReport:
    """The source of every tensor of a model, and all differences between files and model.

    Attributes:
        from_checkpoint: names that are loaded from the checkpoint.
        from_base: names of the frozen backbone that the checkpoint leaves to the base model.
        missing_keys: names that no file has.
        unexpected_keys: names in the checkpoint that the model does not have.
        mismatched: (name, shape in the file, shape in the model) of tensors with a wrong shape.
        weights: header entries of the checkpoint.
        base_weights: header entries of the base model; empty if it is not needed.
        copies: prefixes of the names where the checkpoint holds the model more than once.
    """

    from_checkpoint: list[str]
    from_base: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    weights: WeightSet
    base_weights: WeightSet
    copies: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Returns one message for each kind of difference; empty if the model can be loaded."""
        out = []
        folder, missing, unexpected = self.weights.folder, self.missing_keys, self.unexpected_keys
        if self.copies:
            copies = " and ".join(f"'{prefix}'" for prefix in self.copies)
            return [f"{folder} holds the model more than once, under {copies}; save one of them, without the prefix."]
        for source, names in ((folder, unexpected), (self.base_weights.folder, self.base_weights.tensors)):
            if (missing or unexpected) and (explained := explain_names(names)):
                return [f"The weights in {source} are not those of this model. {explained}"]
        if unexpected and all(name.startswith(CAMERA_EMBEDDING_PREFIX) for name in unexpected):
            out.append(
                f"The weights in {folder} are of a memory variant ({format_names(unexpected)}), but its config.json "
                "describes the camera variant."
            )
        elif unexpected:
            out.append(f"{folder} has {count_tensors(unexpected)} that the model does not: {format_names(unexpected)}.")
        branch = [name for name in missing if name.startswith(BRANCH_PREFIXES)]
        if branch and all(name.startswith(CAMERA_EMBEDDING_PREFIX) for name in branch):
            out.append(
                f"The weights in {folder} are of the camera variant (without {format_names(branch)}), but its "
                "config.json describes a memory variant."
            )
        elif branch:
            out.append(f"{folder} lacks {count_tensors(branch)}: {format_names(branch)}.")
        backbone = [name for name in missing if not name.startswith(BRANCH_PREFIXES)]
        if backbone:
            out.append(f"{folder} and its base model lack {count_tensors(backbone)}: {format_names(backbone)}.")
        if self.mismatched:
            shapes = [f"{name} is {actual} and should be {expected}" for name, actual, expected in self.mismatched]
            out.append(
                f"The shape of {count_tensors(shapes)} in {folder} or its base model is wrong: {format_names(shapes)}."
            )
        return out


def build_transformer(checkpoint: Checkpoint) -> WorldStereoTransformer:
    """Builds the transformer of a checkpoint on the meta device, without allocating its weights.

    Args:
        checkpoint: result of `find_checkpoint`.

    Raises:
        CheckpointError: the sizes of checkpoint and base model do not fit each other.
    """
    backbone = read_backbone(checkpoint.base("transformer") / "transformer" / "config.json")
    control = checkpoint.config.controlnet_cfg
    width = backbone["num_attention_heads"] * backbone["attention_head_dim"]
    if control["time_embed_dim"] != width:
        raise CheckpointError(
            f"{checkpoint.folder}: controlnet_cfg.time_embed_dim is {control['time_embed_dim']} and the width of the "
            f"base model {checkpoint.config.base_model} is {width}; use the base model that the checkpoint was trained "
            "on."
        )
    try:
        with torch.device("meta"):
            return WorldStereoTransformer(**backbone, controlnet_cfg=dict(control)).eval()
    except Exception as error:  # an odd value can fail anywhere in the layers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"The sizes in {checkpoint.folder} and its base model do not fit each other: {reason}."
        ) from None


def compare_state_dicts(checkpoint: Checkpoint, model: nn.Module | None = None) -> StateDictReport:
    """Compares the tensors of a model with those of the files; only headers are read.

    Args:
        checkpoint: result of `find_checkpoint`.
        model: its transformer, on any device; None = built by `build_transformer`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    model = build_transformer(checkpoint) if model is None else model
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = open_weights(checkpoint.folder, "model")
    weights = weights.without_prefix(common_prefix(weights.tensors, expected))
    ignored = WorldStereoTransformer._keys_to_ignore_on_load_unexpected
    unexpected = [n for n in weights.tensors if n not in expected and not any(part in n for part in ignored)]
    absent = [name for name in expected if name not in weights.tensors]
    frozen = [name for name in absent if not name.startswith(BRANCH_PREFIXES)]
    base_weights = WeightSet(checkpoint.folder)
    if frozen:
        folder = checkpoint.base("transformer") / "transformer"
        try:
            base_weights = open_weights(folder, BASE_STEM)
            base_weights = base_weights.without_prefix(common_prefix(base_weights.tensors, expected))
        except CheckpointError as error:
            raise CheckpointError(
                f"{checkpoint.folder} leaves {count_tensors(frozen)} to its base model ({format_names(frozen)}), "
                f"which cannot be read: {error}"
            ) from None
    from_base = [name for name in frozen if name in base_weights.tensors]
    from_checkpoint = [name for name in weights.tensors if name in expected]
    mismatched = [
        (name, source.tensors[name].shape, expected[name])
        for source, names in ((weights, from_checkpoint), (base_weights, from_base))
        for name in names
        if source.tensors[name].shape != expected[name]
    ]
    found = set(from_base)
    missing = [name for name in absent if name not in found]
    copies = tuple(several_models(unexpected, expected)) if missing else ()
    return StateDictReport(from_checkpoint, from_base, missing, unexpected, mismatched, weights, base_weights, copies)


def load_transformer(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    reference_attention: str = "full",
    on_progress: ProgressCallback | None = None,
) -> WorldStereoTransformer:
    """Loads the transformer with all its weights, in evaluation mode, without gradients.

    The model is built on the meta device. Then each tensor is read to the device, checked for non-finite values, cast
    and assigned, so that the peak memory is the model and one tensor; with the model on a GPU, the host needs less
    than a GiB (`WeightSet.read`). Time embedding, modulation tables and norms stay in float32.

    Args:
        checkpoint: result of `find_checkpoint`.
        device: device of the model.
        dtype: dtype of the weights; None = bfloat16 on CUDA, float32 on the CPU.
        reference_attention: `full`, `paired` or `correspondence`, see `models.worldstereo.masks`.
        on_progress: called after each tensor.

    Raises:
        CheckpointError: tensors are missing, unexpected, of a wrong shape or not finite, or the device has too little
            memory.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    model = build_transformer(checkpoint)
    report = compare_state_dicts(checkpoint, model)
    problems = report.problems()
    if problems:
        raise CheckpointError(" ".join(problems))
    check_memory(memory_needed(model, dtype), device, checkpoint.folder)
    total = len(report.from_checkpoint) + len(report.from_base)
    loaded = 0
    for source, names in ((report.base_weights, report.from_base), (report.weights, report.from_checkpoint)):
        for name, tensor in source.read(names, device):
            check_finite(tensor, name, source.tensors[name])
            set_parameter(model, name, tensor, parameter_dtype(name, dtype))
            loaded += 1
            if on_progress is not None:
                on_progress(loaded, total)
    model.set_reference_attention(reference_attention)
    return model.requires_grad_(False).eval()


def load_autoencoder(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> KeyframeAutoencoder | ImageAutoencoder:
    """Loads the autoencoder of the base model, in evaluation mode, without gradients.

    Args:
        checkpoint: result of `find_checkpoint`.
        device: device of the model.
        dtype: dtype of the weights; None = bfloat16 on CUDA, float32 on the CPU.

    Raises:
        CheckpointError: the files are missing or damaged, do not fit each other, describe another class of autoencoder,
            or the device has too little memory.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    folder = checkpoint.base("vae") / "vae"
    config = read_json(folder / "config.json")
    class_name = config.get("_class_name")
    if class_name == "ImageAutoencoder":
        return load_image_autoencoder(folder, device, dtype)
    if class_name not in ("AutoencoderKLWan", "KeyframeAutoencoder"):
        expected = "an AutoencoderKLWan, KeyframeAutoencoder or ImageAutoencoder"
        raise CheckpointError(f"{folder} has the class {class_name}; {expected} was expected.")
    model = _build_autoencoder(KeyframeAutoencoder, folder)
    weights = open_weights(folder, BASE_STEM)
    weights = weights.without_prefix(common_prefix(weights.tensors, model.state_dict()))
    actual = {n: s for n, info in weights.tensors.items() if (s := flattened_shape(n, info.shape)) is not None}
    check_state_dict(model, actual, folder)
    check_memory(memory_needed(model, dtype), device, folder)
    for name, tensor in weights.read(list(actual), device):
        flat = flatten_weights({name: tensor})[name]
        check_finite(flat, name, weights.tensors[name])
        set_parameter(model, name, flat, dtype)
    return model.requires_grad_(False).eval()


def load_image_autoencoder(folder: Path, device: torch.device, dtype: torch.dtype) -> ImageAutoencoder:
    """Loads the small model's autoencoder, in evaluation mode, without gradients.

    Args:
        folder: folder with `config.json` and safetensors.
        device: device of the model.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: the files are missing or damaged, do not fit each other, or the device has too little memory.
    """
    model = _build_autoencoder(ImageAutoencoder, folder)
    load_weights(model, open_weights(folder, BASE_STEM), device, dtype)
    return model.requires_grad_(False).eval()


def _build_autoencoder(kind: type[_Autoencoder], folder: Path) -> _Autoencoder:
    """Builds an autoencoder on the meta device, from the `config.json` of its folder."""
    file = folder / "config.json"
    config = read_json(file)
    check_numbers(file, config)
    check_latent_statistics(file, config)
    levels = config.get("dim_mult", [1, 2, 4, 4])
    if not isinstance(levels, list) or len(levels) != 4:
        raise CheckpointError(
            f"{file}: dim_mult is {levels!r:.60}; four numbers were expected (latents of 8x8 pixels)."
        )
    return build_on_meta(kind, file, config, "autoencoder")


def build_on_meta(kind: Callable[..., _Module], file: Path, config: Mapping[str, Any], what: str) -> _Module:
    """Builds a model on the meta device, in evaluation mode.

    Args:
        kind: class of the model.
        file: its configuration file, for the message.
        config: content of the file, whose numbers were checked; keys that begin with an underscore are left out.
        what: what it is, for the message.

    Raises:
        CheckpointError: the configuration describes no valid model.
    """
    try:
        with torch.device("meta"):
            return kind(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
    except Exception as error:  # an odd value can fail anywhere in the layers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{file} describes no valid {what}: {reason}.") from None
