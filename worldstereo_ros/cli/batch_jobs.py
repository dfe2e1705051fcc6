"""What a job of `worldstereo batch` does: what `worldstereo imagine` does, with the model of its worker."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.batch.job_list import WORLD_PATH
from worldstereo_ros.batch.jobs import Job, Note, RunJob
from worldstereo_ros.cli.sources import RecordedPath, Recording
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from worldstereo_ros.cli.imagine_source import SourceOptions
    from worldstereo_ros.depth.estimators import DepthEstimator
    from worldstereo_ros.memory.archive import Archive

# What options of bags are where they are not given, as for `worldstereo imagine`.
BAG_DEFAULTS: dict[str, Any] = {
    "image_topic": "", "pose_topic": "", "world_frame": "", "base_frame": "", "camera_axes": "auto", "depth_topic": "",
    "camera_info_topic": "", "tolerance": 0.03, "rectified": "auto", "depth_unit": "auto",
}  # fmt: skip
CLEARANCE_M = 0.05


def setup(settings: dict[str, Any]) -> RunJob:
    """Loads the model that all jobs of a worker share.

    Args:
        settings: see `batch.options.SETTINGS`.

    Raises:
        InputError, CheckpointError: see `load_pipeline`.
    """
    return ImagineJobs(settings)


class ImagineJobs:
    """Runs jobs with one pipeline, and one depth estimator, which is loaded when it is first needed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from worldstereo_ros.cli.options import check_model_options
        from worldstereo_ros.pipelines.auto import load_pipeline

        self._settings = settings
        self._model = settings.get("model", DEFAULT_MODEL)
        self._device = settings.get("device", "cpu")
        names = ("variant", "dtype", "control_backend", "fill")
        given = {name: settings[name] for name in names if name in settings}
        checked = {name: settings[name] for name in ("variant", "dtype", "prompt") if name in settings}
        check_model_options(self._model, **checked)
        self._pipeline = load_pipeline(self._model, self._device, **given)
        self._estimator: DepthEstimator | None = None

    def __call__(self, job: Job, folder: Path, note: Note) -> None:
        """Imagines one path and writes the results into `folder`.

        Raises:
            WorldStereoError: the source or path is bad.
        """
        from rich.console import Console

        from worldstereo_ros.cli.imagine_path import PathRequest, imagine_path, lacks_depth
        from worldstereo_ros.cli.imagine_source import check_path_options, open_source
        from worldstereo_ros.cli.paths import choose_path
        from worldstereo_ros.cli.recording_options import check_no_path_options
        from worldstereo_ros.cli.segments import choose_loop
        from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, NONE
        from worldstereo_ros.geometry.depth_units import check_depth

        settings, path = self._settings, job.path
        text = io.StringIO()
        console = Console(file=text, width=1_000_000, color_system=None)
        archive: Archive | None = None
        options = _source_options(job, settings.get("depth_model", ""))
        if job.source["kind"] == "world":
            world = job.source["split"], job.source["index"]
            recording = read_world(*world, options.observations or 1, options.frames, options.size)
            check_no_path_options(**options.of_path)
        else:
            archive, recording = open_source(options, device=self._device, console=console)
        for sentence in recording.notes:
            note(sentence)
        if warning := check_depth(recording.observed_views, f"The depth of {recording.name}", "depth_unit"):
            note(warning)
        chosen = choose_path(path["path"], recording, path.get("views"), path.get("distance"))
        loop = choose_loop(
            settings.get("loop"),
            settings.get("segment"),
            settings.get("captures", "visible"),
            settings.get("update", True),
            from_map=archive is not None,
            observed=len(recording.observed_views),
        )
        check_path_options(options, path["path"], recording)
        depth_model = options.depth_model
        needs_depth = archive is None and depth_model != NONE and lacks_depth(recording)
        request = PathRequest(
            recording,
            archive,
            path["path"],
            chosen,
            loop,
            self._model,
            settings.get("prompt", ""),
            job.seed,
            settings.get("clearance", CLEARANCE_M),
            recording.depth_from or depth_model or BUNDLED_NETWORK,
        )
        estimator = self._load_estimator() if needs_depth else None
        done = imagine_path(request, self._pipeline, estimator, console, device=self._device, progress=False)
        for line in text.getvalue().splitlines():
            note(line.strip())
        done.write(folder)

    def _load_estimator(self) -> DepthEstimator | None:
        from worldstereo_ros.depth.estimators import SMALL, load_depth_estimator

        if self._estimator is None:
            self._estimator = load_depth_estimator(self._settings.get("depth_model") or SMALL, self._device)
        return self._estimator


def _source_options(job: Job, depth_model: str) -> SourceOptions:
    """The options of `worldstereo imagine` that a job stands for."""
    from worldstereo_ros.cli.imagine_source import SourceOptions
    from worldstereo_ros.cli.pointmap_geometry import AUTO, SENSOR, check_sources
    from worldstereo_ros.cli.sources import parse_frames
    from worldstereo_ros.depth.estimators import NONE

    source, path, kind = job.source, job.path, job.source["kind"]
    pose_source, depth_source = source.get("pose_source", AUTO), source.get("depth_source", AUTO)
    check_sources(pose_source, depth_source, depth_model)
    file = Path(source["file"]) if "file" in source else None
    return SourceOptions(
        source=file if kind == "source" else None,
        bag=file if kind == "bag" else None,
        map_file=file if kind == "map" else None,
        observations=source.get("observations"),
        frames=parse_frames(source["observe"]) if "observe" in source else [],
        size=source.get("size", ""),
        fov=source.get("fov"),
        pose_source=pose_source,
        depth_source=depth_source,
        depth_model=NONE if depth_source == SENSOR else depth_model,
        bag_options={name: source.get(name, default) for name, default in BAG_DEFAULTS.items()},
        path_pose_frame=path.get("path_pose_frame", "base"),
        path_heading=path.get("path_heading", "auto"),
    )


def read_world(split: str, index: int, observations: int, frames: list[int], size: str) -> Recording:
    """Views of a procedural world along a walk through it, which is the recorded path `walk`.

    Args:
        split, index: the world, see `evaluation.world_sequences`.
        observations: number of evenly spaced views.
        frames: numbers of the views to observe instead; -1 is the last.
        size: see `sources.parse_size`.

    Raises:
        InputError: the world has no free path, or there is no such view.
    """
    from worldstereo_ros.cli.sources import parse_size
    from worldstereo_ros.evaluation.world_sequences import CAMERA, world_sequence
    from worldstereo_ros.utils.indices import evenly_spaced_indices

    wanted = parse_size(size)
    try:
        sequence = world_sequence(split, index, camera=CAMERA if wanted is None else CAMERA.resized(*wanted))
    except InputError:
        raise
    except ValueError as error:  # what `make_path` raises
        raise InputError(f"World {index} of the split {split} cannot be walked through: {error}") from None
    name, count = sequence.path.name, len(sequence)
    if wrong := [number for number in frames if not -count <= number < count]:
        raise InputError(f"{name} has no view {wrong[0]}; its {count} views are 0 to {count - 1}. -1 is the last one.")
    notes = [f"{observations} frames were to be observed; {name} has {count}."] if observations > count else []
    views = [sequence[number] for number in (frames or evenly_spaced_indices(count, observations))]
    return Recording(
        name,
        views,
        lambda path: RecordedPath(sequence.poses, sequence.camera) if path == WORLD_PATH else None,
        (WORLD_PATH,),
        notes=notes,
    )
