"""How good the views of the demo are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldstereo_ros.evaluation.demo_scenarios import DemoScenario
    from worldstereo_ros.geometry.views import ImaginedView

MIN_SCORED_FRACTION = 0.005  # of the pixels of an image; the PSNR of fewer says little


def compute_figures(scenario: DemoScenario, views: Sequence[ImaginedView]) -> dict[str, Any]:
    """Image quality over whole frames and by provenance; None without ground truth."""
    import numpy as np

    from worldstereo_ros.evaluation.metrics import psnr, ssim

    scores: dict[str, list[float]] = {"psnr": [], "ssim": []}
    scores |= {f"psnr_{name}": [] for name in ("observed", "estimated", "imagined")}
    figures: dict[str, Any] = {
        "views": len(views),
        "observed_fraction": round(float(np.mean([view.observed_fraction for view in views])), 4),
        "estimated_fraction": round(float(np.mean([view.estimated_fraction for view in views])), 4),
        **dict.fromkeys(scores),
    }
    if scenario.truth is None:
        return figures
    for view, truth in zip(views, scenario.truth, strict=True):
        scores["ssim"].append(ssim(view.image, truth))
        observed, estimated = view.observed_mask, view.estimated_mask
        masks = {
            "psnr": np.ones_like(observed),
            "psnr_observed": observed,
            "psnr_estimated": estimated,
            "psnr_imagined": ~(observed | estimated),
        }
        for name, mask in masks.items():
            value = psnr(view.image, truth, mask)
            if value is not None and mask.mean() > MIN_SCORED_FRACTION:
                scores[name].append(value)
    return figures | {name: round(float(np.mean(values)), 3) for name, values in scores.items() if values}
