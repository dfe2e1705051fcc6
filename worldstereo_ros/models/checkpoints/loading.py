"""Loads the transformer and the autoencoder of a checkpoint, each tensor accounted for.

checkpoint = find_checkpoint("hanshanxue/WorldStereo", "memory-dmd")
transformer = load_transformer(checkpoint, device="cuda")
autoencoder = load_autoencoder(checkpoint, device="cuda")
scheduler = make_scheduler(checkpoint.settings.raw, checkpoint.base("scheduler"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder, flat_shape, flatten_weights
from worldstereo_ros.models.checkpoints.config import read_backbone
from worldstereo_ros.models.checkpoints.hub import Checkpoint, find_checkpoint
from worldstereo_ros.models.checkpoints.weights import (
    CheckpointError,
    TensorInfo,
    WeightSet,
    named,
    open_weights,
    read_json,
    tensors_of,
)
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

__all__ = [
    "StateDictReport",
    "build_transformer",
    "compare_state_dicts",
    "find_checkpoint",
    "load_autoencoder",
    "load_transformer",
]

BASE_STEM = "diffusion_pytorch_model"
CAMERA_TOKENS = "camera_embedding."
BRANCHES = ("controlnet.", CAMERA_TOKENS)
# (tensors done, tensors in all)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StateDictReport:
    """Every tensor of the model, and where it comes from.

    Attributes:
        checkpoint: names taken from the checkpoint.
        base: names of the frozen backbone that the checkpoint leaves to the base.
        missing: names that are nowhere.
        unexpected: names in the checkpoint that the model has no place for.
        mismatched: (name, shape in the file, shape of the model).
        weights: the tensors of the checkpoint.
        base_weights: the tensors of the base; empty where none were needed.
    """

    checkpoint: list[str]
    base: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    weights: WeightSet
    base_weights: WeightSet

    def problems(self) -> list[str]:
        """One sentence for each kind of thing that is wrong; [] where the model can be loaded."""
        out = []
        folder, missing = self.weights.folder, self.missing
        if self.unexpected and all(name.startswith(CAMERA_TOKENS) for name in self.unexpected):
            out.append(
                f"The weights in {folder} are of a memory variant ({named(self.unexpected)}) and its config.json "
                "describes the camera variant."
            )
        elif self.unexpected:
            out.append(f"{folder} has {tensors_of(self.unexpected)} too many: {named(self.unexpected)}.")
        branch = [name for name in missing if name.startswith(BRANCHES)]
        if branch and all(name.startswith(CAMERA_TOKENS) for name in branch):
            out.append(
                f"The weights in {folder} are of the camera variant (without {named(branch)}) and its config.json "
                "describes a memory variant."
            )
        elif branch:
            out.append(f"{folder} lacks {tensors_of(branch)}: {named(branch)}.")
        backbone = [name for name in missing if not name.startswith(BRANCHES)]
        if backbone:
            out.append(f"{folder} and its base lack {tensors_of(backbone)}: {named(backbone)}.")
        if self.mismatched:
            shown = [f"{name} is {have} and should be {want}" for name, have, want in self.mismatched]
            out.append(f"The shape of {tensors_of(shown)} in {folder} or its base is wrong: {named(shown)}.")
        return out


def build_transformer(checkpoint: Checkpoint) -> WorldStereoTransformer:
    """The model of a checkpoint on the meta device: shapes, and no memory.

    Raises:
        CheckpointError: the sizes do not go together.
    """
    backbone = read_backbone(checkpoint.base("transformer") / "transformer" / "config.json")
    control = checkpoint.settings.controlnet_cfg
    width = backbone["num_attention_heads"] * backbone["attention_head_dim"]
    if control["time_embed_dim"] != width:
        raise CheckpointError(
            f"{checkpoint.folder}: controlnet_cfg.time_embed_dim is {control['time_embed_dim']} and the base "
            f"{checkpoint.settings.base_model} is {width} wide; this base is not the one the checkpoint was trained on."
        )
    try:
        with torch.device("meta"):
            return WorldStereoTransformer(**backbone, controlnet_cfg=dict(control)).eval()
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"The sizes in {checkpoint.folder} and its base make no model: {error}.") from None


def compare_state_dicts(checkpoint: Checkpoint, model: nn.Module | None = None) -> StateDictReport:
    """Compares what the model needs with what the files have; reads headers alone.

    Raises:
        CheckpointError: a file is broken.
    """
    model = build_transformer(checkpoint) if model is None else model
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = open_weights(checkpoint.folder, "model")
    ignored = WorldStereoTransformer._keys_to_ignore_on_load_unexpected
    unexpected = [n for n in weights.tensors if n not in wanted and not any(part in n for part in ignored)]
    absent = [name for name in wanted if name not in weights.tensors]
    frozen = [name for name in absent if not name.startswith(BRANCHES)]
    base_weights = WeightSet(checkpoint.folder)
    if frozen:
        folder = checkpoint.base("transformer") / "transformer"
        try:
            base_weights = open_weights(folder, BASE_STEM)
        except CheckpointError as error:
            raise CheckpointError(
                f"{checkpoint.folder} leaves {tensors_of(frozen)} to its base ({named(frozen)}), "
                f"and the base cannot give them: {error}"
            ) from None
    from_base = [name for name in frozen if name in base_weights.tensors]
    mine = [name for name in weights.tensors if name in wanted]
    mismatched = [
        (name, source.tensors[name].shape, wanted[name])
        for source, names in ((weights, mine), (base_weights, from_base))
        for name in names
        if source.tensors[name].shape != wanted[name]
    ]
    found = set(from_base)
    missing = [name for name in absent if name not in found]
    return StateDictReport(mine, from_base, missing, unexpected, mismatched, weights, base_weights)


def load_transformer(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    reference_attention: str = "full",
    on_progress: Progress | None = None,
) -> WorldStereoTransformer:
    """The transformer with all its weights, in evaluation mode, without gradients.

    The model is made without memory; then one tensor after the other is read to the device, looked through for
    numbers that are not finite, cast and put in its place, so that the most memory taken is the model and one tensor.
    Time embedding, modulation tables and norms stay in float32.

    Args:
        checkpoint: from `find_checkpoint`.
        device: where it runs.
        dtype: None: bfloat16 on CUDA, float32 on the CPU.
        reference_attention: full, paired or correspondence.
        on_progress: called after every tensor.

    Raises:
        CheckpointError: tensors are missing, unexpected, misshapen or not finite, or the memory does not suffice.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    model = build_transformer(checkpoint)
    found = compare_state_dicts(checkpoint, model)
    problems = found.problems()
    if problems:
        raise CheckpointError(" ".join(problems))
    check_memory(memory_needed(model, dtype), device, checkpoint.folder)
    total = len(found.checkpoint) + len(found.base)
    done = 0
    for source, names in ((found.base_weights, found.base), (found.weights, found.checkpoint)):
        for name, tensor in source.read(names, device):
            place(model, name, finite(tensor, name, source.tensors[name]), parameter_dtype(name, dtype))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    model.set_reference_attention(reference_attention)
    return model.requires_grad_(False).eval()


