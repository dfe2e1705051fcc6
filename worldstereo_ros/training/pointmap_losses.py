"""Losses of the point-map network and its autoencoder.

Errors of depth and of points are relative, and one scale of a clip is free, as in evaluation.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder, coded
from worldstereo_ros.models.pointmaps.geometry import MAX_CODE, decode_points, lengths, pixel_rays
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.utils.errors import InputError

MOVING_WEIGHT = 2.0
PLAIN_WEIGHT = 0.5  # of the error itself beside its likelihood: pixels in doubt are learned, too
ABSOLUTE_WEIGHT = 0.3  # of the error in the scale of the prior
GRADIENT_WEIGHT = 0.5
GRADIENT_STRIDES = (1, 2, 4)
MAX_GRADIENT = 0.5  # of the log depth; steps beyond are edges, which are counted no more than this
DYNAMIC_WEIGHT, DYNAMIC_POSITIVE = 0.3, 3.0
VALID_WEIGHT = 0.1
KL_WEIGHT = 1e-6
RAY_WEIGHT = 1.0
MAX_KNOWN_ERROR = 1.0  # relative errors beyond teach the scale no more than this
HUBER_DELTA = 0.05
CODE_ERRORS = ("huber", "l1", "l2")  # of coded points: the published one, and those that it was compared with
MEDIAN_STRIDE = 7  # of the pixels that a median is taken over


def masked_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of values of the same shape; 0 where nothing has a weight."""
    return (values * weight).sum() / weight.sum().clamp_min(1)


def clip_medians(values: torch.Tensor, mask: torch.Tensor, stride: int = MEDIAN_STRIDE) -> torch.Tensor:
    """Medians (b,) of masked values (b, ...), of every n-th one; 0 where there is none."""
    masked = torch.where(mask, values.detach(), torch.full_like(values, torch.nan))
    return masked.flatten(1)[:, ::stride].nanmedian(dim=1).values.nan_to_num(0.0)


