"""What a rendering alone says about the velocity: where a small model starts from.

A large model learns that a covered latent is nearly its rendering's, and how nearly at every level of noise. That is a
formula: let the latent be normal around the rendering's, with a deviation that is small where the cloud covers and
large in holes. Given z = (1 - s) x + s n, the mean of n - x is then linear in z and in the rendering, and what is left
to say has a known size. The control branch of such a model has a last layer of its own (`render_head`), which says just
that: untrained, it shows the rendering. (EDM, arXiv 2206.00364, preconditions in this way without a rendering.)
"""

from __future__ import annotations

import torch
from torch.nn import functional


def with_render_prior(
    correction: torch.Tensor,
    noisy: torch.Tensor,
    rendered: torch.Tensor,
    holes: torch.Tensor,
    level: torch.Tensor,
    deviations: tuple[float, float],
) -> torch.Tensor:
    """The velocity: the rendering's part and the network's.

    Args:
        correction: (b, C, F, h, w), what the network adds, in deviations of what the rendering leaves open.
        noisy: (b, C, F, h, w), the noisy latent.
        rendered: (b, C, F, h, w), the latent of the rendering.
        holes: (b, 1, F, H, W) at pixel resolution, 1 = hole.
        level: (b,) noise, 0..1.
        deviations: how far latents are from the rendering's, where it covers and in holes.

    Returns:
        (b, C, F, h, w) float32.
    """
    covered, missing = deviations
    frames, height, width = noisy.shape[2:]
    share = functional.adaptive_avg_pool3d(holes.float(), (frames, height, width))
    variance = (covered + (missing - covered) * share).square()
    s = level.float().view(-1, 1, 1, 1, 1)
    z, r = noisy.float(), rendered.float()
    total = (1 - s).square() * variance + s.square()  # the variance of z around (1 - s) r
    known = ((s - (1 - s) * variance) * z - s * r) / total
    return known + (variance / total).sqrt() * correction.float()
