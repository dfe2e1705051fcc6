"""The pipeline without weights: geometry from the cloud, colours from the remembered pictures, smooth fills.

What it does to one view:

1. The rendered cloud gives the depth. Where memory has a picture but no depth (glass, screens, far walls), the
   pictures' completed depth is moved into the view; what is left is filled smoothly, background first.
2. Every reference picture is looked up at that depth, and looks are weighed by angle, resolution and occlusion.
3. `observed` is claimed where the sensor's own depth supports it and nothing unseen can stand in between.
4. What nobody saw is painted smoothly from its surroundings towards the mean colours of that direction.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from worldstereo_ros._compiled import in_threads, shares
from worldstereo_ros.camera import Camera
from worldstereo_ros.photometry import align_exposure
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.filling import push_pull
from worldstereo_ros.pipelines.warping import (
    AGREES,
    HIDDEN,
    NO_DEPTH,
    THROUGH,
    cross_hidden,
    gather_rows,
    pixel_transform,
    splat_depth,
)
from worldstereo_ros.views import View

RELATIVE, ABSOLUTE = 0.05, 0.02  # two depths of one surface differ by less: sensor noise and pose error
LOOSE = 0.25  # the same for a depth that was completed, not measured
FEATHER = 24.0  # pixels over which a picture fades in from its border
SHARPNESS = 60.0  # weight falls to 1/e at an angle of about 10 degrees between the lines of sight
BACKGROUND = 4.0  # a surface twice as far counts 2^4 times as much in a fill
PREPARED_VIEWS = 32  # references kept ready
HIDDEN_STEPS = 16  # samples along a line of sight
HIDDEN_METRES = 0.15  # a line of sight through more unseen space than this is not trusted


@dataclass(frozen=True)
class _Reference:
    """A view made ready for look-ups."""

    view: View
    image: np.ndarray  # (h, w, 3) float32
    depth: np.ndarray  # (h, w) float32, completed
    known: np.ndarray  # (h, w) uint8, the sensor gave the depth
    mean: np.ndarray  # (3,) colour


class GeometricPipeline:
    """Imagines views from memory alone; see the module. Deterministic: prompt and generator are not used.

    Attributes:
        align: bring the references to one exposure.
        threads: how many threads one view may use.
    """

    name = "geometric"
    clip_length = 1

    def __init__(self, *, align: bool = True, threads: int | None = None) -> None:
        self.align = align
        self.threads = min(4, os.cpu_count() or 1) if threads is None else threads
        self._prepared: OrderedDict[int, _Reference] = OrderedDict()
        self._exposure: tuple[tuple[int, ...], np.ndarray] | None = None

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it exists."""
        references = [self._prepare(view) for view in conditioning.references if view.depth is not None]
        gains = self._gains(references)
        renders = conditioning.renders
        count = len(conditioning.world_from_camera)
        for index, pose in enumerate(conditioning.world_from_camera):
            on_step("painting", index, count)
            depth = renders.depth[index].cpu().numpy().astype(np.float32, copy=False)
            colour = renders.colour[index].cpu().numpy()
            observed = renders.observed[index].cpu().numpy()
            yield self._paint(depth, colour, observed, conditioning.camera, pose, references, gains)

    # --- references ----------------------------------------------------------------------------------------------------

    def _prepare(self, view: View) -> _Reference:
        key = id(view)
        ready = self._prepared.get(key)
        if ready is None or ready.view is not view:
            ready = _prepare(view)
            self._prepared[key] = ready
            while len(self._prepared) > PREPARED_VIEWS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return ready

    def _gains(self, references: list[_Reference]) -> np.ndarray:
        if not self.align:
            return np.tile(np.array([1.0, 0.0]), (len(references), 3, 1))
        key = tuple(id(reference.view) for reference in references)
        if self._exposure is None or self._exposure[0] != key:
            self._exposure = (key, align_exposure([reference.view for reference in references]))
        return self._exposure[1]

    # --- one view --------------------------------------------------------------------------------------------------------

    def _paint(
        self,
        rendered: np.ndarray,
        colour: np.ndarray,
        observed: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        references: list[_Reference],
        gains: np.ndarray,
    ) -> PipelineFrame:
        covered = rendered > 0
        if not references:
            image = _fill_colour(colour.astype(np.float32), covered, rendered, None)
            return PipelineFrame(_to_bytes(image), _fill_depth(rendered), observed & covered)
        depth = self._complete(rendered, camera, pose, references)
        looks = [self._look(depth, camera, pose, reference) for reference in references]
        shares_of = np.array([np.abs(weight).sum() for _, weight, _ in looks], dtype=np.float64) ** 2
        exposure = _target_exposure(gains, shares_of)
        image, supported = _blend(looks, gains)
        rest = covered & ~supported
        image[rest] = colour[rest] * exposure[:, 0] + exposure[:, 1]
        filled = _fill_colour(image, supported | covered, depth, self._ambient(references, gains))
        filled = (filled - exposure[:, 1].astype(np.float32)) / exposure[:, 0].astype(np.float32)
        sure = self._observed(rendered, observed, camera, pose, references, looks)
        return PipelineFrame(_to_bytes(filled), depth, sure)

    def _complete(
        self, rendered: np.ndarray, camera: Camera, pose: np.ndarray, references: list[_Reference]
    ) -> np.ndarray:
        """Depth for every pixel: rendered, else moved from the completed depth of the references, else smooth."""
        moved = np.zeros_like(rendered)
        for reference in references:
            small = np.ascontiguousarray(reference.depth[::2, ::2])
            chosen = np.ascontiguousarray(1 - reference.known[::2, ::2])
            view = reference.view
            A, b = pixel_transform(view.camera, view.world_from_camera, camera, pose)
            A = A * np.array([2, 2, 1], np.float32)
            splat_depth(small, chosen, A, b, np.float32(1.3 * camera.fx / view.camera.fx), moved)
        return _fill_depth(np.where(rendered > 0, rendered, moved))

    def _look(
        self, depth: np.ndarray, camera: Camera, pose: np.ndarray, reference: _Reference
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colour, weight and evidence of one reference (see `gather_rows`)."""
        colour = np.zeros((*depth.shape, 3), np.float32)
        weight = np.zeros(depth.shape, np.float32)
        evidence = np.zeros(depth.shape, np.uint8)
        view = reference.view
        A, b = pixel_transform(camera, pose, view.camera, view.world_from_camera)
        rays = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32)
        centre = (pose[:3, :3].T @ (view.world_from_camera[:3, 3] - pose[:3, 3])).astype(np.float32)
        rest = (
            depth,
            A,
            b,
            reference.image,
            reference.depth,
            reference.known,
            np.float32(FEATHER),
            np.float32(RELATIVE),
            np.float32(ABSOLUTE),
            np.float32(LOOSE),
            rays,
            centre,
            np.float32(SHARPNESS),
            colour,
            weight,
            evidence,
        )
        in_threads(gather_rows, [(start, stop, *rest) for start, stop in shares(camera.height, self.threads)])
        return colour, weight, evidence

    def _ambient(self, references: list[_Reference], gains: np.ndarray) -> np.ndarray:
        means = [gain[:, 0] * reference.mean + gain[:, 1] for reference, gain in zip(references, gains, strict=True)]
        return np.mean(means, axis=0).astype(np.float32)

    def _observed(
        self,
        rendered: np.ndarray,
        observed: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        references: list[_Reference],
        looks: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> np.ndarray:
        """(H, W) bool: a sensor saw what is in this pixel."""
        evidence = [look[2] for look in looks]
        agree = sum((e == AGREES).astype(np.uint8) for e in evidence)
        against = sum(((e == THROUGH) | (e == NO_DEPTH)).astype(np.uint8) for e in evidence)
        silent = (agree == 0) & (against == 0) & ~np.logical_or.reduce([e == HIDDEN for e in evidence])
        sure = observed & (rendered > 0) & ((agree > 0) | silent)
        return sure & ~self._behind_unseen(rendered, camera, pose, references)

    def _behind_unseen(
        self, rendered: np.ndarray, camera: Camera, pose: np.ndarray, references: list[_Reference]
    ) -> np.ndarray:
        """(H, W) bool: the line of sight crosses space that is hidden in every reference that looks there."""
        stride = 4
        small = np.ascontiguousarray(rendered[stride // 2 :: stride, stride // 2 :: stride])
        free = np.zeros((*small.shape, HIDDEN_STEPS), np.uint8)
        hidden = np.zeros_like(free)
        near = np.float32(0.1)
        for reference in references:
            view = reference.view
            A, b = pixel_transform(camera, pose, view.camera, view.world_from_camera)
            A = np.stack(
                [A[:, 0] * stride, A[:, 1] * stride, A @ np.array([stride // 2, stride // 2, 1], np.float32)], 1
            )
            cross_hidden(
                small,
                A.astype(np.float32),
                b,
                reference.depth,
                reference.known,
                np.float32(RELATIVE),
                np.float32(ABSOLUTE),
                near,
                HIDDEN_STEPS,
                free,
                hidden,
            )
        length = (hidden & (1 - free)).sum(axis=2) * np.maximum(small - near, 0) / HIDDEN_STEPS
        doubtful = (length > HIDDEN_METRES).astype(np.uint8)
        size = (rendered.shape[1], rendered.shape[0])
        return cv2.resize(doubtful, size, interpolation=cv2.INTER_NEAREST) > 0


def _prepare(view: View) -> _Reference:
    known = (view.depth > 0) & view.observed_mask
    depth = _fill_depth(view.depth)
    image = view.image.astype(np.float32)
    return _Reference(view, image, depth, known.astype(np.uint8), image.reshape(-1, 3).mean(axis=0))


def _fill_depth(depth: np.ndarray) -> np.ndarray:
    """Depth for every pixel, smooth in inverse depth, background first. All zeros stay zeros."""
    known = depth > 0
    if known.all() or not known.any():
        return depth.astype(np.float32)
    reference = np.median(depth[known])
    weight = np.where(known, (depth / reference) ** BACKGROUND, 0).astype(np.float32)
    inverse = np.where(known, 1 / np.maximum(depth, 1e-6), 0).astype(np.float32)
    filled = push_pull(inverse[..., None], weight)[..., 0]
    return np.where(known, depth, 1 / np.maximum(filled, 1e-3)).astype(np.float32)


def _fill_colour(image: np.ndarray, known: np.ndarray, depth: np.ndarray, ambient: np.ndarray | None) -> np.ndarray:
    if known.all():
        return image
    positive = depth > 0
    reference = np.median(depth[positive]) if positive.any() else 1.0
    weight = np.where(known, np.maximum(depth / reference, 0.05) ** BACKGROUND, 0).astype(np.float32)
    prior = None if ambient is None else np.broadcast_to(ambient, image.shape)
    return push_pull(image, weight, prior=prior, prior_weight=0.0 if ambient is None else 0.02)


def _blend(looks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the looks in the common exposure; those with measured depth go before the others."""
    total = np.zeros(looks[0][1].shape, np.float32)
    image = np.zeros((*total.shape, 3), np.float32)
    measured = np.zeros(total.shape, bool)
    for _, weight, _ in looks:
        measured |= weight > 0
    for (colour, weight, _), gain in zip(looks, gains, strict=True):
        w = np.where(measured, np.maximum(weight, 0), -weight)
        total += w
        image += w[..., None] * (colour * gain[:, 0].astype(np.float32) + gain[:, 1].astype(np.float32))
    supported = total > 0
    image /= np.maximum(total, 1e-12)[..., None]
    return image, supported


def _target_exposure(gains: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(3, 2) gain and bias of the view to paint: those of the references, by how much of the picture they give."""
    if share.sum() <= 0:
        return np.tile(np.array([1.0, 0.0]), (3, 1))
    share = share / share.sum()
    gain = np.exp((np.log(gains[:, :, 0]) * share[:, None]).sum(axis=0))
    bias = (gains[:, :, 1] * share[:, None]).sum(axis=0)
    return np.stack([gain, bias], axis=1)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
