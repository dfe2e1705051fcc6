#!/usr/bin/env python3
"""Prints where made eyes differ from the true ones: shares of pixels and of the squared error, by what fills a pixel.

The last columns say what the whole image and its holes would gain if pixels of that kind were perfect: what a network
that repaints them can gain at most.

    python scripts/stereo_error_shares.py --data worlds:validation:8
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.evaluation.stereo_data import StereoSequence, open_stereo_data
from worldstereo_ros.pipelines.stereo.hole_masks import in_view, wide_parts
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, REMEMBERED, SEEN, GeometricStereo, StereoFrame
from worldstereo_ros.utils.errors import InputError

KINDS = (
    "seen",
    "remembered",
    "painted: beyond the side of the camera's image",
    "painted: narrow parts, which keep the fill",
    "painted: wide parts, which a network repaints",
)


def kinds_of(frame: StereoFrame, offset: float) -> list[np.ndarray]:
    """Masks (H, W) bool in the order of `KINDS`."""
    left = frame.eye == "left"
    painted = frame.source == PAINTED
    view = painted & in_view(frame.disparity, offset, left=left)
    wide = wide_parts(view)
    return [frame.source == SEEN, frame.source == REMEMBERED, painted & ~view, view & ~wide, wide]


def shares(sequence: StereoSequence) -> np.ndarray:
    """(kinds, 4): shares of pixels and of the error, and gains of the whole image and of holes, dB."""
    pipeline = GeometricStereo(sequence.camera, sequence.settings)
    counts, gains = np.zeros((len(KINDS), 2)), []
    for index in range(sequence.frames):
        truth = sequence.load(index)
        if truth.depth is None:
            raise InputError(f"{sequence.name} has no measured depth.")
        frame = pipeline.make(truth.image, truth.depth, truth.world_from_camera)
        squared = ((frame.image.astype(np.float64) - truth.truth) ** 2).mean(axis=2)
        row = []
        for kind, mask in enumerate(kinds_of(frame, sequence.settings.offset(sequence.camera.fx))):
            counts[kind] += mask.sum(), squared[mask].sum()
            perfect = np.where(mask[..., None], truth.truth, frame.image)
            row.append([_gain(frame.image, perfect, truth.truth, at) for at in (None, truth.hole)])
        gains.append(row)
    return np.concatenate([counts / counts.sum(axis=0), np.nanmean(gains, axis=0)], axis=1)


def _gain(made: np.ndarray, perfect: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> float:
    before, after = (psnr(image, truth, mask) for image in (made, perfect))
    return np.nan if before is None or after is None or not np.isfinite([before, after]).all() else after - before


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="worlds:validation:8", help="see `worldstereo evaluate --stereo`")
    options = parser.parse_args()
    console = Console(stderr=True)
    found = []
    for sequence in open_stereo_data(options.data):
        with console.status(sequence.name):
            found.append(shares(sequence))
    print("| made eye | share of pixels | share of the error | whole, if perfect, dB | holes, dB |")
    print("| --- " * 5 + "|")
    for kind, (pixels, error, whole, holes) in zip(KINDS, np.mean(found, axis=0), strict=True):
        print(f"| {kind} | {pixels:.1%} | {error:.0%} | {whole:+.2f} | {holes:+.2f} |")


if __name__ == "__main__":
    main()
