#!/usr/bin/env python3
"""Imagines a panorama in a world of the test split, a metre from one that is given.

Prints how well the turn closes and how near it is to the truth; with --out writes the sheet of docs/guides/panorama.md.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.protocols import PANORAMA_DISTANCE_M, panorama_poses
from worldstereo_ros.evaluation.world_sequences import world_panorama, world_sequence
from worldstereo_ros.io.images import write_image
from worldstereo_ros.panorama.imagine import ORDERS, imagine_panorama, observe_panorama, seam_joint
from worldstereo_ros.panorama.stitching import closure
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.visualization.contact_sheet import panorama_sheet
from worldstereo_ros.world import WorldModel

WIDTH = 1600  # pixels of the sheet


def sphere_psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB of panoramas (H, 2 H, 3) uint8 over the directions in `mask`, weighed by solid angle."""
    latitude = ((np.arange(len(image)) + 0.5) / len(image) - 0.5) * np.pi
    weight = np.cos(latitude)[:, None] * mask
    error = ((image.astype(np.float64) - truth) ** 2).mean(axis=-1)
    return float(10 * np.log10(255**2 * weight.sum() / max((weight * error).sum(), 1e-9)))


def main() -> None:
    """Reads the options, imagines, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=0, help="Which world of the test split.")
    parser.add_argument("--model", default="small")
    parser.add_argument("--height", type=int, default=384, help="Rows of the panoramas.")
    parser.add_argument("--order", action="append", choices=ORDERS, help="Of a ring's views; may be repeated.")
    parser.add_argument("--out", type=Path, help="Where the sheet is written, .jpg or .png.")
    options = parser.parse_args()
    sequence = world_sequence("test", options.world)
    here, there = panorama_poses(sequence)
    given, truth = (world_panorama(sequence, place, options.height) for place in (here, there))
    world = WorldModel(load_pipeline(options.model))
    observe_panorama(world, given.image, given.distance, world_from_camera=here)
    everywhere = np.ones(given.covered.shape, bool)
    print(f"{sequence.path}, {options.model}, about {PANORAMA_DISTANCE_M} m away; dB over the sphere")
    print(f"the given panorama, as it is: {sphere_psnr(given.image, truth.image, everywhere):.2f} dB")
    for order in options.order or ["round"]:
        found = imagine_panorama(world, there, height=options.height, order=order)
        panorama, ring = found.panorama, found.ring
        true = sequence.seen_from(np.stack([view.world_from_camera for view in ring]), ring[0].camera)
        floor = closure(list(true), seam_joint(len(ring), order))
        whole = sphere_psnr(panorama.image, truth.image, everywhere)
        imagined = sphere_psnr(panorama.image, truth.image, ~panorama.observed)
        print(f"{order}: {whole:.2f} dB, imagined {imagined:.2f} dB, observed {panorama.observed.mean():.2f}")
        for name, closed in (("imagined", found.closure), ("true", floor)):
            if closed is not None:
                print(f"  {name}: seam {closed.seam:.2f}, joints {closed.inner:.2f}, ratio {closed.ratio:.2f}")
    if options.out:
        sheet = panorama_sheet(given.image, found, truth.image)
        size = (WIDTH, round(WIDTH * sheet.shape[0] / sheet.shape[1]))
        write_image(options.out, cv2.resize(sheet, size, interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