def load_autoencoder(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> KeyframeAutoencoder | ImageAutoencoder:
    """The keyframe autoencoder of the base, in evaluation mode, without gradients.

    Args:
        checkpoint: from `find_checkpoint`.
        device: where it runs.
        dtype: None: bfloat16 on CUDA, float32 on the CPU.

    Raises:
        CheckpointError: as `load_transformer`, or the base has another kind of autoencoder.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    folder = checkpoint.base("vae") / "vae"
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind == "ImageAutoencoder":
        return load_image_autoencoder(folder, device, dtype)
    if kind not in ("AutoencoderKLWan", "KeyframeAutoencoder"):
        raise CheckpointError(f"{folder} has a {kind}; an AutoencoderKLWan or a KeyframeAutoencoder was expected.")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            model = KeyframeAutoencoder(**arguments).eval()
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no autoencoder that fits: {error}.") from None
    weights = open_weights(folder, BASE_STEM)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    have = {n: s for n, info in weights.tensors.items() if (s := flat_shape(n, info.shape)) is not None}
    same_tensors(wanted, have, folder)
    check_memory(memory_needed(model, dtype), device, folder)
    for name, tensor in weights.read(list(have), device):
        place(model, name, finite(flatten_weights({name: tensor})[name], name, weights.tensors[name]), dtype)
    return model.requires_grad_(False).eval()


def load_image_autoencoder(folder: Path, device: torch.device, dtype: torch.dtype) -> ImageAutoencoder:
    """The small model's autoencoder, in evaluation mode, without gradients.

    Raises:
        CheckpointError: as `load_transformer`.
    """
    arguments = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    try:
        with torch.device("meta"):
            model = ImageAutoencoder(**arguments).eval()
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no autoencoder that fits: {error}.") from None
    weights = open_weights(folder, BASE_STEM)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    same_tensors(wanted, {name: info.shape for name, info in weights.tensors.items()}, folder)
    check_memory(memory_needed(model, dtype), device, folder)
    for name, tensor in weights.read(list(weights.tensors), device):
        place(model, name, finite(tensor, name, weights.tensors[name]), dtype)
    return model.requires_grad_(False).eval()


# --- parts ---


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of a parameter in a model of type `dtype`: norms, tables and the time embedding stay in float32."""
    if dtype not in (torch.float16, torch.bfloat16):
        return dtype
    parts = name.split(".")
    kept = any(part in WorldStereoTransformer._keep_in_fp32_modules for part in parts)
    # The linear layers inside the control branch's norms are large and are no norms.
    return torch.float32 if kept and "linear" not in parts else dtype


def memory_needed(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the weights."""
    return sum(t.numel() * parameter_dtype(name, dtype).itemsize for name, t in model.state_dict().items())


def check_memory(needed: int, device: torch.device, what: Path) -> None:
    """Refuses what does not fit.

    Raises:
        CheckpointError: the device has less free memory than the weights take.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise CheckpointError(
            f"The weights in {what} take {needed / 2**30:.1f} GiB and {device} has {free / 2**30:.1f} GiB free; "
            "use a smaller type (bfloat16), another device, or a smaller model."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that may be taken; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def finite(tensor: torch.Tensor, name: str, info: TensorInfo) -> torch.Tensor:
    """The tensor as it is.

    Raises:
        CheckpointError: a number of it is not finite.
    """
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{info.file}: {bad} of {tensor.numel()} numbers of {name} are not finite; the file is damaged or its "
            "training failed."
        )
    return tensor


def place(model: nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Puts a tensor where `name` points, in place of the one without memory."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    # On the CPU a tensor read from a file is the file, mapped: a copy outlives whatever happens to it.
    own = tensor.to(dtype, copy=tensor.device.type == "cpu")
    module._parameters[leaf] = nn.Parameter(own, requires_grad=False)


def same_tensors(wanted: Mapping[str, tuple[int, ...]], have: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Refuses weights that are not those of a model.

    Raises:
        CheckpointError: tensors are missing, too many or of another shape.
    """
    wrong = [f"{n} is {have[n]} and should be {wanted[n]}" for n in wanted if n in have and have[n] != wanted[n]]
    missing, unexpected = [n for n in wanted if n not in have], [n for n in have if n not in wanted]
    kinds = (("missing", missing), ("too many", unexpected), ("of the wrong shape", wrong))
    problems = [f"{tensors_of(names)} {how}: {named(names)}" for how, names in kinds if names]
    if problems:
        raise CheckpointError(f"The weights in {folder} do not fit its config.json; {'; '.join(problems)}.")
