"""The world model: remembers what sensors observed, and imagines what they did not.

    observation ──► depth ──► cloud memory ──► render along the path ─┐
                       └────► view bank    ──► retrieve references ───┤
                                                                      ▼
                imagined views ◄── compose ◄── pipeline (diffusion or geometric)
                       └──── back into both memories, labelled as imagined

Every pixel and point has a class (`geometry/provenance.py`): *observed* (colour seen, distance measured), *estimated*
(colour seen, distance estimated by a model) or *imagined*.

Read this file first: `WorldModel` is the whole loop, in the order observe, imagine, remember, save and load.

Conventions: camera axes are OpenCV's (x right, y down, z forward), poses are `world_from_camera` 4x4 matrices, lengths
are metres. Depth is float32 metres along the optical axis, 0 = unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.depth.alignment import complete_depth
from worldstereo_ros.depth.estimated_views import correct_estimated_views, insert_estimated, with_estimated_depth
from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.borders import valid_area
from worldstereo_ros.memory.archive import ArchiveError, acceptable_bytes, load_archive, save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.free_space import in_free_space
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M, blocked_poses
from worldstereo_ros.pipelines.base import Conditioning, ModelError, OnStep, Pipeline
from worldstereo_ros.pipelines.imagined_views import imagined_view, with_confidence
from worldstereo_ros.rendering.splatting import Rendering, render
from worldstereo_ros.utils.errors import InputError, WorldStereoError

logger = logging.getLogger(__name__)

# With remember=True, this many views of each clip join the view bank, evenly spaced and never the first (WorldStereo
# 2.0 keeps 8 of 20). A path that a pipeline imagines view by view counts as one clip.
BANK_VIEWS_PER_CLIP = 8


class EmptyMemoryError(WorldStereoError, RuntimeError):
    """Views were requested before the first observation."""


class WorldModel:
    """Remembers observations and imagines views along a path.

    Not thread-safe: use it from one thread.

    Attributes:
        pipeline: generates the pixels that memory lacks.
        cloud: global-geometric memory, a bounded point cloud with provenance.
        bank: spatial-stereo memory, the views that are retrieved as references.
        depth_estimator: estimates depth of observations without a depth image; None: such observations are rejected.
        device: where the cloud is rendered and the pipeline runs.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        cloud: CloudMemory | None = None,
        bank: ViewBank | None = None,
        *,
        depth_estimator: DepthEstimator | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Creates a world model; memories that are not given are empty.

        Args:
            pipeline: a pipeline, such as `pipelines.auto.load_pipeline` returns.
            cloud, bank, depth_estimator, device: see the class.
        """
        self.pipeline = pipeline
        self.cloud = CloudMemory() if cloud is None else cloud
        self.bank = ViewBank() if bank is None else bank
        self.depth_estimator = depth_estimator
        self.device = torch.device(device)
        self._border_reported = False
        self._unit_reported = False

    # --- observe -----------------------------------------------------------------------------------------------------

    def observe(self, view: View) -> InsertReport:
        """Remembers a view that a sensor took: its points in the cloud, the view itself in the bank.

        Measured depth is remembered as *observed*. A view without depth gets that of the depth estimator, aligned to
        memory, and is remembered as *estimated*. Measured depth replaces estimated depth, also in views that were
        observed before. A white or black border around the image is cut off first (`imaging.borders`).

        Args:
            view: with depth, or without if there is a depth estimator. Depth that is not finite is unknown; depth that
                is all labelled as estimated is remembered so.

        Returns:
            What happened to the pixels in the cloud.

        Raises:
            InputError: the view has no depth and there is no depth estimator, it is an imagined view, or its lengths
                are in metres and those of memory are not, or the other way round. The memory is unchanged.
        """
        if not view.is_observation:
            raise InputError("The view has imagined pixels; an image of a sensor was expected. Use `remember` for it.")
        self.bank.check_unit(view)
        view = self._without_border(view).with_finite_depth()
        has_depth = view.depth is not None and (view.depth > 0).any()
        if view.depth is not None and ((view.depth > 0) & ~view.estimated_mask).any():
            report = self.cloud.insert(view)
            correct_estimated_views(self.cloud, self.bank, view, self.device)
        else:
            if not has_depth:
                view = with_estimated_depth(view, self.depth_estimator, self.cloud, self.device)
                self._warn_of_unit(view)
            report = insert_estimated(self.cloud, view, self.device)
        self.bank.add(view)
        return report

    def _without_border(self, view: View) -> View:
        rows, columns = valid_area(view.image)
        if (rows, columns) == (slice(0, view.camera.height), slice(0, view.camera.width)):
            return view
        if not self._border_reported:
            self._border_reported = True
            logger.info(
                "The image has a white or black border: rows %d to %d and columns %d to %d are used. Further images "
                "with a border are cropped without a message.",
                *(rows.start, rows.stop - 1, columns.start, columns.stop - 1),
            )
        return view.cropped(rows, columns)

    def _warn_of_unit(self, view: View) -> None:
        if view.metric or self._unit_reported:
            return
        self._unit_reported = True
        logger.warning(
            "The unit of the poses is arbitrary, and depth is estimated in metres: the surfaces need not fit the poses."
        )

    @property
    def metric(self) -> bool:
        """Whether lengths in memory are metres; False if their unit is arbitrary, as in the first observation."""
        return self.bank.metric is not False

    @property
    def newest_observation(self) -> View | None:
        """The observation that was added last; None before the first."""
        return next((view for view in reversed(self.bank.views) if view.is_observation), None)

    # --- imagine -----------------------------------------------------------------------------------------------------

    def imagine(
        self,
        world_from_camera: np.ndarray,
        camera: Camera,
        *,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        on_step: OnStep | None = None,
        clearance: float = PATH_CLEARANCE_M,
    ) -> Iterator[ImaginedView]:
        """Imagines the views along a path. Each view is yielded as soon as it exists.

        A path that is longer than the pipeline's clip length is imagined clip by clip; each clip continues from the
        last view of the one before.

        Args:
            world_from_camera: (F, 4, 4) camera poses along the path.
            camera: intrinsics and size of the views.
            prompt: description of the place; pipelines without text encoder ignore it.
            seed: random seed. The same seed and memory give the same views; views that are remembered return from their
                poses with any seed and prompt.
            remember: add each view to the memories, labelled as imagined, before it is yielded. A caller that stops
                early has the views that it got remembered.
            on_step: called as on_step(stage, step, steps) between steps; may raise `Cancelled`.
            clearance: distance that the path keeps from observed surfaces, metres. Views whose pose is closer, or is
                reached only through such a surface, are `blocked` (`memory.path_clearance`).

        Returns:
            An iterator over the F views, in order.

        Raises:
            EmptyMemoryError: there is no observation yet.
            InputError: the poses are not finite rigid transforms, or the clearance is out of range.
            ModelError: the pipeline failed; raised while iterating.
        """
        poses = check_poses(world_from_camera)
        newest = self.newest_observation
        # The first clip starts from the observation that shows most of it, which need not be the newest.
        start_view = self.bank.best_start_view(camera, poses[: self.pipeline.clip_length])
        if newest is None or start_view is None:
            raise EmptyMemoryError(
                "The memory is empty: nothing was observed yet. Send an image with camera_info, depth and pose first."
            )
        blocked = blocked_poses(self.cloud, poses, clearance)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        on_step = on_step or _ignore_step
        return self._imagine_clips(
            poses, camera, start_view, newest.stamp_ns, blocked, prompt, generator, remember, on_step
        )

    def _imagine_clips(
        self,
        poses: np.ndarray,
        camera: Camera,
        start_view: View,
        stamp_ns: int,
        blocked: np.ndarray,
        prompt: str,
        generator: torch.Generator,
        remember: bool,
        on_step: OnStep,
    ) -> Iterator[ImaginedView]:
        count, clip_length = len(poses), self.pipeline.clip_length
        for_bank = views_for_bank(count, clip_length)
        for first in range(0, count, clip_length):
            on_step("rendering", first, count)
            conditioning, bank_index = self._condition(poses[first : first + clip_length], camera, start_view)
            frames = self.pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)
            done = 0
            for offset, frame in enumerate(frames):
                index, reference = first + offset, int(bank_index[offset])
                frame = with_confidence(frame, conditioning, offset, self.pipeline.name)
                view = imagined_view(frame, conditioning, offset, reference, index=index, count=count)
                view = replace(view, stamp_ns=stamp_ns, blocked=bool(blocked[index]), metric=self.metric)
                if remember:  # before it is given: the caller may ask for no further view
                    self.remember(view, in_bank=index in for_bank)
                done += 1
                yield view
            if done != len(conditioning.world_from_camera):
                raise ModelError(
                    f"The pipeline {self.pipeline.name} returned {done} views; "
                    f"{len(conditioning.world_from_camera)} were expected."
                )
            start_view = view

    def _condition(self, poses: np.ndarray, camera: Camera, start_view: View) -> tuple[Conditioning, np.ndarray]:
        """Collects what memory holds about a clip: renders of the cloud and references from the bank.

        Returns:
            The conditioning, and the index (F,) of each view's best reference in the bank, -1 = none.
        """
        retrieval = self.bank.retrieve(camera, poses)
        # Some pipelines select references by what they show; they get the whole bank.
        selects_references = getattr(self.pipeline, "selects_references", False)
        offered = list(range(len(self.bank))) if selects_references else retrieval.distinct
        conditioning = Conditioning(
            start_view=start_view,
            renders=self.render_memory(camera, poses),
            camera=camera,
            world_from_camera=poses,
            references=[self.bank.views[i] for i in offered],
            reference_index=np.array([offered.index(i) if i >= 0 else -1 for i in retrieval.index]),
            observations=[view for view in self.bank.views if view.is_observation],
            stored_confidence=self._render_confidence(camera, poses),
        )
        return conditioning, retrieval.index

    def render_memory(self, camera: Camera, world_from_camera: np.ndarray) -> Rendering:
        """Renders the cloud memory, without any pipeline.

        Args:
            camera: intrinsics and size of the images.
            world_from_camera: (F, 4, 4) camera poses.

        Returns:
            Colour, depth, coverage and provenance of F images, on `device`.
        """
        cloud = self.cloud
        arrays = cloud.points, cloud.colours, cloud.provenance, cloud.spacing
        return render(*arrays, camera, world_from_camera, device=self.device)

    def _render_confidence(self, camera: Camera, poses: np.ndarray) -> np.ndarray | None:
        """(F, H, W, 2) float32, confidence of colour and depth of the points in view; None if all were observed."""
        cloud = self.cloud
        if (cloud.provenance == Provenance.OBSERVED).all():
            return None
        levels = np.zeros((len(cloud), 3), np.uint8)  # rounded down, so that rendering raises no confidence
        levels[:, 0], levels[:, 1] = cloud.confidence * 255, cloud.depth_confidence * 255
        arrays = cloud.points, levels, cloud.provenance, cloud.spacing
        rendering = render(*arrays, camera, poses, device=self.device)
        return rendering.colour[..., :2].cpu().numpy().astype(np.float32) / 255

    # --- remember ----------------------------------------------------------------------------------------------------

    def remember(self, view: ImaginedView, *, in_bank: bool = True) -> None:
        """Adds an imagined view to the memories, labelled as imagined.

        The cloud gets only surfaces that it lacks, since copies of its own points would drift, and none in space that
        an observation showed to be free.

        Args:
            view: one that `imagine` returned.
            in_bank: also add the view to the view bank.
        """
        self.bank.check_unit(view)
        if view.depth is not None and view.covered is not None and not view.covered.all():
            depth = self._depth_of_new_surfaces(view)
            rows, columns = np.nonzero(depth)
            points = unproject(depth, view.camera, view.world_from_camera)[rows, columns]
            free = in_free_space(points, self.bank.views)
            depth[rows[free], columns[free]] = 0
            if depth.any():
                nowhere = np.zeros_like(view.covered)
                self.cloud.insert(replace(view, depth=depth, observed=nowhere, estimated=None))
        if in_bank:
            self.bank.add(view)

    def _depth_of_new_surfaces(self, view: ImaginedView) -> np.ndarray:
        """(H, W) float32 depth of the pixels that memory does not cover yet, 0 elsewhere.

        Views of a clip are imagined independently, and their depth estimates of a new surface differ. The first view
        that shows the surface adds it to the cloud; the depth of later ones is aligned to it.
        """
        assert view.depth is not None
        rendering = self.render_memory(view.camera, view.world_from_camera[None])
        covered = rendering.covered[0].cpu().numpy()
        known = np.where(covered, rendering.depth[0].cpu().numpy(), np.float32(0))
        return np.where(covered | (view.depth <= 0), np.float32(0), complete_depth(known, view.depth))

    def reset(self) -> None:
        """Clears both memories."""
        self.cloud.clear()
        self.bank.clear()

    # --- save and load -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Saves both memories to a file. The file is replaced only when the new one is complete."""
        save_archive(path, self.cloud, self.bank, {"pipeline": self.pipeline.name, "metric": self.metric})

    def load(self, path: Path, *, metric_only: bool = False) -> None:
        """Replaces both memories by those of a file.

        The limits, voxel size and ages of this model stay; what does not fit is left out, and the log says so.

        Args:
            path: file to read.
            metric_only: reject a map whose unit is arbitrary, for callers that hand lengths on as metres.

        Raises:
            ArchiveError: the file is missing, damaged, too large, not a map, or rejected. The memories are unchanged.
        """
        size = acceptable_bytes(self.cloud, self.bank)
        archive = load_archive(path, max_bytes=size, cloud_like=self.cloud, bank_like=self.bank)
        if metric_only and archive.bank.metric is False:
            raise ArchiveError(
                f"The unit of the map {path} is arbitrary, not metres: it was made from a recording without scale "
                "(`metric` false). Lengths are metres here."
            )
        self.cloud, self.bank = archive.cloud, archive.bank


