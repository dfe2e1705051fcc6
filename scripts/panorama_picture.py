#!/usr/bin/env python3
"""Imagines a panorama in a world of the test split, at some distance from an observed one.

Prints how well the turn closes and the PSNR to the ground truth; with --out it writes the sheet of
docs/guides/panorama.md.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.protocols import PANORAMA_DISTANCE_M, panorama_poses
from worldstereo_ros.evaluation.world_sequences import world_panorama, world_sequence
from worldstereo_ros.io.images import write_image
from worldstereo_ros.panorama.closure import closure
from worldstereo_ros.panorama.imagine import ORDERS, imagine_panorama, observe_panorama, seam_joint
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.visualization.contact_sheet import panorama_sheet
from worldstereo_ros.world import WorldModel

WIDTH_PX = 1600  # of the sheet


def sphere_psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB of panoramas (H, 2 H, 3) uint8 over the directions in `mask`, weighted by solid angle."""
    latitude = ((np.arange(len(image)) + 0.5) / len(image) - 0.5) * np.pi
    weight = np.cos(latitude)[:, None] * mask
    error = ((image.astype(np.float64) - truth) ** 2).mean(axis=-1)
    return float(10 * np.log10(255**2 * weight.sum() / max((weight * error).sum(), 1e-9)))


def main() -> None:
    """Imagines, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=0, help="number of the world in the test split")
    parser.add_argument("--model", default="small")
    parser.add_argument("--height", type=int, default=384, help="rows of the panoramas")
    parser.add_argument("--order", action="append", choices=ORDERS, help="order of a ring's views; may be repeated")
    parser.add_argument("--out", type=Path, help="file for the sheet, .jpg or .png")
    options = parser.parse_args()
    sequence = world_sequence("test", options.world)
    here, there = panorama_poses(sequence)
    observed, truth = (world_panorama(sequence, place, options.height) for place in (here, there))
    world = WorldModel(load_pipeline(options.model))
    observe_panorama(world, observed.image, observed.distance, world_from_camera=here)
    full_sphere = np.ones(observed.covered.shape, bool)
    print(f"{sequence.path}, {options.model}, about {PANORAMA_DISTANCE_M} m away; dB over the sphere")
    print(f"the observed panorama itself: {sphere_psnr(observed.image, truth.image, full_sphere):.2f} dB")
    for order in options.order or ["round"]:
        found = imagine_panorama(world, there, height=options.height, order=order)
        panorama, ring = found.panorama, found.ring
        true_ring = sequence.seen_from(np.stack([view.world_from_camera for view in ring]), ring[0].camera)
        true_closure = closure(list(true_ring), seam_joint(len(ring), order))
        whole = sphere_psnr(panorama.image, truth.image, full_sphere)
        imagined = sphere_psnr(panorama.image, truth.image, ~panorama.observed)
        print(f"{order}: {whole:.2f} dB, imagined {imagined:.2f} dB, observed {panorama.observed.mean():.2f}")
        for name, closed in (("imagined", found.closure), ("true", true_closure)):
            if closed is not None:
                print(f"  {name}: seam {closed.seam:.2f}, joints {closed.inner:.2f}, ratio {closed.ratio:.2f}")
    if options.out:
        sheet = panorama_sheet(observed.image, found, truth.image)
        size = (WIDTH_PX, round(WIDTH_PX * sheet.shape[0] / sheet.shape[1]))
        write_image(options.out, cv2.resize(sheet, size, interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
