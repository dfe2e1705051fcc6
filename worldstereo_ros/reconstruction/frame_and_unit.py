"""Frame and unit of a reconstruction from photographs alone: upright, about as large as a room, or measured."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity, mean_rotation
from worldstereo_ros.reconstruction.photographs import Photographs
from worldstereo_ros.reconstruction.sparse_model import SparseModel

MEDIAN_DEPTH = 3.0  # of a reconstruction without a unit, so that it is about as large as a room in metres
MIN_DEPTH_SAMPLES = 100
MIN_PHOTO_SAMPLES, MAX_SCALE_RATIO = 20, 1.2  # of one photograph, between its scale and that of most
MAX_SCALE_SPREAD = 0.1  # relative; of measured over triangulated depth


def normalised(model: SparseModel) -> SparseModel:
    """The model with its cameras around the origin, up along z, and a median depth of `MEDIAN_DEPTH`."""
    up = -model.world_from_camera[:, :3, 1].mean(axis=0)
    forward = model.world_from_camera[:, :3, 2].mean(axis=0)
    rotation = np.eye(3)
    if np.linalg.norm(up) > 0.3:
        z = up / np.linalg.norm(up)
        y = forward - z * (forward @ z)
        if np.linalg.norm(y) < 0.1:
            y = np.linalg.svd(z[None])[2][1]
        y /= np.linalg.norm(y)
        rotation = mean_rotation(np.stack([np.cross(y, z), y, z])[None])
    depths = np.concatenate([model.depths_of(row) for row in range(len(model))])
    scale = MEDIAN_DEPTH / float(np.median(depths))
    centre = model.world_from_camera[:, :3, 3].mean(axis=0)
    return model.moved(Similarity(scale, rotation, -scale * rotation @ centre), metric=False)


def scale_by_depth(model: SparseModel, photos: Photographs, left_out: dict[str, str]) -> tuple[SparseModel, bool, str]:
    """Scales the model to measured depth; returns it, whether that was possible, and a sentence ("" without depth)."""
    ratios: dict[int, np.ndarray] = {}
    for row, number in enumerate(model.photographs):
        depth = photos[int(number)].measured_depth()
        if depth is None:
            continue
        x, y = np.rint(model.pixels[model.observed_by == row]).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
        measured, triangulated = depth[y[inside], x[inside]], model.depths_of(row)[inside]
        usable = (measured > 0) & (triangulated > 0)
        ratios[row] = measured[usable] / triangulated[usable]
    model, ratios = _without_wrong_scales(model, photos, ratios, left_out)
    ratio = np.concatenate([*ratios.values(), np.zeros(0)])
    if len(ratio) < MIN_DEPTH_SAMPLES:
        return model, False, ""
    scale = float(np.median(ratio))
    spread = float(np.median(np.abs(ratio / scale - 1)))
    if spread > MAX_SCALE_SPREAD:
        return model, False, f"Measured depth disagrees with the photographs by {spread:.0%}; it is not used."
    unit = "metres" if photos.metric else "the unit of the depth images"
    note = (
        f"The scale is that of measured depth ({len(ratio)} points, which agree within {spread:.1%}); lengths are in "
        f"{unit}."
    )
    return model.moved(Similarity(scale, np.eye(3), np.zeros(3)), metric=photos.metric), True, note


def _without_wrong_scales(
    model: SparseModel, photos: Photographs, ratios: dict[int, np.ndarray], left_out: dict[str, str]
) -> tuple[SparseModel, dict[int, np.ndarray]]:
    """Leaves out photographs whose measured depth says another scale than that of most: their poses are wrong."""
    scales = {row: float(np.median(values)) for row, values in ratios.items() if len(values) >= MIN_PHOTO_SAMPLES}
    common = float(np.median(list(scales.values()))) if scales else 0.0
    wrong = [row for row, scale in scales.items() if abs(np.log(scale / common)) > np.log(MAX_SCALE_RATIO)]
    if not wrong or len(model) - len(wrong) < 2:
        return model, ratios
    for row in wrong:
        left_out[photos[int(model.photographs[row])].name] = (
            f"Its measured depth is {scales[row] / common:.2f} times what its pose says; the pose is wrong."
        )
    kept = [row for row in range(len(model)) if row not in wrong]
    return model.subset(np.array(kept)), {new: ratios[row] for new, row in enumerate(kept) if row in ratios}
