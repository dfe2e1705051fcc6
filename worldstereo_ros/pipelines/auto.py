"""Which pipeline a name means: the one place that the node, the command line and the evaluation ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import BUNDLED

NAMES = ("geometric", *BUNDLED)
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_pipeline(
    model: str,
    device: str = "cpu",
    *,
    variant: str = "",
    dtype: str = "auto",
    control_backend: str = "torch",
    **options: Any,
) -> Pipeline:
    """The pipeline called `model`, ready on `device`.

    Args:
        model: `geometric`, `small` (the model that comes with the package), or a WorldStereo checkpoint: a folder or a
            hub id. `:variant` may stand behind any but the first.
        device: cpu, cuda or cuda:N.
        variant: of a checkpoint: camera, memory or memory-dmd; empty: as the name says, else the one with the fewest
            steps that is there.
        dtype: of a checkpoint's networks, one of `DTYPES`; auto: bfloat16 on CUDA, float32 on the CPU.
        control_backend: what runs a checkpoint's control branch: torch, onnxruntime or tensorrt (docs/export.md).
        options: of `WorldStereoPipeline.from_pretrained`.

    Raises:
        ValueError: no such pipeline or checkpoint, a broken one, or a device that this machine does not have.
        RuntimeError: the control backend is not installed, or cannot run this model.
    """
    check_device(device)
    if model == "geometric":
        if control_backend != "torch":
            raise InputError(f"The pipeline '{model}' has no control branch to run on '{control_backend}'; use torch.")
        from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline

        return GeometricPipeline()
    if dtype not in DTYPES:
        raise InputError(f"The type '{dtype}' is not known; choose one of {', '.join(DTYPES)}.")
    model, variant = split_variant(model, variant)
    if model in BUNDLED:
        options = {"name": model, **options}
    elif "/" not in model and not Path(model).expanduser().exists():
        raise InputError(
            f"The model '{model}' is not known: it is none of {', '.join(NAMES)}, no folder on this machine, and no "
            "hub id (owner/name)."
        )
    import torch

    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

    wanted = None if dtype == "auto" else getattr(torch, dtype)
    pipeline = WorldStereoPipeline.from_pretrained(model, variant or None, device=device, dtype=wanted, **options)
    if control_backend != "torch":
        from worldstereo_ros.export.runtime import use_control_backend

        use_control_backend(pipeline.transformer, control_backend)
    return pipeline


def split_variant(model: str, variant: str = "") -> tuple[str, str]:
    """(`owner/name`, variant) of `owner/name:variant`; a path that exists is left as it is.

    Raises:
        ValueError: the name and the argument say different variants.
    """
    name, colon, last = model.rpartition(":")
    if not colon or Path(model).expanduser().exists():
        return model, variant
    if variant and variant.removeprefix("worldstereo-") != last.removeprefix("worldstereo-"):
        raise InputError(f"'{model}' names the variant {last} and {variant} was asked for.")
    return name, last


def check_device(device: str) -> None:
    """Refuses a device that is not there, rather than use another one silently.

    Raises:
        ValueError: `device` is not a torch device of this machine.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"The device '{device}' is not known; use cpu, cuda or cuda:N.") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"The device '{device}' is not supported; use cpu, cuda or cuda:N.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"The device '{device}' was asked for and this machine has no usable CUDA GPU. Use cpu.")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise InputError(f"The device '{device}' was asked for and there are {torch.cuda.device_count()} GPUs.")