def map_loss(
    prediction: PointmapPrediction,
    log_depth: torch.Tensor,
    hit: torch.Tensor,
    moving: torch.Tensor,
    has_prior: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the maps at the resolution of pixels.

    Args:
        prediction: of b videos.
        log_depth: (b, F, H, W) the truth in the scale of the prior.
        hit: (b, F, H, W) bool, where there is a surface.
        moving: (b, F, H, W) bool.
        has_prior: (b,) bool, videos whose scale is that of the prior.

    Returns:
        The loss and its parts: likelihood, error, gradients, dynamic and valid.
    """
    known = hit.float()
    weight = known * (1 + (MOVING_WEIGHT - 1) * moving)
    error = prediction.log_depth - log_depth
    offset = clip_medians(error, hit).view(-1, 1, 1, 1)
    aligned = (error - offset).abs()
    likelihood = masked_mean(aligned * (-prediction.log_scale).exp() + prediction.log_scale, weight)
    plain = masked_mean(aligned, weight)
    absolute = masked_mean(error.abs(), weight * has_prior.view(-1, 1, 1, 1))
    gradient = error.new_zeros(())
    for stride in GRADIENT_STRIDES:
        for axis in (2, 3):
            size = error.shape[axis] - stride
            near, far = (x.narrow(axis, start, size) for x in (error,) for start in (0, stride))
            both = known.narrow(axis, 0, size) * known.narrow(axis, stride, size)
            gradient = gradient + masked_mean((far - near).abs().clamp(max=MAX_GRADIENT), both)
    gradient = gradient / (2 * len(GRADIENT_STRIDES))
    dynamic = functional.binary_cross_entropy_with_logits(
        prediction.dynamic, moving.float(), pos_weight=prediction.dynamic.new_tensor(DYNAMIC_POSITIVE)
    )
    valid = functional.binary_cross_entropy_with_logits(prediction.valid, known)
    loss = (
        likelihood
        + PLAIN_WEIGHT * plain
        + ABSOLUTE_WEIGHT * absolute
        + GRADIENT_WEIGHT * gradient
        + DYNAMIC_WEIGHT * dynamic
        + VALID_WEIGHT * valid
    )
    parts = {"likelihood": likelihood, "error": plain, "gradient": gradient, "dynamic": dynamic, "valid": valid}
    return loss, {name: value.detach() for name, value in parts.items()}


def point_loss(
    points: torch.Tensor,
    log_scale: torch.Tensor,
    valid: torch.Tensor,
    truth: torch.Tensor,
    hit: torch.Tensor,
    moving: torch.Tensor,
    poses: torch.Tensor,
    intrinsics: torch.Tensor,
) -> torch.Tensor:
    """Loss of decoded point maps: errors over distance, and directions from the true cameras, which PnP needs.

    Args:
        points: (b, F, 3, H, W) decoded.
        log_scale, valid: (b, F, H, W) decoded.
        truth: (b, F, 3, H, W) true points, axes of the first camera.
        hit, moving: (b, F, H, W) bool.
        poses: (b, F, 4, 4) true first_from_camera, of the scale of `truth`.
        intrinsics: (b, 4).
    """
    weight = hit * (1 + (MOVING_WEIGHT - 1) * moving)
    ratio = lengths(truth).clamp_min(1e-4).log() - lengths(points.detach()).clamp_min(1e-4).log()
    points = points * clip_medians(ratio, hit).exp().view(-1, 1, 1, 1, 1)
    centre = poses[:, :, :3, 3, None, None]
    distance = lengths(truth - centre).clamp_min(0.1)
    error = (points - truth).abs().sum(2) / distance
    # The likelihood teaches the scale alone: where points are sure, its gradient would outweigh all others.
    known = error.detach().clamp(max=MAX_KNOWN_ERROR)
    likelihood = masked_mean(known * (-log_scale).exp() + log_scale, weight)
    rays = functional.normalize(pixel_rays(intrinsics, *hit.shape[-2:]), dim=1)
    rays = torch.einsum("bfij,bjhw->bfihw", poses[:, :, :3, :3], rays)
    # The tangent of the angle to the true ray, were the distance right: its gradient is bounded.
    apart = points - centre
    across = apart - (apart * rays).sum(2, keepdim=True) * rays
    across = (across.square().sum(2) + 1e-6).sqrt() / distance
    direction = masked_mean(across, (hit & ~moving).float())
    surface = functional.binary_cross_entropy_with_logits(valid, hit.float())
    return 0.2 * likelihood + masked_mean(error, weight) + RAY_WEIGHT * direction + VALID_WEIGHT * surface


def direction_loss(
    points: torch.Tensor, truth: torch.Tensor, centres: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean distance of unit vectors from the true cameras to points and to true ones: what PnP needs of points.

    Args:
        points, truth: (b, F, 3, H, W) in the axes of the first camera.
        centres: (b, F, 3) of the true cameras.
        mask: (b, F, H, W) bool, where there is a surface that does not move.
    """
    ours, true = (each - centres[..., None, None] for each in (points, truth))
    ours, true = (each / (each.square().sum(2, keepdim=True) + 1e-4).sqrt() for each in (ours, true))
    return masked_mean(((ours - true).square().sum(2) + 1e-6).sqrt(), mask.float())


def code_error(code: torch.Tensor, target: torch.Tensor, kind: str = "huber") -> torch.Tensor:
    """Mean error of coded points of the same shape.

    Huber's is square over twice `HUBER_DELTA` below this, and absolute less half of it above; l2 is the square part
    everywhere and l1 the absolute one, so that the three are of one size where errors are those of a trained model.

    Raises:
        InputError: the kind is none of `CODE_ERRORS`.
    """
    if kind == "huber":
        return functional.smooth_l1_loss(code, target, beta=HUBER_DELTA)
    if kind == "l1":
        return functional.l1_loss(code, target)
    if kind == "l2":
        return functional.mse_loss(code, target) / (2 * HUBER_DELTA)
    raise InputError(f"The error of coded points is '{kind}'; one of {', '.join(CODE_ERRORS)} was expected.")


def autoencoder_loss(
    autoencoder: PointmapAutoencoder,
    points: torch.Tensor,
    hit: torch.Tensor,
    *,
    error: str = "huber",
    kl_weight: float = KL_WEIGHT,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the autoencoder: Huber, KL divergence from the standard normal, likelihood, surfaces.

    The encoder has no variance of its own; with a fixed one the divergence is half the square of the latent.

    Args:
        autoencoder: the autoencoder.
        points: (b, F, 3, H, W) over the mean distance.
        hit: (b, F, H, W) bool.
        error: of the coded points, see `code_error`.
        kl_weight: of the divergence; 0 for none.

    Raises:
        InputError: the error is unknown.
    """
    latents = autoencoder.encode_points(points, hit)
    heads = autoencoder.decode_heads(latents)
    target = coded(points, hit).flatten(0, 1)
    loss, parts = decoder_loss(*heads, points.flatten(0, 1), target, hit.flatten(0, 1), error=error)
    return loss + kl_weight * 0.5 * latents.float().square().mean(), parts


def decoder_loss(
    code: torch.Tensor,
    log_scale: torch.Tensor,
    valid: torch.Tensor,
    points: torch.Tensor,
    target: torch.Tensor,
    hit: torch.Tensor,
    *,
    error: str = "huber",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of decoded point maps: error of their codes, likelihood, surfaces.

    Args:
        code: (N, 3, H, W) decoded coded points.
        log_scale, valid: (N, H, W) decoded.
        points: (N, 3, H, W) true points over the mean distance.
        target: (N, 3, H, W) their codes.
        hit: (N, H, W) bool, where there is a surface.
        error: of the codes, see `code_error`; it gives its part its name.

    Raises:
        InputError: the error is unknown.
    """
    known = hit.float()
    coding = code_error(code, target, error)
    distance = lengths(points, 1).clamp_min(0.05)
    # The likelihood teaches the scale alone: its gradient would outweigh Huber's where points are sure.
    decoded = decode_points(code.detach().clamp(-MAX_CODE, MAX_CODE))
    relative = (decoded - points).abs().sum(1) / distance
    likelihood = masked_mean(relative * (-log_scale).exp() + log_scale, known)
    surface = functional.binary_cross_entropy_with_logits(valid, known)
    loss = 10 * coding + 0.1 * likelihood + VALID_WEIGHT * surface
    parts = {error: coding.detach(), "relative": masked_mean(relative, known).detach(), "surface": surface.detach()}
    return loss, parts
