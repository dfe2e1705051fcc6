"""The inputs of the WorldStereo transformer: one builder for training and inference.

Keyframes (`conditioning.py`) go in, latents and cameras come out, in the layout that the published weights were
trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.worldstereo.conditioning import Keyframes
    from worldstereo_ros.pipelines.worldstereo.video_condition import VideoCondition

MASK_CHANNELS = 4  # of Wan's mask, which precedes the condition latents: 1 = the frame is given
# Frames that are encoded together. All keyframes of a full-size clip together would need as much memory as a
# denoising step.
ENCODE_BATCH_SIZE = 8


@dataclass(frozen=True)
class ModelInputs:
    """What stays the same in all denoising steps of b clips of F keyframes; latents have C channels.

    Attributes:
        condition: (b, MASK_CHANNELS + C, F, h, w), Wan's mask and the condition latents. Each step concatenates it to
            the noisy latents along the channels.
        arguments: the other arguments of `WorldStereoTransformer.forward` by name, without text and image embeddings.
    """

    condition: torch.Tensor
    arguments: dict[str, Any]


@torch.no_grad()
def build_model_inputs(
    keyframes: Keyframes,
    autoencoder: Any,
    *,
    memory_branch: bool,
    start_latents: torch.Tensor | None = None,
    video_condition: VideoCondition | None = None,
    encode_batch_size: int = ENCODE_BATCH_SIZE,
) -> ModelInputs:
    """Encodes keyframes into what the transformer takes.

    Args:
        keyframes: b clips of F keyframes at the size of the model.
        autoencoder: a `KeyframeAutoencoder` or `ImageAutoencoder`.
        memory_branch: whether the transformer takes camera poses and references.
        start_latents: (b, C, 1, h, w) latents of `keyframes.start`, if they exist already.
        video_condition: makes the condition latents of checkpoints with `latent_cond_mode` `full_vae`; None if every
            frame is encoded on its own.
        encode_batch_size: frames that are encoded together.
    """

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return autoencoder.encode(frames, encode_batch_size).float()

    start, count, renders = start_latents, keyframes.count, None
    if keyframes.renders is not None and start is not None:
        renders = torch.cat((start, encode(keyframes.renders)), dim=2)
    elif keyframes.renders is not None:
        renders = encode(torch.cat((keyframes.start[:, :, None], keyframes.renders), dim=2))
        start = renders[:, :, :1]
    elif start is None:
        start = encode(keyframes.start[:, :, None])
    if video_condition is not None:
        condition = video_condition(keyframes.start, count).to(start)
    else:
        grey = encode(torch.zeros_like(keyframes.start[:1, :, None]))
        condition = torch.cat((start, grey.expand(len(start), -1, count - 1, -1, -1)), dim=2)
    given = torch.zeros_like(condition[:, :MASK_CHANNELS])
    given[:, :, 0] = 1

    arguments: dict[str, Any] = {}
    if renders is not None:
        arguments["render_latent"] = renders
        arguments["render_mask"] = keyframes.holes
        arguments["camera_embedding"] = keyframes.plucker
        if keyframes.layouts is not None and keyframes.plane_channels is not None:
            # The model starts from the renders with extrapolated planes; the smooth fill goes in as a difference.
            layouts = torch.cat((start, encode(keyframes.layouts)), dim=2)
            arguments["render_latent"] = layouts
            arguments["layout"] = torch.cat((renders - layouts, keyframes.plane_channels.to(renders)), dim=1)
    if memory_branch:
        arguments["camera_qt"] = keyframes.poses
        if keyframes.references.shape[2]:
            references = encode(keyframes.references)
            ones = torch.ones_like(references[:, :MASK_CHANNELS])
            arguments["reference_latent"] = torch.cat((references, ones, references), dim=1)
            arguments["ref_index"] = keyframes.reference_index
            arguments["camera_qt_ref"] = keyframes.reference_poses
            if keyframes.reference_points is not None:
                arguments["reference_points"] = keyframes.reference_points
    return ModelInputs(torch.cat((given, condition), dim=1), arguments)
