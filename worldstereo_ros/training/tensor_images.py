"""Metrics of image tensors, and their conversion to images of examples, for losses and validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.evaluation.metrics import SSIM_WINDOW_PX, psnr_from_mse, ssim_from_means


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of images (N, 3, h, w) in [-1, 1], differentiable.

    The formula is that of `evaluation.metrics.ssim`, with the biased instead of the sample covariance.
    """
    a, b = a.float() * 0.5 + 0.5, b.float() * 0.5 + 0.5
    means = (functional.avg_pool2d(values, SSIM_WINDOW_PX, 1) for values in (a, b, a * a, b * b, a * b))
    return ssim_from_means(*means, peak=1.0).mean()


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each of N images (N, 3, h, w) in [-1, 1], as `evaluation.metrics.psnr`; (N,) on the CPU."""
    mse = (a.float().clamp(-1, 1) - b.float()).square().flatten(1).mean(1)
    return torch.tensor([psnr_from_mse(value, 2.0) for value in mse.tolist()])


def as_uint8(images: torch.Tensor) -> np.ndarray:
    """(N, 3, h, w) in [-1, 1] to (N, h, w, 3) uint8."""
    return images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def image_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of images (n, h, w, 3) uint8 as one image."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
