"""Refinement: imagined pixels of a view get sharp borders and details (`models/hole_refiner.py`).

A regression model gives the mean of all that may be in a hole, which is fog. The refiner mixes its image with planes
that are drawn into the hole and with what memory shows there, and adds detail. Seen pixels stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.models.hole_refiner import MULTIPLE_PX, SOURCES, HoleRefiner
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import Layout, PlaneRender
from worldstereo_ros.pipelines.geometric.line_continuation import continue_lines
from worldstereo_ros.pipelines.geometric.plane_fill import (
    SEED_MASK,
    SKY,
    WORKING_PIXELS,
    PlaneFill,
    draw_planes,
    fill_with_planes,
)
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

SKY_LEVEL = 0.5  # of the channel that has the cosine between up and the surface's normal
MAX_LOG_DEPTH, REFERENCE_DEPTH_M, MIN_DEPTH_M = 2.0, 3.0, 0.1
# Detail that memory shows: its weight, the filter that separates it, and over how many pixels it fades.
MEMORY_DETAIL_WEIGHT, DETAIL_PX, BORDER_PX = 0.7, 2.0, 5
GAP_PX = 7  # width of gaps between known pixels in which no planes are drawn, in a view of `WORKING_PIXELS`
FEATHER_PX = 3  # over which refined pixels blend into seen ones
# Light of the nearest known pixels, which a hole takes on beside its own: its weight at the border of a small hole, how
# far it reaches, and the filter that separates light. Lengths are in pixels of a view of `WORKING_PIXELS`.
SURROUNDINGS_WEIGHT, SURROUNDINGS_REACH_PX, SURROUNDINGS_LIGHT_PX = 0.6, 64.0, 8.0
LIGHT_STRIDE_PX = 4  # of the coarse view in which light is found
NEAREST_BLUR_PX = 5  # window over which the colour of the nearest known pixel is averaged


def fill_frame(
    frame: PipelineFrame,
    warped: WarpedView,
    conditioning: Conditioning,
    index: int,
    layout: Layout,
    planes: PlaneRender,
    refiner: HoleRefiner | None,
    *,
    seed: int = 0,
    threads: int = 1,
) -> PipelineFrame:
    """A frame with planes drawn into its holes, refined if there is a network for it; see `refine_frame`."""
    seen = frame.seen
    if seen.all() or warped.coincident is not None:
        return frame
    if refiner is not None:
        return refine_frame(frame, warped, conditioning, index, layout, planes, refiner, seed=seed, threads=threads)
    known = known_pixels(seen, warped, conditioning, index)
    depth = warped.depth if frame.depth is None else frame.depth
    camera, pose = conditioning.camera, conditioning.world_from_camera[index]
    closed = close_gaps(known)
    given = (frame.image, closed, depth, layout, camera, pose)
    image, _ = draw_planes(*given, planes=planes, seed=seed, threads=threads)
    image = add_memory_detail(image, warped.image, known & ~seen)
    image = continue_surroundings(image, closed)
    image = continue_lines(image, closed, depth, planes.depth, conditioning.observations, camera, pose)
    return replace(frame, image=image)


def continue_surroundings(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The image with the light of the nearest known pixels in its holes, less and less away from them.

    What is around a hole often reaches into it: light that falls on a wall, or a thing of which a part was seen. The
    mean of two guesses of the light is nearer to the truth than either; detail stays as it is. Where most of a view is
    hole, planes tell more than the few pixels beside it, and the weight is lower by the square of the known part.

    Args:
        image: (H, W, 3) uint8 with filled holes.
        known: (H, W) bool, pixels that are no hole.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = known.shape
    factor = min(1.0, (WORKING_PIXELS / known.size) ** 0.5)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    hole = cv2.resize((~known).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    if hole.all() or not hole.any():
        return image
    small = resize_image(image, *size)
    distance, labels = cv2.distanceTransformWithLabels(
        hole.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    around = (~hole).astype(np.float32)
    colours = np.zeros((int(labels.max()) + 1, 3), np.float32)
    colours[labels[~hole]] = _means(small, around, NEAREST_BLUR_PX)[~hole]
    # Light is smooth: a quarter of the size is enough for it.
    coarse = max(1, size[0] // LIGHT_STRIDE_PX), max(1, size[1] // LIGHT_STRIDE_PX)
    inside = 1 - around
    difference = (colours[labels] - small) * inside[..., None]
    difference, inside, distance = (
        cv2.resize(m, coarse, interpolation=cv2.INTER_AREA) for m in (difference, inside, distance)
    )
    deviation = SURROUNDINGS_LIGHT_PX / LIGHT_STRIDE_PX
    light = cv2.GaussianBlur(difference, (0, 0), deviation)
    weight = SURROUNDINGS_WEIGHT * float(around.mean()) ** 2 * np.exp(-distance / SURROUNDINGS_REACH_PX)
    light *= (weight / (cv2.GaussianBlur(inside, (0, 0), deviation) + 1e-3))[..., None]
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.add(image, light, dst=image.copy(), mask=(~known).astype(np.uint8), dtype=cv2.CV_8U)


def _means(image: np.ndarray, weight: np.ndarray, window: int) -> np.ndarray:
    """(H, W, 3) float32 weighted means of the pixels in a window around each."""
    sums = cv2.blur(image * weight[..., None], (window, window))
    return sums / np.maximum(cv2.blur(weight, (window, window)), 1e-3)[..., None]


def add_memory_detail(image: np.ndarray, memory: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The image with the detail of memory where memory shows something that counts as unseen.

    The mean of the model and memory is nearer to the truth than either, but it has lost the detail of both.

    Args:
        image, memory: (H, W, 3) uint8.
        shown: (H, W) bool, pixels that memory shows and that are no observation.

    Returns:
        (H, W, 3) uint8.
    """
    if not shown.any():
        return image
    weight = MEMORY_DETAIL_WEIGHT * cv2.blur(shown.astype(np.float32), (BORDER_PX, BORDER_PX)) * shown
    difference = cv2.subtract(memory, image, dtype=cv2.CV_32F)
    difference -= cv2.GaussianBlur(difference, (0, 0), DETAIL_PX)
    difference *= weight[..., None]
    return cv2.add(image, difference, dtype=cv2.CV_8U)


