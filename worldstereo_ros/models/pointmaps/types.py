"""What the point-map network gets and returns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from worldstereo_ros.models.pointmaps.geometry import world_points
from worldstereo_ros.utils.errors import InputError

MULTIPLE_PX = 16  # height and width of clips


@dataclass(frozen=True)
class PointmapPrior:
    """A first estimate of b videos of F frames: depth and poses of one scale, which need not be metric.

    Attributes:
        log_depth: (b, F, H, W) float32 logarithm of the depth along the optical axis.
        log_sigma: (b, F, H, W) float32 logarithm of the scale of a Laplace distribution around it.
        poses: (b, F, 4, 4) float32 first_from_camera; the first one is the identity.
        anchor_residual: (b, F, H, W) float32, at sparse pixels whose depth was triangulated: the logarithm of that
            depth, minus `log_depth`; 0 elsewhere.
        anchor_weight: (b, F, H, W) float32 0..1, how sure that is; 0 = no anchor. The network was trained with
            `anchor_weight` of the standard deviation of that logarithm.
    """

    log_depth: torch.Tensor
    log_sigma: torch.Tensor
    poses: torch.Tensor
    anchor_residual: torch.Tensor
    anchor_weight: torch.Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.log_depth.shape)
        for each in fields(self):
            expected = (*shape[:2], 4, 4) if each.name == "poses" else shape
            got = tuple(getattr(self, each.name).shape)
            if len(shape) != 4 or got != expected:
                raise InputError(
                    f"{each.name} of the prior has shape {got}; maps (b, F, H, W) and poses (b, F, 4, 4) were expected."
                )

    def to(self, device: torch.device | str) -> PointmapPrior:
        """The prior on another device."""
        return PointmapPrior(*(getattr(self, each.name).to(device) for each in fields(self)))

    def select(self, index: torch.Tensor | slice) -> PointmapPrior:
        """Some of the videos."""
        return PointmapPrior(*(getattr(self, each.name)[index] for each in fields(self)))

    def refined(self, prediction: PointmapPrediction) -> PointmapPrior:
        """The prior for another pass: what was predicted is its depth."""
        moved = self.anchor_residual + (self.log_depth - prediction.log_depth) * (self.anchor_weight > 0)
        return replace(self, log_depth=prediction.log_depth, log_sigma=prediction.log_scale, anchor_residual=moved)


@dataclass(frozen=True)
class PointmapPrediction:
    """What the network says about b videos of F frames, in the scale of the prior.

    Attributes:
        log_depth: (b, F, H, W) float32 logarithm of the depth along the optical axis.
        log_scale: (b, F, H, W) float32 logarithm of the scale of a Laplace distribution around it: the expected
            absolute error of `log_depth`, when one scale of the whole clip is free.
        dynamic: (b, F, H, W) float32 logit of the probability that the pixel moves in the world.
        valid: (b, F, H, W) float32 logit of the probability that the ray hits a surface.
        knows_moving: `dynamic` is to be believed; else what moves follows from geometry alone.
    """

    log_depth: torch.Tensor
    log_scale: torch.Tensor
    dynamic: torch.Tensor
    valid: torch.Tensor
    knows_moving: bool = True

    def points(self, poses: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
        """Points (b, F, 3, H, W) in the axes of the first camera, with poses (b, F, 4, 4) and intrinsics (b, 4)."""
        return world_points(self.log_depth.exp(), poses, intrinsics)


@dataclass(frozen=True)
class WorldPointmaps:
    """Point maps that were decoded from latents: they need no poses, and give them (PnP).

    Attributes:
        points: (b, F, 3, H, W) float32 in the axes of the first camera.
        log_scale: (b, F, H, W) float32 logarithm of the scale of a Laplace distribution of the error of a point over
            its distance.
        valid: (b, F, H, W) float32 logit of the probability that the ray hits a surface.
    """

    points: torch.Tensor
    log_scale: torch.Tensor
    valid: torch.Tensor


def check_clip(images: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior | None) -> None:
    """Checks the shapes of a clip.

    Args:
        images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 16.
        intrinsics: (b, 4).
        prior: of the same videos.

    Raises:
        InputError: a shape is another, or the frames are not finite.
    """
    if images.ndim != 5 or images.shape[2] != 3 or images.shape[3] % MULTIPLE_PX or images.shape[4] % MULTIPLE_PX:
        raise InputError(
            f"The clips have shape {tuple(images.shape)}; (b, F, 3, H, W) with H and W multiples of {MULTIPLE_PX} was "
            "expected."
        )
    b, f, _, h, w = images.shape
    if intrinsics.shape != (b, 4) or not bool((intrinsics[:, :2] > 0).all()):
        raise InputError(
            f"The intrinsics have shape {tuple(intrinsics.shape)}; ({b}, 4) with focal lengths above 0 was expected."
        )
    if prior is not None and tuple(prior.log_depth.shape) != (b, f, h, w):
        raise InputError(
            f"The prior has shape {tuple(prior.log_depth.shape)}; that of the clips, {(b, f, h, w)}, was expected."
        )
