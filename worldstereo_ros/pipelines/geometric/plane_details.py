"""Details of surfaces, continued over planes where nothing was seen.

The image on a plane is split into light and colour (low frequencies, which `layout.py` extrapolates) and detail. The
detail that observations saw of a plane is an example of its texture. It is continued without limit by tiling and
blending (Heitz and Neyret 2018, "High-Performance By-Example Noise using a Histogram-Preserving Blending Operator"):
the plane is covered by triangles, each vertex shows the example at a random place, and three of them are blended with
their variance kept. Where the example is periodic, the places differ by whole periods, so that tiles and boards
continue in phase. The result is a function of the place on the plane, the same from every viewpoint.

Only texels that lie on the plane count: those of other surfaces, at depth edges, and of another colour (pictures,
signs) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.plane_detection import PlaneTexture
from worldstereo_ros.pipelines.geometric.plane_patterns import find_pattern
from worldstereo_ros.pipelines.geometric.plane_sampling import (
    LEVELS,
    MIN_COSINE,
    ON_PLANE_M,
    ON_PLANE_PER_M,
    TEXELS,
    DetailExample,
    find_periods,
    low_pass,
    pack_detail,
    sample_plane,
)
from worldstereo_ros.pipelines.geometric.usual_colours import usual_colours_of_rows

UPRIGHT_COSINE = 0.7  # between up and the normal of a wall
MAX_EXAMPLE_VIEWS = 3
MAX_FOOTPRINT = 3.0  # texels that a pixel may cover
LOW_PASS_M = 0.12  # standard deviation that separates detail from light
# Deviation from the colour of the plane, in this quantile of the deviations, plus grey levels.
COLOUR_FAMILY, COLOUR_QUANTILE, COLOUR_TOLERANCE = 3.0, 0.35, 8.0
# A texel whose surroundings have more than this much of the detail of the calmest quarter shows a thing, not texture.
CALM_M = 0.35  # standard deviation of the surroundings
CALM_QUANTILE, CALM_FACTOR, CALM_TOLERANCE = 0.25, 2.0, 2.0
MAX_DETAIL = 18.0  # RMS grey levels of a texture; with more it shows a thing
# Pixels and texels are interpolated, so that a texture is drawn with about half of the fine detail that its plane has
# where it was seen. Weak textures are sharpened to make up for it, at each level of the pyramid. Strong ones are not:
# where they are out of phase, their error grows with the square of the contrast.
SHARPENING, SHARPENED_TEXELS = 1.5, 1.5  # of what a filter with this standard deviation takes away
STRONG_DETAIL = (8.0, 16.0)  # RMS grey levels of a texture, from which sharpening fades and at which there is none
MIN_EXAMPLE_AREA_M2 = 0.05
# What is the same all along a wall at one height (skirting boards, rails, the border between two papers) is told from
# its texture: the median of a row, if so much of it was seen, and if it is so many times the standard error that
# unrelated texture would have, of which so many neighbouring texels say the same.
MIN_ROW_M, MIN_ROW_TEXELS, MIN_ROW_RATIO, RELATED_TEXELS = 0.7, 24, 3.0, 12
EDGE_GRADIENT, EDGE_ROWS = 6.0, 2  # grey levels from row to row, in a profile, and rows beside them
# A texel whose detail is so many times the median, plus grey levels, shows a thing.
OUTLIER, OUTLIER_TOLERANCE = 8.0, 12.0
BORDER_M = 0.06  # around things, where their shadows and edges are
COLUMN_STRIDE = 4  # texels
WINDOW_RADII = (48, 32, 24, 16, 12, 8)  # texels; the largest with `MIN_CENTRES` is used
MIN_CENTRES = 64  # texels


def canonical_axes(normal: np.ndarray, up: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(2, 3) axes in a plane that are the same for all planes of a kind: for a wall horizontal and up.

    Args:
        normal: (3,) unit normal of the plane.
        up, axis: (3,) of the room.
    """
    if abs(float(normal @ up)) < UPRIGHT_COSINE:
        second = up - (up @ normal) * normal
        second /= np.linalg.norm(second)
        return np.stack([np.cross(second, normal), second])
    first = axis - (axis @ normal) * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first)])


