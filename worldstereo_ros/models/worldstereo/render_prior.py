"""The render prior: the velocity in closed form from the rendering alone, to which a small model adds a correction.

Assume that the latent x is normally distributed around the latent r of the rendering, with a standard deviation that is
small where the cloud covers the image and large in holes. Given the noisy latent z = (1 - s) x + s n, the expected
velocity E[n - x | z] is then linear in z and r, and the residual has a known standard deviation. The control branch
predicts the residual, in units of that deviation, by a last layer of its own (`render_head`). This layer starts at
zero, so that an untrained model returns the rendering. It is the preconditioning of EDM (arXiv 2206.00364), with a
rendering as the mean.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def with_render_prior(
    correction: torch.Tensor,
    noisy: torch.Tensor,
    rendered: torch.Tensor,
    holes: torch.Tensor,
    sigma: torch.Tensor,
    deviations: tuple[float, float],
) -> torch.Tensor:
    """Combines the expected velocity given the rendering with the network's correction.

    Args:
        correction: (b, C, F, h, w) output of the network, in standard deviations of the residual.
        noisy: (b, C, F, h, w) noisy latent z.
        rendered: (b, C, F, h, w) latent r of the rendering.
        holes: (b, 1, F, H, W) hole mask at pixel resolution, 1 = hole.
        sigma: (b,) noise level s, 0..1.
        deviations: standard deviations of x around r, where the rendering covers the image and in holes.

    Returns:
        (b, C, F, h, w) float32 velocity.
    """
    covered_std, hole_std = deviations
    frames, height, width = noisy.shape[2:]
    hole_fraction = functional.adaptive_avg_pool3d(holes.float(), (frames, height, width))
    variance = (covered_std + (hole_std - covered_std) * hole_fraction).square()
    s = sigma.float().view(-1, 1, 1, 1, 1)
    z, r = noisy.float(), rendered.float()
    total = (1 - s).square() * variance + s.square()  # the variance of z around (1 - s) r
    expected = ((s - (1 - s) * variance) * z - s * r) / total
    return expected + (variance / total).sqrt() * correction.float()
