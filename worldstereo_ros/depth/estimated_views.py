"""Observations without measured depth: estimated depth in memory, and its replacement by measured depth.

Estimated depth is aligned to memory, inserted only where memory has no observed surface, and corrected when a sensor
measures the same place later, so that no second surface stays beside the measured one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldstereo_ros.depth.alignment import MIN_KNOWN_PX, align_to_memory, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator, estimate_depth
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.rendering.splatting import Rendering, render
from worldstereo_ros.utils.errors import InputError

# A measured view corrects at most this many earlier views, which bounds the cost of a view.
MAX_CORRECTED_VIEWS = 4


def with_estimated_depth(
    view: View, estimator: DepthEstimator | None, cloud: CloudMemory, device: str | torch.device = "cpu"
) -> View:
    """Estimates the depth of an observation, at the scale of memory if memory shows the place.

    Args:
        view: an observation without depth.
        estimator: the depth estimator.
        cloud: memory; observed points determine the scale, estimated ones if there are too few.
        device: where the cloud is rendered.

    Returns:
        The view with depth, all of it labelled as estimated, and with its confidence if the estimator has one.

    Raises:
        InputError: there is no estimator.
        DepthError: the estimator gives no depth.
    """
    if estimator is None:
        raise InputError(
            "The image has no depth and no depth estimator is loaded. Send a depth image registered to the colour "
            "image, or choose a model that estimates it: the parameter `depth_model` of the node, or from Python "
            "WorldModel(depth_estimator=...), see load_depth_estimator."
        )
    estimate = estimate_depth(estimator, view.image, view.camera)
    depth = estimate.depth
    if len(cloud):
        rendering = _render(cloud, view, Provenance.ESTIMATED, device)
        known, provenance = rendering.depth[0].cpu().numpy(), rendering.provenance[0].cpu().numpy()
        observed = provenance == Provenance.OBSERVED
        if observed.sum() >= MIN_KNOWN_PX:
            known = np.where(observed, known, np.float32(0))
        if (known > 0).sum() >= MIN_KNOWN_PX:
            depth = align_to_memory(depth, known)
    # Pixels without an estimate, such as sky, were not measured either; a later correction may give them a depth.
    everywhere = np.ones(depth.shape, dtype=bool)
    return replace(view, depth=depth, observed=None, estimated=everywhere, depth_confidence=estimate.confidence)


def insert_estimated(cloud: CloudMemory, view: View, device: str | torch.device = "cpu") -> InsertReport:
    """Inserts a view with estimated depth where memory has no observed surface; a copy of one would lie beside it."""
    return _insert_beside(cloud, view, _observed_depth(cloud, view, device))


def correct_estimated_views(
    cloud: CloudMemory, bank: ViewBank, measured: View, device: str | torch.device = "cpu"
) -> int:
    """Corrects the estimated depth of earlier views where a newly inserted view measured the same place.

    The depth of such a view follows the observed points of memory, and the rest of it is scaled to fit. Its old points
    are removed from the cloud and the corrected ones are inserted.

    Args:
        cloud, bank: both memories; `measured` was inserted into the cloud.
        measured: an observation with measured depth.
        device: where the cloud is rendered.

    Returns:
        The number of corrected views, at most `MAX_CORRECTED_VIEWS`: those that overlap most.
    """
    indices = [i for i, view in enumerate(bank.views) if view.is_observation and view.estimated_mask.any()]
    if not indices or not measured.observed_mask.any():
        return 0
    scores = bank.scores(measured.camera, measured.world_from_camera[None])[0][0, indices]
    count = 0
    for best in np.argsort(-scores, kind="stable")[:MAX_CORRECTED_VIEWS]:
        view = bank.views[indices[best]]
        known = _observed_depth(cloud, view, device)
        if scores[best] <= 0 or view.depth is None or (known > 0).sum() < MIN_KNOWN_PX:
            continue
        # Where nothing is known, nothing is filled in: sky stays sky.
        depth = np.where((known > 0) | (view.depth > 0), complete_depth(known, view.depth), np.float32(0))
        corrected = replace(view, depth=depth)
        cloud.remove_estimated(view)
        _insert_beside(cloud, corrected, known)
        bank.replace(indices[best], corrected)
        count += 1
    return count


def _insert_beside(cloud: CloudMemory, view: View, known: np.ndarray) -> InsertReport:
    assert view.depth is not None
    return cloud.insert(replace(view, depth=np.where(known > 0, np.float32(0), view.depth)))


def _observed_depth(cloud: CloudMemory, view: View, device: str | torch.device) -> np.ndarray:
    """(H, W) float32 depth of the observed points of memory from the pose of a view, 0 = none."""
    return _render(cloud, view, Provenance.OBSERVED, device).depth[0].cpu().numpy()


def _render(cloud: CloudMemory, view: View, lowest: Provenance, device: str | torch.device) -> Rendering:
    """The points of the class `lowest` and higher ones, from the pose of a view."""
    chosen = cloud.provenance >= lowest
    return render(
        cloud.points[chosen],
        cloud.colours[chosen],
        cloud.provenance[chosen],
        cloud.spacing[chosen],
        view.camera,
        view.world_from_camera[None],
        device=device,
    )