def detail_example(
    views: Sequence[View], texture: PlaneTexture, up: np.ndarray, axis: np.ndarray
) -> DetailExample | None:
    """The example of a plane; None if too little of it was seen clearly.

    Args:
        views: observations with depth.
        texture: of the plane.
        up, axis: of the room.
    """
    parameters = texture.parameters.astype(np.float64)
    normal, offset = parameters[:3], parameters[3]
    axes = canonical_axes(normal, up, axis)
    rows, columns = np.nonzero(texture.distance == 0)
    cell_axes = parameters[4:10].reshape(2, 3)
    cells_uv = parameters[10:12] + (np.stack([columns, rows], axis=1) + 0.5) * parameters[12]
    points = offset * normal + cells_uv @ cell_axes
    footprints = np.full((len(views), len(points)), np.inf)
    for index, view in enumerate(views):
        footprints[index] = _footprints(points, normal, view)
    best = footprints.min(axis=0)
    if not np.isfinite(best).any():
        return None
    uv = points @ axes.T
    extent = float((uv.max(axis=0) - uv.min(axis=0)).max())
    texel = max(float(np.quantile(best[np.isfinite(best)], 0.3)), extent / (2 * TEXELS), 1e-4)
    clear = best < 2 * texel
    centre = np.median(uv[clear], axis=0) if clear.any() else uv.mean(axis=0)
    middle = (uv.max(axis=0) + uv.min(axis=0)) / 2
    size = uv.max(axis=0) - uv.min(axis=0) + parameters[12]
    centre = np.where(size <= TEXELS * texel, middle, centre)
    origin = centre - TEXELS / 2 * texel
    visible = (footprints < MAX_FOOTPRINT * texel).sum(axis=1)
    chosen = [index for index in np.argsort(-visible, kind="stable")[:MAX_EXAMPLE_VIEWS] if visible[index] > 0]
    best_views = [views[index] for index in chosen]
    pattern = find_pattern(best_views, normal, offset, axes, middle, extent, texel)
    if pattern is not None:
        return sharpened(pattern)
    upright = abs(float(normal @ up)) < UPRIGHT_COSINE
    sampled = [sample_plane(view, normal, offset, axes, origin, texel, TEXELS) for view in best_views]
    detail, valid, profile = _rectify(sampled, texel, upright)
    example = _make_example(detail, valid, origin, texel, upright)
    return None if example is None else sharpened(example)._replace(profile=profile)


def sharpened(example: DetailExample) -> DetailExample:
    """An example whose fine detail is drawn with more contrast, see `SHARPENING`."""
    detail = example.atlas[:, :TEXELS]
    strength = float(np.sqrt(np.mean(np.square(detail[example.usable], dtype=np.float64))))
    low, high = STRONG_DETAIL
    gain = np.float32(SHARPENING * np.clip((high - strength) / (high - low), 0, 1))
    atlas = example.atlas.copy()
    levels, row = [atlas[:, :TEXELS]], 0
    for level in range(1, LEVELS):
        size = TEXELS >> level
        levels.append(atlas[row : row + size, TEXELS : TEXELS + size])
        row += size
    for part in levels:
        part += gain * (part - cv2.GaussianBlur(part, (0, 0), SHARPENED_TEXELS))
    return example._replace(atlas=atlas)


def _footprints(points: np.ndarray, normal: np.ndarray, view: View) -> np.ndarray:
    """(N,) metres that a pixel covers at points of a plane; infinite where the view does not show them."""
    camera, pose = view.camera, view.world_from_camera
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = np.maximum(local[:, 2], 1e-6)
    u, v = camera.fx * local[:, 0] / z + camera.cx, camera.fy * local[:, 1] / z + camera.cy
    towards = pose[:3, 3] - points
    cosine = (towards @ normal) / np.maximum(np.linalg.norm(towards, axis=1), 1e-9)
    column, row = np.rint(u).astype(int), np.rint(v).astype(int)
    inside = (local[:, 2] > 0) & (u > 0) & (v > 0) & (u < camera.width - 1) & (v < camera.height - 1)
    inside &= cosine > MIN_COSINE
    assert view.depth is not None
    measured = view.depth[row.clip(0, camera.height - 1), column.clip(0, camera.width - 1)]
    inside &= np.abs(measured - z) < ON_PLANE_M + ON_PLANE_PER_M * z
    return np.where(inside, z / camera.fx / np.sqrt(np.maximum(cosine, MIN_COSINE)), np.inf)


Sampled = Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]  # results of `sample_plane`


