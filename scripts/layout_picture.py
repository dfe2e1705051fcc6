#!/usr/bin/env python3
"""Measures plane extrapolation against the smooth fill on unseen pixels of procedural worlds.

With --out it writes the sheet of docs/concepts/plane_extrapolation.md: from left to right the ground truth, its
observed part, the smooth fill, the fill with extrapolated planes, and the small model.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.world_sequences import open_data
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import render_layout
from worldstereo_ros.world import WorldModel

WIDTH_PX, ROWS = 320, 6  # width of an image, rows of the sheet
MIN_UNSEEN, MAX_UNSEEN = 0.12, 0.7  # fraction of the pixels of a view in the sheet


class Planes(GeometricPipeline):
    """The geometric pipeline with extrapolated planes in its smooth fills."""

    def __call__(self, conditioning: Conditioning, **_: Any) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip; no pixel is labelled as observed."""
        layout = estimate_layout(conditioning.references)
        for index, pose in enumerate(conditioning.world_from_camera):
            warped = self.warp(conditioning, index)
            rendered = render_layout(layout, [warped], conditioning.camera, pose[None])
            image = np.rint(rendered.images[0].transpose(1, 2, 0) * 255).astype(np.uint8)
            image[warped.valid_mask] = warped.image[warped.valid_mask]
            yield PipelineFrame(image, warped.depth, np.zeros(warped.valid_mask.shape, bool))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", help="as for `worldstereo evaluate`; default: worlds:test:8")
    parser.add_argument("--every", type=int, default=12, help="evaluate every n-th held-out frame")
    parser.add_argument("--out", type=Path, help="file for the sheet, .jpg or .png")
    options = parser.parse_args()
    pipelines = {"smooth fill": GeometricPipeline(), "planes": Planes(), "small": load_pipeline("small")}
    sheet = []
    for data in options.data or ["worlds:test:8"]:
        for protocol in ("single", "sparse"):
            errors: dict[str, list[float]] = {name: [] for name in pipelines}
            for sequence in open_data(data):
                scenario = make_scenario(sequence, protocol, options.every)
                imagined = {}
                for name, pipeline in pipelines.items():
                    world = WorldModel(pipeline)
                    for view in scenario.observed_views:
                        world.observe(view)
                    imagined[name] = [view.image for view in world.imagine(scenario.path, scenario.target_views.camera)]
                for number, truth in enumerate(scenario.target_views):
                    assert truth.depth is not None
                    unseen = (truth.depth > 0) & ~metrics.seen_pixels(truth, scenario.observed_views)
                    images = {name: images[number] for name, images in imagined.items()}
                    for name, image in images.items():
                        error = metrics.psnr(image, truth.image, unseen)
                        if error is not None:
                            errors[name].append(error)
                    if protocol == "single" and MIN_UNSEEN < unseen.mean() < MAX_UNSEEN:
                        black = np.where(unseen[..., None], np.uint8(0), truth.image)
                        sheet.append(np.concatenate([truth.image, black, *images.values()], axis=1))
            print(
                f"{data} {protocol}, unseen pixels: " + ", ".join(f"{n} {np.mean(e):.2f} dB" for n, e in errors.items())
            )
    if options.out and sheet:
        chosen = [sheet[index] for index in np.linspace(0, len(sheet) - 1, min(ROWS, len(sheet))).round().astype(int)]
        height = round(chosen[0].shape[0] * WIDTH_PX * 5 / chosen[0].shape[1])
        rows = [cv2.resize(row, (WIDTH_PX * 5, height), interpolation=cv2.INTER_AREA) for row in chosen]
        write_image(options.out, np.concatenate(rows))
        print(f"Wrote {options.out}.")


if __name__ == "__main__":
    main()
