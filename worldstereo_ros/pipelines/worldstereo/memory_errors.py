"""What to say when a device has too little memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from worldstereo_ros.pipelines.base import Conditioning


def out_of_memory_message(
    device: torch.device,
    size: tuple[int, int],
    networks: Sequence[torch.nn.Module],
    conditioning: Conditioning,
    reason: str,
) -> str:
    """The message for a clip that did not fit, with what to do.

    Args:
        device: which has too little.
        size: (height, width) of the model's images.
        networks: those on the device.
        conditioning: of the clip.
        reason: the message of the error.
    """
    height, width = size
    references = len(np.unique(conditioning.reference_index[conditioning.reference_index >= 0]))
    weights = sum(t.numel() * t.element_size() for network in networks for t in network.parameters())
    return (
        f"{device} has too little memory for {len(conditioning.world_from_camera) + 1} keyframes of "
        f"{width}x{height} with {references} references and weights of {weights / 2**30:.1f} GiB "
        f"({reason.strip().splitlines()[0].rstrip('.')}). Request fewer views at a time, remember fewer views, use "
        "bfloat16, or use a larger GPU or several GPUs."
    )