def refine_frame(
    frame: PipelineFrame,
    warped: WarpedView,
    conditioning: Conditioning,
    index: int,
    layout: Layout,
    planes: PlaneRender,
    refiner: HoleRefiner,
    *,
    seed: int = 0,
    threads: int = 1,
) -> PipelineFrame:
    """A frame with its imagined pixels refined.

    Args:
        frame: composed frame of a regression model.
        warped: the view warped from memory.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.
        layout: of the place.
        planes: of the view, at least of the pixels that no camera saw.
        refiner: the network.
        seed: another one gives other details.
        threads: number of threads to use.
    """
    seen = frame.seen
    sources, inputs = view_inputs(frame, warped, conditioning, index, layout, planes, seed=seed, threads=threads)
    device = next(refiner.parameters()).device
    with torch.no_grad():
        weights, residual = refiner(*(tensor[None].to(device) for tensor in inputs))
    weights, residual = (
        cv2.resize(maps[0].permute(1, 2, 0).float().cpu().numpy(), seen.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for maps in (weights, residual)
    )
    refined = 127.5 * residual
    for position, source in enumerate(sources):
        refined += weights[..., position, None] * source
    distance = cv2.distanceTransform((~seen).astype(np.uint8), cv2.DIST_L2, 3)
    share = np.clip(distance / FEATHER_PX, 0, 1)[..., None]
    image = frame.image + share * (refined - frame.image)
    return replace(frame, image=np.clip(np.rint(image), 0, 255).astype(np.uint8))


def view_inputs(
    frame: PipelineFrame,
    warped: WarpedView,
    conditioning: Conditioning,
    index: int,
    layout: Layout,
    planes: PlaneRender,
    *,
    seed: int = 0,
    threads: int = 1,
) -> tuple[list[np.ndarray], tuple[torch.Tensor, torch.Tensor]]:
    """The images that the refiner mixes, and its inputs; see `refine_frame`.

    Returns:
        Images (H, W, 3) float32 grey levels of the regression model, planes and memory, at the size of the view; and
        the result of `refiner_inputs`.
    """
    seen = frame.seen
    known = known_pixels(seen, warped, conditioning, index)
    depth = warped.depth if frame.depth is None else frame.depth
    camera, pose = conditioning.camera, conditioning.world_from_camera[index]
    given = (frame.image, known, depth, layout, camera, pose)
    fill = fill_with_planes(*given, planes=planes, seed=seed & SEED_MASK, threads=threads)
    sources = [frame.image.astype(np.float32), fill.image, warped.image.astype(np.float32)]
    size = working_size(camera.height, camera.width)
    return sources, refiner_inputs(sources, fill, known, seen, depth, layout, size)


def known_pixels(seen: np.ndarray, warped: WarpedView, conditioning: Conditioning, index: int) -> np.ndarray:
    """(H, W) bool: pixels that are seen, or that memory shows and that were not imagined before.

    What was imagined before is drawn anew where planes are likely: its depth is not exact enough for straight lines to
    stay straight when it is warped. A pixel without a point of the cloud counts as its nearest pixel with one.
    """
    provenance = conditioning.renders.provenance[index].cpu().numpy()
    imagined = provenance == Provenance.IMAGINED
    if imagined.any():
        covered = provenance != Provenance.UNKNOWN
        _, nearest = cv2.distanceTransformWithLabels(
            (~covered).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        of_label = np.zeros(int(nearest.max()) + 1, bool)
        of_label[nearest[covered]] = imagined[covered]
        imagined = of_label[nearest]
    return seen | (warped.valid_mask & ~imagined)


def close_gaps(known: np.ndarray) -> np.ndarray:
    """(H, W) bool: known pixels, and specks, slits and scallops between them.

    Points of the cloud, seen from closer than they were measured, end in scallops. The gaps do not show what is
    behind: there the image keeps the colours that it continues from the known pixels.
    """
    scale = max(1.0, (known.size / WORKING_PIXELS) ** 0.5)
    size = 2 * round(GAP_PX * scale / 2) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0


def working_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a view is refined: multiples of `MULTIPLE_PX`, with at most about `WORKING_PIXELS`."""
    factor = min(1.0, (WORKING_PIXELS / (height * width)) ** 0.5)
    rows, columns = (max(1, round(n * factor / MULTIPLE_PX)) * MULTIPLE_PX for n in (height, width))
    return rows, columns


def refiner_inputs(
    sources: list[np.ndarray],
    fill: PlaneFill,
    known: np.ndarray,
    seen: np.ndarray,
    depth: np.ndarray,
    layout: Layout,
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the refiner, see `HoleRefiner.forward`.

    Args:
        sources: images (H, W, 3) float32 grey levels: of the regression model, planes, memory.
        fill: the planes drawn into the holes.
        known, seen: (H, W) bool: pixels that memory covers, and those that an observation saw.
        depth: (H, W) float32 metres of the known pixels.
        layout: of the place.
        size: (height, width) of the result.

    Returns:
        (3 * SOURCES, h, w) images in [-1, 1] and (PLAIN_CHANNELS, h, w), float32.
    """
    level = np.zeros(known.shape, np.float32)
    if layout.room is not None and len(layout):
        cosines = (layout.planes[:, :3] @ layout.room.up).astype(np.float32)
        level = np.where(fill.plane >= 0, cosines[np.maximum(fill.plane, 0)], level)
        level[fill.plane == SKY] = SKY_LEVEL
    metres = np.where(fill.depth > 0, fill.depth, depth)
    log_depth = np.log(np.maximum(metres, MIN_DEPTH_M) / REFERENCE_DEPTH_M).clip(-MAX_LOG_DEPTH, MAX_LOG_DEPTH)
    plain = np.stack(
        [known, seen, fill.probability, *np.moveaxis(fill.noise, -1, 0), log_depth, level], axis=-1, dtype=np.float32
    )
    images = np.concatenate(sources, axis=-1, dtype=np.float32) / 127.5 - 1
    assert images.shape[-1] == 3 * SOURCES
    if images.shape[:2] != size:
        images = np.concatenate(
            [resize_image(part, size[1], size[0]) for part in np.split(images, SOURCES, axis=-1)], axis=-1
        )
        # Noise keeps its variance: it is picked, not averaged.
        interpolations = [cv2.INTER_AREA] * 3 + [cv2.INTER_NEAREST] * fill.noise.shape[-1] + [cv2.INTER_AREA] * 2
        plain = np.stack(
            [
                cv2.resize(np.ascontiguousarray(plain[..., channel]), size[::-1], interpolation=interpolation)
                for channel, interpolation in enumerate(interpolations)
            ],
            axis=-1,
        )
    first, second = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(maps, -1, 0))) for maps in (images, plain))
    return first, second
