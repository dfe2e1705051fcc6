"""The photometric loss of splats: absolute difference and D-SSIM, with a quick derivative.

SSIM (Wang et al. 2004) needs blurred images only, and the adjoint of a blur with zeros outside is the same blur, so
that OpenCV computes both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

SIGMA_PX, WINDOW_PX = 1.5, 11
C1, C2 = 0.01**2, 0.03**2  # for colours in 0..1
SSIM_SHARE = 0.2  # of the loss (Kerbl et al. 2023)


@dataclass(frozen=True)
class Target:
    """A photograph that splats are fitted to, with what the loss needs of it.

    Attributes:
        image: (H, W, 3) float32 in 0..1.
        mean, square: (H, W, 3) float32, blurred image and blurred square.
        weight: (H, W) float32, weight of each pixel; None for 1 everywhere.
    """

    image: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def of(cls, image: np.ndarray, weight: np.ndarray | None = None) -> Target:
        """Builds a target from a (H, W, 3) uint8 image."""
        colours = image.astype(np.float32) * np.float32(1 / 255)
        return cls(colours, _blur(colours), _blur(colours * colours), weight)


def photometric_loss(image: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor, target: Target) -> torch.Tensor:
    """The weighted mean of (1 - s) |difference| + s (1 - SSIM) / 2, s = `SSIM_SHARE`, of gain * image + offset.

    Args:
        image: (H, W, 3) float32, differentiable.
        gain, offset: (3,) exposure of the photograph beside the image, differentiable.
        target: the photograph, of the same size.
    """
    return _Photometric.apply(image, gain, offset, target)


def _blur(image: np.ndarray) -> np.ndarray:
    size = (WINDOW_PX, WINDOW_PX)
    return cv2.GaussianBlur(image, size, SIGMA_PX, borderType=cv2.BORDER_CONSTANT)


class _Photometric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor, target: Target) -> Any:
        plain, factor, b = image.detach().numpy(), gain.detach().numpy(), target.image
        a = plain * factor + offset.detach().numpy()
        mean_a, mean_b = _blur(a), target.mean
        above_1 = 2 * mean_a * mean_b + C1
        below_1 = mean_a * mean_a + mean_b * mean_b + C1
        above_2 = 2 * (_blur(a * b) - mean_a * mean_b) + C2
        below_2 = _blur(a * a) - mean_a * mean_a + target.square - mean_b * mean_b + C2
        ssim = above_1 * above_2 / (below_1 * below_2)
        difference = a - b
        share = np.float32(SSIM_SHARE)
        per_pixel = (1 - share) * np.abs(difference) + (0.5 * share) * (1 - ssim)
        weight: Any = np.float32(1 / a.size)
        if target.weight is not None:
            weight = (target.weight / max(3 * float(target.weight.sum()), 1e-6))[..., None].astype(np.float32)
        ctx.save = (plain, factor, a, b, mean_a, mean_b, above_1, below_1, above_2, below_2, ssim, difference, weight)
        return torch.tensor(float((per_pixel * weight).sum()))

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        plain, factor, a, b, mean_a, mean_b, above_1, below_1, above_2, below_2, ssim, difference, weight = ctx.save
        share = np.float32(SSIM_SHARE)
        by_ssim = (-0.5 * share) * weight
        scale = by_ssim / (below_1 * below_2)
        by_product = 2 * above_1 * scale  # by blur(a b)
        by_square = -by_ssim * ssim / below_2  # by blur(a a)
        by_mean = 2 * mean_b * above_2 * scale - 2 * mean_a * by_ssim * ssim / below_1
        by_mean -= mean_b * by_product + 2 * mean_a * by_square
        gradient = _blur(by_mean) + 2 * a * _blur(by_square) + b * _blur(by_product)
        gradient += (1 - share) * weight * np.sign(difference)
        gradient *= np.float32(slope.item())
        by_gain, by_offset = np.einsum("hwc,hwc->c", gradient, plain), gradient.sum(axis=(0, 1))
        return torch.from_numpy(gradient * factor), torch.from_numpy(by_gain), torch.from_numpy(by_offset), None
