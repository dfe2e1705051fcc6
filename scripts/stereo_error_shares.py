#!/usr/bin/env python3
"""Prints where made eyes differ from the true ones: shares of pixels and of the squared error, by what fills a pixel.

The columns of gains say what the whole image and its holes would gain if pixels of that kind were perfect: what a
network that repaints them can gain at most. The last column is the mean over worlds of the error of that kind.

    python scripts/stereo_error_shares.py --data worlds:validation:8
    python scripts/stereo_error_shares.py --data worlds:validation:40 --lone --every 5 --before before.json

`--before` compares each world with an earlier run: mean difference and its standard error over worlds.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.evaluation.stereo_data import StereoSequence, open_stereo_data
from worldstereo_ros.io.files import read_json
from worldstereo_ros.models.checkpoints.saving import write_json
from worldstereo_ros.pipelines.stereo.hole_masks import in_view, wide_parts
from worldstereo_ros.pipelines.stereo.painting import load_painter
from worldstereo_ros.pipelines.stereo.pipeline import (
    PAINTED,
    REMEMBERED,
    SEEN,
    GeometricStereo,
    HolePainter,
    StereoFrame,
)
from worldstereo_ros.pipelines.stereo.settings import GEOMETRIC
from worldstereo_ros.utils.errors import InputError

MIN_PIXELS = 60  # of a world; of fewer, a kind has no dB
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


@dataclass(frozen=True)
class WorldShares:
    """Figures of one sequence.

    Attributes:
        shares: (kinds, 4) shares of pixels and of the error, and gains of the whole image and of holes, dB.
        psnr: dB of pixels of each kind, of all holes and of the whole image; None where there are too few pixels.
    """

    shares: np.ndarray
    psnr: list[float | None]


def measure(sequence: StereoSequence, painter: HolePainter | None, *, lone: bool, every: int) -> WorldShares:
    """Makes eyes of a sequence and compares them with the true ones.

    Args:
        sequence: with measured depth.
        painter: what repaints, see `painting.load_painter`.
        lone: each frame by itself, as a photograph.
        every: use each so-manieth frame.
    """
    settings = replace(sequence.settings, steady=False, memory=0) if lone else sequence.settings
    pipeline = GeometricStereo(sequence.camera, settings, painter=painter)
    counts, gains, totals = np.zeros((len(KINDS), 2)), [], np.zeros((2, 2))
    for index in range(0, sequence.frames, every):
        truth = sequence.load(index)
        if truth.depth is None:
            raise InputError(f"{sequence.name} has no measured depth.")
        if lone:
            pipeline.restart()
        frame = pipeline.make(truth.image, truth.depth, None if lone else truth.world_from_camera)
        squared = ((frame.image.astype(np.float64) - truth.truth) ** 2).mean(axis=2)
        row = []
        for kind, mask in enumerate(kinds_of(frame, sequence.settings.offset(sequence.camera.fx))):
            counts[kind] += mask.sum(), squared[mask].sum()
            perfect = np.where(mask[..., None], truth.truth, frame.image)
            row.append([_gain(frame.image, perfect, truth.truth, at) for at in (None, truth.hole)])
        gains.append(row)
        hole = np.zeros_like(frame.band) if truth.hole is None else truth.hole
        totals += [[mask.sum(), squared[mask].sum()] for mask in (hole, np.ones_like(hole))]
    some = np.concatenate([counts, totals])
    psnr = [10 * math.log10(255**2 * n / max(e, 1e-9)) if n >= MIN_PIXELS else None for n, e in some]
    return WorldShares(np.concatenate([counts / counts.sum(axis=0), np.nanmean(gains, axis=0)], axis=1), psnr)


def _gain(made: np.ndarray, perfect: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> float:
    before, after = (psnr(image, truth, mask) for image in (made, perfect))
    return np.nan if before is None or after is None or not np.isfinite([before, after]).all() else after - before


def differences(now: list[list[float | None]], before: list[list[float | None]]) -> list[str]:
    """For each figure, the mean over worlds of the difference, its standard error, and the least."""
    found = np.array(now, float) - np.array(before, float)
    lines = []
    for column in found.T:
        values = column[np.isfinite(column)]
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        lines.append(f"{values.mean():+.2f} ± {error:.2f} (least {values.min():+.1f})" if len(values) else "")
    return lines


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="worlds:validation:8", help="see `worldstereo evaluate --stereo`")
    parser.add_argument("--model", default=GEOMETRIC, help="see `worldstereo stereo --model`")
    parser.add_argument("--lone", action="store_true", help="each frame by itself, as a photograph")
    parser.add_argument("--every", type=int, default=1, help="use each so-manieth frame")
    parser.add_argument("--json", type=Path, help="file for the dB of each world")
    parser.add_argument("--before", type=Path, help="such a file of an earlier run to compare with")
    options = parser.parse_args()
    console, painter = Console(stderr=True), load_painter(options.model)
    found, psnr = [], {}
    for sequence in open_stereo_data(options.data):
        if painter is not None:
            painter.restart()
        with console.status(sequence.name):
            world = measure(sequence, painter, lone=options.lone, every=options.every)
        found.append(world.shares)
        psnr[sequence.name] = world.psnr
        if options.json:
            write_json(options.json, psnr)
    values = np.array(list(psnr.values()), float)
    against = [""] * values.shape[1]
    if options.before:
        before = read_json(options.before)
        against = differences(list(psnr.values()), [before[name] for name in psnr])
    print("| made eye | pixels | of the error | whole, if perfect, dB | holes, if perfect, dB | dB | difference, dB |")
    print("| --- " * 7 + "|")
    figures = [[f"{p:.1%}", f"{e:.0%}", f"{w:+.2f}", f"{h:+.2f}"] for p, e, w, h in np.mean(found, axis=0)]
    names = [*KINDS, "all holes", "the whole image"]
    for name, cells, column, change in zip(names, [*figures, [""] * 4, [""] * 4], values.T, against, strict=True):
        some = column[np.isfinite(column)]
        level = f"{some.mean():.2f}" if len(some) else ""
        print(f"| {' | '.join([name, *cells, level, change])} |")


if __name__ == "__main__":
    main()
