#!/usr/bin/env python3
"""Makes stereo pairs of a walk through a world of the test split, with and without given poses and measured depth.

Prints how near the made eye is to the true one, and that matching the pair gives back the depth that was put in; with
--out it writes the sheet of docs/guides/stereo.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.evaluation.stereo_data import TruthFrame, open_stereo_data
from worldstereo_ros.imaging.stereo_layouts import anaglyph
from worldstereo_ros.io.images import write_image
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, REMEMBERED
from worldstereo_ros.pipelines.stereo.streaming import StereoPair, StereoStream

TINTS = {REMEMBERED: (60, 130, 255), PAINTED: (255, 150, 30)}
GAP_PX, WIDTH_PX = 8, 1300
SHOWN_DISPARITY_PX = 40.0


def sources(pair: StereoPair) -> np.ndarray:
    """(H, W, 3) uint8: the right eye in grey, with remembered pixels blue and painted ones orange."""
    grey = cv2.cvtColor(pair.right, cv2.COLOR_RGB2GRAY)
    out = np.repeat((grey // 2 + 90)[..., None], 3, axis=2)
    for source, tint in TINTS.items():
        out[pair.source == source] = tint
    return out


def disparity_picture(pair: StereoPair) -> np.ndarray:
    """(H, W, 3) uint8: near is bright."""
    levels = np.clip(pair.disparity / SHOWN_DISPARITY_PX * 255, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def matched_depth(pair: StereoPair) -> np.ndarray:
    """(H, W) float32 depth by semi-global matching of the pair, 0 = nothing matched."""
    count = 16 * max(1, int(np.ceil((float(pair.disparity.max()) + 4) / 16)))
    matcher = cv2.StereoSGBM_create(
        minDisparity=0, numDisparities=count, blockSize=5, P1=8 * 3 * 25, P2=32 * 3 * 25, disp12MaxDiff=1,
        uniquenessRatio=10, speckleWindowSize=100, speckleRange=2,
    )  # fmt: skip
    found = matcher.compute(pair.left, pair.right).astype(np.float32) / 16
    return np.where(found > 0, pair.left_camera.fx * pair.base / np.where(found > 0, found, 1), 0).astype(np.float32)


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of one size in rows, with gaps."""
    height, width = rows[0][0].shape[:2]
    out = np.full((len(rows) * (height + GAP_PX) - GAP_PX, len(rows[0]) * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (height + GAP_PX), j * (width + GAP_PX)
            out[y : y + height, x : x + width] = picture
    return out


def report(name: str, pairs: Sequence[StereoPair], frames: Sequence[TruthFrame]) -> None:
    """Prints means over the frames."""
    whole = np.mean([psnr(pair.right, frame.truth) for pair, frame in zip(pairs, frames, strict=True)])
    holes = [
        psnr(pair.right, frame.truth, frame.hole)
        for pair, frame in zip(pairs, frames, strict=True)
        if frame.hole is not None and frame.hole.any()
    ]
    to_input, to_truth = [], []
    for pair, frame in zip(pairs, frames, strict=True):
        found = matched_depth(pair)
        usable = (found > 0) & np.isfinite(pair.depth) & np.isfinite(frame.depth) & (frame.depth > 0)
        to_input.append(np.median(np.abs(found / pair.depth - 1)[usable]))
        to_truth.append(np.median(np.abs(found / frame.depth - 1)[usable]))
    shares = [np.mean([(pair.source == source).mean() for pair in pairs]) for source in (REMEMBERED, PAINTED)]
    print(
        f"{name}: right eye {whole:.2f} dB, its holes {np.mean(holes):.2f} dB; remembered {shares[0]:.1%}, painted "
        f"{shares[1]:.1%}; matching the pair is off by {np.mean(to_input):.1%} from the depth put in and by "
        f"{np.mean(to_truth):.1%} from the true depth (medians); started over {sum(pair.restarted for pair in pairs)} "
        "times"
    )


def main() -> None:
    """Makes, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=0, help="number of the world in the test split")
    parser.add_argument("--frame", type=int, default=-1, help="frame that is shown")
    parser.add_argument("--out", type=Path, help="file for the sheet, .jpg")
    options = parser.parse_args()
    sequence = open_stereo_data(f"worlds:test:{options.world + 1}")[options.world]
    frames = [sequence.load(index) for index in range(sequence.frames)]
    estimator = load_depth_estimator("small")
    print(f"{sequence.name}, base {sequence.settings.base:g} m, {len(frames)} frames")
    shown: StereoPair | None = None
    for depth in ("measured", "estimated"):
        for poses in ("given", "followed"):
            stream = StereoStream(sequence.settings, estimator)
            pairs = [
                stream.push(
                    frame.image,
                    sequence.camera,
                    frame.depth if depth == "measured" else None,
                    0.2 * index,
                    frame.world_from_camera if poses == "given" else None,
                )
                for index, frame in enumerate(frames)
            ]
            report(f"depth {depth}, poses {poses}", pairs, frames)
            shown = shown or pairs[options.frame]
    if options.out and shown is not None:
        truth = frames[options.frame].truth
        rows = (
            (shown.left, shown.right, truth),
            (sources(shown), disparity_picture(shown), anaglyph(shown.left, shown.right)),
        )
        picture = sheet(rows)
        size = (WIDTH_PX, round(WIDTH_PX * picture.shape[0] / picture.shape[1]))
        write_image(options.out, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
