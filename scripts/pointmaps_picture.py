#!/usr/bin/env python3
"""Shows what `worldstereo pointmaps` made of a recording: frames, estimated depth, and the path seen from above.

Prints how far the path is from the poses of the recording after the best similarity; with --out it writes the sheet of
docs/guides/pointmaps.md.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.similarity import align_poses
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.io.view_sequence import ViewSequence

FRAMES, GAP_PX = 4, 8
FAR_QUANTILE = 0.98  # of depth, that is shown darkest
SHARE_SHOWN = 4  # every n-th pixel of every n-th frame in the plan
EDGE_QUANTILE = 0.01  # of the points that the plan leaves out on each side
OURS, TRUTH = (255, 140, 30), (60, 140, 255)


def depth_picture(depth: np.ndarray, far: float) -> np.ndarray:
    """(H, W, 3) uint8: near is bright, unknown grey."""
    levels = np.clip(255 * (1 - depth / far), 0, 255).astype(np.uint8)
    out = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    out[depth <= 0] = 128
    return out


def plan(found: ViewSequence, truth: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: points of all frames from above, our path, and the true one (F, 4, 4) in our frame."""
    up = -found.poses[:, :3, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    right = np.cross(up, np.cross(found.poses[0, :3, 0], up))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, up)])  # across and away, level
    points, colours = [], []
    for index in range(0, len(found), SHARE_SHOWN):
        view = found[index]
        assert view.depth is not None
        known = (view.depth > 0) & (view.depth_confidence > 0.3 if view.depth_confidence is not None else True)
        points.append(unproject(view.depth, view.camera, view.world_from_camera)[known][::SHARE_SHOWN])
        colours.append(view.image[known][::SHARE_SHOWN])
    flat, height = np.concatenate(points) @ axes.T, np.concatenate(points) @ up
    rgb, below = np.concatenate(colours), height < np.quantile(height, 0.85)  # without the ceiling
    low, high = np.quantile(flat, [EDGE_QUANTILE, 1 - EDGE_QUANTILE], axis=0)
    scale = 0.94 * size / (high - low).max()

    def pixels(xy: np.ndarray) -> np.ndarray:
        centred = (xy - 0.5 * (low + high)) * scale
        return np.rint(np.stack([0.5 * size + centred[:, 0], 0.5 * size - centred[:, 1]], axis=1)).astype(int)

    out = np.full((size, size, 3), 255, np.uint8)
    at = pixels(flat)
    inside = below & ((at >= 0) & (at < size)).all(axis=1)
    out[at[inside, 1], at[inside, 0]] = rgb[inside]
    for poses, colour, width in ((truth, TRUTH, 4), (found.poses, OURS, 2)):
        line = pixels(poses[:, :3, 3] @ axes.T).reshape(-1, 1, 2).astype(np.int32)
        cv2.polylines(out, [line], False, colour, width, cv2.LINE_AA)
    return out


def main() -> None:
    """Prints the error of the path and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("session", type=Path, help="folder that `worldstereo pointmaps` wrote")
    parser.add_argument("recording", type=Path, help="the posed sequence that it was made from")
    parser.add_argument("--out", type=Path, help="picture to write")
    options = parser.parse_args()
    found, recording = open_posed(options.session), open_posed(options.recording)
    true = recording.poses[: len(found)]
    similarity = align_poses(true, found.poses)
    error = np.linalg.norm(similarity.poses(true)[:, :3, 3] - found.poses[:, :3, 3], axis=1) / similarity.scale
    rmse = float(np.sqrt((error**2).mean()))
    print(f"{len(found)} frames, ATE {rmse:.3f} m after one similarity; scale {similarity.scale:.3f}")
    if options.out is None:
        return
    views = [found[round(i)] for i in np.linspace(0, len(found) - 1, FRAMES)]
    far = float(np.quantile(np.concatenate([view.depth[view.depth > 0] for view in views]), FAR_QUANTILE))
    height, width = views[0].image.shape[:2]
    pairs = [(view.image, depth_picture(view.depth, far)) for view in views]
    size = 2 * height + GAP_PX
    columns = FRAMES // 2
    out = np.full((2 * size + GAP_PX, columns * (width + GAP_PX) + 2 * size + GAP_PX, 3), 255, np.uint8)
    for index, pair in enumerate(pairs):
        y, x = (index // columns) * (size + GAP_PX), (index % columns) * (width + GAP_PX)
        for offset, picture in zip((0, height + GAP_PX), pair, strict=True):
            out[y + offset : y + offset + height, x : x + width] = picture
    out[:, columns * (width + GAP_PX) :] = plan(found, similarity.poses(true), 2 * size + GAP_PX)
    scale = 1300 / out.shape[1]
    write_image(options.out, cv2.resize(out, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
