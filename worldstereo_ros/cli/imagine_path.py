"""What `worldstereo imagine` does once its options are read, and each job of `worldstereo batch`, too: one code path.

Observe a recording (or take the memories of a map), imagine the views along a path, write the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.visualization.result_files import MAP_FILE, OBSERVED_FOLDER, RESULTS_FILE

if TYPE_CHECKING:
    from rich.console import Console

    from worldstereo_ros.cli.paths import ChosenPath
    from worldstereo_ros.cli.segments import LoopSettings
    from worldstereo_ros.cli.sources import Recording
    from worldstereo_ros.depth.estimators import DepthEstimator
    from worldstereo_ros.geometry.views import ImaginedView, View
    from worldstereo_ros.memory.archive import Archive
    from worldstereo_ros.pipelines.base import Pipeline
    from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class PathRequest:
    """What to imagine.

    Attributes:
        recording: the observed views.
        archive: the saved map that they are from; None if they are still to be observed.
        path: name of the path, as the user gave it.
        chosen: its poses and camera.
        loop: settings of the loop; None without it.
        model: name of the pipeline.
        prompt: empty for that of the recording.
        seed: random seed.
        clearance: distance of the path from observed surfaces, in the unit of the recording.
        estimator_name: name of the depth estimator, for sentences.
    """

    recording: Recording
    archive: Archive | None
    path: str
    chosen: ChosenPath
    loop: LoopSettings | None
    model: str
    prompt: str
    seed: int
    clearance: float
    estimator_name: str


def lacks_depth(recording: Recording) -> bool:
    """Whether an observed view has no measured depth, so that a depth estimator is needed."""
    return any(view.depth is None or not view.depth.any() for view in recording.observed_views)


@dataclass(frozen=True)
class ImaginedPath:
    """Views along a path and the world that they are of.

    Attributes:
        request: what was asked for.
        world: the memories after imagining.
        imagined: the views.
        observed: the observed views as they are to be written.
        subtitle: what they are made from.
        of_loop: what results.json holds of the loop; empty without it.
    """

    request: PathRequest
    world: WorldModel
    imagined: list[ImaginedView]
    observed: list[View]
    subtitle: str
    of_loop: dict[str, Any]

    def write(self, out: Path) -> None:
        """Writes world.wsmap, what `write_results` writes, and results.json. Raises WriteError, ArchiveError."""
        from worldstereo_ros.utils.atomic_files import write_json
        from worldstereo_ros.visualization.results import write_results

        self.world.save(out / MAP_FILE)
        write_results(
            out, self.imagined, self.observed, self.world.cloud, title="worldstereo imagine", subtitle=self.subtitle
        )
        write_json(out / RESULTS_FILE, _results(self.request, self.imagined) | self.of_loop)


def imagine_path(
    request: PathRequest,
    pipeline: Pipeline,
    estimator: DepthEstimator | None,
    console: Console,
    *,
    device: str = "cpu",
    preview: Path | None = None,
    progress: bool = True,
) -> ImaginedPath:
    """Observes, and imagines the views along the path. The same request gives the same views, bit for bit.

    Args:
        request: what to imagine.
        pipeline: generates what memory lacks.
        estimator: estimates depth of views without; None if all have some, or the views are those of a map.
        console: for sentences about what happens.
        device: torch device.
        preview: file for what memory alone shows; None for none.
        progress: show progress bars.

    Raises:
        InputError, ModelError: see `WorldModel.observe`, `WorldModel.imagine` and `reconstruction.loop.imagine_place`.
    """
    from rich.markup import escape
    from rich.progress import track

    from worldstereo_ros.cli.segments import imagine_segments, loop_results
    from worldstereo_ros.cli.summaries import estimated_depth_warning, pixel_shares, point_counts
    from worldstereo_ros.memory.path_clearance import describe_blocked
    from worldstereo_ros.visualization.path_preview import preview_path
    from worldstereo_ros.world import WorldModel

    recording, archive, chosen = request.recording, request.archive, request.chosen
    observed_views = recording.observed_views
    memories = () if archive is None else (archive.cloud, archive.bank)
    world = WorldModel(pipeline, *memories, depth_estimator=estimator, device=device)
    remembered = list(observed_views) if archive is not None else []
    new_views = observed_views if archive is None else []
    few = len(new_views) < 4
    for view in track(new_views, description="observing", console=console, disable=few or not progress):
        world.observe(view)
        remembered.append(world.newest_observation or view)
    remembered = _with_newest_depth(remembered, world.bank.views)
    observed_count = f"{len(observed_views)} observed view{'s' if len(observed_views) > 1 else ''}"
    console.print(f"[bold]{escape(recording.name)}[/]: {observed_count}, {point_counts(world.cloud)}")
    if warning := estimated_depth_warning(remembered, request.estimator_name):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    if preview is not None:
        preview_path(preview, world.render_memory, chosen.camera, chosen.poses)
        console.print(f"Preview of the path: {escape(str(preview))}", highlight=False)
    options: dict[str, Any] = {
        "prompt": request.prompt or recording.prompt,
        "seed": request.seed,
        "clearance": request.clearance,
    }
    imagined: list[ImaginedView] = []
    of_loop: dict[str, Any] = {}
    if request.loop is None:
        views = world.imagine(chosen.poses, chosen.camera, remember=True, **options)
        total = len(chosen.poses)
        imagined = list(track(views, description="imagining", total=total, console=console, disable=not progress))
    else:
        looped = imagine_segments(world, chosen, request.loop, console, progress=progress, **options)
        imagined, of_loop = [one.view for one in looped], loop_results(looped, request.loop)
    console.print(f"Imagined {escape(chosen.description)}: {pixel_shares(imagined)}; now {point_counts(world.cloud)}")
    if blocked := describe_blocked([view.blocked for view in imagined], request.clearance):
        console.print(f"[yellow]{escape(blocked)}[/]", highlight=False)
    estimated_count = sum(bool(view.estimated_mask.any()) for view in remembered)
    note = f" ({estimated_count} with estimated depth)" if estimated_count else ""
    subtitle = f"{recording.name}, {observed_count}{note}, path: {request.path}"
    # Views that were cropped differ in size, and a sequence has one camera; they are written as they came.
    observed_views = [
        now if now.camera == view.camera else view for now, view in zip(remembered, observed_views, strict=True)
    ]
    # A recording may change its camera; a sequence has one.
    written = [view for view in observed_views if view.camera == observed_views[-1].camera]
    if len(written) < len(observed_views):
        console.print(
            f"The recording has several cameras: {OBSERVED_FOLDER}/ gets the {len(written)} of {len(observed_views)} "
            "observed views of the last one.",
            highlight=False,
        )
    return ImaginedPath(request, world, imagined, written, subtitle, of_loop)


def _with_newest_depth(remembered: list[View], bank_views: list[View]) -> list[View]:
    """The remembered views; those whose estimated depth was corrected by later measurements as they are now."""
    newest = {id(view.image): view for view in bank_views}  # a correction keeps the image
    return [newest.get(id(view.image), view) for view in remembered]


def scale_is_given(views: Sequence[View]) -> bool:
    """Whether measured depth or two places of the camera give lengths. Else their scale is the depth model's guess."""
    import numpy as np

    if any(view.depth is not None and bool((view.observed_mask & (view.depth > 0)).any()) for view in views):
        return True
    return any(np.linalg.norm(view.world_from_camera[:3, 3] - views[0].world_from_camera[:3, 3]) > 0 for view in views)


def _results(request: PathRequest, imagined: Sequence[ImaginedView]) -> dict[str, Any]:
    """What results.json holds."""
    recording, camera = request.recording, request.chosen.camera
    given = scale_is_given(recording.observed_views)
    return {
        "source": recording.name,
        "model": request.model,
        "camera": {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
        | {"origin": recording.camera_origin},
        "metric": recording.observed_views[0].metric and given,
        **({} if given else {"scale_from": "a guess of the depth model"}),
        **recording.origin,
        "observed_views": len(recording.observed_views),
        "path": request.path,
        "views": request.chosen.description,
        "clearance": request.clearance,
        "blocked_count": sum(view.blocked for view in imagined),
        "blocked": [view.blocked for view in imagined],
        "observed": [round(view.observed_fraction, 4) for view in imagined],
        "estimated": [round(view.estimated_fraction, 4) for view in imagined],
    }
