#!/usr/bin/env python3
"""Read provenance and confidence of imagined pixels, and compare both with the true error.

python examples/05_provenance_and_confidence.py

Provenance is observed, estimated (seen, but not measured; not here) or imagined; confidence is the probability that a
pixel's colour is right. Only the procedural world knows the truth. The result is in example_out/provenance/.
"""

from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.contact_sheet import contact_sheet
from worldstereo_ros.visualization.images import provenance_overlay
from worldstereo_ros.world import WorldModel

OUT = Path("example_out/provenance")
COLUMNS = ("imagined", "blue: observed, orange: imagined", "confidence", "absolute error", "truth")


def heat(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: 0 is dark, 1 is bright."""
    return cv2.cvtColor(cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def main() -> None:
    """Observe one view, imagine a turn away from it, and show what is known of every pixel."""
    scene, camera = make_scene("room", seed_of("demo", 5)), Camera.from_fov(320, 240, 1.2)
    start = make_path(scene, "handheld", 1, seed=2)[0]
    world = WorldModel(load_pipeline("small"))
    world.observe(render_view(scene, camera, start))

    rows = []
    for view in world.imagine(trajectory("turn", start, 5, angle=0.8), camera):
        truth = render_view(scene, camera, view.world_from_camera).image
        error = np.abs(view.image.astype(float) - truth).mean(axis=-1) / 255
        masks = view.observed_mask, view.provenance == Provenance.IMAGINED
        by_provenance = [f"{error[mask].mean():.3f}" if mask.any() else "-" for mask in masks]
        sure = view.confidence >= np.median(view.confidence)
        print(f"view {view.index}: {view.observed_fraction:.0%} observed; error {by_provenance[0]} where observed, "
              f"{by_provenance[1]} where imagined; {error[sure].mean():.3f} in the more confident half")  # fmt: skip
        overlay = provenance_overlay(view.image, view.provenance)
        rows.append([view.image, overlay, heat(view.confidence), heat(np.clip(4 * error, 0, 1)), truth])
    OUT.mkdir(parents=True, exist_ok=True)
    names = [f"view {index}" for index in range(len(rows))]
    write_image(OUT / "provenance.png", contact_sheet(rows, COLUMNS, names, title="what is known of every pixel"))
    print(f"wrote {OUT / 'provenance.png'}")


if __name__ == "__main__":
    main()
