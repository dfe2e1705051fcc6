"""Features of the pixels of imagined views that indicate how certain they are; every one grows with uncertainty.

They come from observations alone: which points and views a camera took, how their images continue, and how well they
agree. What was imagined before is never evidence.
"""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE, Provenance
from worldstereo_ros.geometry.view_overlap import distinct_viewpoints
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.confidence.statistics import (
    COLOUR_TOLERANCE,
    CONTRAST_CENTRES,
    CONTRAST_WINDOW_PX,
    DISTANCES,
    PlaceStatistics,
    StatisticsCache,
    deviation,
    downsample,
    log_scale,
    scaled_size,
)
from worldstereo_ros.utils.jit import compiled

MAX_SIZE_PX = 160  # longer side at which features are computed
GRID_SIZE_PX = 80  # longer side at which points are looked up in the observations
COLOUR_GRID_PX = 40  # longer side at which colours are compared with those of the observations
MAX_OBSERVATIONS = 8  # that are looked up, the nearest ones
SAMPLED_COLOURS = 240  # of all observations together
METRES_PER_RADIAN = 1.0  # weight of rotation in the distance between two views
NO_EVIDENCE = 2.0  # distance to the nearest evidence if there is none, tangent of an angle
SOLID_WINDOW_PX, SOLID_FRACTION = 7, 0.35  # evidence that covers less of the window around it is stray points
NOMINAL_DEPTH_M = 2.0  # where nothing is known
CERTAIN = 4.0  # log odds at which a share of right pixels counts as certain

# The names are keys of weights/confidence.json. Distances are on a logarithmic scale, shares of right pixels as
# negative log odds.
FEATURES = (
    "evidence_distance",  # in the image, to the nearest pixel with points that a camera saw
    "surface_distance",  # the same without stray points
    "labelled_distance",  # to the nearest pixel labelled as observed or estimated
    "gaps_fine",  # share without evidence, within a window of 0.1 focal lengths
    "gaps",  # the same, 0.3
    "gaps_wide",  # the same, 0.8
    "doubt",  # of the depth of the evidence around: 1 - its confidence, 0 if measured
    "fill_colour",  # how seldom a smooth fill of the observations is right so far from evidence
    "fill_depth",  # the same for depth
    "rare_colour",  # how seldom the observations show a colour within the tolerance of this one
    "rare_depth",  # how seldom a depth within the tolerance
    "colour_disagreement",  # of observations of the same surfaces with the contrast that the evidence has here
    "colour_difference",  # mean difference of colour of observations of the same surfaces
    "surface_disagreement",  # how seldom two observations that measured a point see the same surface
    "depth_difference",  # mean difference of the logarithms of depth of observations of the same surfaces
    "alone",  # 1 if there are no two observations of the same surfaces
    "alone_contrast",  # in this case the contrast of the evidence
    "outside",  # angle by which the point is outside of all observations
    "hidden",  # fraction of the observations with the point in their image that see a nearer surface
    "unmeasured",  # fraction of them without depth there
    "free",  # fraction of them that see through the point
    "parallax",  # smallest angle at the point between this line of sight and that of an observation
    "farther",  # log2 of how much farther from the point the best observation is, for resolution
    "moved",  # distance to the nearest observation, relative to the depth
    "depth_step",  # relative change of depth within a few pixels
    "depth_step_wide",  # the same within a tenth of the image width
    "depth_deviation",  # logarithm of the depth over that of a smooth fill of the evidence
    "evidence_contrast",  # standard deviation of colour of the evidence around
    "deviation",  # difference of the colour from the mean of the evidence around
    "contrast_fine",  # standard deviation of colour of the image within a few pixels
    "contrast_wide",  # the same within a tenth of the image width
    "plane_absence",  # 1 - P(a known plane extends here), 0 on evidence
)