def warm_up(
    pipeline: Pipeline, device: str | torch.device = "cpu", *, depth_estimator: DepthEstimator | None = None
) -> None:
    """Runs the loop once on small synthetic views, with and without depth, so that the first real one is not delayed.

    Compiling loops (or reading them from the cache) and loading kernels can take seconds at their first use, in which a
    robot's messages would be dropped.
    """
    camera = Camera.from_fov(64, 48, 1.2)
    world = WorldModel(pipeline, depth_estimator=depth_estimator, device=device)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0.0, 0.2, 0.4)
    depth = np.full((48, 64), 3, np.float32)
    for stamp, pose in enumerate(poses[:2]):
        if depth_estimator is not None:
            world.observe(View(image, camera, pose, stamp_ns=stamp))
        world.observe(View(image, camera, pose, depth, stamp_ns=stamp))
    for view in world.imagine(poses, camera, remember=True):
        assert view.image.shape == image.shape


def views_for_bank(count: int, clip_length: int) -> set[int]:
    """Indices of the views of a path of `count` views that join the view bank, where views are remembered."""
    clips = -(-count // clip_length) if clip_length > 1 else 1
    return {int(i) for i in np.linspace(min(1, count - 1), count - 1, BANK_VIEWS_PER_CLIP * clips).round()}


def _ignore_step(stage: str, step: int, steps: int) -> None:
    """The `on_step` of callers that pass none."""
