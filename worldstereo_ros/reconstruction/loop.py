"""The loop over a trajectory: imagine a segment, check it against the captures, update the geometry, continue.

    captures and geometry ──► captures of the segment ──► pipeline ──► pictures ──► checked against the captures
          ▲                   renders of its targets                                     │
          └──────────── imagined points, kept apart from captured ones ◄── those that did not drift

After AnyRecon (arXiv 2604.19747, section 3): captures go in front of the targets of each segment, chosen by what they
show of it, and the geometry grows by what was imagined. What the paper leaves open is done so: captured points and
photographs never change; imagined surfaces are added only where memory has none, aligned to memory around them
(`WorldModel.remember`), and only where their depth is more likely right than wrong, since surfaces at a wrong distance
hide captured ones; with a network that reconstructs captures and imagined views together, in a frame and a unit of
its own, a similarity on the captures, which are in both, takes the result back (`geometry_models.align_geometry`).

A segment is what the pipeline imagines in one call: at most `segment` views and at most its clip length. The geometric
pipeline imagines view by view, so its geometry is updated after each.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M, blocked_poses
from worldstereo_ros.pipelines.anyrecon.sequence import MAX_CAPTURES, RENDERS_PER_CHUNK
from worldstereo_ros.pipelines.base import OnStep
from worldstereo_ros.reconstruction.geometry_models import GeometryModel, estimate_geometry
from worldstereo_ros.reconstruction.relocalisation import MAX_DRIFT, PoseCheck, Relocaliser
from worldstereo_ros.reconstruction.segment_captures import VISIBLE, SegmentPipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.world import BANK_VIEWS_PER_CLIP, WorldModel

logger = logging.getLogger(__name__)

MIN_DEPTH_CONFIDENCE = 0.5  # of an imagined pixel that updates the geometry

Progress = Callable[[int, int], None]  # (views that are done, of)


@dataclass(frozen=True)
class LoopView:
    """A view of the loop.

    Attributes:
        view: the imagined view.
        segment: number of its segment, from 0.
        captures: the captures of the segment: indices among the observations in the bank.
        check: its pose by what it shows; None if it was not checked.
        in_geometry: whether it updates the geometry.
    """

    view: ImaginedView
    segment: int
    captures: tuple[int, ...]
    check: PoseCheck | None
    in_geometry: bool


def imagine_place(
    world: WorldModel,
    trajectory: np.ndarray,
    camera: Camera,
    *,
    segment: int = RENDERS_PER_CHUNK,
    captures: str = VISIBLE,
    limit: int = MAX_CAPTURES,
    update: bool = True,
    check: bool = True,
    min_depth_confidence: float = MIN_DEPTH_CONFIDENCE,
    network: GeometryModel | None = None,
    prompt: str = "",
    seed: int = 0,
    cuts: Sequence[int] = (),
    on_step: OnStep | None = None,
    on_progress: Progress | None = None,
    clearance: float = PATH_CLEARANCE_M,
) -> Iterator[LoopView]:
    """Imagines the views of a trajectory, segment by segment. Each view is yielded as soon as it exists.

    The geometry is updated before the last view of a segment is yielded, so that a caller that stops there has it.

    Args:
        world: memory with the captures, and the pipeline. Its memory grows if `update` is True.
        trajectory: (F, 4, 4) world_from_camera.
        camera: intrinsics and size of the views.
        segment: views of a segment; the pipeline's clip length, if that is less.
        captures: how captures are chosen, see `segment_captures.SegmentPipeline`.
        limit: largest number of captures of a segment; 1 = without the cache of captures.
        update: add what was imagined to the geometry, labelled as imagined.
        check: locate each view against the captures; those that drifted stay out of the geometry, and no segment
            continues from them.
        min_depth_confidence: imagined pixels whose depth has less confidence stay out of the geometry; 0 = none.
        network: gives the depth of imagined views from these and their captures together; None: that of the pipeline.
        prompt: description of the place.
        seed: random seed; each segment draws noise of its own.
        cuts: indices into the trajectory at which a segment must begin.
        on_step: see `WorldModel.imagine`.
        on_progress: called with the number of views that are done, and of all.
        clearance: see `WorldModel.imagine`.

    Returns:
        An iterator over the F views, in order.

    Raises:
        EmptyMemoryError: there is no capture yet; raised while iterating.
        InputError: an argument is out of range.
        ModelError: the pipeline failed; raised while iterating.
    """
    poses = check_poses(trajectory)
    if segment < 1:
        raise InputError(f"A segment of {segment} views was asked for; at least 1 was expected.")
    if any(not 0 <= cut <= len(poses) for cut in cuts):
        raise InputError(f"The cuts {list(cuts)} do not lie on a trajectory of {len(poses)} views.")
    pipeline = SegmentPipeline(world.pipeline, captures, limit)
    inner = WorldModel(pipeline, world.cloud, world.bank, depth_estimator=world.depth_estimator, device=world.device)
    blocked = blocked_poses(world.cloud, poses, clearance)
    loop = _Loop(inner, pipeline, poses, camera, update, check, min_depth_confidence, network, segment, blocked)
    return loop.run(_segments(len(poses), min(segment, pipeline.clip_length), cuts), prompt, seed, on_step, on_progress)


def _segments(count: int, length: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of each segment."""
    bounds = sorted({0, count, *cuts})
    return [
        (first, min(first + length, end))
        for start, end in itertools.pairwise(bounds)
        for first in range(start, end, length)
    ]


