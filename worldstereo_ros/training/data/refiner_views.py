"""Views for training the refiner: what memory and the regression model show of a view, and the true image.

Walks through worlds of the split `training` are observed as in evaluation, from one view or from a few, half of them
with the noise of a depth camera. The views are made once and kept in the run's folder, one file for each world.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from worldstereo_ros.evaluation import metrics
from worldstereo_ros.evaluation.protocols import Scenario, make_scenario
from worldstereo_ros.evaluation.world_sequences import WorldSequence, world_sequence
from worldstereo_ros.geometry.views import View
from worldstereo_ros.models.hole_refiner import PLAIN_CHANNELS, SOURCES
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import LayoutEstimator
from worldstereo_ros.pipelines.worldstereo.imagined_depth import render_planes
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.pipelines.worldstereo.refinement import view_inputs, working_size
from worldstereo_ros.scenes import SPLITS
from worldstereo_ros.scenes.sensor import SensorNoise, noisy_depth, noisy_image
from worldstereo_ros.world import WorldModel

PROTOCOLS = ("single", "sparse")
EVERY = 5  # n-th view of a walk
RANDOM_SCENARIOS, MAX_RANDOM_OBSERVED = 2, 3  # of a walk; of the views observed in one
MIN_UNSEEN_FRACTION = 0.02  # of a view that is kept
NOISY_PROB = 0.5
# Images are kept as bytes; other channels, which lie in about -2.5..2.5, as 1 / PLAIN_SCALE.
PLAIN_SCALE = 48.0


class RefinerViews(NamedTuple):
    """N views.

    Attributes:
        sources: (N, 3 * SOURCES, h, w) uint8, images of the regression model, planes, memory.
        plain: (N, PLAIN_CHANNELS, h, w) int8, other inputs times `PLAIN_SCALE`.
        unseen: (N, 1, h, w) uint8, 1 where no observation saw the true surface.
        truth: (N, 3, h, w) uint8.
    """

    sources: np.ndarray
    plain: np.ndarray
    unseen: np.ndarray
    truth: np.ndarray


def load_views(file: Path) -> RefinerViews:
    """The views of one file."""
    loaded = load_file(file)
    return RefinerViews(*(loaded[name] for name in RefinerViews._fields))


class ViewMakers:
    """Context manager: makes views in processes of its own, each with one thread on the CPU, or in this one.

    Args:
        folder: where files are kept, one for each world; those that are there are not made again.
        checkpoint: root of the model that imagines the views.
        processes: number of processes; 0: this one makes them.
        render_device: device that renders the worlds.
    """

    def __init__(self, folder: Path, checkpoint: Path, processes: int = 0, render_device: str = "cpu") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.safetensors.*.part"):
            unfinished.unlink()
        self._arguments, self.processes = (checkpoint, render_device), processes
        self._own: _Maker | None = None
        self._pool: Any = None

    def __enter__(self) -> ViewMakers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def files(self, split: str, worlds: int = 0) -> Iterator[Path]:
        """The files of the first `worlds` worlds of a split, in order, each made when it is asked for or before.

        Args:
            split: one of `scenes.SPLITS`.
            worlds: number of worlds; 0: all.
        """
        indices = range(worlds or len(SPLITS[split]))
        made = self._made(split, indices) if self.processes else self._made_here(split, indices)
        return (file for file in made if file is not None)

    def _made_here(self, split: str, indices: range) -> Iterator[Path | None]:
        self._own = self._own or _Maker(*self._arguments)
        return (self._own(self.folder, split, index) for index in indices)

    def _made(self, split: str, indices: range) -> Iterator[Path | None]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked process could not use the threads of torch
            self._pool = context.Pool(self.processes, _start_process, self._arguments)
        pool, remaining = self._pool, iter(indices)

        def tasks(count: int) -> list[Any]:
            return [
                pool.apply_async(_make_in_process, (self.folder, split, index))
                for index in itertools.islice(remaining, count)
            ]

        waiting = deque(tasks(2 * self.processes))  # at once, also if the first file is asked for later

        def results() -> Iterator[Path | None]:
            while waiting:
                yield waiting.popleft().get()
                waiting.extend(tasks(1))

        return results()

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


_maker: _Maker | None = None  # of a process of the pool


def _start_process(checkpoint: Path, render_device: str) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the training, which ends these processes
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _maker = _Maker(checkpoint, render_device)


def _make_in_process(folder: Path, split: str, index: int) -> Path | None:
    assert _maker is not None
    return _maker(folder, split, index)


class _Maker:
    """Makes the files of worlds; loads the model when the first one is missing.

    Args:
        checkpoint: root of the model.
        render_device: device that renders the worlds.
    """

    def __init__(self, checkpoint: Path, render_device: str = "cpu") -> None:
        self._checkpoint, self._render_device = checkpoint, render_device
        self._pipeline: Any = None

    def __call__(self, folder: Path, split: str, index: int) -> Path | None:
        """The file of a world, made if there is none; None for a world without a free path."""
        file = folder / f"{split}-{index:05d}.safetensors"
        if file.is_file():
            return file
        try:
            sequence = world_sequence(split, index, device=self._render_device)
        except ValueError:  # no free path
            return None
        if self._pipeline is None:
            self._pipeline = WorldStereoPipeline.from_pretrained(self._checkpoint, refiner=None, fill="smooth")
            self._pipeline.geometric.threads = torch.get_num_threads()
        views = list(_sample_views(sequence, self._pipeline, np.random.default_rng(index)))
        stacked = [np.stack(arrays) for arrays in zip(*views, strict=True)] if views else _no_views(sequence)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file(dict(zip(RefinerViews._fields, stacked, strict=True)), part)
        part.replace(file)
        return file


def _scenarios(sequence: WorldSequence, random: np.random.Generator) -> Iterator[Scenario]:
    """What was observed: the first view, a few views of the whole walk, and views at random."""
    for protocol in PROTOCOLS:
        yield make_scenario(sequence, protocol, EVERY)
    held_out = list(range(1, len(sequence), EVERY))
    for _ in range(RANDOM_SCENARIOS):
        chosen = random.choice(held_out, size=int(random.integers(1, MAX_RANDOM_OBSERVED + 1)), replace=False)
        others = [index for index in held_out if index not in chosen]
        yield Scenario(
            [sequence[int(index)] for index in chosen],
            sequence.subset(others),
            sequence.poses[others],
            list(range(len(others))),
        )


def _no_views(sequence: WorldSequence) -> list[np.ndarray]:
    size = working_size(sequence.camera.height, sequence.camera.width)
    channels = (3 * SOURCES, PLAIN_CHANNELS, 1, 3)
    return [np.zeros((0, c, *size), np.int8 if c == PLAIN_CHANNELS else np.uint8) for c in channels]


def _sample_views(sequence: WorldSequence, pipeline: Any, random: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Yields fields of `RefinerViews` for each view of a walk that shows something unseen."""
    noisy = random.random() < NOISY_PROB
    for scenario in _scenarios(sequence, random):
        observed = [_with_noise(view, random) if noisy else view for view in scenario.observed_views]
        recorder = _Recorder(pipeline)
        world = WorldModel(recorder, depth_estimator=None)
        for view in observed:
            world.observe(view)
        camera = scenario.target_views.camera
        for _ in world.imagine(scenario.path, camera):
            pass
        estimate_layout = LayoutEstimator()
        for number, position in enumerate(scenario.evaluated):
            truth = scenario.target_views[number]
            assert truth.depth is not None
            unseen = (truth.depth > 0) & ~metrics.seen_pixels(truth, scenario.views_with_depth)
            if unseen.mean() < MIN_UNSEEN_FRACTION:
                continue
            conditioning, index, frame = recorder.frames[position]
            warped = pipeline.geometric.warp(conditioning, index)
            layout = estimate_layout(conditioning.references)
            planes = render_planes(frame, conditioning, index, layout)
            seed = int(random.integers(1 << 31))
            _, (sources, plain) = view_inputs(frame, warped, conditioning, index, layout, planes, seed=seed)
            yield (
                ((sources.numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8),
                (plain.numpy() * PLAIN_SCALE).round().clip(-127, 127).astype(np.int8),
                unseen[None].astype(np.uint8),
                np.ascontiguousarray(truth.image.transpose(2, 0, 1)),
            )


class _Recorder:
    """A pipeline that keeps what it was given and what it gave."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = pipeline.selects_references
        self.frames: list[tuple[Conditioning, int, PipelineFrame]] = []

    def __call__(self, conditioning: Conditioning, **arguments: Any) -> Iterator[PipelineFrame]:
        for index, frame in enumerate(self._pipeline(conditioning, **arguments)):
            self.frames.append((conditioning, index, frame))
            yield frame


def _with_noise(view: View, random: np.random.Generator) -> View:
    """A view as a depth camera sees it; its exposure and colours stay."""
    strength = random.uniform(0.2, 1.5)
    noise = SensorNoise(
        drift=0.0,
        shot=0.02 * strength,
        disparity=0.08 * strength,
        far=random.uniform(6.0, 12.0),
        vignetting=0.0,
    )
    generator = torch.Generator().manual_seed(int(random.integers(1 << 31)))
    assert view.depth is not None
    image = noisy_image(torch.from_numpy(view.image)[None], noise, generator)[0].numpy()
    depth = noisy_depth(torch.from_numpy(view.depth)[None], view.camera, noise, generator, None)[0].numpy()
    return replace(view, image=image, depth=depth)


def as_tensors(views: Any) -> tuple[torch.Tensor, ...]:
    """Views as float32 tensors: sources, plain, unseen, truth; images in [-1, 1].

    Args:
        views: tensors in the order of `RefinerViews`.
    """
    sources, plain, unseen, truth = (array.float() for array in views)
    return sources / 127.5 - 1, plain / PLAIN_SCALE, unseen, truth / 127.5 - 1
