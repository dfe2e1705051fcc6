"""Converts a source of frames to stereo files, in parts from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldstereo_ros import __version__
from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.imaging.stereo_layouts import LAYOUTS, LEFT_RIGHT, StereoLayout, pad_to_even
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.stereo_video import (
    LABELS,
    PartWriter,
    VideoCodec,
    frame_packing_problem,
    h264,
    join_parts,
    picture_start,
)
from worldstereo_ros.pipelines.stereo.figures import Figures
from worldstereo_ros.pipelines.stereo.frame_geometry import GeometryTracker
from worldstereo_ros.pipelines.stereo.frame_sources import FrameSource, StereoInput
from worldstereo_ros.pipelines.stereo.pipeline import StereoFrame
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.utils.atomic_files import write_bytes, write_json
from worldstereo_ros.utils.errors import InputError

logger = logging.getLogger(__name__)

PART_FRAMES = 100
STATE_FILE, RUN_FILE = "state.npz", "run.json"
NO_SENSOR = (
    "The made eye shows the depth that went into it and nothing more: it is for people to look at and for software "
    "that needs two images, and no sensor."
)
NOTABLE_CLAMPED = 0.01  # fraction of the pixels with limited disparity that the user is told of


class StereoPipeline(Protocol):
    """Makes the other eye of frames in order; `GeometricStereo` is one."""

    @property
    def name(self) -> str:
        """For file descriptions and tables."""

    @property
    def settings(self) -> StereoSettings:
        """What the pair is to be like."""

    def make(self, image: np.ndarray, depth: np.ndarray, world_from_camera: np.ndarray | None = None) -> StereoFrame:
        """Makes the other eye of the next frame."""

    def restart(self) -> None:
        """Forgets all frames, as at a cut."""

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Resumes from a state."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        files: the stereo files, then the JSON file.
        description: content of the JSON file.
        resumed_at: number of the frame at which an earlier run was taken up; 0: from the start.
    """

    files: list[Path]
    description: dict[str, Any]
    resumed_at: int = 0


@dataclass(frozen=True)
class _Stream:
    """A file to write: its name's end, how its images follow from a frame, and how they are encoded."""

    suffix: str
    image: Callable[[StereoFrame], np.ndarray]
    codec: VideoCodec
    key: str = field(default="")