def _rectify(sampled: Sampled, texel: float, upright: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What several views show of a plane.

    Args:
        sampled: what each view shows.
        texel: size, metres.
        upright: whether the plane is a wall, with horizontal rows.

    Returns:
        Detail (TEXELS, TEXELS, 3) float32 without the profile, its valid mask (TEXELS, TEXELS) bool, and the profile,
        see `height_profile`; None: the plane is no wall.
    """
    detail, low, seen = _finest(sampled, texel, np.ones((TEXELS, TEXELS), bool))
    if upright:
        detail = detail - _without_gaps(height_profile(detail, seen, texel))[:, None]
    # What is a thing is decided for all views together: one of them may show nothing but a door.
    surface = seen
    if surface.sum() >= MIN_CENTRES:
        surface = surface & _is_calm(detail, surface, CALM_M / texel)
    if surface.sum() >= MIN_CENTRES:
        surface = surface & _of_one_colour(low, surface, upright)
    if surface.sum() >= MIN_CENTRES:
        surface = surface & ~_things(detail, surface)
    surface = surface & ~_dilated(seen & ~surface, 2 * round(BORDER_M / texel) + 1)
    detail, _, seen = _finest(sampled, texel, surface)
    if not upright:
        return detail, seen, None
    profile = height_profile(detail, seen, texel)
    rows = _without_gaps(profile)
    # Beside the edges of a profile, what is left are the steps of pixels.
    edge = np.linalg.norm(np.gradient(rows, axis=0), axis=1) > EDGE_GRADIENT
    edge = cv2.dilate(edge.astype(np.uint8), np.ones((2 * EDGE_ROWS + 1, 1), np.uint8))[:, 0] > 0
    texture = seen & ~edge[:, None]
    detail = np.where(texture[..., None], detail - rows[:, None], np.float32(0))
    if texture.any():
        detail[_things(detail, texture)] = 0  # in rows of which too little was seen for a profile
    return detail, seen, profile


def _finest(sampled: Sampled, texel: float, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detail and light of the view that shows a texel best, each (TEXELS, TEXELS, 3) float32, and where one does.

    Args:
        sampled: what each view shows.
        texel: size, metres.
        surface: (TEXELS, TEXELS) bool, the texels that count.
    """
    detail, light = (np.zeros((TEXELS, TEXELS, 3), np.float32) for _ in range(2))
    finest = np.full((TEXELS, TEXELS), np.inf, np.float32)
    for colour, shown, footprint in sampled:
        mask = shown & surface
        if mask.sum() < MIN_CENTRES:
            continue
        low = low_pass(colour, mask, LOW_PASS_M / texel)
        better = mask & (footprint < np.minimum(finest, np.float32(MAX_FOOTPRINT)))
        np.copyto(detail, colour - low, where=better[..., None])
        np.copyto(light, low, where=better[..., None])
        np.copyto(finest, footprint, where=better)
    return detail, light, np.isfinite(finest)


def height_profile(detail: np.ndarray, seen: np.ndarray, texel: float) -> np.ndarray:
    """(TEXELS, 3) float32 detail that a wall shows all along its rows; NaN where too little of a row was seen.

    Things and texture are not the same all along a row, and leave its median as it is.

    Args:
        detail: (TEXELS, TEXELS, 3) float32 of the wall, with horizontal rows.
        seen: (TEXELS, TEXELS) bool, where it is known.
        texel: size, metres.
    """
    count = seen.sum(axis=1)
    rows = np.flatnonzero(count >= max(MIN_ROW_M / texel, MIN_ROW_TEXELS))
    profile = np.full((TEXELS, 3), np.nan, np.float32)
    if not len(rows):
        return profile
    median = _row_medians(detail[rows], seen[rows])
    spread = 1.4826 * _row_medians(np.abs(detail[rows] - median[:, None]), seen[rows])
    # Standard error of a median of texels of which `RELATED_TEXELS` say the same.
    error = 1.2533 * np.linalg.norm(spread, axis=1) / np.sqrt(count[rows] / RELATED_TEXELS)
    sure = np.linalg.norm(median, axis=1) > MIN_ROW_RATIO * error
    profile[rows] = np.where(sure[:, None], median, 0)
    return profile


def _row_medians(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, 3) lower medians of the rows of (H, W, 3) values, of those in a mask (H, W) that has some in each row."""
    ordered = np.sort(np.where(mask[..., None], values, np.float32(np.inf)).transpose(0, 2, 1), axis=-1)
    middle = (mask.sum(axis=1) - 1) // 2
    return np.take_along_axis(ordered, middle[:, None, None], axis=-1)[..., 0]


def share_profiles(examples: Sequence[DetailExample], order: Sequence[int]) -> list[DetailExample]:
    """Examples whose profiles have no gaps: unknown rows are those of the other walls at the same height.

    Args:
        examples: of a room.
        order: indices into them, those to prefer first.
    """
    walls = [index for index in order if examples[index].profile is not None]
    filled = list(examples)
    for index in walls:
        example = examples[index]
        assert example.profile is not None
        profile = example.profile.copy()
        heights = example.origin[1] + (np.arange(TEXELS) + 0.5) * example.texel
        for other in walls:
            gaps = np.isnan(profile[:, 0])
            if other == index or not gaps.any():
                continue
            source = examples[other]
            assert source.profile is not None
            rows = np.floor((heights - source.origin[1]) / source.texel).astype(int)
            gaps &= (rows >= 0) & (rows < TEXELS)
            profile[gaps] = source.profile[rows[gaps]]
        filled[index] = example._replace(profile=_without_gaps(profile))
    return filled


def _without_gaps(profile: np.ndarray) -> np.ndarray:
    return np.nan_to_num(profile)


def _is_calm(detail: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
    """(H, W) bool: texels whose surroundings have about as much detail as the calmest quarter of the plane."""
    energy = np.sqrt(np.maximum(low_pass((detail**2).mean(axis=-1, keepdims=True).repeat(3, -1), mask, deviation), 0))
    energy = energy[..., 0]
    calmest = np.quantile(energy[mask], CALM_QUANTILE)
    return energy < min(CALM_FACTOR * calmest + CALM_TOLERANCE, MAX_DETAIL)


def _things(detail: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: texels with far more detail than the plane has."""
    strength = np.linalg.norm(detail, axis=-1)
    return mask & (strength > OUTLIER * float(np.median(strength[mask])) + OUTLIER_TOLERANCE)


def _dilated(mask: np.ndarray, size: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))) > 0


