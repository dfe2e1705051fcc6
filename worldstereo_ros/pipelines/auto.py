"""Loads pipelines by name, for the node, the command line and the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import BUNDLED

NAMES = ("geometric", *BUNDLED)
ANYRECON = "anyrecon:"  # before the path of its files
FILLS = ("auto", "smooth", "planes")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_pipeline(
    model: str,
    device: str = "cpu",
    *,
    variant: str = "",
    dtype: str = "auto",
    control_backend: str = "torch",
    fill: str = "auto",
    **options: Any,
) -> Pipeline:
    """Loads a pipeline.

    Args:
        model: `geometric`, `small` (the bundled model), `anyrecon:PATH` (files of AnyRecon, see
            `pipelines.anyrecon.files`), or a WorldStereo checkpoint: a folder or a hub id. All but the first may end in
            `:variant`.
        device: cpu, cuda or cuda:N.
        variant: variant of a checkpoint: camera, memory or memory-dmd. Empty: that of the name, else the available
            one with the fewest steps. Of AnyRecon the attention: dense or sparse.
        dtype: dtype of a checkpoint's networks, one of `DTYPES`; auto: bfloat16 on CUDA, float32 on the CPU.
        control_backend: runs a checkpoint's control branch: torch, onnxruntime or tensorrt (docs/guides/export.md).
        fill: what holes show: smooth, or planes of a closed room; of `geometric` and models with a layout (`small`).
            auto: planes for such models, smooth for `geometric`.
        options: keyword arguments of `from_pretrained` of the pipeline's class.

    Raises:
        InputError: an argument is unknown, or this machine lacks the device.
        CheckpointError: the checkpoint is missing or damaged.
        RuntimeError: the control backend is not installed, or cannot run this model.
    """
    check_device(device)
    if fill not in FILLS:
        raise InputError(f"The fill '{fill}' is unknown; one of {', '.join(FILLS)} was expected.")
    if model == "geometric":
        if control_backend != "torch":
            raise InputError(
                f"The pipeline '{model}' has no control branch for '{control_backend}'; use control_backend torch."
            )
        from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline

        return GeometricPipeline(fill="smooth" if fill == "auto" else fill)
    if dtype not in DTYPES:
        raise InputError(f"The dtype '{dtype}' is unknown; one of {', '.join(DTYPES)} was expected.")
    if model.startswith(ANYRECON) and fill == "planes":
        raise InputError(f"The fill '{fill}' is for geometric and small; AnyRecon generates what holes show.")
    if model.startswith(ANYRECON):
        return _load_anyrecon(model.removeprefix(ANYRECON), device, variant, dtype, control_backend, options)
    model, variant = split_variant(model, variant)
    if model in BUNDLED:
        options = {"name": model, **options}
    elif "/" not in model and not Path(model).expanduser().exists():
        raise InputError(
            f"The model '{model}' is unknown: it is neither one of {', '.join(NAMES)}, nor a folder on this machine, "
            "nor a hub id (owner/name), nor anyrecon:PATH."
        )
    import torch

    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

    torch_dtype = None if dtype == "auto" else getattr(torch, dtype)
    pipeline = WorldStereoPipeline.from_pretrained(model, variant or None, device=device, dtype=torch_dtype, **options)
    if fill == "planes" and not pipeline.config.uses_layout:
        raise InputError(f"The fill '{fill}' is for geometric and small; '{model}' generates what holes show.")
    if fill != "auto":
        pipeline.fill = fill
    if control_backend != "torch":
        from worldstereo_ros.export.runtime import use_control_backend

        use_control_backend(pipeline.transformer, control_backend)
    return pipeline


def _load_anyrecon(
    path: str, device: str, variant: str, dtype: str, control_backend: str, options: dict[str, Any]
) -> Pipeline:
    import torch

    from worldstereo_ros.pipelines.anyrecon.pipeline import AnyReconPipeline

    if control_backend != "torch":
        raise InputError(f"AnyRecon has no control branch for '{control_backend}'; use control_backend torch.")
    path, variant = split_anyrecon(path, variant)
    if variant:
        options = {"attention": variant, **options}
    torch_dtype = None if dtype == "auto" else getattr(torch, dtype)
    return AnyReconPipeline.from_pretrained(path, device=device, dtype=torch_dtype, **options)


def split_anyrecon(path: str, variant: str = "") -> tuple[str, str]:
    """Splits `PATH:attention`, what follows `anyrecon:`, into (PATH, attention); "" where none is named.

    Raises:
        InputError: there is no such attention, no path, or the path and the argument name different ones.
    """
    from worldstereo_ros.pipelines.anyrecon.pipeline import ATTENTIONS

    if path.rpartition(":")[2] in ATTENTIONS:
        path, variant = split_variant(path, variant)
    if variant not in ("", *ATTENTIONS):
        raise InputError(f"AnyRecon has no variant '{variant}'; {' or '.join(ATTENTIONS)} was expected.")
    if not path:
        raise InputError("The model 'anyrecon:' names no files; write anyrecon:PATH, the folder with its files.")
    return path, variant


def split_variant(model: str, variant: str = "") -> tuple[str, str]:
    """Splits `owner/name:variant` into (`owner/name`, variant); a path that exists is not split.

    Raises:
        InputError: the name and the argument are of different variants.
    """
    name, colon, suffix = model.rpartition(":")
    if not colon or Path(model).expanduser().exists():
        return model, variant
    if variant and variant.removeprefix("worldstereo-") != suffix.removeprefix("worldstereo-"):
        raise InputError(f"'{model}' names the variant {suffix}, but {variant} was requested.")
    return name, suffix


def check_device(device: str) -> None:
    """Checks that a device exists, so that no other one is used silently.

    Raises:
        InputError: `device` is not a torch device of this machine.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"The device '{device}' is unknown; use cpu, cuda or cuda:N.") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"The device '{device}' is not supported; use cpu, cuda or cuda:N.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"The device '{device}' was requested, but this machine has no usable CUDA GPU. Use cpu.")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise InputError(
                f"The device '{device}' was requested, but this machine has {torch.cuda.device_count()} GPUs."
            )