def compute_features(
    frame: PipelineFrame, conditioning: Conditioning, index: int, statistics: StatisticsCache
) -> np.ndarray:
    """Computes the features of each pixel of a view.

    Args:
        frame: frame that the pipeline returned.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.
        statistics: of the observations; keep it for the next view.

    Returns:
        (h, w, len(FEATURES)) float32 in the order of `FEATURES`; the longer side has at most `MAX_SIZE_PX` pixels.
    """
    size = scaled_size(conditioning.camera, MAX_SIZE_PX)
    camera = conditioning.camera.resized(*size)
    shape = camera.height, camera.width
    provenance = conditioning.renders.provenance[index].cpu().numpy()
    evidence = _reduce(provenance >= Provenance.ESTIMATED, size)
    labelled = frame.seen
    image = downsample(frame.image, size).astype(np.float32) / 255
    depth = _complete(frame, conditioning, index, size)
    observations = nearest_observations(conditioning, index)
    place = statistics(observations)

    out = np.zeros((*shape, len(FEATURES)), np.float32)

    def put(name: str, value: np.ndarray | float) -> None:
        out[..., FEATURES.index(name)] = value

    share = evidence.astype(np.float32)
    solid = evidence & (cv2.blur(share, (SOLID_WINDOW_PX, SOLID_WINDOW_PX)) > SOLID_FRACTION)
    surface_distance = _distance(solid, camera.fx)
    put("evidence_distance", _log_distance(_distance(evidence, camera.fx)))
    put("surface_distance", _log_distance(surface_distance))
    put("labelled_distance", _log_distance(_distance(_reduce(labelled, size), camera.fx)))
    for name, reach in (("gaps_fine", 0.1), ("gaps", 0.3), ("gaps_wide", 0.8)):
        window = 2 * int(reach * camera.fx / 2) + 1
        put(name, 1 - cv2.blur(share, (window, window), borderType=cv2.BORDER_CONSTANT))
    put("doubt", _doubt(provenance, conditioning, index, size, share))
    put("fill_colour", -log_odds(_at_distance(place.colour_fill, surface_distance)))
    put("fill_depth", -log_odds(_at_distance(place.depth_fill, surface_distance)))
    put("rare_colour", -log_odds(_usual_colour(image, place)))
    put("rare_depth", -log_odds(_usual_depth(depth, place)))
    contrast = _evidence_contrast(image, share)
    _put_agreement(put, place, contrast)
    put("evidence_contrast", contrast)
    around = push_pull(image, share, keep=np.zeros(shape, bool))
    put("deviation", log_scale(np.abs(image - around).mean(axis=2)))
    put("contrast_fine", log_scale(deviation(image, 5)))
    put("contrast_wide", log_scale(deviation(image, 2 * (size[0] // 20) + 1)))
    for name, width in (("depth_step", 5), ("depth_step_wide", 2 * (size[0] // 20) + 1)):
        square = np.ones((width, width), np.uint8)
        near, far = cv2.erode(depth, square), cv2.dilate(depth, square)
        put(name, np.minimum((far - near) / near, 1))
    if evidence.any():
        rendered = cv2.resize(conditioning.renders.depth[index].cpu().numpy(), size, interpolation=cv2.INTER_NEAREST)
        filled = fill_depth(np.where(evidence, rendered, np.float32(0)))
        known = filled > 0
        put("depth_deviation", np.where(known, np.abs(np.log(depth / np.where(known, filled, depth))), 0))
    absence = 1 - share if frame.plane_absence is None else downsample(frame.plane_absence, size)
    put("plane_absence", np.where(evidence, 0, absence))
    grid = scaled_size(camera, GRID_SIZE_PX)
    coarse = cv2.resize(depth, grid, interpolation=cv2.INTER_NEAREST)
    pose = conditioning.world_from_camera[index]
    for name, value in _look_up(coarse, camera.resized(*grid), pose, observations, place).items():
        put(name, cv2.resize(value, size, interpolation=cv2.INTER_LINEAR))
    return np.nan_to_num(out, copy=False, nan=0.0, posinf=10.0, neginf=-10.0)


def log_odds(share: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)) of shares, limited to 2 and 98 %."""
    share = np.clip(share, 0.02, 0.98)
    return np.log(share / (1 - share))


def nearest_observations(conditioning: Conditioning, index: int) -> list[View]:
    """At most `MAX_OBSERVATIONS` observations from different poses, the nearest first; never an imagined view."""
    pose = conditioning.world_from_camera[index]

    def distance(view: View, other: np.ndarray) -> float:
        turn = np.arccos(np.clip(view.world_from_camera[:3, 2] @ other[:3, 2], -1, 1))
        return float(np.linalg.norm(view.world_from_camera[:3, 3] - other[:3, 3]) + METRES_PER_RADIAN * turn)

    observations = conditioning.observations or [view for view in conditioning.references if view.is_observation]
    return distinct_viewpoints(sorted(observations, key=lambda view: distance(view, pose)), MAX_OBSERVATIONS)


def _reduce(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size: True where most of a pixel's area is."""
    return downsample(mask.astype(np.uint8) * np.uint8(255), size) > 127


def _complete(frame: PipelineFrame, conditioning: Conditioning, index: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 depth of the frame, else that of memory, without holes."""
    depth = frame.depth if frame.depth is not None else conditioning.renders.depth[index].cpu().numpy()
    depth = cv2.resize(depth.astype(np.float32, copy=False), size, interpolation=cv2.INTER_NEAREST)
    depth = np.where(np.isfinite(depth), depth, np.float32(0))  # a model may return any value
    if (depth > 0).all():
        return depth
    return fill_depth(depth) if (depth > 0).any() else np.full(depth.shape, NOMINAL_DEPTH_M, np.float32)


def _distance(mask: np.ndarray, focal: float) -> np.ndarray:
    """(h, w) float32 distance to the nearest True in focal lengths; `NO_EVIDENCE` if there is none."""
    if not mask.any():
        return np.full(mask.shape, NO_EVIDENCE, np.float32)
    return np.minimum(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3) / focal, np.float32(NO_EVIDENCE))


def _log_distance(distance: np.ndarray | float) -> np.ndarray:
    return np.log1p(distance / np.float32(0.01))


def _at_distance(shares: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The share of right pixels at each distance, from those of the bins of `DISTANCES`."""
    centres = np.concatenate([[DISTANCES[0] / 2], np.sqrt(DISTANCES[:-1] * DISTANCES[1:]), [1.4 * DISTANCES[-1]]])
    table = np.interp(np.linspace(0, _log_distance(NO_EVIDENCE), 256), _log_distance(centres), shares)
    return table[(_log_distance(distance) * (255 / _log_distance(NO_EVIDENCE))).astype(np.intp)].astype(np.float32)


def _doubt(
    provenance: np.ndarray, conditioning: Conditioning, index: int, size: tuple[int, int], share: np.ndarray
) -> np.ndarray | float:
    """1 - confidence of the depth of estimated evidence, extended smoothly; 0 where all evidence was measured."""
    estimated = provenance == Provenance.ESTIMATED
    if not estimated.any():
        return 0.0
    doubt = estimated.astype(np.float32)
    if conditioning.stored_confidence is not None:
        doubt *= 1 - conditioning.stored_confidence[index, ..., 1]
    return push_pull(downsample(doubt, size)[..., None], share, keep=np.zeros(share.shape, bool))[..., 0]


def _evidence_contrast(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(h, w) `log_scale` of the standard deviation of the evidence around, extended smoothly."""
    window = (CONTRAST_WINDOW_PX, CONTRAST_WINDOW_PX)
    total = np.maximum(cv2.blur(share, window), 1e-3)[..., None]
    known = image * share[..., None]
    mean = cv2.blur(known, window) / total
    variance = np.maximum(cv2.blur(known * image, window) / total - mean * mean, 0).mean(axis=2)
    return log_scale(push_pull(np.sqrt(variance)[..., None], share, keep=np.zeros(share.shape, bool))[..., 0])


def _put_agreement(put, place: PlaceStatistics, contrast: np.ndarray) -> None:
    if place.agreement is None:
        put("alone", 1.0)
        put("alone_contrast", contrast)
        return
    shares = np.interp(contrast, CONTRAST_CENTRES, place.agreement.colour)
    put("colour_disagreement", CERTAIN - log_odds(shares))
    put("colour_difference", place.agreement.difference)
    put("surface_disagreement", CERTAIN - log_odds(place.agreement.surface))
    put("depth_difference", place.agreement.log_depth)


def _usual_colour(image: np.ndarray, place: PlaceStatistics) -> np.ndarray:
    """(h, w) share of the pixels of the observations with a colour within the tolerance of each pixel's."""
    height, width = image.shape[:2]
    colours = [view.image.reshape(-1, 3) for view in place.views]
    if not colours:
        return np.full((height, width), 0.0, np.float32)
    sampled = np.concatenate(colours)
    sampled = np.ascontiguousarray(sampled[:: max(1, len(sampled) // SAMPLED_COLOURS)])
    scale = min(1.0, COLOUR_GRID_PX / max(height, width))
    grid = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = np.ascontiguousarray(downsample(image, grid))
    found = np.empty(small.shape[:2], np.float32)
    _share_within(small, sampled, np.float32(3 * COLOUR_TOLERANCE), found)
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)


@compiled
def _share_within(image, colours, tolerance, out):
    """Writes the share of `colours` (N, 3) whose absolute difference, summed over channels, is at most `tolerance`."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            count = 0
            for n in range(len(colours)):
                difference = np.float32(0)
                for c in range(3):
                    difference += abs(image[y, x, c] - colours[n, c])
                if difference <= tolerance:
                    count += 1
            out[y, x] = np.float32(count) / np.float32(len(colours))


def _usual_depth(depth: np.ndarray, place: PlaceStatistics) -> np.ndarray:
    """(h, w) share of the measured pixels of the observations with a depth within the tolerance of each pixel's."""
    known = [view.depth[view.depth > 0] for view in place.views]
    values = np.sort(np.log(np.concatenate(known))) if known else np.zeros(0)
    if not len(values):
        return np.zeros(depth.shape, np.float32)
    levels = np.linspace(values[0] - 1, values[-1] + 1, 512)
    limits = np.log(DEPTH_TOLERANCE)
    counts = np.searchsorted(values, levels + limits) - np.searchsorted(values, levels - limits)
    place_of = (np.log(depth) - levels[0]) * (511 / (levels[-1] - levels[0]))
    return (counts / len(values)).astype(np.float32)[np.clip(place_of, 0, 511).astype(np.intp)]


def _look_up(
    depth: np.ndarray, camera: Camera, pose: np.ndarray, views: list[View], place: PlaceStatistics
) -> dict[str, np.ndarray]:
    """Features by name, (h, w) float32, from where the observations look at the points of a view.

    Args:
        depth: (h, w) float32 metres of the view.
        camera, pose: camera of this size and (4, 4) world_from_camera.
        views, place: the observations and their statistics.
    """
    rays = camera.rays().reshape(-1, 3)
    z = depth.reshape(-1)
    lengths = np.sqrt((rays * rays).sum(axis=1)) * z
    outside = np.full(z.shape, 2.0, np.float32)
    parallax = np.full(z.shape, 1.0, np.float32)
    farther = np.full(z.shape, 2.0, np.float32)
    inside_count, hidden, unmeasured, free = (np.zeros(z.shape, np.float32) for _ in range(4))
    for view, small in zip(views, place.views, strict=True):
        relative = invert_pose(view.world_from_camera) @ pose
        centre = relative[:3, 3].astype(np.float32)
        local = (rays @ relative[:3, :3].T.astype(np.float32)) * z[:, None] + centre
        lens = small.camera
        ahead = np.maximum(local[:, 2], 1e-3)
        column = np.rint(local[:, 0] / ahead * lens.fx + lens.cx)
        row = np.rint(local[:, 1] / ahead * lens.fy + lens.cy)
        inside = (local[:, 2] > 0.05) & (column >= 0) & (row >= 0) & (column < lens.width) & (row < lens.height)
        beyond = [
            np.arctan2(np.abs(local[:, axis]), local[:, 2]) - np.arctan(extent / 2 / focal)
            for axis, extent, focal in ((0, lens.width, lens.fx), (1, lens.height, lens.fy))
        ]
        outside = np.minimum(outside, np.where(inside, 0, np.maximum(np.maximum(*beyond), 0.01)))
        other = np.sqrt((local * local).sum(axis=1))
        # The angle at the point between the lines to the two camera centres.
        cosine = (local * (local - centre)).sum(axis=1) / np.maximum(other * lengths, 1e-6)
        parallax = np.where(inside, np.minimum(parallax, np.arccos(np.clip(cosine, -1, 1))), parallax)
        ratio = np.maximum(np.log2(other / np.maximum(lengths, 1e-6)), 0)
        farther = np.where(inside, np.minimum(farther, ratio), farther)
        measured = small.depth[
            np.clip(row, 0, lens.height - 1).astype(np.intp), np.clip(column, 0, lens.width - 1).astype(np.intp)
        ]
        known = inside & (measured > 0)
        inside_count += inside
        hidden += known & (local[:, 2] > measured * 1.05 + 0.02)
        free += known & (local[:, 2] < measured * 0.95 - 0.02)
        unmeasured += inside & (measured <= 0)
    distance = float(np.linalg.norm(views[0].world_from_camera[:3, 3] - pose[:3, 3])) if views else np.inf
    count = np.maximum(inside_count, 1)
    found = {
        "outside": np.log1p(outside / 0.05),
        "hidden": hidden / count,
        "unmeasured": unmeasured / count,
        "free": free / count,
        "parallax": parallax,
        "farther": farther,
        "moved": distance / (distance + z) if views else np.ones(z.shape),
    }
    return {name: value.astype(np.float32).reshape(depth.shape) for name, value in found.items()}