def _of_one_colour(low: np.ndarray, mask: np.ndarray, upright: bool = False) -> np.ndarray:
    """(H, W) bool: texels whose light and colour are those of the plane, which vary linearly over it.

    Args:
        low: (H, W, 3) float32 light and colour.
        mask: (H, W) bool, where they are known.
        upright: the plane is a wall, whose colour may depend on the height in any way.
    """
    if upright:
        # Light is smooth: a part of the columns is enough.
        some = usual_colours_of_rows(low[:, ::COLUMN_STRIDE], mask[:, ::COLUMN_STRIDE].astype(np.float32))
        low = low - np.nan_to_num(some).astype(np.float32)[:, None]
    rows, columns = np.nonzero(mask)
    step = max(1, len(rows) // 4000)
    design = np.stack([np.ones(len(rows)), rows / TEXELS, columns / TEXELS], axis=1)[::step]
    values = low[rows, columns][::step]
    weights = np.ones(len(values))
    for _ in range(6):  # robust: Cauchy's weights
        scaled = design * weights[:, None]
        fitted = np.linalg.lstsq(scaled.T @ design + 1e-3 * np.eye(3), scaled.T @ values, rcond=None)[0]
        residual = np.linalg.norm(values - design @ fitted, axis=1)
        usual = float(np.quantile(residual, COLOUR_QUANTILE))
        weights = 1 / (1 + (residual / max(usual, 1.0)) ** 2)
    grid = np.mgrid[: low.shape[0], : low.shape[1]] / TEXELS
    expected = fitted[0] + grid[0][..., None] * fitted[1] + grid[1][..., None] * fitted[2]
    return np.linalg.norm(low - expected, axis=-1) < COLOUR_FAMILY * usual + COLOUR_TOLERANCE


def _make_example(
    detail: np.ndarray, valid: np.ndarray, origin: np.ndarray, texel: float, upright: bool
) -> DetailExample | None:
    for radius in WINDOW_RADII:
        # A wall shows what the example has at the same height; rows that were not seen have no detail.
        window = np.ones((1 if upright else 2 * radius + 1, 2 * radius + 1), np.uint8)
        usable = cv2.erode(valid.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
        if usable.sum() >= max(MIN_CENTRES, MIN_EXAMPLE_AREA_M2 / texel**2):
            break
    else:
        return None
    detail = np.where(valid[..., None], detail, np.float32(0))
    if upright:
        detail, usable = (_mirrored_rows(values, np.any(valid, axis=1)) for values in (detail, usable))
    periods, correlation = find_periods(detail.mean(axis=-1), valid)
    return pack_detail(detail, usable, origin, texel, radius, periods, correlation, upright)


def _mirrored_rows(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(H, ...) values whose rows above and below the seen ones, (H,) bool, are these in the opposite order."""
    rows = np.flatnonzero(seen)
    first, count = int(rows[0]), int(rows[-1] - rows[0] + 1)
    place = np.mod(np.arange(len(values)) - first, 2 * count)
    return values[first + np.minimum(place, 2 * count - 1 - place)]