class _Loop:
    def __init__(
        self,
        world: WorldModel,
        pipeline: SegmentPipeline,
        poses: np.ndarray,
        camera: Camera,
        update: bool,
        check: bool,
        min_depth_confidence: float,
        network: GeometryModel | None,
        segment: int,
        blocked: np.ndarray,
    ) -> None:
        self.world, self.pipeline, self.poses, self.camera = world, pipeline, poses, camera
        self.update, self.network, self.blocked = update, network, blocked
        self.min_depth_confidence = min_depth_confidence
        self.captures = [view for view in world.bank.views if view.is_observation]
        self.relocaliser = Relocaliser(self.captures) if check else None
        clips = -(-len(poses) // segment)
        self.for_bank = set(evenly_spaced_indices(len(poses), BANK_VIEWS_PER_CLIP * clips))

    def run(
        self,
        segments: list[tuple[int, int]],
        prompt: str,
        seed: int,
        on_step: OnStep | None,
        on_progress: Progress | None,
    ) -> Iterator[LoopView]:
        """Yields the views of all segments."""
        count = len(self.poses)
        for number, (first, end) in enumerate(segments):
            done: list[LoopView] = []
            views = self.world.imagine(
                self.poses[first:end], self.camera, prompt=prompt, seed=seed + number, on_step=on_step
            )
            for index, imagined in enumerate(views, start=first):
                view = replace(imagined, index=index, count=count, blocked=bool(self.blocked[index]))
                check = None if self.relocaliser is None else self.relocaliser.check(view)
                kept = self.update and not (check is not None and check.drifted)
                done.append(LoopView(view, number, self.pipeline.captures, check, kept))
                if index == end - 1:
                    self._finish(done)
                if on_progress is not None:
                    on_progress(index + 1, count)
                yield done[-1]

    def _finish(self, segment: list[LoopView]) -> None:
        """Updates the geometry by a segment, and sets what the next one continues from."""
        last = segment[-1]
        drifted = last.check is not None and last.check.drifted
        self.pipeline.previous = None if drifted else last.view
        kept = [one.view for one in segment if one.in_geometry]
        for view in self._with_update_depth(kept, segment[0].captures):
            self.world.remember(view, in_bank=view.index in self.for_bank)

    def _with_update_depth(self, views: list[ImaginedView], numbers: tuple[int, ...]) -> list[ImaginedView]:
        """The views with the depth that updates the geometry, 0 elsewhere.

        That of the network, where it gives one, is brought to the captures' frame and unit by the captures alone.
        """
        captures: list[View] = [self.captures[number] for number in numbers]
        own = [self._trusted_depth(view) for view in views]
        if self.network is None or not views or len(captures) < 2:
            return [replace(view, depth=depth) for view, depth in zip(views, own, strict=True)]
        poses = np.stack([view.world_from_camera for view in (*captures, *views)])
        images = [view.image for view in (*captures, *views)]
        try:
            depths = estimate_geometry(self.network, images, poses, anchors=len(captures))[len(captures) :]
        except InputError as error:
            first, last = views[0].index, views[-1].index
            logger.warning("%s The depth of the pipeline is used for views %d to %d.", error, first, last)
            return [replace(view, depth=depth) for view, depth in zip(views, own, strict=True)]
        return [
            replace(view, depth=np.where(depth > 0, depth, mine).astype(np.float32))
            for view, depth, mine in zip(views, depths, own, strict=True)
        ]

    def _trusted_depth(self, view: ImaginedView) -> np.ndarray:
        """(H, W) float32 depth of a view, 0 where it is imagined with too little confidence."""
        depth = np.zeros(view.image.shape[:2], np.float32) if view.depth is None else view.depth
        if view.depth_confidence is None:
            return depth
        trusted = view.depth_confidence >= self.min_depth_confidence
        if view.covered is not None:
            trusted = trusted | view.covered
        return np.where(trusted, depth, np.float32(0)).astype(np.float32)


# --- report ----------------------------------------------------------------------------------------------------------


def describe_checks(views: Sequence[LoopView]) -> list[str]:
    """Sentences about the poses of imagined views, for the user; empty if none was checked."""
    checks = [(one.view, one.check) for one in views if one.check is not None]
    if not checks:
        return []
    located = [check for _, check in checks if check.located]
    posed = [check for check in located if check.degrees is not None]
    drifted = [view.index for view, check in checks if check.drifted]
    updated = any(one.in_geometry for one in views)
    lines = []
    if located:
        pose = ""
        if posed:
            degrees, share = (_median(posed, name) for name in ("degrees", "share_of_depth"))
            pose = f"{degrees:.2f} degrees, {share:.2%} of the depth and "
        lines.append(
            f"{len(located)} of {len(checks)} imagined views could be located against the captures: off by "
            f"{pose}{_median(located, 'pixels'):.1f} px in the median."
        )
    lost = sum(not check.located and not check.drifted for _, check in checks)
    if lost:
        kept = "; their surfaces are in the geometry as imagined" if updated else ""
        lines.append(f"{lost} show too little that captures show to be located{kept}.")
    if drifted:
        named = ", ".join(str(index) for index in drifted[:8])
        out = " They stay out of the geometry." if updated else ""
        lines.append(
            f"{len(drifted)} drifted by more than {MAX_DRIFT:.1%} of the image's diagonal, or do not show what the "
            f"captures show there: {named}{', ...' if len(drifted) > 8 else ''}.{out}"
        )
    return lines


def _median(checks: Sequence[PoseCheck], name: str) -> float:
    return float(np.median([getattr(check, name) for check in checks]))