def convert(
    source: FrameSource,
    pipeline: StereoPipeline,
    out: Path,
    *,
    layout: str = "sbs",
    estimator: DepthEstimator | None = None,
    estimator_name: str = "",
    source_map: bool = False,
    on_frame: Callable[[int, int | None], None] = lambda done, count: None,
) -> Conversion:
    """Converts all frames of a source.

    Args:
        source: the frames.
        pipeline: makes the other eye.
        out: folder to write to: PNG files of a single image, else videos; beside each a JSON file.
        layout: one of `stereo_layouts.FORMATS`.
        estimator: for frames without measured depth; None: they are refused.
        estimator_name: of the estimator, for the JSON file.
        source_map: also write where each pixel of the made eye comes from: 255 seen, 128 remembered, 0 painted.
        on_frame: called with the number of frames done and of all (None: unknown).

    Returns:
        What was written. An interrupted conversion with the same arguments resumes where it stopped.

    Raises:
        InputError: the layout is unknown, a frame has no depth, or frames change in size.
        DatasetError: the source has no frame that can be used.
        WriteError: a file cannot be written.
    """
    streams = _streams(layout, source_map)
    packing = None if layout == LEFT_RIGHT else LAYOUTS[layout].packing
    tracker = GeometryTracker(source.camera, estimator)
    notes = [*source.notes, *pipeline.settings.notes]
    stem = source.path.stem if source.path.is_file() else source.path.resolve().name
    job = _Job(source, pipeline, tracker, out, stem, streams, on_frame)
    if source.single:
        files, sound, resumed = job.write_image(), "none in the source", 0
    else:
        if packing is not None and (problem := frame_packing_problem()):
            notes.append(problem)
            packing = None
        key = {"layout": layout, "source_map": source_map, "depth_model": estimator_name}
        files, sound, resumed = job.write_video(key)
    figures = job.figures
    notes += figures.damage_notes()
    clamped = figures.clamped / figures.read
    if clamped > NOTABLE_CLAMPED:
        notes.append(
            f"{clamped:.0%} of the pixels are so near that their disparity is limited to a quarter of the width; a "
            "smaller base or strength keeps their depth."
        )
    if sound.startswith("lost"):
        notes.append(f"The sound could not be kept ({sound.removeprefix('lost: ')}).")
    pixels = figures.seen + figures.remembered + figures.painted
    description = {
        "made_by": f"worldstereo stereo {__version__}, pipeline {pipeline.name}",
        "source": source.path.name,
        "format": layout,
        **pipeline.settings.description(),
        "unit": "metre" if source.metric else "arbitrary: base and convergence are in the unit of the depth",
        "camera": {name: getattr(source.camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")},
        "frame_packing": packing if not source.single else None,
        "frames_per_second": None if source.single else source.rate,
        "variable_rate_source": source.variable_rate,
        "frames_read": figures.read,
        "frames_damaged": figures.damaged,
        "frames_written": figures.written,
        "depth": {
            "measured_frames": figures.read - figures.estimated - figures.black,
            "estimated_frames": figures.estimated,
            "model": (estimator_name or "small") if figures.estimated else None,
            "black_frames": figures.black,
        },
        "cuts": tracker.cuts,
        "poses_lost": tracker.lost,
        "made_eye_pixels": {
            "seen": figures.seen / pixels,
            "remembered": figures.remembered / pixels,
            "painted": figures.painted / pixels,
        },
        "sound": sound,
        "notes": [*notes, NO_SENSOR],
    }
    path = out / f"{stem}{streams[0].suffix.removesuffix('_left')}.json"
    write_json(path, description)
    return Conversion([*files, path], description, resumed)


def _streams(layout: str, source_map: bool) -> list[_Stream]:
    if layout == LEFT_RIGHT:
        plain = h264(None)
        streams = [
            _Stream("_left", lambda frame: pad_to_even(frame.left), plain, "left"),
            _Stream("_right", lambda frame: pad_to_even(frame.right), plain, "right"),
        ]
    elif layout in LAYOUTS:
        chosen: StereoLayout = LAYOUTS[layout]
        streams = [
            _Stream(chosen.suffix, lambda frame: chosen.arrange(frame.left, frame.right), h264(chosen.packing), "eyes")
        ]
    else:
        raise InputError(f"The format '{layout}' is unknown; {', '.join((*LAYOUTS, LEFT_RIGHT))} were expected.")
    if source_map:
        streams.append(_Stream("_source", lambda frame: pad_to_even(frame.source[..., None])[..., 0], LABELS, "source"))
    return streams


class _Job:
    """One conversion: its source, its files and its figures."""

    def __init__(
        self,
        source: FrameSource,
        pipeline: StereoPipeline,
        tracker: GeometryTracker,
        out: Path,
        stem: str,
        streams: list[_Stream],
        on_frame: Callable[[int, int | None], None],
    ) -> None:
        self.source, self.pipeline, self.tracker, self.streams = source, pipeline, tracker, streams
        self.out, self.stem, self.on_frame = out, stem, on_frame
        self.figures = Figures()

    def make(self, given: StereoInput) -> StereoFrame:
        """The next frame of both eyes."""
        size = given.image.shape[1], given.image.shape[0]
        if size != (self.source.camera.width, self.source.camera.height):
            raise InputError(
                f"Frame {self.figures.read} of {self.source.path} is {size[0]}x{size[1]}, and the first is "
                f"{self.source.camera.width}x{self.source.camera.height}. Choose one size with --size."
            )
        geometry = self.tracker.step(given.image, given.depth, given.world_from_camera)
        if geometry.new_shot:
            self.pipeline.restart()
        frame = self.pipeline.make(given.image, geometry.depth, geometry.world_from_camera)
        self.figures.add(frame, given, estimated=geometry.estimated, black=geometry.black)
        self.on_frame(self.figures.read, self.source.count)
        return frame

    def write_image(self) -> list[Path]:
        """Writes the files of a single image."""
        given = next(self.source.read(0))
        frame = self.make(given)
        files = []
        for stream in self.streams:
            path = self.out / f"{self.stem}{stream.suffix}.png"
            write_image(path, np.ascontiguousarray(stream.image(frame)))
            files.append(path)
        return files

    def write_video(self, key: dict[str, Any]) -> tuple[list[Path], str, int]:
        """Writes the videos; returns (files, what became of the sound, frame at which an earlier run was taken up)."""
        folder = self.out / f".{self.stem}{self.streams[0].suffix}.parts"
        parts = self._resume(folder, key)
        resumed_at = self.figures.read
        frames = self.source.read(resumed_at)
        while self._write_part(folder, parts, frames):
            parts += 1
            self._save(folder, parts)
        if self.figures.written == 0:
            raise DatasetError(f"{self.source.path} has no frame that can be decoded; a video was expected.")
        files, sound = [], ""
        start_s = picture_start(self.source.sound) if self.source.sound is not None else 0.0
        for stream in self.streams:
            path = self.out / f"{self.stem}{stream.suffix}{stream.codec.suffix}"
            names = [_part(folder, number, stream) for number in range(parts)]
            with_sound = self.source.sound if stream.key != "source" else None
            outcome = join_parts(path, [name for name in names if name.is_file()], with_sound, start_s)
            sound = sound or outcome
            files.append(path)
        shutil.rmtree(folder, ignore_errors=True)
        return files, sound, resumed_at

    def _write_part(self, folder: Path, number: int, frames: Iterator[StereoInput]) -> bool:
        """Writes the next part; returns whether there was one."""
        first = next(frames, None)
        if first is None:
            return False
        with ExitStack() as stack:
            writers: list[PartWriter] = []
            given: StereoInput | None = first
            count = 0
            while given is not None:
                frame = self.make(given)
                count += 1
                if given.repeats and not writers:  # a part may hold frames only that are not shown
                    writers = [
                        stack.enter_context(PartWriter(_part(folder, number, s), self.source.rate, s.codec))
                        for s in self.streams
                    ]
                for writer, stream in zip(writers, self.streams, strict=False):
                    image = stream.image(frame) if given.repeats else None
                    for _ in range(given.repeats):
                        assert image is not None
                        writer.write(image)
                given = next(frames, None) if count < PART_FRAMES else None
        return True

    def _save(self, folder: Path, parts: int) -> None:
        """Saves how far it came, after the part was written."""
        state = {f"pipeline_{name}": array for name, array in self.pipeline.state().items()}
        state |= {f"tracker_{name}": array for name, array in self.tracker.state().items()}
        state["figures"] = np.array(json.dumps(vars(self.figures)))
        state["parts"] = np.array(parts)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **state)
        write_bytes(folder / STATE_FILE, content.getbuffer())

    def _resume(self, folder: Path, key: dict[str, Any]) -> int:
        """Takes up an earlier run of the same arguments; returns the number of its finished parts."""
        wanted = {
            **key,
            **self.pipeline.settings.description(),
            "pipeline": self.pipeline.name,
            "settings": vars(self.pipeline.settings),
            "version": __version__,
            "camera": vars(self.source.camera),
            "rate": self.source.rate,
            "source": _fingerprint(self.source.path),
            "options": self.source.options,
        }
        wanted = json.loads(json.dumps(wanted))
        try:
            found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            if found == wanted:
                with np.load(folder / STATE_FILE, allow_pickle=False) as file:
                    state = {name: file[name] for name in file.files}
                self._restore(state)
                return int(state["parts"])
        except (OSError, ValueError, KeyError) as error:
            logger.debug("No earlier run to resume in %s: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / RUN_FILE, wanted)
        return 0

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        def named(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}

        self.figures = Figures(**json.loads(str(state["figures"])))
        self.tracker.restore(named("tracker_"))
        self.pipeline.restore(named("pipeline_"))


def _part(folder: Path, number: int, stream: _Stream) -> Path:
    return folder / f"{stream.key}_{number:05d}{stream.codec.suffix}"


def _fingerprint(path: Path) -> list[Any]:
    """What tells a source from another one or a changed one: of a folder, all files in it."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return [str(path.absolute()), len(files), hashlib.sha256(repr(found).encode()).hexdigest()]
