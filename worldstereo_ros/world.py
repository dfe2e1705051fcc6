"""The loop: what was seen goes into memory, memory is seen from where nobody has been, a pipeline paints the rest.

    seed view ──► depth ──► cloud memory ──► render along the path ─┐
                     └────► view bank    ──► retrieve references ───┤
                                                                    ▼
              imagined views ◄── compose ◄── pipeline (diffusion or geometric)
                     └──── back into both memories, marked imagined

Read this file from top to bottom to know what the project does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.depth.alignment import align_to_known, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.archive import load_archive, save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.free_space import in_free_space
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.pipelines.base import Conditioning, ModelError, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.pipelines.confidence import load_confidence
from worldstereo_ros.rendering.splatting import Rendering, render
from worldstereo_ros.utils.errors import InputError, WorldStereoError

# After a clip, this many of its views join the bank (WorldStereo 2.0 keeps 8 of 20, never the first); after a path that
# is imagined view by view, as many of all.
REMEMBERED_VIEWS = 8


class NothingSeenError(WorldStereoError, RuntimeError):
    """Views were asked for before anything was seen."""


class WorldModel:
    """Remembers what was seen and imagines what was not.

    Not thread-safe: one thread owns it.

    Attributes:
        pipeline: what paints the pixels that memory lacks.
        cloud: global-geometric memory, a bounded cloud with provenance.
        bank: spatial-stereo memory, views that are retrieved as references.
        depth_estimator: gives depth to seeds without a depth image; None = such seeds are refused.
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
        self.pipeline = pipeline
        self.cloud = CloudMemory() if cloud is None else cloud
        self.bank = ViewBank() if bank is None else bank
        self.depth_estimator = depth_estimator
        self.device = torch.device(device)

    # --- seeing ----------------------------------------------------------------------------------------------------

    def observe(self, view: View) -> InsertReport:
        """Remembers a view that a sensor took: its points in the cloud, its picture in the bank.

        Raises:
            ValueError: it has no usable depth and there is no depth estimator. Nothing is changed then.
        """
        view = self._with_depth(view)
        report = self.cloud.insert(view)
        self.bank.add(view)
        return report

    def _with_depth(self, view: View) -> View:
        if view.depth is not None and (view.depth > 0).any():
            return view
        if self.depth_estimator is None:
            raise InputError(
                "The seed has no depth and no depth estimator is loaded. Send a depth image registered to the colour "
                "image, or let a model guess it (parameter `depth_model`)."
            )
        depth = self.depth_estimator(view.image, view.camera)
        if len(self.cloud):  # a monocular scale is a guess: what is already known of the place corrects it
            known = self._render(view.camera, view.world_from_camera[None])
            depth = align_to_known(depth, known.depth[0].cpu().numpy())
        return replace(view, depth=depth)

    @property
    def newest_observation(self) -> View | None:
        """The newest view that a sensor took, None before the first."""
        return next((view for view in reversed(self.bank.views) if view.observed is None), None)

    # --- imagining ---------------------------------------------------------------------------------------------------

    def imagine(
        self,
        world_from_camera: np.ndarray,
        camera: Camera,
        *,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        on_step: OnStep | None = None,
    ) -> Iterator[ImaginedView]:
        """Imagines the views along a path, each yielded as soon as it exists.

        Args:
            world_from_camera: (F, 4, 4) poses of the camera, OpenCV axes, metres.
            camera: intrinsics of the views.
            prompt: a sentence about the place; pipelines without a text encoder ignore it.
            seed: the same seed and memory give the same views.
            remember: put the views into memory, marked imagined, clip by clip.
            on_step: called as on_step(stage, step, steps) between steps; may raise `Cancelled`.

        Raises:
            NothingSeenError: nothing was seen yet.
            ValueError: the poses are no finite rigid transforms.
            ModelError: the pipeline failed (raised while the views are taken).
        """
        poses = check_poses(world_from_camera)
        newest = self.newest_observation
        # A clip goes on from the seed that shows most of it, whichever came last: seeds may come in any order.
        start_view = self.bank.best_start_view(camera, poses[: self.pipeline.clip_length])
        if newest is None or start_view is None:
            raise NothingSeenError(
                "Nothing was seen yet: the memory is empty. Send an image with camera_info, depth and pose first."
            )
        generator = torch.Generator(device=self.device).manual_seed(seed)
        stamp_ns = newest.stamp_ns
        return self._imagine(poses, camera, prompt, generator, remember, on_step or _no_step, start_view, stamp_ns)

    def _imagine(
        self,
        poses: np.ndarray,
        camera: Camera,
        prompt: str,
        generator: torch.Generator,
        remember: bool,
        on_step: OnStep,
        start_view: View,
        stamp_ns: int,
    ) -> Iterator[ImaginedView]:
        count = len(poses)
        clips = -(-count // self.pipeline.clip_length) if self.pipeline.clip_length > 1 else 1
        kept = {int(i) for i in np.linspace(min(1, count - 1), count - 1, REMEMBERED_VIEWS * clips).round()}
        for start in range(0, count, self.pipeline.clip_length):
            clip = poses[start : start + self.pipeline.clip_length]
            on_step("rendering", start, count)
            renders = self._render(camera, clip)
            retrieval = self.bank.retrieve(camera, clip)
            # A pipeline that chooses its references by what they show is offered the whole bank.
            whole = getattr(self.pipeline, "selects_references", False)
            offered = list(range(len(self.bank))) if whole else retrieval.distinct
            conditioning = Conditioning(
                start_view=start_view,
                renders=renders,
                camera=camera,
                world_from_camera=clip,
                references=[self.bank.views[i] for i in offered],
                reference_index=np.array([offered.index(i) if i >= 0 else -1 for i in retrieval.index]),
            )
            frames = self.pipeline(conditioning, prompt=prompt, generator=generator, on_step=on_step)
            clip_views = []
            for offset, frame in enumerate(frames):
                reference = int(retrieval.index[offset])
                if frame.confidence is None:
                    trust = load_confidence(self.pipeline.name)
                    frame = replace(frame, confidence=trust(frame, conditioning, offset))
                view = _compose(frame, conditioning, offset, start + offset, count, stamp_ns, (reference,))
                clip_views.append(view)
                yield view
            if len(clip_views) != len(clip):
                raise ModelError(f"{self.pipeline.name} gave {len(clip_views)} of {len(clip)} views.")
            if remember:
                for view in clip_views:
                    self.remember(view, in_bank=view.index in kept)
            start_view = clip_views[-1]

    def _render(self, camera: Camera, poses: np.ndarray) -> Rendering:
        cloud = self.cloud
        return render(cloud.points, cloud.colours, cloud.observed, cloud.spacing, camera, poses, device=self.device)

    # --- remembering -------------------------------------------------------------------------------------------------

    def remember(self, view: ImaginedView, *, in_bank: bool = True) -> None:
        """Puts an imagined view into memory, marked imagined.

        Only what memory lacked goes into the cloud (what was rendered from it is there already and would drift), and
        only where no sensor saw empty space.
        """
        if view.depth is not None and view.covered is not None and not view.covered.all():
            depth = self._new_depth(view)
            rows, columns = np.nonzero(depth)
            points = unproject(depth, view.camera, view.world_from_camera)[rows, columns]
            empty = in_free_space(points, self.bank.views)
            depth[rows[empty], columns[empty]] = 0
            if depth.any():
                self.cloud.insert(replace(view, depth=depth, observed=np.zeros_like(view.covered)))
        if in_bank:
            self.bank.add(view)

    def _new_depth(self, view: ImaginedView) -> np.ndarray:
        """(H, W) float32 depth of what memory lacks by now, 0 elsewhere.

        The views of a clip are imagined side by side, each with a guess of its own of how far away new surfaces are.
        Only the first that shows one puts it into memory; the next ones go on from there.
        """
        assert view.depth is not None
        known = self._render(view.camera, view.world_from_camera[None])
        covered = known.covered[0].cpu().numpy()
        there = np.where(covered, known.depth[0].cpu().numpy(), np.float32(0))
        return np.where(covered | (view.depth <= 0), np.float32(0), complete_depth(there, view.depth))

    def reset(self) -> None:
        """Forgets everything."""
        self.cloud.clear()
        self.bank.clear()

    def save(self, path: Path) -> None:
        """Saves both memories; a save that is killed leaves the one before whole."""
        save_archive(path, self.cloud, self.bank, {"pipeline": self.pipeline.name})

    def load(self, path: Path) -> None:
        """Replaces both memories by saved ones. If the file is not good, nothing is changed.

        Raises:
            ArchiveError: the file is missing, foreign, damaged or too large; the message says which.
        """
        archive = load_archive(path)
        self.cloud, self.bank = archive.cloud, archive.bank


def warm_up(pipeline: Pipeline, device: str | torch.device = "cpu") -> None:
    """Runs the loop once on two small made-up views, so that the first real ones wait for nothing.

    Loops are compiled (or read from their cache) and kernels loaded when they first run; that can take seconds, in
    which a robot's messages would be lost.
    """
    camera = Camera.from_fov(64, 48, 1.2)
    world = WorldModel(pipeline, device=device)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0.0, 0.2, 0.4)
    for stamp, pose in enumerate(poses[:2]):
        world.observe(View(image, camera, pose, np.full((48, 64), 3, np.float32), stamp_ns=stamp))
    for view in world.imagine(poses, camera, remember=True):
        assert view.image.shape == image.shape


def _compose(
    frame: PipelineFrame,
    conditioning: Conditioning,
    offset: int,
    index: int,
    count: int,
    stamp_ns: int,
    references: tuple[int, ...],
) -> ImaginedView:
    """The frame of a pipeline with what it grew from. Never more is called observed than memory holds."""
    renders = conditioning.renders
    covered = renders.covered[offset].cpu().numpy()
    return ImaginedView(
        image=frame.image,
        camera=conditioning.camera,
        world_from_camera=conditioning.world_from_camera[offset],
        depth=frame.depth,
        observed=frame.observed,
        stamp_ns=stamp_ns,
        confidence=frame.confidence,
        conditioning=renders.colour[offset].cpu().numpy(),
        covered=covered,
        index=index,
        count=count,
        references=tuple(reference for reference in references if reference >= 0),
    )


def _no_step(stage: str, step: int, steps: int) -> None:
    """For callers that do not watch."""
