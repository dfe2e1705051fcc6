"""How far a refiner is to be followed: anchors that it did not get say whether it knows better than the prior.

A network may be at home in a place or not, and does not say so. Tracked points that are held out do: for each clip, the
errors of prior and refiner at them are compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior

# Error of the refiner at anchors that are held out, over that of the prior, up to which it is followed wholly, and from
# which on not at all. Points that can be tracked lie among others, where the prior is better than elsewhere: in
# validation worlds the refiner improves whole maps although the ratio is up to 1.1.
WHOLLY, NOT_AT_ALL = 1.1, 1.2
MIN_ERROR = 1e-3  # of the log depth; smaller ones are equal


def share_of_refiner(prior: np.ndarray, refined: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Share of a refiner's change that held-out anchors support.

    Args:
        prior, refined: (N,) log depth before and after, at the anchors.
        truth: (N,) log depth of the anchors.
        weight: (N,) of the anchors, larger for more certain ones; not all 0.

    Returns:
        1 where the mean error of the refiner is at most `WHOLLY` times that of the prior, 0 from `NOT_AT_ALL` times on.
    """
    before, after = (float(np.average(np.abs(one - truth), weights=weight)) + MIN_ERROR for one in (prior, refined))
    return float(np.clip((NOT_AT_ALL - after / before) / (NOT_AT_ALL - WHOLLY), 0, 1))


def refined(
    prediction: PointmapPrediction,
    prior: PointmapPrior,
    part: PointmapPrior,
    intrinsics: torch.Tensor,
    truth: np.ndarray,
    weight: np.ndarray,
) -> PointmapPrediction:
    """The prediction of a refiner, drawn back to the prior as far as held-out anchors ask for it.

    Args:
        prediction: what the refiner made of `part`.
        prior: the prior of all anchors.
        part: the prior without the anchors that are held out; `prior` itself if there are none.
        intrinsics: (1, 4).
        truth, weight: (F, h, w) log depth and weight of the anchors that are held out; 0 = none.

    Returns:
        Between the prior, fused over the frames, and the prediction.
    """
    import torch

    from worldstereo_ros.models.pointmaps.fusion import fuse_depth
    from worldstereo_ros.utils.single_thread import single_thread

    at = weight > 0
    if not at.any():
        return prediction

    def fused(one: PointmapPrior) -> torch.Tensor:
        with single_thread():
            return fuse_depth(one.log_depth, one.log_sigma, one.poses, intrinsics)

    found = prediction.log_depth.float().cpu()
    before, after = fused(part)[0].numpy()[at], found[0].numpy()[at]
    share = share_of_refiner(before, after, truth[at], weight[at])
    if share == 1:
        return prediction
    scale = torch.lerp(prior.log_sigma.exp(), prediction.log_scale.float().cpu().exp(), share).log()
    return replace(prediction, log_depth=torch.lerp(fused(prior), found, share), log_scale=scale)
