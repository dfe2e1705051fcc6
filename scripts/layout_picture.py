#!/usr/bin/env python3
"""Measures what plane extrapolation adds to a smooth fill, on unseen pixels of worlds.

With --out it draws the image of docs/concepts/plane_extrapolation.md.

From left to right in the sheet: the truth, what of it was seen, the smooth fill, planes mixed into it, the small model.
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
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import estimate_layout, render_layout
from worldstereo_ros.world import WorldModel

WIDTH, ROWS = 320, 6  # pixels of a picture, rows of the sheet
LEAST_UNSEEN, MOST_UNSEEN = 0.12, 0.7  # of the pixels of a view that the sheet shows


class Planes(GeometricPipeline):
    """Paints from memory, and goes on with planes where it shows nothing."""

    def __call__(self, conditioning: Conditioning, **_: Any) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip; nothing is claimed."""
        layout = estimate_layout(conditioning.references)
        for index, pose in enumerate(conditioning.world_from_camera):
            warped = self.warp(conditioning, index)
            guess = render_layout(layout, [warped], conditioning.camera, pose[None])
            image = np.rint(guess.images[0].transpose(1, 2, 0) * 255).astype(np.uint8)
            image[warped.valid_mask] = warped.image[warped.valid_mask]
            yield PipelineFrame(image, warped.depth, np.zeros(warped.valid_mask.shape, bool))


def main() -> None:
    """Reads the options, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", help="As of `worldstereo evaluate`; worlds:test:8 by default.")
    parser.add_argument("--every", type=int, default=12, help="Ask only every n-th frame.")
    parser.add_argument("--out", type=Path, help="Where the sheet is written, .jpg or .png.")
    options = parser.parse_args()
    pipelines = {"smooth fill": GeometricPipeline(), "planes": Planes(), "small": load_pipeline("small")}
    sheet = []
    for data in options.data or ["worlds:test:8"]:
        for protocol in ("single", "sparse"):
            errors: dict[str, list[float]] = {name: [] for name in pipelines}
            for sequence in open_data(data):
                task = make_scenario(sequence, protocol, options.every)
                shown = {}
                for name, pipeline in pipelines.items():
                    world = WorldModel(pipeline)
                    for view in task.observed_views:
                        world.observe(view)
                    shown[name] = [view.image for view in world.imagine(task.path, task.target_views.camera)]
                for number, truth in enumerate(task.target_views):
                    assert truth.depth is not None
                    unseen = (truth.depth > 0) & ~metrics.seen_pixels(truth, task.observed_views)
                    images = {name: images[number] for name, images in shown.items()}
                    for name, image in images.items():
                        error = metrics.psnr(image, truth.image, unseen)
                        if error is not None:
                            errors[name].append(error)
                    if protocol == "single" and LEAST_UNSEEN < unseen.mean() < MOST_UNSEEN:
                        black = np.where(unseen[..., None], np.uint8(0), truth.image)
                        sheet.append(np.concatenate([truth.image, black, *images.values()], axis=1))
            print(
                f"{data} {protocol}, unseen pixels: " + ", ".join(f"{n} {np.mean(e):.2f} dB" for n, e in errors.items())
            )
    if options.out and sheet:
        chosen = [sheet[index] for index in np.linspace(0, len(sheet) - 1, min(ROWS, len(sheet))).round().astype(int)]
        height = round(chosen[0].shape[0] * WIDTH * 5 / chosen[0].shape[1])
        rows = [cv2.resize(row, (WIDTH * 5, height), interpolation=cv2.INTER_AREA) for row in chosen]
        write_image(options.out, np.concatenate(rows))
        print(f"Look at {options.out}.")


if __name__ == "__main__":
    main()
