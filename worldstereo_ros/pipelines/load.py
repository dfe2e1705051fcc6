"""Which pipeline a name means: the one place that the node, the command line and the evaluation ask."""

from __future__ import annotations

from worldstereo_ros.pipelines.base import Pipeline

NAMES = ("geometric",)


def load_pipeline(model: str, device: str = "cpu") -> Pipeline:
    """The pipeline called `model`, ready on `device`.

    Raises:
        ValueError: no such pipeline, or a device that this machine does not have.
    """
    check_device(device)
    if model == "geometric":
        from worldstereo_ros.pipelines.geometric import GeometricPipeline

        return GeometricPipeline()
    raise ValueError(f"The model '{model}' is not known; this version has: {', '.join(NAMES)}.")


def check_device(device: str) -> None:
    """Refuses a device that is not there, rather than use another one silently.

    Raises:
        ValueError: `device` is not a torch device of this machine.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"The device '{device}' is not known; use cpu, cuda or cuda:N.") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"The device '{device}' is not supported; use cpu, cuda or cuda:N.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"The device '{device}' was asked for and this machine has no usable CUDA GPU. Use cpu.")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise ValueError(f"The device '{device}' was asked for and there are {torch.cuda.device_count()} GPUs.")
